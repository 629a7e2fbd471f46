"""The frame of every model: embedding, blocks of time mixing and channel mixing, head.

    logits, state = model(tokens, state)       tokens [B, T] -> logits [B, T, N]

An architecture says which mixings its blocks have, and what form its state has for those who call it; the
loop over the layers is here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from rookery.errors import ConfigError
from rookery.models.channel_mixing import ChannelMixing
from rookery.models.initial import orthogonal, uniform
from rookery.models.time_mixing import Sizes, TimeMixing
from rookery.ops.fused import add_norm

__all__ = ["Block", "LayerState", "SequenceModel"]

Config = TypeVar("Config", bound=Sizes)
ModelState = TypeVar("ModelState")


class LayerState(NamedTuple):
    """What one block carries from one call to the next."""

    time_mixing: Any
    """The state of the time mixing: a tuple of tensors, or a tree of such tuples."""

    channel_shift: Any
    """[B, D]: the last input of the channel mixing; an empty tuple where it carries nothing."""


class Block(nn.Module):
    """One layer: ``x + att(ln1(x))``, then ``x + ffn(ln2(x))``. The first normalises the embedding too.

    The last sum is left to the norm after it, the next layer's or the last one: a GPU makes both in one pass.
    """

    def __init__(
        self,
        width: int,
        time_mixing: TimeMixing[Any],
        channel_mixing: ChannelMixing,
        *,
        normalise_input: bool,
        parallel: bool = False,
        epsilon: float = 1e-5,
    ):
        """Put two mixings together.

        Args:
            width: D.
            time_mixing: registered as ``att``.
            channel_mixing: registered as ``ffn``.
            normalise_input: whether a layer norm of its own, ``ln0``, comes before everything.
            parallel: give the channel mixing what the time mixing gets, as GPT-NeoX does, and not its sum.
            epsilon: of the layer norms.
        """
        super().__init__()
        self.parallel = parallel
        self.ln0 = nn.LayerNorm(width, epsilon) if normalise_input else nn.Identity()
        self.ln1 = nn.LayerNorm(width, epsilon)
        self.ln2 = nn.LayerNorm(width, epsilon)
        self.att = time_mixing
        self.ffn = channel_mixing

    def forward(
        self,
        x: Tensor,
        added: Tensor | None = None,
        state: LayerState | None = None,
        v_first: Any = None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, Tensor, LayerState, Any]:
        """Run one layer over one span of every stream.

        Args:
            x: [B, T, D], the residual stream.
            added: [B, T, D], what the layer before adds to it; None in the first layer.
            state: what the last call returned; None at the start of a text.
            v_first: what the first block passes up to all others; see ``TimeMixing.forward``.
            starts: [B, T] bool, the first token of each document.
            implementation: of the recurrence; by default the best one.

        Returns:
            x and what this layer adds to it, both [B, T, D], the new state, and ``v_first`` for the next
            block.
        """
        time_mixing, channel_shift = state if state is not None else (None, None)
        x, normal = _add_norm(self.ln0(x), added, self.ln1)
        mixed, time_mixing, v_first = self.att(
            normal, time_mixing, v_first, starts=starts, implementation=implementation
        )
        x, normal = _add_norm(x, None if self.parallel else mixed, self.ln2)
        expanded, channel_shift = self.ffn(normal, channel_shift, starts=starts)
        adds = mixed + expanded if self.parallel else expanded
        return x, adds, LayerState(time_mixing, channel_shift), v_first


def _add_norm(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return add_norm(x, added, norm.weight, norm.bias, epsilon=norm.eps)


class SequenceModel(nn.Module, ABC, Generic[Config, ModelState]):
    """A language model of such blocks. A subclass says what form its state has between calls."""

    recompute: bool = False
    """Whether training keeps of each block its inputs alone, and computes it again in the backward pass."""

    def __init__(self, config: Config, blocks: Iterable[Block], *, epsilon: float = 1e-5):
        super().__init__()
        self.config: Config = config
        self.emb = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(config.width, epsilon)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
        last_only: bool = False,
        head: bool = True,
    ) -> tuple[Tensor, ModelState]:
        """Read tokens, predict the next one after each. One token is decoding, more are training or prefill.

        Args:
            tokens: [B, T] ids, int64 (or int32).
            state: of B streams, as the last call returned it, never written into; None at the start.
            starts: [B, T] bool, the first token of each document where several are packed in a row: at these
                tokens the state starts anew.
            implementation: of the recurrence, by name; by default the best one (see ``rookery.ops``). Mixings
                without one of those recurrences ignore it.
            last_only: compute the logits of the last position alone.
            head: False leaves the head out, and gives what it would read, [B, T, D], in place of the logits.

        Returns:
            logits [B, T, N] (or [B, 1, N]) in the dtype of the weights (under autocast, in its dtype), and
            the state after the last token: what recurrences remember in float32, all else in the dtype of
            the activations.

        Raises:
            ConfigError: tokens or starts of a wrong shape or dtype, no tokens, or an id outside of the
                vocabulary (checked on the CPU; elsewhere the check would wait for the device).
            StateError: the state is of another model or number of streams.
        """
        self._check_tokens(tokens, starts)
        layers: Sequence[LayerState | None] = [None] * len(self.blocks)
        if state is not None:
            self.check_state(state, tokens.shape[0])
            layers = self.split_state(state)
        x, added, v_first = self.emb(tokens), None, None
        after = []
        for block, before in zip(self.blocks, layers, strict=True):
            run = block
            if self.recompute and torch.is_grad_enabled():
                run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            x, added, layer_state, v_first = run(
                x, added, before, v_first, starts=starts, implementation=implementation
            )
            after.append(layer_state)
        if last_only:
            x, added = x[:, -1:], None if added is None else added[:, -1:]
        _, x = _add_norm(x, added, self.ln_out)
        return self.head(x) if head else x, self.join_state(after)

    def step_in_place(
        self, tokens: Tensor, layers: Sequence[LayerState], *, implementation: str | None = None
    ) -> Tensor:
        """One token of every stream, the new state written over the old one: for memory that stays in place.

        The one exception to the rule that a state is never written into. Nothing is checked, so that nothing
        waits for the device.

        Args:
            tokens: [B] ids.
            layers: what each layer carries, tensors alone; written into.
            implementation: of the recurrence.

        Returns:
            The logits [B, N].
        """
        x, added, v_first = self.emb(tokens[:, None]), None, None
        for block, state in zip(self.blocks, layers, strict=True):
            x, added, after, v_first = block(x, added, state, v_first, implementation=implementation)
            for old, new in zip(tree_leaves(state), tree_leaves(after), strict=True):
                if new is not old:
                    old.copy_(new)
        return self.head(_add_norm(x, added, self.ln_out)[1])[:, 0]

    @abstractmethod
    def check_state(self, state: ModelState, streams: int) -> None:
        """Check that a state is one of this model, of so many streams.

        Raises:
            StateError: it is not.
        """

    @abstractmethod
    def split_state(self, state: ModelState) -> Sequence[LayerState]:
        """What each layer carries, of a checked state."""

    @abstractmethod
    def join_state(self, layers: list[LayerState]) -> ModelState:
        """The inverse of ``split_state``."""

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh float32 values of all parameters outside of the blocks, by name."""
        N, D = self.emb.weight.shape
        return {
            "emb.weight": uniform((N, D), generator, bound=1e-4),
            "ln_out.weight": torch.ones(D),
            "ln_out.bias": torch.zeros(D),
            "head.weight": orthogonal((N, D), generator, gain=0.5, by_shape=True),
        }

    def _check_tokens(self, tokens: Tensor, starts: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ConfigError(
                f"tokens must be integers of shape [B, T], not {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if tokens.numel() == 0:
            raise ConfigError(f"there must be at least one token; tokens has shape {tuple(tokens.shape)}")
        if starts is not None and (starts.dtype != torch.bool or starts.shape != tokens.shape):
            raise ConfigError(
                f"starts must be bool of the tokens' shape {tuple(tokens.shape)}, "
                f"not {starts.dtype} of shape {tuple(starts.shape)}"
            )
        # Elsewhere than on the CPU, looking at the values would wait for the device at every call.
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ConfigError(
                    f"token {low if low < 0 else high} is outside of the vocabulary of "
                    f"{self.config.vocab_size}; was the text encoded by another model's tokenizer?"
                )
