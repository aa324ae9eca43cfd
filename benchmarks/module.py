"""Time and memory of one SlotAttention call: ours against the plain reference, compiled or not, and slot-attention.

    python -m benchmarks.module PART [PART ...] [--quick] [--sweeps N] [--rounds N] [--threads N] [--out DIR]

Who is compared: benchmarks/contenders.py. All have the same weights, inputs and initial slots, are held against the
reference in float64, and are then timed in one process, one after the other in every round. A machine that others use
too is slow for half a minute at a time, so the rounds of a shape are not made at once: several sweeps go through all
shapes, and make some rounds of each. Times are medians of all rounds with the 20th and 80th percentile; "times_ours"
are those of a contender's time over ours in the same round. On a CPU `cpu_ms` is what all threads of the process
computed. Parameters and inputs are of one dtype, without autocast: float32, on a GPU bfloat16 too.

Peak memory is what a call holds at most beyond what it is given and returns (slots and gradients), once without and
once with what was there before: on a GPU as PyTorch allocates it, on a CPU the growth of the resident set and its size,
in a fresh process for each contender.

Beside every time stands the least that the machine of the same run allows: the inputs read once, and with gradients
once more and their gradient written, at the rate of a copy (`floor_ms`); the same if every iteration reads them, as
ours does (`design_ms`); and 2 products of inputs and slots an iteration, 7 with gradients, at the rate of a matrix
product (`product_ms`). The limit is the larger of the first and the last. The rates are those of the sweep in which
they were highest. A CPU's cache, in which small inputs stay, may be faster than the copy.

Rows go into module.csv as soon as they are there, each in place of that of an earlier sweep or run on such a machine.
`python -m benchmarks report` makes tables and plots of them. Exits with 1 where ours is wrong or fails.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import contenders, spread
from .conditions import add_quick_out, add_threads, at_least, chosen_out, command, read_rows, software, upsert
from .contenders import NAMES, OURS, PASSES, agreeing, problem
from .cost import Shape
from .measure import (
    WARM_UP,
    Rates,
    Sample,
    device_name,
    give_memory_back,
    in_fresh_process,
    on_gpu,
    peak_bytes,
    rates,
    resident_growth,
    samples,
)
from .reasons import NOT_MEASURED, failed

Row = dict[str, Any]

CSV = "module.csv"
SIZES = ("B", "N", "D_in", "K", "D", "T")
KEY = ("device", "threads", "dtype", *SIZES, "pass", "contender", "measured")
TIME, MEMORY = "time", "memory"
NO_ROOM = "not enough memory"
EAGER = tuple(name for name in NAMES if name not in ("compiled", "max-autotune", "triton, compiled"))
IN_GRAPH = ("triton, graph", "triton, compiled", "max-autotune")  # on a GPU
# B, N, K: CLEVR6, Multi-dSprites and set prediction; on a GPU as in training, and one image alone.
CPU_SHAPES = ((8, 16384, 7), (8, 4096, 6), (16, 1024, 10))
GPU_SHAPES = ((64, 16384, 7), (64, 4096, 6), (512, 1024, 10), (1, 16384, 7))
QUICK_SHAPES = ((4, 1024, 7),)
DIM, ITERS = 64, 3
# B, N, K of `scaling` where not said otherwise. Its K is none of the shapes above, or a row of this part would take the
# place of one that was timed beside the compiled.
MIDDLE, GPU_MIDDLE = (4, 4096, 8), (64, 4096, 8)
# One size goes through its values, the others stay.
SCALED = {
    "N": (256, 1024, 4096, 16384),
    "K": (2, 4, 8, 16, 32),
    "B": (1, 2, 4, 8, 16),
    "D": (32, 64, 128, 256),
    "T": (1, 2, 3, 5, 7),
}
WITH_MEMORY = ("N", "K")
QUICK_SCALED = {"N": (256, 1024), "K": (4, 8)}
PARTS = ("forward", "backward", "memory", "scaling")


def shape_of(B: int, N: int, K: int, dtype: torch.dtype, D: int = DIM, T: int = ITERS) -> Shape:
    return Shape(B, N, D, K, D, T, dtype)


def shapes(quick: bool) -> list[Shape]:
    sizes = QUICK_SHAPES if quick else GPU_SHAPES if on_gpu() else CPU_SHAPES
    dtypes = (torch.bfloat16, torch.float32) if on_gpu() else (torch.float32,)
    return [shape_of(*size, dtype) for dtype in dtypes for size in sizes]


def scaled(name: str, quick: bool) -> list[Shape]:
    """The shapes in which one size goes through its values."""
    B, N, K = QUICK_SHAPES[0] if quick else GPU_MIDDLE if on_gpu() else MIDDLE
    middle = {"B": B, "N": N, "K": K, "D": DIM, "T": ITERS, "dtype": torch.bfloat16 if on_gpu() else torch.float32}
    times = 8 if on_gpu() and name == "B" else 1
    return [shape_of(**(middle | {name: value * times})) for value in (QUICK_SCALED if quick else SCALED).get(name, ())]


class Case(NamedTuple):
    """What is measured: a call of these contenders."""

    shape: Shape
    which: str
    """One of PASSES."""
    names: tuple[str, ...]


Round = dict[str, Sample]  # by contender


def cases(parts: Sequence[str], quick: bool) -> list[Case]:
    """What is timed in the parts, each once."""
    found = []
    for part, which in zip(PARTS, PASSES, strict=False):
        if part in parts:
            found += [Case(shape, which, EAGER if quick else NAMES) for shape in shapes(quick)]
    if "scaling" in parts:  # the compiled would compile anew for every point
        found += [Case(shape, PASSES[1], EAGER) for size in SCALED for shape in scaled(size, quick)]
    return list(dict.fromkeys(found))


def held(parts: Sequence[str], quick: bool) -> list[Case]:
    """Whose memory is measured in the parts, each once."""
    found = []
    if "memory" in parts:
        found += [Case(shape, which, EAGER if quick else NAMES) for which in PASSES for shape in shapes(quick)]
    if "scaling" in parts:
        found += [Case(shape, PASSES[1], EAGER) for size in WITH_MEMORY for shape in scaled(size, quick)]
    return list(dict.fromkeys(found))


def rows_of(parts: Sequence[str], quick: bool, sweeps: int, rounds: int, threads: int) -> Iterator[list[Row]]:
    """What the parts measure, a shape at a time: a time as often as there are sweeps, each time of more rounds."""
    timed: dict[Case, list[Round]] = {case: [] for case in cases(parts, quick)}
    best: dict[torch.dtype, Rates] = {}
    for number in range(sweeps):
        for dtype in {case.shape.dtype for case in timed}:
            found = rates(dtype, rounds)
            best[dtype] = Rates(*map(max, found, best.get(dtype, found)))
        for case, before in timed.items():
            warm_up = WARM_UP if on_gpu() and not number else 1  # besides the call that is held against the reference
            rows = times(case, before, rounds, best[case.shape.dtype], warm_up)
            yield [row | {"sweeps": number + 1} for row in rows]
    for case in held(parts, quick):
        yield memory(case, threads)


def times(case: Case, before: list[Round], rounds: int, speed: Rates, warm_up: int = WARM_UP) -> list[Row]:
    """A row for each contender: its time in the rounds `before`, to which it adds, or why there is none."""
    shape, which, names = case
    if reason := too_large(shape):
        return [row(shape, which, name, TIME) | {NOT_MEASURED: reason} for name in names]
    try:
        given = problem(shape, which)
        calls, found = agreeing(given, {name: partial(contenders.make, name, given) for name in names})
    except Exception as failure:  # of the comparison: none can be held against it
        return [row(shape, which, name, TIME) | {NOT_MEASURED: failed(failure)} for name in names]
    failures: dict[str, str] = {}
    measured = samples(calls, rounds, warm_up, failures)
    before += [dict(zip(measured, each, strict=True)) for each in zip(*measured.values(), strict=True)]
    least = limits(shape, which, speed)
    own = next((name for name in OURS if name in measured), None)  # as backend="auto" takes it
    rows = []
    for entry in found:
        name = entry.pop("contender")
        filled = row(shape, which, name, TIME) | entry | least
        if name in failures:
            filled[NOT_MEASURED] = failures[name]
        elif name in measured:
            made = [each for each in before if name in each]
            filled |= spread.columns("ms", [each[name].ms for each in made], 6)
            filled |= {
                "cpu_ms": statistics.median(each[name].cpu_ms for each in made),
                "of_limit": limit_ms(least) / filled["ms_median"],
                "rounds": len(made),
            }
            if own is not None:
                both = [(each[name].ms, each[own].ms) for each in made if own in each]
                filled |= spread.ratios("times_ours", *zip(*both, strict=True))
        rows.append(filled)
    return rows


def limits(shape: Shape, which: str, speed: Rates) -> Row:
    """Milliseconds that the machine's rates allow, as the module's docstring says."""
    backward = which == PASSES[1]
    unit_ms = 1e3 * shape.unit / speed.copy_bytes_per_s
    product = 2 * shape.B * shape.N * shape.K * shape.D_in
    return {
        "floor_ms": (3 if backward else 1) * unit_ms,
        "design_ms": (2 * shape.T + 1 if backward else shape.T) * unit_ms,
        "product_ms": 1e3 * (7 if backward else 2) * shape.T * product / speed.flop_per_s,
        "copy_gb_per_s": speed.copy_bytes_per_s / 1e9,
        "product_gflop_per_s": speed.flop_per_s / 1e9,
    }


def limit_ms(row: Mapping[str, Any]) -> float:
    """Of a row of `limits`, or of one of the file."""
    return max(float(row["floor_ms"]), float(row["product_ms"]))


def memory(case: Case, threads: int) -> list[Row]:
    """A row for each contender: its peak, or why there is none."""
    shape, which, names = case
    if reason := too_large(shape):
        return [row(shape, which, name, MEMORY) | {NOT_MEASURED: reason} for name in names]

    def one(name: str) -> Row:
        found: Row = {}
        if on_gpu() and name in IN_GRAPH:
            found[NOT_MEASURED] = "a graph has memory of its own"
        else:
            try:
                found["peak_mib"], found["absolute_mib"] = peak_mib(shape, which, name, threads)
            except contenders.Unavailable as why:
                found[NOT_MEASURED] = str(why)
            except Exception as failure:
                found[NOT_MEASURED] = failed(failure)
        return row(shape, which, name, MEMORY) | found

    if on_gpu():
        return [one(name) for name in names]
    with ThreadPoolExecutor(2) as pool:  # each in a process of its own
        return list(pool.map(one, names))


def peak_mib(shape: Shape, which: str, name: str, threads: int) -> tuple[float, float]:
    """Of a call, beyond what it is given and returns; and with what was there before."""
    if on_gpu():
        call = contenders.make(name, problem(shape, which))
        call()
        peak = peak_bytes(call) or 0
        return peak / 2**20, torch.cuda.max_memory_allocated() / 2**20
    modules = ("benchmarks.contenders", "slotattn_fast.modules")
    return in_fresh_process(_peak_mib_here, shape, which, name, threads, preloaded=modules)


def _peak_mib_here(shape: Shape, which: str, name: str, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    give_memory_back()
    call = contenders.make(name, problem(shape, which))
    returned = sum(x.nbytes for x in call())  # the first call also loads and compiles
    growth, absolute = resident_growth(call)
    return growth - returned / 2**20, absolute


def too_large(shape: Shape) -> str | None:
    """Why a shape is not tried: the reference in float64, which keeps the most, would not fit."""
    needed = 8 * shape.B * shape.N * (12 * shape.D_in + 6 * shape.T * shape.K)
    free = torch.cuda.mem_get_info()[0] if on_gpu() else _available_memory()
    if needed <= free:
        return None
    return f"{NO_ROOM}: the comparison needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"


def _available_memory() -> int:
    """Bytes. Linux."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def row(shape: Shape, which: str, name: str, measured: str) -> Row:
    """The sizes, and every column that is still empty."""
    sizes = {size: getattr(shape, size) for size in SIZES}
    empty = (*spread.names("ms"), "cpu_ms", *spread.names("times_ours"), "of_limit", "error", "peak_mib")
    more = ("absolute_mib", "floor_ms", "design_ms", "product_ms", "copy_gb_per_s", "product_gflop_per_s")
    dtype = str(shape.dtype).removeprefix("torch.")
    head = {"dtype": dtype, **sizes, "pass": which, "contender": name, "measured": measured}
    return head | dict.fromkeys((*empty, *more, "sweeps", "rounds", NOT_MEASURED), "")


