"""The part of the stage `tune` for the kernels over the slots; kernels/launch.py stays as it is.

Each candidate of `update_config` is held against float64, beside PyTorch's own operators in float32, and timed twice,
interleaved with the table's own configuration: with its weights in the L2 cache, and after other data have driven them
out, as the passes over the inputs do. The weights are of bfloat16 numbers; D = D_in = 64, H = 128.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compile_ahead import compile_ahead
from .gpu_record import UNFINISHED, Found, Part, Record, why_unfinished
from .measure import Call, captured, milliseconds, on_gpu
from .patched import patched
from .reasons import NOT_MEASURED, cell, failed

WIDTH, HIDDEN, CALLS, ROUNDS = 64, 128, 10, 15
FIELDS = ("precision", "block_rows", "block_chunk", "unroll", "num_warps", "num_stages", "prefetch")  # of UpdateConfig
KERNELS = ("update_fwd", "update_bwd", "query_bwd", "absorb_bwd")
SIZES = ((64, 7, 8), (512, 10, 1), (1, 7, 32))  # images, slots, splits of the inputs
TOY_SIZES, TOY_CANDIDATES = ((3, 5, 2),), 3
Config = Any  # UpdateConfig of kernels/launch.py, which is imported after the interpreter is switched on or off


class Problem(NamedTuple):
    """A kernel's launch as a function, and what should come of it."""

    call: Call
    exact: Sequence[Tensor]  # in float64
    plain: Sequence[Tensor]  # by PyTorch's operators in float32
    warm: Sequence[Tensor]  # what the kernels before it have just written


def parts(toy: bool) -> dict[str, Part]:
    return {
        f"{' x '.join(map(str, size))} {kernel}": partial(tune, size, kernel, toy)
        for kernel in KERNELS
        for size in (TOY_SIZES if toy else SIZES)
    }


def candidates(splits: int, kernel: str) -> list[Config]:
    """The table's for bfloat16 first, then its for float32, then that without tensor cores, then others.

    The projections are absorbed in float32, so that the table's of `absorb_bwd` is that for float32.
    """
    from slotattn_fast.kernels.launch import update_config

    table, single = (update_config(WIDTH, WIDTH, HIDDEN, splits, precision=name) for name in ("tf32", "tf32x3"))
    changes: list[dict[str, Any]] = [
        {"prefetch": False},
        {"num_warps": 4},
        {"block_chunk": 32},
        {"num_stages": 3},
        {"block_rows": 32},
        {"num_warps": 16},
        *({"unroll": unroll} for unroll in (16, 32) if unroll <= splits),
    ]
    without = table._replace(precision="ieee", block_chunk=16, num_stages=3, prefetch=False)
    found = [
        *(table, single, without),
        *(table._replace(**change) for change in changes),
        *(single._replace(block_chunk=chunk) for chunk in (64, 16)),
    ]
    if kernel not in ("update_fwd", "update_bwd"):  # they prefetch nothing
        found = [config for config in found if config == without or config.prefetch]
    return found


def tune(size: tuple[int, int, int], kernel: str, toy: bool, seconds: float) -> Found:
    """Rows, one for each candidate: what it is, and microseconds or why there are none."""
    given = problem(size, kernel, torch.device("cuda" if on_gpu() else "cpu"))
    configs = candidates(size[2], kernel)[: TOY_CANDIDATES if toy else None]
    own_calls = [configured(given.call, config) for config in configs]
    compile_ahead(own_calls, 0.5 * seconds)
    rows, calls = [], {}
    for number, (config, own) in enumerate(zip(configs, own_calls, strict=True)):
        row: dict[str, Any] = config._asdict()
        rows.append(row)
        try:
            row["error"] = error(own(), given.exact)
            if on_gpu():
                for name, call in timed(own, given.warm).items():
                    calls[f"{number} {name}"] = captured(call)
        except Exception as failure:  # too much shared memory, too many registers
            row[NOT_MEASURED] = failed(failure)
            continue
    if on_gpu():
        calls["cold"] = captured(timed(None, given.warm)["cold"])
    failures: dict[Any, str] = {}
    found = milliseconds(calls, 1 if toy else ROUNDS, failures=failures)
    times = {name: statistics.median(ms) for name, ms in found.items() if ms}
    for number, row in enumerate(rows):
        if why := failures.get(f"{number} warm") or failures.get(f"{number} cold"):
            row[NOT_MEASURED] = why
        elif f"{number} cold" in times and "cold" in times:
            row["us"] = 1e3 * times[f"{number} warm"] / CALLS
            row["us_cold"] = 1e3 * (times[f"{number} cold"] - times["cold"]) / CALLS
    return {"rows": rows, "allowed": 2 * error(given.plain, given.exact) + 1e-6}


