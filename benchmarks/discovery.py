"""Time and memory of one training step of object discovery: ours and the plain loop, with the paper's presets.

    python -m benchmarks.discovery [--quick] [--rounds 5] [--threads 2] [--out benchmarks/results]

A step is loss, gradients and Adam's update. The plain loop is `slotattn_fast.reference.AutoEncoder` as one would write
it down: eager, NCHW, PyTorch's default Adam. Ours is `ObjectDiscovery` as `slotattn train` runs it: channels-last,
fused Adam, in float32 and with bfloat16 autocast. All have the same weights, images and noise, and before anything is
timed their loss and gradients are held against the plain loop's in float64: the error of ours, in parts of the norm, is
at most twice that of the plain loop in the same precision. Then they step in turns in one process; the table gives
medians over the rounds and the median of the rounds' ratios. The parts of a step are timed one by one, each from the
detached outputs of the part before.

Peak memory is what a step holds at most beyond what it is given and leaves behind. On a CPU that is the growth of the
resident set, in a fresh process for each contender. FLOPs are those that PyTorch's counter sees: not the 1 to 3 % of
them inside our operator of Slot Attention. "product" is the rate of a float32 matrix product in the same minute, the
most that this machine gives. On a GPU batches are the paper's, and `torch.compile` of both is compared too. Writes
discovery-cpu.csv (or -cuda), a row a measurement, and discovery-cpu.md, which it also puts into README.md.
"""

import argparse
import ctypes
import inspect
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from slotattn_fast.reference import AutoEncoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conditions import RESULTS, commit, today, write_results
from benchmarks.gpu_measure import milliseconds, on_gpu, peak_bytes, percentiles
from benchmarks.module import memory_status, time_interleaved
from slotattn_fast.mixture import reconstruction_loss
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.environment import processor

Row = dict[str, Any]

BATCHES = {"tetrominoes": 64, "multi-dsprites": 16, "clevr6": 4}  # on a CPU
QUICK_BATCHES = {"tetrominoes": 8, "multi-dsprites": 2, "clevr6": 1}
PARTS = ("encoder", "slot attention", "decoder's first layer", "decoder's other layers", "mixture and loss")
UPDATE = "Adam"


class Contender(NamedTuple):
    model: str  # "plain" or "ours"
    bf16: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return self.model + ", bf16" * self.bf16 + ", compiled" * self.compiled


PLAIN, OURS = Contender("plain"), Contender("ours")
ON_CPU = (PLAIN, OURS, Contender("ours", bf16=True))
ON_GPU = tuple(
    Contender(model, bf16, compiled)
    for bf16 in (False, True)
    for compiled in (False, True)
    for model in (PLAIN[0], OURS[0])
)


