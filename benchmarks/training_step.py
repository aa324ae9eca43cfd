"""Time and memory of one training step of either task: what discovery.py and property.py do alike.

A step is loss, gradients and Adam's update. The plain loop is a model of `slotattn_fast.reference` as one would write
it down: eager, NCHW, PyTorch's default Adam. Ours is the fast model as `slotattn train` runs it: channels-last, fused
Adam, in float32 and with bfloat16 autocast. All have the same weights, images and noise, and before anything is timed
their loss and gradients are held against the plain loop's in float64: the error of ours, in parts of the norm, is at
most twice that of the plain loop in the same precision. Then they step in turns in one process; the table gives medians
over the rounds and the median of the rounds' ratios. The parts of a step are timed one by one, each from the detached
outputs of the part before.

Peak memory is what a step holds at most beyond what it is given and leaves behind. On a CPU that is the growth of the
resident set, in a fresh process for each contender. FLOPs are those that PyTorch's counter sees: not the 1 to 3 % of
them inside our operator of Slot Attention. "product" is the rate of a float32 matrix product in the same minute, the
most that this machine gives. On a GPU batches are the paper's, and `torch.compile` of both is compared too. Writes
TASK-cpu.csv (or -cuda), a row a measurement, and TASK-cpu.md, which it also puts into README.md.
"""

import argparse
import inspect
import os
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from operator import truediv
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conditions import RESULTS, commit, today, write_results
from benchmarks.measure import (
    WARM_UP,
    device_name,
    in_fresh_process,
    on_gpu,
    peak_bytes,
    percentiles,
    resident_growth,
    wall_times,
)
from slotattn_fast.train.config import PRESETS, TaskName

Row = dict[str, Any]
Call = Callable[[Tensor], Tensor]

UPDATE = "Adam"
KINKS = 2e-5
"""Over batches of random pixels the error of either model in float32 is 3e-7 to 4e-6 in most, and to 2e-5 in some."""


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


