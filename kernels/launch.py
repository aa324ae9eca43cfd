"""How the kernels are launched: a pure function of shapes, dtype and device, never of a measurement at run time."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

MAX_QUERY_BYTES = 32768  # of the queries of one image and iteration, padded, in the inputs' type
MAX_ITERATIONS_AT_ONCE = 8  # of the last backward pass; the more, the more stack bytes
FUSED = {"enable_fp_fusion": True}  # an option of every launch: Triton 3.9 warns without it, 3.10 turns it off


def query_bytes(shared_bytes: int) -> int:
    """The limit on the queries' bytes of an NVIDIA GPU with this much shared memory for a program.

    The last backward pass takes up to four times that, and 32 KB for the inputs: sm_80 has 163 KB, sm_86, sm_89 and
    sm_120 have 99.
    """
    return MAX_QUERY_BYTES if shared_bytes >= 163 << 10 else MAX_QUERY_BYTES // 2


class AttendConfig(NamedTuple):
    """The launch of a pass over the inputs: `splits` programs an image, each of `blocks` blocks of `block_n` inputs."""

    block_n: int
    block_d: int
    block_h: int
    block_k: int
    blocks: int
    splits: int
    by_dot: bool  # in bfloat16: a block needed outside of dots comes by a product with the identity, not a second load
    num_warps: int
    num_stages: int
    max_registers: int | None  # of a thread, so that more programs are at work at once; None: as many as it takes

    def blocking(self) -> dict[str, Any]:
        """The keyword arguments of the kernels of attend.py and of their launch."""
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "BLOCK_H": self.block_h,
            "BLOCK_K": self.block_k,
            **({} if self.max_registers is None else {"maxnreg": self.max_registers}),  # AMD's backend has none
            **options(self),
        }


@lru_cache(maxsize=1024)
def attend_config(
    B: int,
    N: int,
    D_in: int,
    K: int,
    heads: int,
    itemsize: int,
    multiprocessors: int,
    which: str,
    hopper: bool = True,
    aligned: bool = True,
) -> AttendConfig:
    """The launch for B images of N inputs of D_in elements of `itemsize` bytes, K slots and `heads` heads.

    `hopper` as `device.hopper` has it, `aligned` as `is_aligned`.

    `which` is "first" (the forward of the first iteration, which has a block in registers too), "forward" (of the
    others), "map" (the attention, a block a program), "query" (backward, to the queries alone) or "inputs" (its last
    pass, to the inputs too, which has the gradient of a block in registers). Chosen ahead of time, from registers,
    stack bytes and the instructions of the main loop (benchmarks/results/aot.md), not yet from a time on a GPU.
    """
    block_d = max(16, next_power_of_2(D_in))
    block_h = next_power_of_2(heads)
    block_k = max(next_power_of_2(K), 8 // block_h)  # tensor cores take 8 columns or more
    columns = block_h * block_k
    num_warps, num_stages, max_registers = 4, 2 if which == "first" else 3, None
    if which == "inputs":
        # 64 inputs are what a warp group's dot takes; fewer only where the rest would not fit.
        block_n = 64 if itemsize == 2 and block_d <= 128 and columns <= 32 else 16
        num_stages = 2
        if itemsize == 4 or block_d > 256 or columns > 32:
            num_warps = 8
    else:
        elements = 8192 if itemsize == 2 else 2048 if which == "query" else 4096
        block_n = max(16, min(128, elements // block_d, 2048 // columns))
        if block_d > 256 or columns > (16 if which == "first" else 32):
            num_warps = 8
        if block_n * block_d * itemsize > 16384:
            num_stages = 1  # of inputs that are so wide, a GPU with 99 KB of shared memory for a program holds no more
        if hopper and itemsize == 2 and block_d <= 64 and which in ("forward", "query"):
            # So that all programs are at work at once, of which there are about four for each multiprocessor. Inputs
            # that are copied in smaller pieces take up to 220 registers for it (aot.md), and stack bytes with fewer.
            if columns == 8:
                max_registers = 128 if aligned else None
            elif columns == 16:
                block_n = 64
    tiles = -(-N // block_n)
    # A program's beginning and end are queries and partial sums, read and written, beside a block of inputs.
    ends = 1 + 8 * K * heads * (D_in + 1) / (block_n * D_in * itemsize)
    blocks = -(-tiles // fewest_waits(B, tiles, 4 * multiprocessors, ends))
    return AttendConfig(
        *(block_n, block_d, block_h, block_k, blocks, -(-tiles // blocks)),
        by_dot=hopper and itemsize == 2 and block_d <= 64 <= block_n,
        num_warps=num_warps,
        num_stages=num_stages,
        max_registers=max_registers,
    )


def is_aligned(address: int, strides: Sequence[int]) -> bool:
    """Whether Triton copies 16 bytes of inputs [B, N, D_in] at a time.

    It knows of an argument whether it is 1, or divisible by 16; and copies along N or D_in, where that has stride 1.
    """
    return 1 in strides[1:] and all(x == 1 or x % 16 == 0 for x in (address, *strides))


def fewest_waits(B: int, tiles: int, at_once: int, ends: float) -> int:
    """Into how many programs an image of so many blocks is split; `at_once` programs are at work at a time.

    What a launch waits for, one after the other: where there are more programs, the next ones begin when the first end;
    of each its blocks, and as long as for `ends` of them for its beginning and end; in the update, 8 partial sums at a
    time. The passes in between, in half precision, have four programs of a multiprocessor at work; others 1 to 3.
    """

    def waits(splits: int) -> float:
        return -(-splits * B // at_once) * (-(-tiles // splits) + ends) + -(-splits // 8)

    return min(range(1, max(1, min(tiles, at_once)) + 1), key=waits)


def iterations_at_once(config: AttendConfig, itemsize: int, query_bytes: int = MAX_QUERY_BYTES) -> int:
    """How many iterations the last backward pass takes in one launch: the queries of all of them stay on the chip."""
    fit = query_bytes // (config.block_d * config.block_h * config.block_k * itemsize)
    return max(1, min(fit, MAX_ITERATIONS_AT_ONCE))


class UpdateConfig(NamedTuple):
    """The launch of a kernel over the slots; blocks are powers of two, and 16 or more for the sake of tl.dot."""

    precision: str  # of the dots: "tf32", "tf32x3" or "ieee", as tl.dot has them
    block_rows: int  # rows (image, slot) of a program
    block_slots: int  # D
    block_inputs: int  # D_in
    block_hidden: int  # H
    block_chunk: int  # the part of any of them that one dot sums over
    unroll: int  # partial sums that are loaded at once
    prefetch: bool  # whether the programs first prefetch the weights, which the passes evicted from the L2 cache
    num_warps: int
    num_stages: int


@lru_cache(maxsize=1024)
def update_config(
    D: int, D_in: int, hidden: int = 1, splits: int = 1, warp_size: int = 32, precision: str = "tf32x3"
) -> UpdateConfig:
    """The launch for slots, inputs and a hidden layer of these widths, and sums that arrive in `splits` parts.

    A launch has few rows, so that it takes as long as one program does: as its waits for memory and its dots, one after
    the other. Tensor cores make the dots short, and take a whole width of 64 at once.

    `precision` is "tf32" or "tf32x3", of which the latter is three products and as exact as float32. The tensor cores'
    own sums are not, as they truncate where float32 rounds: at most 32 terms of "tf32x3" are summed there. A sum of 64
    terms then has 1.0 to 1.5 times float32's error; with all 64 on the tensor cores it has 1.6 to 2.6 times that.

    `warp_size` is 64 on AMD's gfx9 devices: half as many warps are as many threads there. Triton has no "tf32x3" for
    them.
    """
    precision = "ieee" if warp_size == 64 else precision
    block_slots, block_inputs, block_hidden = (max(16, next_power_of_2(width)) for width in (D, D_in, hidden))
    return UpdateConfig(
        precision=precision,
        block_rows=16,
        block_slots=block_slots,
        block_inputs=block_inputs,
        block_hidden=block_hidden,
        block_chunk={"tf32": 64, "tf32x3": 32, "ieee": 16}[precision],
        unroll=max(2, min(8, next_power_of_2(splits))),  # with 1, Triton 3.6 needs stack bytes for the forward
        prefetch=warp_size == 32,
        num_warps=256 // warp_size,
        num_stages=3 if precision == "ieee" and block_slots <= 64 else 2,  # registers
    )


class WeightsConfig(NamedTuple):
    """The launch of the kernel of weights.py: a program for each block of the gradients and each part of the rows."""

    precision: str  # of the dots
    block: int  # rows and columns of a block
    block_rows: int  # what one dot sums over
    blocks: int
    parts: int
    rows: int  # of a part
    num_warps: int
    num_stages: int


@lru_cache(maxsize=1024)
def weights_config(
    num_rows: int,
    shapes: tuple[tuple[int, int], ...],
    column_sums: int,
    multiprocessors: int,
    warp_size: int = 32,
    precision: str = "tf32x3",
) -> WeightsConfig:
    """The launch for so many rows, gradients of these shapes, and sums over the rows of so many columns.

    Only "tf32", where a call allows it, goes to the tensor cores: what they cut off would add up over the rows. Two
    programs for each multiprocessor, but of 64 rows or more.
    """
    precision = "tf32" if precision == "tf32" and warp_size == 32 else "ieee"
    block, block_rows = 64, 32 if precision == "tf32" else 16
    blocks = sum(-(-height // block) * -(-width // block) for height, width in shapes)
    # The sums of columns are next to nothing.
    parts = max(1, min(num_rows // 64, 2 * multiprocessors // blocks))
    rows = max(1, -(-num_rows // (parts * block_rows))) * block_rows
    parts = max(1, -(-num_rows // rows))
    blocks += -(-column_sums // block)
    # Shared memory for two programs a multiprocessor
    num_stages = 2 if precision == "tf32" else 3
    return WeightsConfig(precision, block, block_rows, blocks, parts, rows, 256 // warp_size, num_stages)


def options(config: AttendConfig | UpdateConfig | WeightsConfig) -> dict[str, Any]:
    """The options of a launch, keyword arguments beside those of the kernel."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, **FUSED}