class Step:
    """A contender's model, optimiser and batch; calling it is one training step and returns the gradients."""

    def __init__(self, contender: Contender, preset: str, batch: int) -> None:
        config = DiscoveryConfig(**PRESETS[preset].model)
        device = "cuda" if on_gpu() else "cpu"
        torch.manual_seed(0)
        model: nn.Module = AutoEncoder(
            **{name: getattr(config, name) for name in inspect.signature(AutoEncoder).parameters}
        )
        if contender.model == "ours":
            plain, model = model, ObjectDiscovery(config)
            model.load_state_dict(plain.state_dict())
            model.to(memory_format=torch.channels_last)
        self.model = model.to(device)
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=4e-4, fused=True if contender.model == "ours" else None
        )
        self.loss = torch.compile(model.loss) if contender.compiled else model.loss
        self.bf16, self.device = contender.bf16, device
        generator = torch.Generator().manual_seed(1)
        shape = (batch, config.image_channels, config.image_size, config.image_size)
        self.images = torch.rand(shape, generator=generator).to(device) * 2 - 1
        if contender.model == "ours":  # as what the training converts is
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.noise = torch.randn(batch, config.num_slots, config.slot_dim, generator=generator).to(device)

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradients in the order of the parameters' names."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.images, self.noise)
        loss.backward()
        return loss.detach(), [p.grad for _, p in sorted(self.model.named_parameters()) if p.grad is not None]

    def __call__(self) -> list[Tensor]:
        _, gradients = self.gradients()
        self.optimizer.step()
        return gradients

    def double(self) -> "Step":
        self.model.double()
        self.images, self.noise = self.images.double(), self.noise.double()
        return self

    def parts(self) -> dict[tuple[str, str], float]:
        """Seconds of every (part, "forward" or "backward"), and of the update."""
        model, seconds = self.model, {}
        relu, *others = model.decoder.convolutions  # ours has its ReLU in `broadcast`, and the identity here
        B, K, _ = self.noise.shape
        initial = model.slot_attention.initial_slots(self.images, K, noise=self.noise).detach()
        calls: list[Callable[[Tensor], Tensor]] = [
            model.encoder,
            lambda tokens: model.slot_attention(tokens, slots_init=initial),
            lambda slots: relu(model.decoder.broadcast(slots.flatten(0, 1))),
            nn.Sequential(*others),
            lambda maps: self.mixture_loss(maps.unflatten(0, (B, K))),
        ]
        self.optimizer.zero_grad(set_to_none=True)
        value, links = self.images, []
        for part, call in zip(PARTS, calls, strict=True):
            leaf = value.detach().requires_grad_(part != PARTS[0])
            given = leaf.clone()  # the call may write over it, and may not over a leaf
            began = self.clock()
            with self.autocast():
                value = call(given)
            seconds[part, "forward"] = self.clock() - began
            links.append((part, leaf, value))
        gradient = torch.ones_like(value)
        for part, leaf, value in reversed(links):
            began = self.clock()
            value.backward(gradient)
            seconds[part, "backward"] = self.clock() - began
            gradient = leaf.grad
        began = self.clock()
        self.optimizer.step()
        seconds[UPDATE, "update"] = self.clock() - began
        return seconds

    def mixture_loss(self, maps: Tensor) -> Tensor:
        size = self.images.shape[-1]
        maps = maps[..., :size, :size]
        if isinstance(self.model, ObjectDiscovery):
            return reconstruction_loss(maps, self.images)
        reconstruction = (maps[:, :, -1:].softmax(1) * maps[:, :, :-1]).sum(1)
        return F.mse_loss(reconstruction, self.images)

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def error(found: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]]) -> float:
    """|found - exact| / |exact|, the larger of the loss and of all gradients together."""
    errors = [(found[0] - exact[0]).abs() / exact[0].abs()]
    one, other = (torch.cat([g.flatten().double() for g in side[1]]) for side in (found, exact))
    return max(*errors, (one - other).norm() / other.norm()).item()


def check_agreement(steps: dict[Contender, Step], preset: str, batch: int) -> dict[Contender, float]:
    """The error of each. Raises AssertionError where it is more than twice that of the plain loop in its precision."""
    exact = Step(PLAIN, preset, batch).double().gradients()
    errors = {contender: error(step.gradients(), exact) for contender, step in steps.items()}
    rough = Step(Contender("plain", bf16=True), preset, batch).gradients()
    for contender, found in errors.items():
        allowed = 2 * (error(rough, exact) if contender.bf16 else errors[PLAIN]) + 1e-6
        if not found <= allowed:
            raise AssertionError(f"{preset}: {contender} is off by {found:.1e} of the norm, allowed is {allowed:.1e}")
    return errors


def peak_mib(contender: Contender, preset: str, batch: int, threads: int) -> float:
    """On a CPU in a fresh process: what was freed before is not seen twice."""
    if on_gpu():
        return (peak_bytes(Step(contender, preset, batch)) or 0) / 2**20
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.module", "slotattn_fast.models.discovery"])  # spend its seconds once
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_peak_mib_here, contender, preset, batch, threads).result()