class Step(ABC):
    """A contender's model, optimiser and batch; calling it is one training step and returns the gradients."""

    task: ClassVar[TaskName]
    config_class: ClassVar[type]
    plain_class: ClassVar[type[nn.Module]]
    fast_class: ClassVar[type[nn.Module]]

    def __init__(self, contender: Contender, preset: str, batch: int) -> None:
        config = self.config_class(**PRESETS[self.task][preset].model)
        names = inspect.signature(self.plain_class).parameters
        device = "cuda" if on_gpu() else "cpu"
        torch.manual_seed(0)
        plain = self.plain_class(**{name: getattr(config, name) for name in names}).to(device)
        model = plain
        if contender.model == "ours":
            model = self.fast_class(config).to(device, memory_format=torch.channels_last)
            model.load_state_dict(plain.state_dict())
        self.model = model
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=4e-4, fused=True if contender.model == "ours" else None
        )
        self.loss = torch.compile(model.loss) if contender.compiled else model.loss
        self.bf16, self.device = contender.bf16, device
        self.is_ours = contender.model == "ours"
        generator = torch.Generator().manual_seed(1)
        shape = (batch, config.image_size, config.image_size, config.image_channels)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
        noise = torch.randn(batch, config.num_slots, config.slot_dim, generator=generator).to(device)
        self.batch = {"images": pixels, **self.scenes(plain, to_images(pixels), noise, generator), "noise": noise}
        self.given = self.converted(self.batch, config.num_slots)
        if not self.is_ours:
            self.given = tuple(x.contiguous() for x in self.given)

    @staticmethod
    def scenes(plain: nn.Module, images: Tensor, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What a batch has besides images and noise."""
        return {}

    @staticmethod
    @abstractmethod
    def converted(batch: Mapping[str, Tensor], num_slots: int) -> tuple[Tensor, ...]:
        """The arguments of the models' `loss`, as `slotattn train` makes them of a batch: images first, noise last."""

    @abstractmethod
    def calls(self) -> dict[str, Call]:
        """The parts of the loss by name, each a function of what the one before returned, the first of the images."""

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradients in the order of the parameters' names."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(*self.given)
        loss.backward()
        return loss.detach(), [p.grad for _, p in sorted(self.model.named_parameters()) if p.grad is not None]

    def __call__(self) -> list[Tensor]:
        _, gradients = self.gradients()
        self.optimizer.step()
        return gradients

    def double(self) -> "Step":
        self.model.double()
        self.given = tuple(x.double() for x in self.given)
        return self

    def slot_attention(self) -> Call:
        """A part of both tasks."""
        images, noise = self.given[0], self.given[-1]
        initial = self.model.slot_attention.initial_slots(images, noise.shape[1], noise=noise).detach()
        return lambda tokens: self.model.slot_attention(tokens, slots_init=initial)

    def parts(self) -> dict[tuple[str, str], float]:
        """Seconds of every (part, "forward" or "backward"), and of the update."""
        seconds, links, value = {}, [], self.given[0]
        self.optimizer.zero_grad(set_to_none=True)
        for part, call in self.calls().items():
            leaf = value.detach().requires_grad_(bool(links))
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

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def to_images(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in -1..1; as in slotattn_fast/train, without what that imports."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def error(found: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]]) -> float:
    """|found - exact| / |exact|, the larger of the loss and of all gradients together."""
    errors = [(found[0] - exact[0]).abs() / exact[0].abs()]
    one, other = (torch.cat([g.flatten().double() for g in side[1]]) for side in (found, exact))
    return max(*errors, (one - other).norm() / other.norm()).item()


def check_agreement(steps: Mapping[Contender, Step], preset: str, batch: int) -> dict[Contender, float]:
    """The error of each. Raises AssertionError where it is more than twice that of the plain loop in its precision.

    Beyond KINKS: where the input of a ReLU is 0 but for rounding, either model may have its gradient or none.
    """
    kind = type(steps[PLAIN])
    exact = kind(PLAIN, preset, batch).double().gradients()
    errors = {contender: error(step.gradients(), exact) for contender, step in steps.items()}
    rough = kind(Contender("plain", bf16=True), preset, batch).gradients()
    for contender, found in errors.items():
        allowed = 2 * (error(rough, exact) if contender.bf16 else errors[PLAIN]) + KINKS
        if not found <= allowed:
            raise AssertionError(f"{preset}: {contender} is off by {found:.1e} of the norm, allowed is {allowed:.1e}")
    return errors


def peak_mib(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    """On a CPU in a fresh process: what was freed before is not seen twice."""
    if on_gpu():
        return (peak_bytes(kind(contender, preset, batch)) or 0) / 2**20
    modules = ("benchmarks.training_step", kind.fast_class.__module__)
    return in_fresh_process(_peak_mib_here, kind, contender, preset, batch, threads, preloaded=modules)


def _peak_mib_here(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    kind(contender, preset, 1)()  # what is loaded on first use is not the step's
    step = kind(contender, preset, batch)
    return resident_growth(step)[0]


def gflop(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    return counter.get_total_flops() / 1e9


def product_gflops(rounds: int = 5) -> float:
    """Of a float32 matrix product, the best of a few."""
    left, right = (torch.randn(2048, 2048, device="cuda" if on_gpu() else "cpu") for _ in range(2))
    seconds = min(wall_times({"product": lambda: left @ right}, rounds)["product"]) / 1000
    return 2 * 2048**3 / seconds / 1e9


def measure(kind: type[Step], preset: str, batch: int, rounds: int, threads: int) -> list[Row]:
    """The rows of a preset: one for the step of each contender, then the parts of those without bf16 or compilation."""
    steps = {contender: kind(contender, preset, batch) for contender in (ON_GPU if on_gpu() else ON_CPU)}
    errors = check_agreement(steps, preset, batch)
    warm_up = WARM_UP if on_gpu() else 1  # a step on a CPU takes seconds
    times = wall_times(steps, rounds, warm_up)
    rows = []
    for contender, step in steps.items():
        ratios = list(map(truediv, times[PLAIN], times[contender]))
        rows.append(
            row(preset, batch, contender, "step", "step", times[contender])
            | {
                "faster": round(statistics.median(ratios), 2),
                "peak_mib": round(peak_mib(kind, contender, preset, batch, threads), 1),
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


def table(task: TaskName, rows: list[Row]) -> str:
    """Markdown: the steps, and their parts."""
    first = rows[0]
    lines = [
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, medians of {first['rounds']} "
        f"interleaved rounds (20th to 80th percentile), product {first['product_gflops']} GFLOP/s, commit "
        f"{first['commit']}, {first['date']}: `python -m benchmarks.{task}`, "
        f"benchmarks/results/{task}-{first['where']}.csv.",
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


def main(kind: type[Step], batches: Mapping[str, int], quick: Mapping[str, int], description: str | None) -> None:
    """The command of a task: `batches` by preset on a CPU, and the small ones of --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches and 3 rounds")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch's threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = "cuda" if on_gpu() else "cpu"
    rounds = 3 if arguments.quick else arguments.rounds
    conditions = {
        "date": today(),
        "commit": commit(),
        "where": where,
        "device": device_name(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": rounds,
        "product_gflops": round(product_gflops()),
    }
    if arguments.quick:
        batches = quick
    elif on_gpu():
        batches = {preset: PRESETS[kind.task][preset].batch_size for preset in batches}
    rows: list[Row] = []
    for preset, batch in batches.items():
        rows += measure(kind, preset, batch, rounds, arguments.threads)
    rows = [{**r, **conditions} for r in rows]
    write_results(f"{kind.task}-{where}", rows, table(kind.task, rows), arguments.out)
