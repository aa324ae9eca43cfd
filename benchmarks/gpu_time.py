"""The stage `time`: one SlotAttention call, ours against the reference and the PyPI package.

Contenders: the reference; the reference under torch.compile; the PyPI package slot-attention where it is installed;
ours, and ours in a captured CUDA graph. In parts of their own, as the compiler takes a minute or more for each: the
reference under torch.compile's mode "max-autotune", which captures CUDA graphs and copies the inputs into theirs.
Parameters and inputs are of one dtype, bfloat16 or float32, without autocast; T = 3, D = 64. All
but the PyPI package, which draws them, are given the initial slots. "forward+backward" gives the gradients to the
inputs and to all parameters of the iterations. Before anything is timed, slots and gradients are held against the
reference in float64: a contender with more than twice the error of the reference in the same dtype is not timed.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from operator import truediv
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import gpu_table
from .cost import Shape, plans
from .gpu_measure import Call, captured, ceilings, milliseconds, on_gpu, peak_bytes, percentiles
from .gpu_record import NOT_MEASURED, Found, Part, Record

DIM, ITERS, ROUNDS = 64, 3, 30
DRAW = 1  # seed of the initial slots
PASSES = ("forward+backward", "forward")
# Passes over the inputs: each from memory, and the fewest that there can be, for inputs held on the chip.
UNITS = {"forward+backward": (2 * ITERS + 1, 3), "forward": (ITERS, 1)}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOY_SIZES = ((2, 40, 3),)


class Contender(NamedTuple):
    call: Call
    in_graph: bool = False  # its memory is the graph's own, which peak_bytes does not see


def parts(toy: bool) -> dict[str, Part]:
    """The profile, and a part for each pass, dtype and shape, the most important first."""
    sizes = TOY_SIZES if toy else gpu_table.SIZES
    found: dict[str, Part] = {gpu_table.PROFILE: partial(profile, sizes[0])}
    for autotuned in (False, True):
        for dtype in DTYPES:
            for which in PASSES:
                for size in sizes:
                    name = gpu_table.part_name(size, dtype, which, autotuned)
                    found[name] = partial(compare, size, dtype, which, autotuned, toy)
    return found


def compare(size: tuple[int, int, int], dtype: str, which: str, autotuned: bool, toy: bool, seconds: float) -> Found:
    """Rows, one for each contender, and the ceilings of the same minute."""
    plain, inputs, slots = problem(size, DTYPES[dtype])
    exact = exact_results(plain, inputs, slots, which)
    measured, rows, allowed = {}, [], float("inf")
    for name, make in makers(plain, inputs, slots, which, autotuned, toy).items():
        row: dict[str, Any] = {"contender": name}
        rows.append(row)
        try:
            contender = make()
            error = row["error"] = difference(contender.call(), exact)
        except Exception as failure:  # a compiler that fails is no reason to lose the others
            row[NOT_MEASURED] = f"{type(failure).__name__}: {failure}"[:500]
            continue
        if name == "reference":
            allowed = 2 * error + 1e-5
        if not error <= allowed:
            row[NOT_MEASURED] = f"off by {error:.1e} of the norm, and {allowed:.1e} is allowed"
            continue
        measured[name] = contender
        row["peak_bytes"] = None if contender.in_graph else peak_bytes(contender.call)
    times = milliseconds({name: contender.call for name, contender in measured.items()}, 1 if toy else ROUNDS)
    for row in rows:
        if values := times.get(row["contender"]):
            row["ms"] = percentiles(values)
            if "ours" in times:
                row["times_ours"] = statistics.median(map(truediv, values, times["ours"]))
    units, fewest = UNITS[which]
    return {"rows": rows, "inputs_bytes": inputs.nbytes, "units": units, "fewest_units": fewest, **ceilings()}


def problem(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """The reference, inputs and initial slots."""
    from slotattn_fast.reference import SlotAttention as Reference

    B, N, K = size
    device = "cuda" if on_gpu() else "cpu"
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = Reference(K, DIM, ITERS).to(device, dtype)
    inputs = torch.randn(B, N, DIM, device=device).to(dtype).requires_grad_()
    torch.manual_seed(DRAW)
    return plain, inputs, plain.initial_slots(inputs, K).detach()


def makers(
    plain: nn.Module, inputs: Tensor, slots: Tensor, which: str, autotuned: bool, toy: bool
) -> dict[str, Callable[[], Contender]]:
    """What makes each contender, with the weights of the reference, which comes first."""

    def call(module: nn.Module) -> Call:
        return partial(step, module, inputs, {"slots_init": slots}, which)

    def compiled(**options: str) -> Contender:
        return Contender(call(torch.compile(plain, **options)), in_graph="mode" in options)

    def ours() -> Call:
        return call(own(plain))

    found: dict[str, Callable[[], Contender]] = {"reference": lambda: Contender(call(plain))}
    # What Inductor compiles for a CPU is not what is measured.
    options = {"backend": "eager"} if toy else {"mode": "max-autotune"} if autotuned else {}
    found["max-autotune" if autotuned else "compiled"] = partial(compiled, **options)
    if find_spec("slot_attention") and not autotuned:
        found["slot-attention"] = lambda: Contender(peer(plain, inputs, which))
    found["ours"] = lambda: Contender(ours())
    if not toy:
        found["ours, graph"] = lambda: Contender(captured(ours()), in_graph=True)
    return found


def own(plain: nn.Module) -> nn.Module:
    """Our module, of the weights, dtype and device of the reference."""
    from slotattn_fast import SlotAttention

    return alike(SlotAttention(plain.num_slots, DIM, ITERS, backend="triton"), plain)


def peer(plain: nn.Module, inputs: Tensor, which: str) -> Call:
    """The PyPI package's, which draws its initial slots itself: in its first call those that the others are given."""
    from slot_attention import SlotAttention as Peer

    module = alike(Peer(plain.num_slots, DIM, ITERS), plain)
    torch.manual_seed(DRAW)
    return partial(step, module, inputs, {}, which)