def _peak_mib_here(contender: Contender, preset: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    Step(contender, preset, 1)()  # what is loaded on first use is not the step's
    step = Step(contender, preset, batch)
    ctypes.CDLL(None).malloc_trim(0)  # glibc: what was freed is in the resident set no more
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
    before = memory_status("VmRSS")
    step()
    return (memory_status("VmHWM") - before) / 1024


def gflop(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    return counter.get_total_flops() / 1e9


def product_gflops(rounds: int = 5) -> float:
    """Of a float32 matrix product, the best of a few."""
    left, right = (torch.randn(2048, 2048, device="cuda" if on_gpu() else "cpu") for _ in range(2))
    calls = {"product": lambda: [left @ right]}
    seconds = [ms / 1000 for ms in times_of(calls, rounds)["product"]]
    return 2 * 2048**3 / min(seconds) / 1e9


def times_of(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Milliseconds of every call in every round, in turns."""
    if on_gpu():
        return milliseconds(calls, rounds)
    return {name: [1000 * s for s in seconds] for name, seconds in time_interleaved(calls, rounds).items()}


def measure(preset: str, batch: int, rounds: int, threads: int) -> list[Row]:
    """The rows of a preset: one for the step of each contender, then the parts of those without bf16 or compilation."""
    steps = {contender: Step(contender, preset, batch) for contender in (ON_GPU if on_gpu() else ON_CPU)}
    errors = check_agreement(steps, preset, batch)
    times = times_of(steps, rounds)
    rows = []
    for contender, step in steps.items():
        ratios = list(map(truediv, times[PLAIN], times[contender]))
        rows.append(
            row(preset, batch, contender, "step", "step", times[contender])
            | {
                "faster": round(statistics.median(ratios), 2),
                "peak_mib": round(peak_mib(contender, preset, batch, threads), 1),
                "gflop": "" if contender.compiled else round(gflop(step), 1),
                "error": f"{errors[contender]:.1e}",
            }
        )
    timed: dict[Contender, list[dict[tuple[str, str], float]]] = {PLAIN: [], OURS: []}
    for _ in range(rounds + 1):
        for contender, found in timed.items():
            found.append(steps[contender].parts())
    for contender, found in timed.items():
        for part, direction in found[0]:
            values = [1000 * seconds[part, direction] for seconds in found[1:]]
            rows.append(row(preset, batch, contender, part, direction, values))
    return rows


def row(preset: str, batch: int, contender: Contender, part: str, direction: str, values: list[float]) -> Row:
    p20, p50, p80 = percentiles(values)
    print(f"{preset:15}{contender!s:12}{part:25}{direction:10}{p50:9.1f} ms", flush=True)
    return {
        "preset": preset,
        "batch": batch,
        "contender": str(contender),
        "part": part,
        "pass": direction,
        "ms_p20": round(p20, 2),
        "ms_median": round(p50, 2),
        "ms_p80": round(p80, 2),
        **dict.fromkeys(("faster", "peak_mib", "gflop", "error"), ""),
    }


def table(rows: list[Row]) -> str:
    """Markdown: the steps, and their parts."""
    first = rows[0]
    lines = [
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, medians of {first['rounds']} "
        f"interleaved rounds (20th to 80th percentile), product {first['product_gflops']} GFLOP/s, commit "
        f"{first['commit']}, {first['date']}: `python -m benchmarks.discovery`, "
        f"benchmarks/results/discovery-{first['where']}.csv.",
        "",
        "| preset | batch | | a step | faster than plain | peak memory | part | GFLOP | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps = [r for r in rows if r["part"] == "step"]
    plain_peak = {r["preset"]: r["peak_mib"] for r in steps if r["contender"] == "plain"}
    for r in steps:
        faster = "" if r["contender"] == "plain" else f"**{r['faster']:.1f}x**"
        lines.append(
            f"| {r['preset']} | {r['batch']} | {r['contender']} "
            f"| {r['ms_median']:.0f} ms ({r['ms_p20']:.0f} to {r['ms_p80']:.0f}) | {faster} "
            f"| {r['peak_mib']:.0f} MiB | {r['peak_mib'] / plain_peak[r['preset']]:.2f} | {r['gflop']} | {r['error']} |"
        )
    presets = list(plain_peak)
    lines += ["", "Milliseconds by part, ours / plain:", "", f"| part | pass | {' | '.join(presets)} |"]
    lines.append("|---|---|" + "---|" * len(presets))
    ms = {(r["preset"], r["contender"], r["part"], r["pass"]): r["ms_median"] for r in rows}
    for part, direction in dict.fromkeys((r["part"], r["pass"]) for r in rows if r["part"] != "step"):
        cells = (f"{ms[p, 'ours', part, direction]:.1f} / {ms[p, 'plain', part, direction]:.1f}" for p in presets)
        lines.append(f"| {part} | {direction} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches and 4 rounds")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch's threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = "cuda" if on_gpu() else "cpu"
    rounds = 4 if arguments.quick else arguments.rounds
    conditions = {
        "date": today(),
        "commit": commit(),
        "where": where,
        "device": torch.cuda.get_device_name() if on_gpu() else processor(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": rounds,
        "product_gflops": round(product_gflops()),
    }
    batches = dict.fromkeys(BATCHES, 64) if on_gpu() else BATCHES
    rows: list[Row] = []
    for preset, batch in (QUICK_BATCHES if arguments.quick else batches).items():
        rows += measure(preset, batch, rounds, arguments.threads)
    rows = [{**r, **conditions} for r in rows]
    write_results(f"discovery-{where}", rows, table(rows), arguments.out)


if __name__ == "__main__":
    main()
