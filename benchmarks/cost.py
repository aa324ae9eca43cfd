"""The cost of a call of the Triton backend: bytes to and from device memory, and kernel launches.

    python -m benchmarks.cost                 the paper's shapes at T = 3, bf16
    python -m benchmarks.cost --iters 5       another number of iterations; --dtype, --D likewise
    python -m benchmarks.cost --on-chip       the forward pass in one launch, where an image fits on a multiprocessor

Nothing is computed: the backend runs on tensors without storage, the kernels' launches are recorded, and what each
launch reads and writes follows from its arguments, every tensor counted once a launch. PyTorch's own operators, all on
the side of the slots, are counted by their arguments and results, a launch each. Bytes are in units of one pass over
the inputs, B * N * D_in * itemsize. Two floors beside them: T reads forward, and T reads and one write backward, for
inputs that come from memory in every pass; 1 read forward, 1 read and 1 write backward, for inputs held on the chip.
The decoder's end, the loss from the maps, is counted in the same way in units of the maps' bytes.
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .conditions import at_least

SHAPES = ((64, 16384, 64, 7), (64, 4096, 32, 6), (64, 1225, 32, 4), (512, 1024, 64, 10))  # B, N, D_in, K
DECODERS = ((64, 7, 128), (64, 6, 64), (64, 4, 35))  # B, K, side of the images
MULTIPROCESSORS = 132
STATS = ("mean_ptr", "rstd_ptr")
ROWS = (  # of all iterations; a launch writes those of one, and that for the weights reads all
    *("slots_normed", "d_query", "weighted_mean", "d_updates", "slots_rows", "d_recurrent", "new_normed"),
    *("d_hidden_rows", "hidden_rows", "d_out", "column_sums"),
)
# The parameters that a kernel writes; it reads the others.
WRITTEN = {
    "attend_fwd_kernel": ("partials_ptr",),
    "attend_bwd_kernel": ("partials_ptr", "d_x_ptr"),
    "attend_map_kernel": ("map_ptr",),
    "on_chip_fwd_kernel": ("states", "sums", "queries", *STATS),
    "absorb_fwd_kernel": ("query_weight", "query_bias", "value_weight"),
    "absorb_bwd_kernel": tuple(
        f"d_{name}" for name in ("to_q", "to_q_bias", "to_k", "to_k_bias", "to_v", "to_v_bias", "norm", "after")
    ),
    "query_fwd_kernel": ("query",),
    "update_fwd_kernel": ("sums", "new_slots", "query"),
    "query_bwd_kernel": ("d_slots", *ROWS),
    "update_bwd_kernel": ("d_slots", "d_sums", *ROWS),
    "weights_bwd_kernel": ("grads",),
    "mixture_loss_fwd_kernel": ("partials",),
    "mixture_loss_bwd_kernel": ("d_maps",),
    "match_kernel": ("columns",),
}
OVERWRITE = ("copy_", "fill_", "zero_")  # PyTorch's operators that do not read what they write to
# Those that launch nothing.
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view")


@dataclass
class Launch:
    """One launch of a Triton kernel: its arguments by name, and the bytes of those that it reads and writes."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]  # num_warps and so on
    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)


@dataclass
class Plan:
    """What a part of a call does, in order."""

    launches: list[Launch] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)  # PyTorch's, a launch each
    operator_bytes: int = 0
    allocations: list[int] = field(default_factory=list)  # elements

    def moved(self, *names: str, read: bool = True, written: bool = True) -> int:
        """The bytes that the Triton kernels read and write of these parameters; of all without a name."""
        sides = [
            side for launch in self.launches for side, on in ((launch.read, read), (launch.written, written)) if on
        ]
        return sum(count for side in sides for name, count in side.items() if not names or name in names)

    @property
    def total(self) -> int:
        return self.moved() + self.operator_bytes


class Shape(NamedTuple):
    B: int
    N: int
    D_in: int
    K: int
    D: int
    T: int
    dtype: torch.dtype
    mask: bool = False

    @property
    def unit(self) -> int:
        return self.B * self.N * self.D_in * self.dtype.itemsize


