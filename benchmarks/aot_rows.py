"""What is compiled ahead of time: cases, the kernels' variants and their arguments, and what is known to fall short.

To add a kernel, add its variants to VARIANTS, name them in a case, and give a function like `attend_launch` for its
launch. To add a shape, add a case: one stressed axis each, the rest as in training on CLEVR6.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

from .machine_code import TARGETS, kernel_module

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
PASSES = ("forward, first", "forward", "backward, query", "backward, inputs")  # in the order of a call
MAPS = ("map", "map over inputs")
ON_CHIP = ("on chip",)
EXTREMES = ("forward", "backward, inputs")  # the least and the most that a program holds
MIDDLE = ("forward", "backward, query")  # of whose registers there may be a limit
SLOTS = ("absorb", "first query", "update", "update, backward", "first query, backward", "weights", "absorb, backward")
MIXTURE = ("mixture", "mixture, backward")
MATCHING = ("matching",)


@dataclass(frozen=True)
class Case:
    """A call, and what of it is compiled for what."""

    id: str
    B: int = 64
    N: int = 16384
    D_in: int = 64
    K: int = 7
    heads: int = 1
    D: int = 64
    hidden: int = 128
    T: int = 3  # iterations of the last backward pass, or on the chip
    mask: bool = False
    slot_mask: bool = False
    norm: bool = True
    nchw: bool = False  # the inputs are the view of a feature map in NCHW memory; the decoder's maps alike
    scalars: str = "fp32"  # type of the scalars: fp64 where Inductor launches
    variants: tuple[str, ...] = PASSES
    dtypes: tuple[str, ...] = ("bf16",)
    targets: tuple[str, ...] = ("sm_90",)


EVERY_TARGET = ("sm_80", "sm_90", "gfx942")
LITTLE_SHARED = ("sm_89",)
CASES = (
    Case("discovery", targets=EVERY_TARGET, dtypes=("bf16", "fp32")),
    Case("discovery", variants=MAPS, targets=EVERY_TARGET),
    Case("discovery", dtypes=("fp16",)),
    Case("discovery", dtypes=("fp16",), targets=("sm_80", "gfx942"), variants=EXTREMES),
    Case("fp64 scalars", scalars="fp64", variants=(*PASSES, *MAPS)),
    Case("fp64 scalars", scalars="fp64", variants=("forward, first",), targets=("sm_80", "gfx942")),
    Case("set prediction", B=512, N=1024, K=10),
    Case("set prediction", B=512, N=1024, K=10, targets=("sm_80", "gfx942"), variants=EXTREMES),
    Case("set prediction", B=512, N=1024, K=10, variants=ON_CHIP, dtypes=("bf16", "fp16")),
    Case("set prediction, masks", B=512, N=1024, K=10, mask=True, slot_mask=True, variants=ON_CHIP),
    Case("set prediction, slots 128 wide", B=512, N=896, K=10, D=128, hidden=256, variants=ON_CHIP),
    Case("set prediction, fp64 scalars", B=512, N=1024, K=10, scalars="fp64", variants=ON_CHIP),
    Case("multi-dsprites", N=4096, D_in=32, K=6),
    Case("tetrominoes", N=1225, D_in=32, K=4),
    Case("width 24", D_in=24, variants=MIDDLE),
    Case("width 48", D_in=48, variants=EXTREMES),
    Case("width 128", D_in=128, variants=EXTREMES),
    Case("width 192", D_in=192, variants=EXTREMES),
    Case("width 256", D_in=256, N=4096, variants=EXTREMES),
    Case("width 512", D_in=512, N=1024, variants=EXTREMES, targets=EVERY_TARGET),
    Case("width 512", D_in=512, N=1024, variants=EXTREMES, dtypes=("fp32",), targets=("sm_80", "gfx942")),
    Case("slots 1", K=1, variants=EXTREMES),
    Case("slots 16", K=16, variants=EXTREMES),
    Case("slots 33", K=33, variants=EXTREMES),
    Case("slots 64", K=64, variants=EXTREMES),
    Case("slots 64", K=64, variants=("forward",), targets=("sm_80", "gfx942")),
    # The most that fit where a program has 99 KB of shared memory.
    Case("discovery", targets=LITTLE_SHARED, variants=EXTREMES),
    Case("slots 64", K=64, targets=LITTLE_SHARED, variants=EXTREMES),
    Case("slots 64", K=64, targets=LITTLE_SHARED, variants=EXTREMES, dtypes=("fp32",)),
    Case("width 512, slots 16", D_in=512, N=1024, K=16, targets=LITTLE_SHARED, variants=EXTREMES),
    Case("width 512", D_in=512, N=1024, targets=LITTLE_SHARED, dtypes=("fp32",)),
    Case("heads 4", heads=4, variants=EXTREMES),
    # A block for each program: without a loop, if it is compiled for that.
    Case("one block, slots 10", B=2, N=100, K=10, variants=(*PASSES, *ON_CHIP)),
    Case("one block, slots 20", B=2, N=100, K=20),
    Case("iterations 1", T=1, variants=("backward, inputs",)),
    Case("iterations 8", T=8, variants=("backward, inputs",)),
    Case("masks", mask=True, slot_mask=True),
    Case("no norm", norm=False),
    Case("feature map", nchw=True, variants=("forward, first", *EXTREMES)),
    Case("feature map, 35x35", N=1225, nchw=True, variants=MIDDLE),
    # Over the slots everything is float32.
    Case("discovery", variants=SLOTS, dtypes=("fp32",), targets=EVERY_TARGET),
    # But for the products of bfloat16 calls.
    Case("discovery", variants=("update, tf32", "update, backward, tf32", "weights, tf32"), dtypes=("fp32",)),
    Case("set prediction", B=512, N=1024, K=10, variants=("update", "update, backward", "weights"), dtypes=("fp32",)),
    Case("width 128", D_in=128, D=128, hidden=256, variants=SLOTS, dtypes=("fp32",)),
    Case("heads 4", heads=4, variants=SLOTS, dtypes=("fp32",)),
    Case("fp64 scalars", scalars="fp64", variants=SLOTS, dtypes=("fp32",)),
    # At the end of the decoder.
    Case("discovery", variants=MIXTURE, dtypes=("bf16", "fp32"), targets=EVERY_TARGET),
    Case("multi-dsprites", N=4096, D_in=32, K=6, variants=MIXTURE, dtypes=("bf16", "fp32"), targets=EVERY_TARGET),
    Case("tetrominoes", N=1225, D_in=32, K=4, variants=MIXTURE, dtypes=("bf16", "fp32"), targets=EVERY_TARGET),
    Case("slots 64", K=64, variants=MIXTURE),
    Case("feature map", nchw=True, variants=MIXTURE),
    Case("fp64 scalars", scalars="fp64", variants=MIXTURE),
    # Of K targets with K slots.
    Case("set prediction", B=512, N=1024, K=10, variants=MATCHING, dtypes=("fp32",), targets=EVERY_TARGET),
    Case("slots 64", K=64, variants=MATCHING, dtypes=("fp32",), targets=EVERY_TARGET),
)

# Few, and each assertion is made of one at least: what the tests compile.
QUICK = (
    r"discovery/(forward, first|forward|backward, query|backward, inputs)/bf16/sm_90",
    r"discovery/(forward, first|backward, inputs)/bf16/(sm_80|gfx942)",
    r"discovery/forward/(fp32|fp16)/sm_90",
    r"fp64 scalars/(forward, first|backward, inputs)/bf16/sm_90",
    r"discovery/(absorb|update|absorb, backward)/fp32/sm_90",
    r"discovery/mixture(, backward)?/bf16/.*",
)

# The loops of these are counted against the memory, on the target whose clock and memory are known.
TIMED_TARGET = "sm_90"
CLOCK = 1.755e9  # Hz
BANDWIDTH = 4.3e12  # bytes/s, a copy measured on an H200
ISSUED = 4  # instructions of a warp, by a multiprocessor in a clock


class Variant(NamedTuple):
    """A kernel with those of its arguments that the order of launches decides."""

    module: str
    kernel: str
    launch: Callable[["Case", str, str], "Launch"]
    arguments: dict[str, Any] = {}  # noqa: RUF012
    units: int = 0  # how often it passes over the launch's `unit` of memory, reading or writing
    looped: bool = True  # over blocks of inputs, which are to be copied while others are worked on
    dots: bool = True


class Launch(NamedTuple):
    arguments: dict[str, Any]  # by parameter, more than a kernel takes
    options: dict[str, Any]  # num_warps and so on
    # How often the main loop's body runs: blocks of inputs in all; iterations of images on the chip; programs without a
    # loop.
    tiles: int
    unit: int = 0  # bytes of the inputs, or of all that the kernels of the decoder's end move


def attend_launch(case: Case, dtype: str, target: str, which: str = "forward") -> Launch:
    """Of the kernels over the inputs; `which` as in launch.py."""
    B, N, D_in, K = case.B, case.N, case.D_in, case.K
    multiprocessors = TARGETS[target].multiprocessors
    sizes = (B, N, D_in, K, case.heads, ITEMSIZE[dtype], multiprocessors)
    launch, device = kernel_module("launch"), TARGETS[target]
    strides = (N * D_in, 1, N) if case.nchw else (N * D_in, D_in, 1)
    aligned = launch.is_aligned(0, strides)  # as an allocation of PyTorch's
    config = launch.attend_config(*sizes, which, target == "sm_90", aligned)
    query_bytes = launch.query_bytes(device.shared_limit) if device.backend == "cuda" else launch.MAX_QUERY_BYTES
    at_once = launch.iterations_at_once(config, ITEMSIZE[dtype], query_bytes)
    blocking = config.blocking()
    options = {name: blocking.pop(name) for name in [*blocking] if name.islower()}
    arguments: dict[str, Any] = {
        **dict.fromkeys(("x_ptr", "d_x_ptr", "map_ptr"), f"*{dtype}"),
        **dict.fromkeys(("query_ptr", "d_sums_ptr", "mean_ptr", "rstd_ptr", "partials_ptr", "divisor_ptr"), "*fp32"),
        "mask_ptr": "*u1" if case.mask else None,
        "slot_mask_ptr": "*u1" if case.slot_mask else None,
        **dict.fromkeys(("offset", "norm_eps"), case.scalars),
        **blocking,
    }
    arguments |= dict(zip(("stride_xb", "stride_xn", "stride_xd"), strides, strict=True))
    arguments |= {"B": B, "N": N, "K": K, "heads": case.heads, "blocks": config.blocks, "splits": config.splits}
    arguments |= {"D_IN": D_in, "T": min(case.T, at_once), "ADD": False, "NORM": case.norm}
    arguments |= {"BY_DOT": config.by_dot}
    return Launch(arguments, options, -(-N // config.block_n) * B, B * N * D_in * ITEMSIZE[dtype])


def map_launch(case: Case, dtype: str, target: str) -> Launch:
    """Of the kernel that writes the attention, a program a block."""
    launch = attend_launch(case, dtype, target, "map")
    return launch._replace(arguments={**launch.arguments, "splits": launch.tiles // case.B})


def slots_launch(case: Case, dtype: str, target: str, precision: str = "tf32x3") -> Launch:
    """Of the kernels over the slots, with a GRU, an MLP and all biases; they have no blocks of inputs."""
    launch, (D, D_in, H, heads) = kernel_module("launch"), (case.D, case.D_in, case.hidden, case.heads)
    splits = attend_launch(case, "bf16", target).arguments["splits"]
    config = launch.update_config(D, D_in, H, splits, TARGETS[target].warp_size, precision)
    tensors = (
        *("partials", "slots", "sums", "new_slots", "query", "query_weight", "query_bias", "value_weight"),
        *("value_bias", "norm_slots", "recurrent_weight", "recurrent_bias", "norm_pre_ff", "hidden_weight"),
        *("hidden_bias", "out_weight", "out_bias", "d_new", "d_carry", "d_slots", "d_sums", "slots_normed", "d_query"),
        *("weighted_mean", "d_updates", "slots_rows", "d_recurrent", "new_normed", "d_hidden_rows", "hidden_rows"),
        *("d_out", "column_sums", "grads", "to_q", "to_q_bias", "to_k", "to_k_bias", "to_v", "to_v_bias", "norm"),
        *("after", "d_query_weight", "d_query_bias", "d_value_weight", "d_to_q", "d_to_q_bias", "d_to_k"),
        *("d_to_k_bias", "d_to_v", "d_to_v_bias", "d_norm", "d_after"),
    )
    arguments: dict[str, Any] = {
        **dict.fromkeys(tensors, f"*{dtype}"),
        "slot_mask": "*u1" if case.slot_mask else None,
        **dict.fromkeys(("eps", "norm_eps", "scale"), case.scalars),
        "R": case.B * case.K,
        "K": case.K,
        "P": splits,
        "t": 1,
        "C": heads * (D_in + 1) + 11 * D + H,
        "stride_b": case.K * D,
        "stride_k": D,
        "stride_d": 1,
        "D": D,
        "D_IN": D_in,
        "H": H,
        "HEADS": heads,
        "WIDTH_V": 3 * D,
        "WIDTH": D,
        "MEAN": True,
        "PRECISION": config.precision,
        "BR": config.block_rows,
        "BD": config.block_slots,
        "BI": config.block_inputs,
        "BH": config.block_hidden,
        "BC": config.block_chunk,
        "UNROLL": config.unroll,
        "PREFETCH": config.prefetch,
    }
    return Launch(arguments, kernel_module("launch").options(config), 0)


def weights_launch(case: Case, dtype: str, target: str, precision: str = "tf32x3") -> Launch:
    """Of the kernel that sums over the rows of all iterations."""
    launch, D, H, HE = slots_launch(case, dtype, target, precision), case.D, case.hidden, case.heads * (case.D_in + 1)
    C, device = launch.arguments["C"], TARGETS[target]
    shapes = ((D, HE), (HE, 3 * D), (3 * D, D), (H, D), (D, H))
    M, S = case.T * case.B * case.K, case.T * -(-case.B * case.K // launch.arguments["BR"])
    config = kernel_module("launch").weights_config(M, shapes, C, device.multiprocessors, device.warp_size, precision)
    arguments: dict[str, Any] = launch.arguments | {"M": M, "rows": config.rows, "S": S}
    arguments |= {
        "sums_per_part": -(-S // config.parts),
        "HE": HE,
        "BLOCK": config.block,
        "BM": config.block_rows,
        "PRECISION": config.precision,
    }
    return Launch(arguments, kernel_module("launch").options(config), 0)


def on_chip_launch(case: Case, dtype: str, target: str) -> Launch:
    """Of the kernel that holds an image on the chip over all iterations."""
    block_n, precision = kernel_module("launch").ON_CHIP_INPUTS, "tf32" if dtype == "bf16" else "tf32x3"
    launch, inputs = slots_launch(case, "fp32", target, precision), attend_launch(case, dtype, target)
    arguments: dict[str, Any] = inputs.arguments | launch.arguments
    arguments |= {"states": "*fp32", "queries": "*fp32", "BLOCKS": -(-case.N // block_n), "BLOCK_N": block_n}
    return Launch(arguments, launch.options, case.B * case.T, inputs.unit)


def mixture_launch(case: Case, dtype: str, target: str, passes: int = 1) -> Launch:
    """Of the kernels at the decoder's end, for square images of 3 channels; they pass over the maps so often."""
    B, N, K, C = case.B, case.N, case.K, 3
    config = kernel_module("launch").mixture_config(K, C, TARGETS[target].warp_size)
    stride_c, stride_w, together = (N, 1, 1) if case.nchw else (1, C + 1, C + 1)
    strides = {"b": K * (C + 1) * N, "k": (C + 1) * N, "h": isqrt(N) * stride_w, "w": stride_w}
    arguments: dict[str, Any] = {
        **dict.fromkeys(("maps", "d_maps"), f"*{dtype}"),
        **dict.fromkeys(("images", "partials", "d_loss"), "*fp32"),
        **{f"stride_{x}{name}": stride // together for x in "md" for name, stride in strides.items()},
        **{f"stride_{x}c": stride_c for x in "md"},
        "scale": case.scalars,
    }
    arguments |= {"stride_ib": C * N, "stride_ic": 1, "stride_ih": isqrt(N) * C, "stride_iw": C}
    arguments |= {"K": K, "N": N, "W": isqrt(N), "tiles": -(-N // config.block_n), "C": C, "FLAT": True}
    arguments |= {"TOGETHER": together, "TOGETHER_D": together, "BN": config.block_n, "BK": config.block_k}
    options = {"num_warps": config.num_warps, **kernel_module("launch").FUSED}
    moved = B * N * (passes * K * (C + 1) * ITEMSIZE[dtype] + C * ITEMSIZE["fp32"])
    return Launch(arguments, options, B * arguments["tiles"], moved)


def matching_launch(case: Case, dtype: str, target: str) -> Launch:
    """Of the kernel that matches as many targets as there are slots."""
    K, warp_size = case.K, TARGETS[target].warp_size
    arguments: dict[str, Any] = {"cost": f"*{dtype}", "columns": "*i64", "R": K, "C": K}
    arguments |= {"stride_b": K * K, "stride_r": K, "stride_c": 1}
    arguments |= {"BLOCK": kernel_module("launch").matching_block(K, warp_size)}
    return Launch(arguments, {"num_warps": 1, **kernel_module("launch").FUSED}, case.B)


FORWARD, BACKWARD, MAP = "attend_fwd_kernel", "attend_bwd_kernel", "attend_map_kernel"
VARIANTS = {
    "forward, first": Variant("attend", FORWARD, partial(attend_launch, which="first"), {"FIRST": True}, units=1),
    "forward": Variant("attend", FORWARD, attend_launch, {"FIRST": False}, units=1),
    "backward, query": Variant(
        "attend", BACKWARD, partial(attend_launch, which="query"), {"T": 1, "d_x_ptr": None}, units=1
    ),
    "backward, inputs": Variant("attend", BACKWARD, partial(attend_launch, which="inputs"), units=2),
    "on chip": Variant("onchip", "on_chip_fwd_kernel", on_chip_launch, units=1, looped=False),
    "map": Variant("attend", MAP, map_launch, {"divisor_ptr": None}, looped=False),
    "map over inputs": Variant("attend", MAP, map_launch, looped=False),
    "absorb": Variant("absorb", "absorb_fwd_kernel", slots_launch, looped=False),
    "first query": Variant("update", "query_fwd_kernel", slots_launch, looped=False),
    "update": Variant("update", "update_fwd_kernel", slots_launch, looped=False),
    "update, tf32": Variant("update", "update_fwd_kernel", partial(slots_launch, precision="tf32"), looped=False),
    "update, backward": Variant("update_backward", "update_bwd_kernel", slots_launch, looped=False),
    "update, backward, tf32": Variant(
        "update_backward", "update_bwd_kernel", partial(slots_launch, precision="tf32"), looped=False
    ),
    "first query, backward": Variant("update_backward", "query_bwd_kernel", slots_launch, looped=False),
    "weights": Variant("weights", "weights_bwd_kernel", weights_launch, looped=False, dots=False),
    "weights, tf32": Variant("weights", "weights_bwd_kernel", partial(weights_launch, precision="tf32"), looped=False),
    "absorb, backward": Variant("absorb", "absorb_bwd_kernel", slots_launch, looped=False),
    "mixture": Variant("mixture", "mixture_loss_fwd_kernel", mixture_launch, units=1, looped=False, dots=False),
    "mixture, backward": Variant(
        "mixture", "mixture_loss_bwd_kernel", partial(mixture_launch, passes=2), units=1, looped=False, dots=False
    ),
    "matching": Variant("matching", "match_kernel", matching_launch, looped=False, dots=False),
}


class Row(NamedTuple):
    """What is compiled once."""

    case: Case
    variant: str
    dtype: str
    target: str

    @property
    def id(self) -> str:
        return f"{self.case.id}/{self.variant}/{self.dtype}/{self.target}"

    def launch(self) -> Launch:
        variant = VARIANTS[self.variant]
        launch = variant.launch(self.case, self.dtype, self.target)
        return launch._replace(arguments={**launch.arguments, **variant.arguments})


def rows() -> Iterator[Row]:
    for case in CASES:
        for combination in itertools.product(case.variants, case.dtypes, case.targets):
            yield Row(case, *combination)


class Known(NamedTuple):
    """A shortfall that does not fail a check, until it is mended."""

    rows: str  # regular expression of their ids
    what: str  # a field of `Code`
    why: str
    triton: str = ""  # how the version begins


NO_COPIES = "Triton does not pipeline the load of the inputs"
KNOWN = (
    Known(r".*/backward, inputs/.*", "stack_bytes", "all queries and the gradient fill the registers"),
    Known(
        r"(discovery|fp64 scalars|width 128)/(update|update, backward.*|absorb, backward)/.*",
        "stack_bytes",
        "products on tensor cores take more registers; a launch in bfloat16 takes 11 and 21 us (gpu-time.md)",
    ),
    Known(r"(slots (33|64)|heads 4)/forward/.*", "stack_bytes", "too many columns for the registers", triton="3.6."),
    Known(
        r"(discovery/(forward|backward, query)/fp16|(width 48/forward|masks/(forward|backward, query)"
        r"|tetrominoes/backward, query)/bf16)/sm_90",
        "stack_bytes",
        "128 registers, so that four programs are at work at once and not three",
    ),
    Known(
        r"set prediction, fp64 scalars/on chip/.*",
        "stack_bytes",
        "what changes in no iteration, mostly addresses, fills the registers beside the slots",
        triton="3.6.",
    ),
    Known(r"set prediction/on chip/fp16/.*", "stack_bytes", "the units of float16 take registers beside the slots"),
    Known(r".*/matching/.*", "fp64", "meant to be: sums of costs are exact enough in float64 alone"),
    Known(r"slots (33|64)/backward, inputs/.*", "async16", NO_COPIES),
    Known(r"(width 24|feature map, 35x35)/.*", "async16", "a stride that 16 does not divide, so smaller pieces"),
    Known(r"width (192|256|512)/.*", "async16", NO_COPIES, triton="3.6."),
    Known(r"width (192|256|512)/.*", "wgmma", "blocks of fewer than 64 inputs", triton="3.6."),
)
