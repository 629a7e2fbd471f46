"""The native engine: see rookery.native, which is its face."""

from collections.abc import Sequence
from typing import Annotated

import numpy
import numpy.typing
from numpy.typing import NDArray


MAX_THREADS: int = 256

def default_threads() -> int:
    """
    Physical cores that this process may run on, and no more than its control group's quota allows.
    """

def instruction_set() -> str:
    """The name of the instruction set in force."""

def available_instruction_sets() -> list[str]:
    """
    Names of the instruction sets that this machine runs, the slowest first.
    """

def force_instruction_set(name: str) -> None:
    """
    Use one from now on, in the whole process. Raises ValueError where it is unknown or not available.
    """

class Arena:
    """Memory for the weights of one model."""

    def __init__(self) -> None: ...

    @property
    def bytes(self) -> int:
        """Bytes handed out."""

class Matrix:
    """
    A weight matrix [rows, columns] as the kernels read it (csrc/matrix.h).
    """

    def __init__(self, arena: Arena, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], *, source: str, rows: int, columns: int, type: str, layout: str = 'panels', transposed: bool = False, threads: int = 1) -> None: ...

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def multiply(self, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], threads: int = 1) -> NDArray[numpy.float32]:
        """x [T, columns] float32 times the transpose: [T, rows] float32."""

def quantize(data: Annotated[numpy.typing.NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], *, source: str, rows: int, columns: int, type: str, threads: int = 1) -> tuple[numpy.typing.NDArray[numpy.uint8], float, float]:
    """
    Rows of a matrix to blocks of q8_0 or q4_0: uint8 [rows, columns / 32 * bytes of a block], the sum of squared errors, and the sum of squared weights.
    """

class ReadProbe:
    """Memory that lies as weights do, to be read by a number of threads."""

    def __init__(self, bytes: int, threads: int) -> None: ...

    def bandwidth(self, repetitions: int = 5) -> float:
        """Bytes read per second; the best repetition."""

def int8_peak(threads: int, repetitions: int = 20) -> float:
    """
    Operations per second of dot products of 8-bit integers, on registers; the best repetition.
    """

def bf16_peak(threads: int, repetitions: int = 20) -> float:
    """
    Operations per second of dot products of bfloat16, on registers; the best repetition.
    """

def fp32_peak(threads: int, repetitions: int = 20) -> float:
    """
    Operations per second of products and sums in float32, on registers; the best repetition.
    """

def time_products(matrices: Sequence[Matrix], inputs: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]], threads: int, repetitions: int) -> list[float]:
    """
    Seconds of each repetition of multiplying every matrix with its inputs [T, columns] float32, in turn.
    """

def bytes_read(matrix: Matrix, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
    """
    Bytes of a matrix that are read to multiply it with x [columns] float32.
    """

class SamplingOptions:
    """What SamplingParams says, checked there."""

    def __init__(self, *, temperature: float, top_k: int, top_p: float, min_p: float, temperature_last: bool, presence_penalty: float, frequency_penalty: float, repetition_penalty: float, banned: Sequence[int]) -> None: ...

def sample(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], streams: list, threads: int = 1) -> list[int]:
    """
    Tokens for logits [B, N] float32, of B tuples (options, tokens int64 [M], counts float64 [M], seed, step); -1 where the definition (rookery.generate.sampling) raises an error.
    """

def candidate_weights(logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], stream: tuple) -> object:
    """
    What `sample` draws from: float64 [N], 0 where truncated; None where it gives -1.
    """

class Model:
    """
    A model whose weights are packed; rookery.native.NativeModel is its face.
    """

    def __init__(self, version: str, sizes: dict, vectors: dict, matrices: dict, embedding: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], embedding_type: str, threads: int) -> None: ...

    @property
    def threads(self) -> int: ...

    def step(self, tokens: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], counts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], time_shift: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], channel_shift: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], wkv: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], time_shift_after: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], channel_shift_after: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], wkv_after: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], all_logits: bool) -> tuple[str, int, int] | None:
        """
        Run tokens of several streams, and write states and logits. Returns None, or where a state holds NaN or infinity: the name of the part, the layer and the slot.
        """

    def score(self, tokens: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], counts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], time_shift: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], channel_shift: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], wkv: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], targets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], log_probabilities: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu')], likeliest: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> tuple[str, int, int] | None:
        """
        Run tokens of several streams in place, and write the log-probabilities of targets after some of them. Returns what `step` does.
        """

CHUNK_TOKENS: int = 16

def wkv4_forward(log_w: Annotated[NDArray, dict(device='cpu')], u: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], state: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, y: Annotated[NDArray, dict(device='cpu')], after: Annotated[NDArray, dict(device='cpu')], states: Annotated[NDArray, dict(device='cpu')] | None, threads: int) -> None:
    """Writes y, after, and where it is given states."""

def wkv4_backward(log_w: Annotated[NDArray, dict(device='cpu')], u: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, states: Annotated[NDArray, dict(device='cpu')], dy: Annotated[NDArray, dict(device='cpu')], dafter: Annotated[NDArray, dict(device='cpu')] | None, dlog_w: Annotated[NDArray, dict(device='cpu')], du: Annotated[NDArray, dict(device='cpu')], dk: Annotated[NDArray, dict(device='cpu')], dv: Annotated[NDArray, dict(device='cpu')], dstate: Annotated[NDArray, dict(device='cpu')], threads: int) -> None:
    """Writes dlog_w and what follows."""

