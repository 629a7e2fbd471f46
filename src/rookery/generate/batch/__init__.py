"""Many streams decoded together by torch, in memory that stays where it is; what makes CUDA graphs possible.

    decoder = BatchDecoder(rookery.load(path, backend="torch").backend, max_streams=64)
    stream = decoder.join(tokenizer.encode("It was a"), sampling=SamplingParams(temperature=0.8, seed=1))
    while (token := decoder.step()[stream]) != tokenizer.end_of_text: ...
    state, unread, sampler = decoder.leave(stream)

``decoder.py`` has the streams and their slots, ``slots.py`` the memory of the slots, ``sampling.py`` the
sampling, ``recorded.py`` the graphs.
"""

from __future__ import annotations

from rookery.generate.batch.decoder import BatchDecoder, Left
from rookery.generate.batch.sampling import NO_TOKEN

__all__ = ["NO_TOKEN", "BatchDecoder", "Left"]
