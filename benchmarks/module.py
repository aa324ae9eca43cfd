"""Time and memory of one SlotAttention call on this CPU: ours, the plain reference and the PyPI package slot-attention.

    python -m benchmarks.module [--rounds 15] [--threads 2] [--out benchmarks/results]

All contenders have the same weights and initial noise, are checked to agree, and are then timed in one process, one
after the other in every round; the table gives medians over the rounds and the median of the rounds' ratios. Peak
memory is the growth of the resident set over that before the call, in a fresh process for each contender, less the
slots and gradients that every contender must return. Writes module-cpu.csv, a row a measurement, and module-cpu.md,
which it also puts into README.md.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.conditions import RESULTS, commit, today, write_results
from slotattn_fast.train.environment import processor

SHAPES = ((8, 16384, 7), (8, 4096, 6), (16, 1024, 10))  # B, N, K: training of CLEVR6, Multi-dSprites, set prediction
DIM = 64
CONTENDERS = ("ours", "reference", "slot-attention")
PASSES = ("forward", "forward+backward")


def make(contender: str, num_slots: int) -> nn.Module:
    """The module of a contender; the same weights for all."""
    torch.manual_seed(0)
    if contender == "ours":
        from slotattn_fast import SlotAttention

        return SlotAttention(num_slots, DIM, backend="torch")
    if contender == "reference":
        from slotattn_fast.reference import SlotAttention as Reference

        return Reference(num_slots, DIM)
    from slot_attention import SlotAttention as Peer

    return Peer(num_slots, DIM)


def make_inputs(B: int, N: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, N, DIM, generator=generator).requires_grad_()


def step(module: nn.Module, inputs: Tensor, which: str) -> None:
    """One call; with gradients to the inputs and to all parameters in "forward+backward"."""
    if which == "forward":
        with torch.no_grad():
            module(inputs)
        return
    inputs.grad = None
    module.zero_grad()
    module(inputs).square().mean().backward()


def check_agreement(modules: dict[str, nn.Module], inputs: Tensor) -> None:
    """Raise unless slots and all gradients agree to 1e-4 of their norm."""
    results: dict[str, list[Tensor]] = {}
    for name, module in modules.items():
        torch.manual_seed(2)
        slots = module(inputs)
        grads = torch.autograd.grad(slots.square().mean(), [inputs, *module.parameters()])
        results[name] = [slots.detach(), grads[0], torch.cat([g.flatten() for g in grads[1:]])]
    for name, values in results.items():
        for value, expected in zip(values, results["reference"], strict=True):
            error = ((value - expected).norm() / expected.norm()).item()
            if not error < 1e-4:
                raise AssertionError(f"{name} differs from the reference by {error:.1e} of its norm")


def time_interleaved(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(contender: str, B: int, N: int, K: int, which: str, threads: int) -> float:
    """Growth of the resident set during one call less what it returns, in MiB, measured in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory_here, (contender, B, N, K, which, threads))


def _peak_memory_here(contender: str, B: int, N: int, K: int, which: str, threads: int) -> float:
    torch.set_num_threads(threads)
    module, inputs = make(contender, K), make_inputs(B, N)
    step(module, make_inputs(2, 64), which)  # what is loaded on first use is not the call's
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
    before = memory_status("VmRSS")
    step(module, inputs, which)
    returned = [inputs, *module.parameters()] if which == "forward+backward" else []
    slots = B * K * DIM
    return (memory_status("VmHWM") - before) / 1024 - 4 * (slots + sum(x.numel() for x in returned)) / 2**20


def memory_status(field: str) -> int:
    """A field of this process's status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(rounds: int, threads: int) -> list[dict[str, object]]:
    conditions = {
        "date": today(),
        "commit": commit(),
        "cpu": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
        "D": DIM,
        "T": 3,
        "rounds": rounds,
    }
    rows: list[dict[str, object]] = []
    for B, N, K in SHAPES:
        modules, inputs = {name: make(name, K) for name in CONTENDERS}, make_inputs(B, N)
        check_agreement(modules, inputs)
        for which in PASSES:
            calls = {name: partial(step, module, inputs, which) for name, module in modules.items()}
            seconds = time_interleaved(calls, rounds)
            for name in CONTENDERS:
                ratios = [other / ours for other, ours in zip(seconds[name], seconds["ours"], strict=True)]
                p20, p50, p80 = (1000 * q for q in _percentiles(seconds[name]))
                rows.append(
                    {
                        "B": B,
                        "N": N,
                        "K": K,
                        "pass": which,
                        "contender": name,
                        "ms_p20": round(p20, 3),
                        "ms_median": round(p50, 3),
                        "ms_p80": round(p80, 3),
                        "times_ours": round(statistics.median(ratios), 2),
                        "peak_mib": round(peak_memory(name, B, N, K, which, threads), 1),
                        **conditions,
                    }
                )
                print(f"{B} x {N} x {K}  {which:17}{name:15}{p50:9.2f} ms  {rows[-1]['peak_mib']:8} MiB", flush=True)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: a line for each shape and pass."""
    first = rows[0]
    lines = [
        f"{first['cpu']}, {first['threads']} threads, torch {first['torch']}, float32, D = {DIM}, T = 3, medians of "
        f"{first['rounds']} interleaved rounds, commit {first['commit']}, {first['date']}: "
        f"`python -m benchmarks.module`, benchmarks/results/module-cpu.csv.",
        "",
        "| B x N x K | pass | ours | reference | slot-attention | faster than the reference | than slot-attention "
        "| peak memory: ours | reference | part |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for i in range(0, len(rows), len(CONTENDERS)):
        ours, reference, peer = rows[i : i + len(CONTENDERS)]
        part = float(str(ours["peak_mib"])) / float(str(reference["peak_mib"]))
        lines.append(
            f"| {ours['B']} x {ours['N']} x {ours['K']} | {ours['pass']} "
            f"| {ours['ms_median']:.1f} ms | {reference['ms_median']:.1f} ms | {peer['ms_median']:.1f} ms "
            f"| **{reference['times_ours']:.1f}x** | {peer['times_ours']:.1f}x "
            f"| {ours['peak_mib']:.0f} MiB | {reference['peak_mib']:.0f} MiB | {part:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _percentiles(values: list[float]) -> tuple[float, float, float]:
    p20, _, _, p80 = statistics.quantiles(values, n=5)
    return p20, statistics.median(values), p80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each call")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch's threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments.rounds, arguments.threads)
    write_results("module-cpu", rows, table(rows), arguments.out)


if __name__ == "__main__":
    main()