def update_serves(D: int, D_in: int, hidden: int | None, heads: int) -> bool:
    """Whether the kernels over the slots serve these widths; `hidden` is None where there is no MLP.

    Beyond them their blocks no longer fit in registers.
    """
    return max(D, D_in) <= 128 and (hidden or 0) <= 256 and heads <= 8


class CallConfig(NamedTuple):
    """How the passes over the inputs are ordered; nothing of it changes what is computed but by the sums' rounding."""

    group: int  # images that go through all T iterations, forward or backward, before the next ones do
    on_chip: bool  # instead, forward, all T iterations in one launch, of which a program reads an image once


def call_config(B: int) -> CallConfig:
    """The order for a call with B images: all of them in every pass, and a launch for each pass.

    Neither of the others is taken, as neither has been timed on a GPU, and the figures ahead of time do not decide:

    - Groups of `images_in_cache` images save up to T - 1 of T reads from memory, forward and backward, and launch
      everything once a group, on fewer images.
    - `on_chip_fwd_kernel`, where `fits_on_chip`, reads once instead of T times and launches once instead of 2 T + 1
      times. But the side of the slots then fills a program with the K slots of one image, not with 16 of several, and
      every image reads the weights. At B = 512, N = 1024, K = 10, T = 3 its instructions take longer to issue than all
      reads of the inputs take (docs/launch-orders.md has the figures).
    """
    return CallConfig(group=B, on_chip=False)


