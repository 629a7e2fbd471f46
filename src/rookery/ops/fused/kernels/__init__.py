"""The fused operators as Triton kernels; imported by the first call on a GPU, since it imports Triton.

Every kernel reads its inputs once and writes its outputs once; backward passes compute again what lies in
between. A parameter's gradient is a sum over tokens: each program writes the sum over its own, and
``parts.add_up`` adds these up in order, so that equal inputs give equal gradients.
"""

__all__ = []