def alike(module: nn.Module, plain: nn.Module) -> nn.Module:
    parameter = next(plain.parameters())
    module.to(parameter.device, parameter.dtype).load_state_dict(plain.state_dict())
    return module


def step(module: nn.Module, inputs: Tensor, given: dict[str, Tensor], which: str) -> list[Tensor]:
    """The slots; in "forward+backward" also the gradients to the inputs and the parameters of the iterations."""
    torch.compiler.cudagraph_mark_step_begin()  # what a compiled module returned before may be overwritten
    if which == "forward":
        with torch.no_grad():
            return [module(inputs, **given)]
    slots = module(inputs, **given)
    return [slots.detach(), *torch.autograd.grad(slots, [inputs, *parameters(module)], torch.ones_like(slots))]


def parameters(module: nn.Module) -> list[Tensor]:
    """Those of the iterations, in the order of their names: not those that the initial slots are drawn with."""
    named = sorted((name.removeprefix("_orig_mod."), p) for name, p in module.named_parameters())
    return [p for name, p in named if not name.startswith("slots_")]


def exact_results(plain: nn.Module, inputs: Tensor, slots: Tensor, which: str) -> list[Tensor]:
    """Of the reference in float64, from the same numbers."""
    from slotattn_fast.reference import SlotAttention as Reference

    exact = Reference(slots.shape[1], DIM, ITERS).to(inputs.device, torch.float64)
    exact.load_state_dict(plain.state_dict())
    return step(exact, inputs.detach().double().requires_grad_(), {"slots_init": slots.double()}, which)


def difference(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|found - exact| / |exact|: the largest of slots, gradient to the inputs and gradient to all parameters."""
    errors = []
    for group in (slice(0, 1), slice(1, 2), slice(2, None))[: min(len(exact), 3)]:
        actual, wanted = (torch.cat([x.double().flatten() for x in side[group]]) for side in (found, exact))
        errors.append((actual - wanted).norm() / wanted.norm())
    return torch.stack(errors).max().item()  # NaN where any is


def profile(size: tuple[int, int, int], seconds: float) -> Found:
    """Microseconds a call of ours by kernel, forward and backward in bfloat16, and bytes/s of our own kernels."""
    calls = 5
    plain, inputs, slots = problem(size, torch.bfloat16)
    ours = partial(step, own(plain), inputs, {"slots_init": slots}, "forward+backward")
    B, N, K = size
    moved: defaultdict[str, int] = defaultdict(int)
    for plan in plans(Shape(B, N, DIM, K, DIM, ITERS, torch.bfloat16)):
        for launch in plan.launches:
            moved[launch.kernel] += sum(launch.read.values()) + sum(launch.written.values())
    ours()
    if not on_gpu():
        return {"rows": [], "moved": moved}
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(calls):
            ours()
        torch.cuda.synchronize()
    rows = []
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total / calls
        if microseconds > 0:
            row: dict[str, Any] = {"kernel": event.key, "launches": event.count / calls, "us": microseconds}
            if event.key in moved:
                row["bytes_per_s"] = moved[event.key] / microseconds * 1e6
            rows.append(row)
    return {"rows": sorted(rows, key=lambda row: -row["us"]), "moved": moved, **ceilings()}


def passed(record: Record) -> bool:
    """Whether ours was right wherever it was called; times do not fail."""
    rows = [row for entry in record.values() for row in entry["found"].get("rows", [])]
    return not any(str(row.get("contender")).startswith("ours") and NOT_MEASURED in row for row in rows)


def report(record: Record) -> str:
    return gpu_table.report(record)
