"""RWKV-4 against ``RwkvForCausalLM`` of transformers: logits, and the gradient of every parameter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rookery.config import ModelConfig

transformers = pytest.importorskip("transformers")

RENAMED = (
    ("emb.", "rwkv.embeddings."),
    ("blocks.", "rwkv.blocks."),
    ("ln_out.", "rwkv.ln_out."),
    (".ln0.", ".pre_ln."),
    (".att.", ".attention."),
    (".ffn.", ".feed_forward."),
    ("time_mix_k", "time_mix_key"),
    ("time_mix_v", "time_mix_value"),
    ("time_mix_r", "time_mix_receptance"),
)


def their_name(name: str) -> str:
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("attention_width", [40, 56], ids=["A = D", "A > D"])
def test_logits_and_gradients(random_model, attention_width: int):
    config = ModelConfig(
        version="4", vocab_size=83, width=40, num_layers=3, attention_width=attention_width, ffn_width=104
    )
    model = random_model(config)
    other = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            attention_hidden_size=config.attention_width,
            intermediate_size=config.ffn_width,
            # Off: in evaluation it would halve the activations every so many layers, for fp16.
            rescale_every=0,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    other.load_state_dict({their_name(name): tensor for name, tensor in model.state_dict().items()})

    tokens = torch.randint(config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(1))
    logits, _ = model(tokens[:, :-1])
    wanted = other(tokens[:, :-1]).logits
    assert (logits - wanted).abs().max() / wanted.abs().max() < 1e-4

    for each in (logits, wanted):
        F.cross_entropy(each.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs = dict(other.named_parameters())
    assert len(theirs) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        want = theirs[their_name(name)].grad
        assert parameter.grad is not None
        assert want.abs().max() > 0, name
        assert (parameter.grad - want).abs().max() / want.abs().max() < 1e-4, name
