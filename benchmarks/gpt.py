"""A GPT of the same shape as the other side of a comparison: rotary positions, SDPA, a 4 D wide MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = ["GPT"]


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.ln1(x)).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True
        )
        x = x + self.output(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class GPT(nn.Module):
    """tokens [B, T] -> logits [B, T, N]."""

    recompute: bool = False
    """Whether training keeps of each block its inputs alone, and computes it again in the backward pass."""

    def __init__(self, *, vocab_size: int, width: int, num_layers: int, head_size: int = 64):
        super().__init__()
        self.head_size = head_size
        self.emb = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([_Block(width, width // head_size) for _ in range(num_layers)])
        self.ln_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of each position from the positions up to it."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, [B, T, D]."""
        half = self.head_size // 2
        frequency = 10000.0 ** (-torch.arange(half, device=tokens.device) / half)
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        x = self.emb(tokens)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin)
        return self.ln_out(x)
