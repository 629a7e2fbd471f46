"""A step of few streams of RWKV-7 in five kernels a layer.

Decoding few streams takes as long as reading the weights once, and as the pauses between kernels, in which
nothing is read. Operators one by one are some twenty kernels a layer; here a layer is five, which do what
lies between the matrices on the way:

    embed         embedding, ln0                                               x [M, D]
    project       ln1, token shift, r, k, v and first halves of low rank       projected [M, 3 A + R]
    mix           second halves, the recurrence, norm of heads, bonus, gate    y [M, A]
    add_product   x += W_o y                                                   x
    key           ln2, token shift, squared ReLU of W_k                        expanded [M, F]
    add_product   x += W_v expanded                                            x
    head          ln_out, head                                                 logits [M, N]

A kernel begins when the one before has ended: what its programs have in common, such as the moments of a
norm, each of them computes for itself. While some of them still read the state's shift, others must not
write it: `project` and `key` leave the norm in a place of its own, and the next `add_product` takes it over.

x and all sums are float32, where the operators round to the weights' dtype: results differ by that rounding.

``kernels.py`` is imported at the first step, since it imports Triton; ``weights.py`` says which models it
reads; ``step.py`` launches.
"""

from __future__ import annotations

from rookery.generate.batch.few.step import MOST_STREAMS, few_streams_step
from rookery.generate.batch.few.weights import Weights, serves, weights_of

__all__ = ["FEW_STREAMS", "MOST_STREAMS", "Weights", "few_streams_step", "serves", "weights_of"]

FEW_STREAMS = "few streams"
"""What ``implementation=`` forces it by."""