CONDITIONS = ("device", "where", "threads", "date", "commit", "command", "python", "torch", "triton", "slot-attention")


COLUMNS = (*CONDITIONS, *row(shape_of(1, 1, 1, torch.float32), "", "", ""))
"""Of the file; one of an older version may lack some."""
NUMBERS = COLUMNS[COLUMNS.index("ms_p20") : COLUMNS.index(NOT_MEASURED)]


def conditions(threads: int) -> Row:
    where = {"device": device_name(), "where": "cuda" if on_gpu() else "cpu", "threads": threads}
    return where | software("torch", "triton", "slot-attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "what to measure; scaling: time over N, K, B, D and T, memory over N and K"
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=f"{', '.join(PARTS)}: {what}")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing compiled")
    parser.add_argument("--sweeps", type=at_least(1), default=3, help="how often to go through all shapes")
    parser.add_argument("--rounds", type=at_least(2), default=3, help="timed rounds of each call in a sweep")
    add_threads(parser)
    add_quick_out(parser)
    given = parser.parse_args()
    out = chosen_out(given)
    read_rows(out / CSV, COLUMNS, NUMBERS)  # ends the program, where it is damaged, before anything is measured
    torch.set_num_threads(given.threads)
    own = "triton" if on_gpu() else "torch"
    where, wrong = conditions(given.threads), False
    for rows in rows_of(given.parts, given.quick, given.sweeps, given.rounds, given.threads):
        upsert(out / CSV, [where | each for each in rows], KEY)
        for each in rows:
            print(described(each), flush=True)
            why = each[NOT_MEASURED]
            wrong |= each["contender"] == own and why != "" and not why.startswith(NO_ROOM)
    if wrong:
        sys.exit(1)


def described(each: Row) -> str:
    """A row in a line."""
    sizes = " x ".join(str(each[size]) for size in ("B", "N", "K"))
    head = f"{each['dtype']} {sizes}, D {each['D']}, T {each['T']}, {each['pass']:17}{each['contender']:15}"
    if each[NOT_MEASURED]:
        return f"{head} {NOT_MEASURED}: {each[NOT_MEASURED]}"
    if each["measured"] == MEMORY:
        return f"{head}{each['peak_mib']:9.1f} MiB"
    return f"{head}{each['ms_median']:9.2f} ms, {each['of_limit']:.1%} of the limit"


if __name__ == "__main__":
    command(main)