def images_in_cache(N: int, D_in: int, itemsize: int, cache_bytes: int) -> int:
    """The images whose inputs take half of an L2 cache of this size at most; one where an image takes more.

    The other half is for what else a pass reads and writes, and for what the cache drops early.
    """
    return max(1, cache_bytes // 2 // max(N * D_in * itemsize, 1))


ON_CHIP_INPUTS = 128  # a block: 16 for each of 8 warps


def fits_on_chip(
    N: int, D_in: int, K: int, heads: int, D: int, hidden: int | None, itemsize: int, hopper: bool
) -> bool:
    """Whether `on_chip_fwd_kernel` serves a call of this shape on this device.

    The blocks of inputs lie in shared memory, of which Hopper has 227 KB: 128 KB of inputs leave room for what the side
    of the slots needs where those are at most 64 wide, and 112 KB where they are wider; more inputs than that do not
    fit in registers beside it either. On other GPUs, and where D_in padded is below 64, tensor cores take their
    operands from registers, which cannot hold an image; where it is 128, ptxas 12.8 (Triton 3.6) takes some operands
    from the wrong place (`wrong_descriptors` in benchmarks/machine_code.py).
    """
    block_d = max(16, next_power_of_2(D_in))
    held = -(-N // ON_CHIP_INPUTS) * ON_CHIP_INPUTS * block_d * itemsize
    served = hopper and itemsize == 2 and heads == 1 and K <= 16 and update_serves(D, D_in, hidden, heads)
    return served and block_d == 64 and held <= (128 if D <= 64 else 112) << 10


class MixtureConfig(NamedTuple):
    """The launch of a kernel of mixture.py: a program takes `block_n` pixels of an image with all their slots."""

    block_n: int
    block_k: int
    num_warps: int


def mixture_config(K: int, C: int, warp_size: int = 32) -> MixtureConfig:
    """The launch for K slots with C channels and a logit each.

    32 elements a thread, so that several loads are under way at once, and 32 pixels or more, which lie together in
    memory. `warp_size` as in `update_config`.
    """
    block_k = next_power_of_2(K)
    elements = block_k * next_power_of_2(C + 1)  # of a pixel
    block_n = max(32, 4096 // elements)
    return MixtureConfig(block_n, block_k, num_warps=block_n * elements // 32 // warp_size)


def matching_block(C: int, warp_size: int = 32) -> int:
    """The columns of a block of `match_kernel`, whose program is a warp: one a thread, or more where there are more."""
    return max(warp_size, next_power_of_2(C))


def next_power_of_2(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
