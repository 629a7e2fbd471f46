"""What a model does between its matrix products and around its recurrence, each a differentiable function.

Each has a formula in plain torch, for every device and dtype, and a ``torch.library`` operator over C++
(``csrc/mixing.h``), forward and backward, that a CPU uses in float32 and bfloat16, and over Triton that a GPU
uses: one pass over memory instead of one for each sum and product. What has Triton's alone (`add_norm`,
`head_norm`, `rwkv6_decay`, `sigmoid_gate`, the folding of `shifted_products`, `wkv7_with_output`) a CPU
computes by torch and by the others.
"""

from __future__ import annotations

from rookery.ops.fused.add_norm import add_norm
from rookery.ops.fused.cross_entropy import linear_cross_entropy
from rookery.ops.fused.head_norm import head_norm
from rookery.ops.fused.rwkv6_decay import rwkv6_decay
from rookery.ops.fused.rwkv7_inputs import Inputs7, Mix7, rwkv7_inputs
from rookery.ops.fused.rwkv7_output import rwkv7_output
from rookery.ops.fused.shifted_products import multiply, shifted_products
from rookery.ops.fused.sigmoid_gate import sigmoid_gate
from rookery.ops.fused.squared_relu import squared_relu
from rookery.ops.fused.token_shift import token_shift
from rookery.ops.fused.wkv7_with_output import wkv7_with_output

__all__ = [
    "Inputs7",
    "Mix7",
    "add_norm",
    "head_norm",
    "linear_cross_entropy",
    "multiply",
    "rwkv6_decay",
    "rwkv7_inputs",
    "rwkv7_output",
    "shifted_products",
    "sigmoid_gate",
    "squared_relu",
    "token_shift",
    "wkv7_with_output",
]
