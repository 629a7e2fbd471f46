"""Names and forms of tensors in GGUF files, against the official ones.

RWKV-6 and 7 are llama.cpp's architectures ``rwkv6`` and ``rwkv7``. It has none for RWKV-4 and 5: theirs,
``rwkv4`` and ``rwkv5``, follow the same conventions, with the official ``time_mix`` (which weighs the current
token) under the names ``lerp``. The variant of RWKV-5 shows in the tensors.

    form         in the file                        official
    matrix       [outputs, inputs]                  the same
    transposed   [outputs, inputs]                  [inputs, outputs]; the last two axes of three
    vector       [n], float32                       [n] or [1, 1, n]
    heads        [H, K], float32                    [H, K]
    flat         [H K], float32                     [H, K]
"""

from __future__ import annotations

from dataclasses import dataclass

from rookery.config import Version

__all__ = ["ARCHITECTURES", "COPIED_7", "LERP_FUSED", "Row", "lerp_letters", "names"]

ARCHITECTURES: dict[str, str] = {"4": "rwkv4", "5": "rwkv5", "6": "rwkv6", "7": "rwkv7"}
"""Generation -> architecture."""

LERP_FUSED = "time_mix_lerp_fused.weight"
"""Where RWKV-6 and 7 have the weights of all token shifts, [letters, 1, 1, D]."""

COPIED_7 = {"att.v0": "att.a0", "att.v1": "att.a1", "att.v2": "att.a2"}
"""What llama.cpp's files have in layer 0 of RWKV-7 for tensors that nothing reads."""


@dataclass(frozen=True)
class Row:
    """One tensor."""

    name: str
    """In the file."""

    form: str
    """A row of the table above."""

    @property
    def is_matrix(self) -> bool:
        """Whether its type is that of the file, not float32."""
        return self.form in ("matrix", "transposed")


def _norm(official: str, name: str) -> dict[str, Row]:
    return {f"{official}.{part}": Row(f"{name}.{part}", "vector") for part in ("weight", "bias")}


def _matrices(**there: str) -> dict[str, Row]:
    return {
        f"{official.replace('_', '.', 1)}.weight": Row(f"{name}.weight", "matrix")
        for official, name in there.items()
    }


def _vectors(**there: str) -> dict[str, Row]:
    return {
        official.replace("_", ".", 1): Row(f"{name}.weight", "vector") for official, name in there.items()
    }


def _lerps(official: str, letters: str) -> dict[str, Row]:
    return {f"{official}{x}": Row(f"time_mix_lerp_{x}.weight", "vector") for x in letters}


_BEFORE = {"emb.weight": Row("token_embd.weight", "matrix")}
_LN0 = _norm("ln0", "token_embd_norm")
_AFTER = {**_norm("ln_out", "output_norm"), "head.weight": Row("output.weight", "matrix")}

_NORMS = {**_norm("ln1", "attn_norm"), **_norm("ln2", "attn_norm_2")}
_PROJECTIONS = _matrices(
    att_receptance="time_mix_receptance",
    att_key="time_mix_key",
    att_value="time_mix_value",
    att_output="time_mix_output",
)
_GATE = _matrices(att_gate="time_mix_gate")
_LN_X = _norm("att.ln_x", "time_mix_ln")
_CHANNEL_MATRICES = _matrices(
    ffn_key="channel_mix_key", ffn_value="channel_mix_value", ffn_receptance="channel_mix_receptance"
)
_CHANNEL_MIXING_4 = {
    **_vectors(ffn_time_mix_k="channel_mix_lerp_k", ffn_time_mix_r="channel_mix_lerp_r"),
    **_CHANNEL_MATRICES,
}
_DECAY_FIRST = _vectors(att_time_decay="time_mix_decay", att_time_first="time_mix_first")
_FAAAA = {"att.time_faaaa": Row("time_mix_first.weight", "heads")}
_4 = {**_DECAY_FIRST, **_lerps("att.time_mix_", "kvr"), **_PROJECTIONS, **_CHANNEL_MIXING_4}
_GATED_5 = {**_lerps("att.time_mix_", "kvrg"), **_PROJECTIONS, **_GATE, **_LN_X, **_CHANNEL_MIXING_4}

# The tensors of a block, by version.
_BLOCKS: dict[Version, dict[str, Row]] = {
    "4": _4,
    "5.0": {**_4, **_LN_X},
    "5.1": {**_DECAY_FIRST, **_GATED_5},
    "5.2": {"att.time_decay": Row("time_mix_decay.weight", "heads"), **_FAAAA, **_GATED_5},
    "6": {
        **_vectors(att_time_maa_x="time_mix_lerp_x", att_time_decay="time_mix_decay"),
        **_lerps("att.time_maa_", "wkvrg"),
        "att.time_maa_w1": Row("time_mix_w1.weight", "transposed"),
        "att.time_maa_w2": Row("time_mix_w2.weight", "transposed"),
        "att.time_decay_w1": Row("time_mix_decay_w1.weight", "transposed"),
        "att.time_decay_w2": Row("time_mix_decay_w2.weight", "transposed"),
        **_FAAAA,
        **_PROJECTIONS,
        **_GATE,
        **_LN_X,
        **_vectors(ffn_time_maa_k="channel_mix_lerp_k", ffn_time_maa_r="channel_mix_lerp_r"),
        **_CHANNEL_MATRICES,
    },
    "7": {
        **_lerps("att.x_", "rwkvag"),
        **_vectors(**{f"att_{x}0": f"time_mix_{x}0" for x in "wav"}),
        **{f"att.{x}{n}": Row(f"time_mix_{x}{n}.weight", "transposed") for x in "wavg" for n in "12"},
        **_vectors(att_k_k="time_mix_k_k", att_k_a="time_mix_k_a"),
        "att.r_k": Row("time_mix_r_k.weight", "flat"),
        **_PROJECTIONS,
        **_LN_X,
        **_vectors(ffn_x_k="channel_mix_lerp_k"),
        **_matrices(ffn_key="channel_mix_key", ffn_value="channel_mix_value"),
    },
}

# In the order in which ``time_mix_lerp_fused`` has them.
_LERP_LETTERS: dict[Version, tuple[str, str]] = {"6": ("att.time_maa_", "wkvrg"), "7": ("att.x_", "rwkvag")}


def names(version: Version, num_layers: int) -> dict[str, Row]:
    """Official name -> the tensor in the file, in official terms of blocks: ``blocks.0.`` is ``blk.0.``.

    The parts of ``time_mix_lerp_fused`` are listed one by one, under the names that files without it have.
    """
    rows = dict(_BEFORE)
    for layer in range(num_layers):
        if layer == 0:
            rows |= {f"blocks.0.{official}": row for official, row in _LN0.items()}
        rows |= {
            f"blocks.{layer}.{official}": Row(f"blk.{layer}.{row.name}", row.form)
            for official, row in (_NORMS | _BLOCKS[version]).items()
        }
    return rows | _AFTER


def lerp_letters(version: Version) -> tuple[str, str] | None:
    """How the official names of the fused token shifts begin, and the letters they end with, in order."""
    return _LERP_LETTERS.get(version)
