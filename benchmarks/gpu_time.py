"""The stage `time`: one SlotAttention call, ours against the reference and the PyPI package.

Contenders: the reference; the reference under torch.compile; the PyPI package slot-attention where it is installed;
ours, and ours in a captured CUDA graph. In parts of their own, as the compiler takes a minute or more for each: the
reference under torch.compile's mode "max-autotune", which captures CUDA graphs and copies the inputs into theirs; and
ours under "reduce-overhead", which does that alone. Parameters and inputs are of one dtype, bfloat16 or float32,
without autocast; T = 3, D = 64. All but the PyPI package, which draws them, are given the initial slots.
"forward+backward" gives the gradients to the inputs and to all parameters of the iterations. Before anything is timed,
slots and gradients are held against the reference in float64: a contender with more than twice the error of the
reference in the same dtype is not timed.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from operator import truediv
from typing import Any

import torch

from . import contenders, gpu_table
from .contenders import PASSES, Problem, agreeing, problem
from .cost import Shape, plans
from .gpu_record import Found, Part, Record
from .measure import Call, ceilings, on_gpu, peak_bytes, time_rows
from .reasons import NOT_MEASURED

DIM, ITERS, ROUNDS = 64, 3, 30
# Passes over the inputs: each from memory, and the fewest that there can be, for inputs held on the chip.
UNITS = {"forward+backward": (2 * ITERS + 1, 3), "forward": (ITERS, 1)}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOY_SIZES = ((2, 40, 3),)
OURS, GRAPH, OURS_COMPILED, COMPILED, AUTOTUNED = "ours", "ours, graph", "ours, compiled", "compiled", "max-autotune"


def parts(toy: bool) -> dict[str, Part]:
    """The profile, and a part for each pass, dtype and shape, the most important first."""
    sizes = TOY_SIZES if toy else gpu_table.SIZES
    found: dict[str, Part] = {gpu_table.PROFILE: partial(profile, sizes[0])}
    for dtype in DTYPES:
        for which in reversed(PASSES):  # all targets are of forward+backward in bfloat16
            for autotuned in (False, True):
                for size in sizes:
                    name = gpu_table.part_name(size, dtype, which, autotuned)
                    found[name] = partial(compare, size, dtype, which, autotuned, toy)
    return found


def compare(size: tuple[int, int, int], dtype: str, which: str, autotuned: bool, toy: bool, seconds: float) -> Found:
    """Rows, one for each contender, and the ceilings of the same minute."""
    B, N, K = size
    given = problem(Shape(B, N, DIM, K, DIM, ITERS, DTYPES[dtype]), which)
    calls, rows = agreeing(given, makers(given, autotuned, toy))
    times = time_rows(rows, calls, 1 if toy else ROUNDS)
    for row in rows:
        name = row["contender"]
        if name in times:
            # What is in a graph has memory of the graph's own.
            row["peak_bytes"] = None if name in (GRAPH, OURS_COMPILED, AUTOTUNED) else peak_bytes(calls[name])
        if "ms" in row and OURS in times:
            row["times_ours"] = statistics.median(map(truediv, times[name], times[OURS]))
    units, fewest = UNITS[which]
    return {"rows": rows, "inputs_bytes": given.inputs.nbytes, "units": units, "fewest_units": fewest, **ceilings()}


def makers(given: Problem, autotuned: bool, toy: bool) -> dict[str, Callable[[], Call]]:
    """What makes each contender; the reference comes first."""
    compiled = AUTOTUNED if autotuned else COMPILED
    names = {"reference": "reference", compiled: compiled}
    if find_spec("slot_attention") and not autotuned:
        names["slot-attention"] = "slot-attention"
    names[OURS] = "triton"
    if not toy:
        names[GRAPH] = "triton, graph"
        if autotuned:
            names[OURS_COMPILED] = "triton, compiled"
    found = {name: partial(contenders.make, contender, given) for name, contender in names.items()}
    if toy:  # what Inductor compiles for a CPU is not what is measured
        module = torch.compile(given.plain, backend="eager")
        slots = {"slots_init": given.slots}
        found[compiled] = lambda: partial(contenders.step, module, given.inputs, slots, given.which)
    return found


def profile(size: tuple[int, int, int], seconds: float) -> Found:
    """Microseconds a call of ours by kernel, forward and backward in bfloat16, and bytes/s of our own kernels."""
    calls = 5
    B, N, K = size
    shape = Shape(B, N, DIM, K, DIM, ITERS, torch.bfloat16)
    ours = contenders.make("triton", problem(shape, "forward+backward"))
    moved: defaultdict[str, int] = defaultdict(int)
    for plan in plans(shape):
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