def wkv6_forward(r: Annotated[NDArray, dict(device='cpu')], log_w: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], u: Annotated[NDArray, dict(device='cpu')], state: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, y: Annotated[NDArray, dict(device='cpu')], after: Annotated[NDArray, dict(device='cpu')], states: Annotated[NDArray, dict(device='cpu')] | None, threads: int) -> None:
    """Writes y, after, and where it is given states."""

def wkv6_backward(r: Annotated[NDArray, dict(device='cpu')], log_w: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], u: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, states: Annotated[NDArray, dict(device='cpu')], dy: Annotated[NDArray, dict(device='cpu')], dafter: Annotated[NDArray, dict(device='cpu')] | None, dr: Annotated[NDArray, dict(device='cpu')], dlog_w: Annotated[NDArray, dict(device='cpu')], dk: Annotated[NDArray, dict(device='cpu')], dv: Annotated[NDArray, dict(device='cpu')], du: Annotated[NDArray, dict(device='cpu')], dstate: Annotated[NDArray, dict(device='cpu')], threads: int) -> None:
    """Writes dr and what follows."""

def wkv7_forward(r: Annotated[NDArray, dict(device='cpu')], log_w: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], a: Annotated[NDArray, dict(device='cpu')], b: Annotated[NDArray, dict(device='cpu')], state: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, y: Annotated[NDArray, dict(device='cpu')], after: Annotated[NDArray, dict(device='cpu')], states: Annotated[NDArray, dict(device='cpu')] | None, found: Annotated[NDArray, dict(device='cpu')] | None, threads: int) -> None:
    """Writes y, after, and where they are given states and found."""

def wkv7_backward(r: Annotated[NDArray, dict(device='cpu')], log_w: Annotated[NDArray, dict(device='cpu')], k: Annotated[NDArray, dict(device='cpu')], v: Annotated[NDArray, dict(device='cpu')], a: Annotated[NDArray, dict(device='cpu')], b: Annotated[NDArray, dict(device='cpu')], starts: Annotated[NDArray, dict(device='cpu')] | None, states: Annotated[NDArray, dict(device='cpu')], found: Annotated[NDArray, dict(device='cpu')], dy: Annotated[NDArray, dict(device='cpu')], dafter: Annotated[NDArray, dict(device='cpu')] | None, dr: Annotated[NDArray, dict(device='cpu')], dlog_w: Annotated[NDArray, dict(device='cpu')], dk: Annotated[NDArray, dict(device='cpu')], dv: Annotated[NDArray, dict(device='cpu')], da: Annotated[NDArray, dict(device='cpu')], db: Annotated[NDArray, dict(device='cpu')], dstate: Annotated[NDArray, dict(device='cpu')], threads: int) -> None:
    """Writes dr and what follows."""

def token_shift_forward(x: Annotated[NDArray, dict(device='cpu')], last: Annotated[NDArray, dict(device='cpu')] | None, starts: Annotated[NDArray, dict(device='cpu')] | None, weights: Sequence[Annotated[NDArray, dict(device='cpu')]], to_present: bool, varying: bool, outputs: Sequence[Annotated[NDArray, dict(device='cpu')]], threads: int) -> None:
    """Writes the outputs."""

def token_shift_backward(x: Annotated[NDArray, dict(device='cpu')], last: Annotated[NDArray, dict(device='cpu')] | None, starts: Annotated[NDArray, dict(device='cpu')] | None, weights: Sequence[Annotated[NDArray, dict(device='cpu')]], to_present: bool, varying: bool, doutputs: Sequence[Annotated[NDArray, dict(device='cpu')]], dx: Annotated[NDArray, dict(device='cpu')], dlast: Annotated[NDArray, dict(device='cpu')] | None, dweights: Sequence[Annotated[NDArray, dict(device='cpu')]], sums: Annotated[NDArray, dict(device='cpu')] | None, threads: int) -> None:
    """Writes dx and what follows."""

def rwkv7_inputs_forward(inputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], vectors: Sequence[Annotated[NDArray, dict(device='cpu')]], results: Sequence[Annotated[NDArray, dict(device='cpu')] | None], heads: int, threads: int) -> None:
    """Writes the results."""

def rwkv7_inputs_backward(inputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], vectors: Sequence[Annotated[NDArray, dict(device='cpu')]], dresults: Sequence[Annotated[NDArray, dict(device='cpu')] | None], dinputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], sums: Annotated[NDArray, dict(device='cpu')], heads: int, threads: int) -> None:
    """Writes dinputs and sums."""

def rwkv7_output_forward(inputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], vectors: Sequence[Annotated[NDArray, dict(device='cpu')]], result: Annotated[NDArray, dict(device='cpu')], heads: int, epsilon: float, threads: int) -> None:
    """Writes the result."""

def rwkv7_output_backward(inputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], vectors: Sequence[Annotated[NDArray, dict(device='cpu')]], dresult: Annotated[NDArray, dict(device='cpu')], dinputs: Sequence[Annotated[NDArray, dict(device='cpu')] | None], sums: Annotated[NDArray, dict(device='cpu')], heads: int, epsilon: float, threads: int) -> None:
    """Writes dinputs and sums."""

def squared_relu_forward(x: Annotated[NDArray, dict(device='cpu')], y: Annotated[NDArray, dict(device='cpu')], threads: int) -> None:
    """Writes y."""

def squared_relu_backward(y: Annotated[NDArray, dict(device='cpu')], dy: Annotated[NDArray, dict(device='cpu')], dx: Annotated[NDArray, dict(device='cpu')], threads: int) -> None:
    """Writes dx."""