def timed(call: Call | None, warm: Sequence[Tensor]) -> dict[str, Call]:
    """`CALLS` calls, one after the other, and with a cache that holds nothing but `warm` before each of them."""
    flush = torch.empty(2**27, dtype=torch.uint8, device="cuda")

    def again() -> Sequence[Tensor]:
        return [x for _ in range(CALLS) for x in (call() if call else [])]

    def cold() -> Sequence[Tensor]:
        found = []
        for _ in range(CALLS):
            flush.fill_(1)
            for x in warm:
                x.mul_(1)
            found += call() if call else []
        return found

    return {"warm": again, "cold": cold}


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest |found - exact| / |exact| of all results; NaN where any is."""
    return torch.stack([(x.double() - y).norm() / y.norm() for x, y in zip(found, exact, strict=True)]).max().item()


def problem(size: tuple[int, int, int], kernel: str, device: torch.device) -> Problem:
    """Random weights, slots, sums and gradients, by the sizes of a call; of two iterations, the first."""
    from slotattn_fast.kernels import slot_ops
    from slotattn_fast.kernels.arguments import Projections, Settings, Weights

    from slotattn_fast import slot_update

    (B, K, P), D, H, E = size, WIDTH, HIDDEN, WIDTH + 1
    torch.manual_seed(0)
    s = Settings(2, 1, 1e-8, 1e-5, "mean", "numerator", True)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    def matrix(rows: int, columns: int) -> Tensor:
        return (normal(rows, columns) / D**0.5).bfloat16().float()

    if kernel == "absorb_bwd":
        affine = torch.stack([1 + 0.1 * normal(D), 0.1 * normal(D)])
        biases = (0.1 * normal(3, D)).unbind()
        layers = [x for bias in biases for x in (matrix(D, D), bias)]
        p = Projections(*layers, affine, matrix(3 * D, D))
        d_outputs = normal(D, E), normal(E), normal(E, 3 * D)

        def by_autograd(dtype: torch.dtype) -> Sequence[Tensor]:
            wanted = [None if x is None else x.to(dtype).requires_grad_() for x in p]
            outputs = slot_update.absorb(Projections(*wanted), 1, D**-0.5)
            given = [x for x in wanted if x is not None]
            return torch.autograd.grad(outputs, given, [d.to(dtype) for d in d_outputs])

        def absorb_backward() -> Sequence[Tensor]:
            return [x for x in slot_ops.absorb_backward(*d_outputs, p, 1, D**-0.5) if x is not None]

        return Problem(absorb_backward, by_autograd(torch.float64), by_autograd(torch.float32), d_outputs)

    w = Weights(
        matrix(D, E), 0.1 * normal(E), matrix(E, 3 * D), 0.1 * normal(3 * D), normal(2, D), None, None, None,
        matrix(3 * D, D), 0.1 * normal(3 * D), normal(2, D), matrix(H, D), 0.1 * normal(H), matrix(D, H),
        0.1 * normal(D),
    )  # fmt: skip
    slots, d_new, d_partials = normal(B, K, D), normal(B, K, D), normal(P, B, 1, K, E)
    partials = normal(P, B, 1, K, E)
    partials[..., -1] = 1 + partials[..., -1].abs()

    def by_operators(dtype: torch.dtype) -> dict[str, Sequence[Tensor]]:
        wide = Weights._make(None if x is None else x.to(dtype) for x in w)
        before, sums = slots.to(dtype), partials.to(dtype).sum(0)
        new = slot_update.update(before, sums, None, wide, s)
        tape = slot_update.recompute(torch.stack([before, new]), torch.stack([sums, sums]), wide, s)
        first, second, grads = tape.at(0, slice(None)), tape.at(1, slice(None)), slot_update.Gradients(wide)
        d_query = d_partials.to(dtype).sum(0)
        d = d_new.to(dtype) + slot_update.next_query_backward(d_query, second, wide, grads)
        return {
            "update_fwd": (new, slot_update.next_query(new, wide, s)),
            "update_bwd": slot_update.update_backward(d, None, first, wide, s, grads),
            "query_bwd": (d_new.to(dtype) + slot_update.next_query_backward(d_query, first, wide, grads),),
        }

    exact, plain = by_operators(torch.float64), by_operators(torch.float32)
    new_slots, sums = exact["update_fwd"][0].float(), partials.sum(0)

    def update() -> Sequence[Tensor]:
        found = torch.empty_like(slots), torch.empty_like(partials[0])
        slot_ops.update(partials, slots, None, w, s, torch.empty_like(partials[0]), *found, torch.bfloat16)
        return found

    def update_backward() -> Sequence[Tensor]:
        found = torch.empty_like(slots), torch.empty_like(partials[0])
        rows = slot_ops.new_rows(2, B * K, D, D, w, s)
        kept = new_slots, slots, sums, None
        slot_ops.update_backward(d_partials, d_new, None, *kept, w, s, 0, *found, rows, torch.bfloat16)
        return found

    def query_backward() -> Sequence[Tensor]:
        d_slots, rows = torch.empty_like(slots), slot_ops.new_rows(2, B * K, D, D, w, s)
        slot_ops.first_query_backward(d_partials, d_new, slots, w, s, d_slots, rows, torch.bfloat16)
        return [d_slots]

    call = {"update_fwd": update, "update_bwd": update_backward, "query_bwd": query_backward}[kernel]
    return Problem(call, exact[kernel], plain[kernel], (partials, d_partials, slots, new_slots))


def configured(call: Call, config: Config) -> Call:
    """With this configuration in place of the table's."""
    from slotattn_fast.kernels import slot_ops

    return patched(call, slot_ops, "update_config", lambda *sizes, **options: config)


def report(record: Record) -> str:
    """Markdown: a line for each candidate, the table's own first; microseconds of one launch."""
    lines = [
        "| B x K x splits, kernel | dots | rows | chunk | unroll | warps | stages | prefetch "
        "| us | us, cold | error | allowed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        if UNFINISHED in entry["found"]:
            why = cell(why_unfinished(entry["found"]))
            lines.append(f"| {name} | {NOT_MEASURED}: {why} {'| ' * (lines[0].count('|') - 2)}")
            continue
        for row in entry["found"]["rows"]:
            what = [row[field] for field in FIELDS]
            if NOT_MEASURED in row or "us" not in row:
                figures = [f"not measured {row.get(NOT_MEASURED, '')}".strip(), "", "", ""]
            else:
                allowed = f"{entry['found']['allowed']:.1e}"
                figures = [f"{row['us']:.2f}", f"{row['us_cold']:.2f}", f"{row['error']:.1e}", allowed]
            lines.append(f"| {name} | {' | '.join(map(str, [*what, *figures]))} |")
    return "\n".join(lines)