def accesses(kernel: str, arguments: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a launch reads and writes, by parameter."""
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if name in STATS and not arguments["NORM"]:
            continue
        first = name in STATS and arguments.get("FIRST", False)
        side = written if first or name in WRITTEN[kernel] else read
        one_of_many = name in ROWS and kernel != "weights_bwd_kernel"
        side[name] = nbytes(value) // (value.shape[0] if one_of_many else 1)
    return read, written


def nbytes(x: Tensor) -> int:
    """Of the elements that differ: one in a dimension of stride 0."""
    return x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or size < 2)


class _Kernel:
    """In a kernel's place: its launches go into the plan."""

    def __init__(self, kernel: Any, name: str, plan: Plan, run: bool) -> None:
        self.kernel, self.name, self.plan, self.run = kernel, name, plan, run

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            options = {name: value for name, value in constants.items() if name not in self.kernel.arg_names}
            rest = {name: value for name, value in constants.items() if name not in options}
            bound = inspect.signature(self.kernel.fn).bind(*arguments, **rest).arguments
            self.plan.launches.append(Launch(self.name, grid, bound, options, *accesses(self.name, bound)))
            if self.run:
                with _disable_current_modes():  # the interpreter uses PyTorch itself
                    self.kernel[grid](*arguments, **constants)

        return launch


class _Operators(TorchDispatchMode):
    """PyTorch's operators go into the plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(_tensors((args, kwargs or {})))
        storages = {x.untyped_storage()._cdata for x in given}
        results = list(_tensors(result))
        fresh = [x for x in results if x.untyped_storage()._cdata not in storages]
        self.plan.allocations += [x.numel() for x in fresh]
        name = func.__name__.split(".")[0]
        view = not fresh and not func._schema.is_mutable
        if name not in FREE and not view and any(x.numel() for x in (*given, *results)):
            self.plan.operators.append(name)
            read = given[1:] if name in OVERWRITE else given
            self.plan.operator_bytes += sum(map(nbytes, (*read, *results)))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for x in tree:
            yield from _tensors(x)


@contextmanager
def recorded(*, run: bool = False) -> Iterator[Plan]:
    """What is launched meanwhile; the kernels themselves run only if told to."""
    from slotattn_fast.kernels import matching_ops, mixture_ops, ops, slot_ops

    plan = Plan()
    kernels = [
        (module, name, kernel)
        for module in (ops, slot_ops, mixture_ops, matching_ops)
        for name, kernel in vars(module).items()
        if name in WRITTEN
    ]
    multiprocessors = ops.multiprocessors
    asking = (ops, slot_ops)
    try:
        for module, name, kernel in kernels:
            setattr(module, name, _Kernel(kernel, name, plan, run))
        if not run:
            for module in asking:
                module.multiprocessors = lambda device: MULTIPROCESSORS
        with _Operators(plan), torch.no_grad():
            yield plan
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
        for module in asking:
            module.multiprocessors = multiprocessors


def call(shape: Shape, device: str) -> tuple[dict[str, Tensor], Any]:
    """The parameters of the default module, and the settings of its call."""
    from slotattn_fast.kernels.arguments import Settings

    from slotattn_fast import SlotAttention
    from slotattn_fast.functional import NOT_ITERATED

    with torch.device(device):
        module = SlotAttention(shape.K, shape.D, input_dim=shape.D_in)
    params = {name: p.detach() for name, p in module.named_parameters() if name not in NOT_ITERATED}
    return params, Settings(shape.T, 1, 1e-8, 1e-5, "mean", "numerator", True)


def plans(shape: Shape, device: str = "meta", *, run: bool = False, config: Any = None) -> tuple[Plan, Plan]:
    """Of the forward and of the backward pass; on tensors of zeros if they are to run.

    `config` is a `CallConfig` of kernels/launch.py, or None for what a call chooses by itself.
    """
    from slotattn_fast.kernels.slot_ops import absorb, absorb_backward

    from slotattn_fast import triton_backend
    from slotattn_fast.slot_update import fold

    params, s = call(shape, device)
    make = torch.zeros if run else torch.empty
    inputs = make(shape.B, shape.N, shape.D_in, dtype=shape.dtype, device=device)
    slots = make(shape.B, shape.K, shape.D, device=device)
    mask = torch.ones(shape.B, shape.N, dtype=torch.bool, device=device) if shape.mask else None
    projections = []

    def absorbing(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        projections.extend(arguments)
        return absorb(*arguments)

    with recorded(run=run) as forward:
        w = fold(params, slots, 1, shape.D**-0.5, absorbing)
        states, *kept = triton_backend.forward(inputs, slots, mask, None, w, s, config)
    d_states = make(states.shape, device=device)
    with recorded(run=run) as backward:
        *_, d_w = triton_backend.backward(d_states, inputs, slots, mask, None, states, *kept, w, s, True, config)
        absorb_backward(d_w.query, d_w.query_bias, d_w.value, *projections)
    return forward, backward


def mixture_plans(maps: Tensor, images: Tensor, *, run: bool = False) -> tuple[Plan, Plan]:
    """Of the decoder's end, forward and backward: `maps` [B, K, C + 1, H, W], `images` [B, C, H, W], on any device."""
    from slotattn_fast.kernels.mixture_ops import mixture_loss, mixture_loss_backward

    d_loss = torch.ones((), device=maps.device)
    with recorded(run=run) as forward:
        mixture_loss(maps, images)
    with recorded(run=run) as backward:
        mixture_loss_backward(d_loss, maps, images)
    return forward, backward


def decoder_maps(B: int, K: int, C: int, size: int, dtype: torch.dtype, device: str = "meta") -> tuple[Tensor, Tensor]:
    """Maps in channels-last order, as a convolution leaves them, and images."""
    maps = torch.zeros(B, K, size, size, C + 1, dtype=dtype, device=device).permute(0, 1, 4, 2, 3)
    return maps, torch.zeros(B, size, size, C, device=device).permute(0, 3, 1, 2)


def mixture_report(B: int, K: int, size: int, dtype: torch.dtype) -> str:
    """A line for each pass of the decoder's end, in units of its maps."""
    maps, images = decoder_maps(B, K, 3, size, dtype)
    lines = [f"decoder's end: B {B}, K {K}, {size}x{size}, {str(dtype)[6:]}: a unit is {maps.nbytes / 1e6:.1f} MB"]
    for name, plan in zip(("forward", "backward"), mixture_plans(maps, images), strict=True):
        read, gradient, rest = (plan.moved(of) / maps.nbytes for of in ("maps", "d_maps", "images"))
        lines.append(
            f"  {name:10}{plan.total / maps.nbytes:8.3f} units: maps {read:.3f}, their gradient {gradient:.3f}, images "
            f"{rest:.3f} in {len(plan.launches)} Triton launches; {len(plan.operators)} of PyTorch"
        )
    return "\n".join(lines)


def report(shape: Shape, config: Any = None) -> str:
    """A few lines: where the bytes go, and both floors; `config` as for `plans`."""
    B, N, D_in, K, D, T, dtype, _ = shape
    lines = [f"B {B}, N {N}, D_in {D_in}, K {K}, D {D}, T {T}, {str(dtype)[6:]}: a unit is {shape.unit / 1e6:.1f} MB"]
    total = 0
    parts = plans(shape, config=config)
    for name, plan in zip(("forward", "backward"), parts, strict=True):
        total += plan.total
        lines.append(line(name, plan, shape.unit))
    design = 2 * T + 1
    floor = min(design, 3)
    units = total / shape.unit
    lines.append(
        f"  both      {units:8.3f} units: {units / design:.3f} of {design} (every pass from memory), "
        f"{units / floor:.3f} of {floor} (held on the chip)"
    )
    return "\n".join(lines)


def line(name: str, plan: Plan, unit: int) -> str:
    inputs, gradient = plan.moved("x_ptr") / unit, plan.moved("d_x_ptr") / unit
    stats = plan.moved(*STATS) / unit
    rest = plan.moved() / unit - inputs - gradient - stats
    return (
        f"  {name:10}{plan.total / unit:8.3f} units: inputs {inputs:.3f}, their gradient {gradient:.3f}, statistics "
        f"{stats:.3f}, else {rest:.3f} in {len(plan.launches)} Triton launches; {plan.operator_bytes / unit:.3f} in "
        f"{len(plan.operators)} of PyTorch"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iters", type=at_least(0), default=3, help="T")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the inputs")
    parser.add_argument("--on-chip", action="store_true", help="the forward pass in one launch, at the shapes that fit")
    parser.add_argument("--D", type=at_least(1), default=64, help="width of the slots")
    arguments = parser.parse_args()
    try:
        metadata.version("triton")
    except metadata.PackageNotFoundError:
        sys.exit("Triton is not installed, and the launches of its kernels are what is counted: `pip install triton`")
    from slotattn_fast.kernels.launch import CallConfig, fits_on_chip

    for B, N, D_in, K in SHAPES:
        shape = Shape(B, N, D_in, K, arguments.D, arguments.iters, getattr(torch, arguments.dtype))
        hidden = len(call(shape, "meta")[0]["mlp.0.weight"])
        if not arguments.on_chip:
            print(report(shape))
        elif fits_on_chip(N, D_in, K, 1, shape.D, hidden, shape.dtype.itemsize, hopper=True):
            print(report(shape, CallConfig(B, on_chip=True)))
    if not arguments.on_chip:
        for B, K, size in DECODERS:
            print(mixture_report(B, K, size, getattr(torch, arguments.dtype)))


if __name__ == "__main__":
    main()
