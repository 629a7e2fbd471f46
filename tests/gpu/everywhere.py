"""A plugin that runs any tests as a machine with a GPU would, on the stand-in for one.

    python -m pytest -p tests.gpu.everywhere tests/ops

Kernels then run on "cuda" alone, and training takes the GPU where it may choose. Processes that tests start
have none.
"""

from tests.gpu import stand_in

stand_in.load(disguised=True)
