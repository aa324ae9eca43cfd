"""Time and memory of one training step of either task: what discovery.py and property.py do alike.

A step is loss, gradients and Adam's update. The plain loop is a model of `slotattn_fast.reference` as one would write
it down: eager, NCHW, PyTorch's default Adam. Ours is the fast model as `slotattn train` runs it: channels-last, fused
Adam, in float32 and with bfloat16 autocast. All have the same weights, images and noise, and before anything is timed
their loss and gradients are held against the plain loop's in float64: the error of ours, in parts of the norm, is at
most twice that of the plain loop in the same precision, plus KINKS, or it is not timed. Then they step in turns in one
process, every round through all presets, in any order; the table gives medians over the rounds and the median of the
rounds' ratios. The parts of a step are timed one by one, each from the detached outputs of the part before.

Peak memory is what a first step holds at most beyond what it is given, on a CPU Adam's state included. There it is the
growth of the resident set, in a fresh process for each contender. FLOPs are those that PyTorch's counter sees: not the
1 to 3 % of them inside our operator of Slot Attention. "product" is the rate of a float32 matrix product, the best that
was found: two are timed beside the steps of every preset in every round. On a GPU batches are the paper's, and
`torch.compile` of both is compared too. Writes TASK-cpu.csv (or -cuda), a row a measurement, and TASK-cpu.md, which it
also puts into README.md.
"""

import argparse
import inspect
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from operator import truediv
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conditions import (
    add_quick_out,
    add_threads,
    at_least,
    chosen_out,
    software,
    write_results,
    write_rows,
)
from benchmarks.measure import (
    WARM_UP,
    device_name,
    give_memory_back,
    in_any_order,
    in_fresh_process,
    on_gpu,
    peak_bytes,
    percentiles,
    resident_growth,
    wall_times,
)
from benchmarks.reasons import NOT_MEASURED, cell, failed, too_wrong
from slotattn_fast.train.config import PRESETS, TaskName

Row = dict[str, Any]
Call = Callable[[Tensor], Tensor]

UPDATE = "Adam"
KINKS = 2e-5
"""Where a ReLU switches, errors are larger. Of 33 batches of 1 to 32 images, either model in float32 had one of 3e-7 to
1.3e-5 in 29, the plain loop up to 3.4e-5 in two, ours up to 1.1e-4 in two others. That of SEED is among the 29."""
SEED = 2


class Contender(NamedTuple):
    model: str  # "plain" or "ours"
    bf16: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return self.model + ", bf16" * self.bf16 + ", compiled" * self.compiled


PLAIN, OURS = Contender("plain"), Contender("ours")
ON_GPU = tuple(
    Contender(model, bf16, compiled)
    for bf16 in (False, True)
    for compiled in (False, True)
    for model in (PLAIN[0], OURS[0])
)
ON_CPU = tuple(contender for contender in ON_GPU if not contender.compiled)  # compilers take a minute for each


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
        generator = torch.Generator().manual_seed(SEED)
        pixels = drawn_pixels(batch, config.image_size, config.image_channels, generator).to(device)
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


def drawn_pixels(batch: int, size: int, channels: int, generator: torch.Generator) -> Tensor:
    """uint8 [B, H, W, C], each image of a colour of its own, three parts, and noise, one part.

    Of noise alone the gradients of the pixels cancel each other, and what is left is the more of rounding.
    """
    colour, noise = (
        torch.randint(256, (batch, side, side, channels), generator=generator, dtype=torch.uint8) for side in (1, size)
    )
    return colour // 4 * 3 + noise // 4


def to_images(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in -1..1; as in slotattn_fast/train, without what that imports."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def error(found: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]]) -> float:
    """|found - exact| / |exact|, the larger of the loss and of all gradients together."""
    errors = [(found[0] - exact[0]).abs() / exact[0].abs()]
    one, other = (torch.cat([g.flatten().double() for g in side[1]]) for side in (found, exact))
    errors.append((one - other).norm() / other.norm())
    return torch.stack([x.double() for x in errors]).max().item()  # NaN where either is


def agreeing(
    kind: type[Step], preset: str, batch: int, contenders: tuple[Contender, ...]
) -> tuple[dict[Contender, Step], dict[Contender, dict[str, Any]]]:
    """The steps of those that agree with the plain loop in float64; of each its error, or why it is not among them.

    At most twice the error of the plain loop in the same precision, beyond KINKS: where the input of a ReLU is 0 but
    for rounding, either model may have its gradient or none. A contender that fails is no reason to lose the others.
    """
    steps: dict[Contender, Step] = {}
    notes: dict[Contender, dict[str, Any]] = {}
    allowed: dict[bool, float] = {}
    try:
        exact = kind(PLAIN, preset, batch).double().gradients()
    except Exception as failure:
        return steps, {contender: {NOT_MEASURED: failed(failure)} for contender in contenders}
    for contender in contenders:  # in either precision the plain loop first
        try:
            step = kind(contender, preset, batch)
            found = error(step.gradients(), exact)
        except Exception as failure:
            notes[contender] = {NOT_MEASURED: failed(failure)}
            continue
        notes[contender] = {"error": f"{found:.1e}"}
        if contender == Contender("plain", contender.bf16):
            allowed[contender.bf16] = 2 * found + KINKS
        if why := too_wrong(found, allowed.get(contender.bf16), "the plain loop"):
            notes[contender][NOT_MEASURED] = why
        else:
            steps[contender] = step
    return steps, notes


def peak_mib(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    """On a CPU in a fresh process: what was freed before is not seen twice."""
    if on_gpu():
        return (peak_bytes(kind(contender, preset, batch)) or 0) / 2**20
    modules = ("benchmarks.training_step", kind.fast_class.__module__)
    return in_fresh_process(_peak_mib_here, kind, contender, preset, batch, threads, preloaded=modules)


def _peak_mib_here(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    give_memory_back()
    kind(contender, preset, 1)()  # what is loaded on first use is not the step's
    step = kind(contender, preset, batch)
    return resident_growth(step)[0]


def gflop(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    return counter.get_total_flops() / 1e9


def product_gflops() -> float:
    """Of a float32 matrix product, the best of two."""
    left, right = (torch.randn(2048, 2048, device="cuda" if on_gpu() else "cpu") for _ in range(2))
    seconds = min(wall_times({"product": lambda: left @ right}, 2, warm_up=1)["product"]) / 1000
    return 2 * 2048**3 / seconds / 1e9


class Measured:
    """What is measured of a preset: the steps, and the parts of those without bf16 or compilation."""

    def __init__(self, kind: type[Step], preset: str, batch: int, threads: int) -> None:
        self.preset, self.batch = preset, batch
        self.steps, self.notes = agreeing(kind, preset, batch, ON_GPU if on_gpu() else ON_CPU)
        for contender, step in self.steps.items():
            step.optimizer.step()  # in which Adam makes its state
            try:
                self.notes[contender]["peak_mib"] = round(peak_mib(kind, contender, preset, batch, threads), 1)
            except Exception as failure:  # as when the system ends the process
                print(f"{preset}, {contender}: peak memory {NOT_MEASURED}: {failed(failure)}", file=sys.stderr)
            if contender in (PLAIN, OURS):  # what is compiled is not seen, and a precision changes nothing
                self.notes[contender]["gflop"] = round(gflop(step), 1)
        self.times: dict[Contender, list[float]] = {contender: [] for contender in self.steps}
        self.parts: dict[Contender, list[dict[tuple[str, str], float]]] = {
            contender: [] for contender in (PLAIN, OURS) if contender in self.steps
        }

    def go_round(self, number: int) -> None:
        """Every step once, in any order, then their parts; at first, on a GPU, after some that are not counted.

        On a CPU, where a step takes seconds, what held it against float64 was its warm-up.
        """
        warm_up = WARM_UP if on_gpu() and not number else 0
        for contender, found in wall_times(self.steps, 1, warm_up).items():
            self.times[contender] += found
        for contender in in_any_order(self.parts):
            for _ in range(warm_up):
                self.steps[contender].parts()
            self.parts[contender].append(self.steps[contender].parts())

    def rows(self) -> list[Row]:
        rows = []
        for contender, note in self.notes.items():
            head = self.row(contender, "step", "step")
            if values := self.times.get(contender):
                head |= spread(values)
                if plain := self.times.get(PLAIN):
                    head["faster"] = round(statistics.median(map(truediv, plain, values)), 2)
            rows.append(head | note)
        for contender, timed in self.parts.items():
            for part, direction in timed[0]:
                values = [1000 * seconds[part, direction] for seconds in timed]
                rows.append(self.row(contender, part, direction) | spread(values))
        return rows

    def row(self, contender: Contender, part: str, direction: str) -> Row:
        """Every column that is still empty too."""
        empty = ("ms_p20", "ms_median", "ms_p80", "faster", "peak_mib", "gflop", "error", NOT_MEASURED)
        head = {"preset": self.preset, "batch": self.batch, "contender": str(contender), "part": part}
        return {**head, "pass": direction, **dict.fromkeys(empty, "")}


def spread(values: list[float]) -> Row:
    p20, p50, p80 = percentiles(values)
    return {"ms_p20": round(p20, 2), "ms_median": round(p50, 2), "ms_p80": round(p80, 2)}


def measure(kind: type[Step], batches: Mapping[str, int], rounds: int, threads: int) -> Iterator[list[Row]]:
    """The rows of all presets, after every round but the first those of the rounds so far."""
    presets = [Measured(kind, preset, batch, threads) for preset, batch in batches.items()]
    product = 0.0
    for number in range(rounds):
        for preset in presets:
            product = max(product, product_gflops())
            preset.go_round(number)
        if number:
            more = {"rounds": number + 1, "product_gflops": round(product)}
            yield [row | more for preset in presets for row in preset.rows()]


def table(rows: list[Row], path: Path) -> str:
    """Markdown: the steps, and their parts."""
    first = rows[0]
    lines = [
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, medians of {first['rounds']} "
        f"interleaved rounds (20th to 80th percentile), product {first['product_gflops']} GFLOP/s, commit "
        f"{first['commit']}, {first['date']}: `{first['command']}`, {path}.",
        "",
        "| preset | batch | | a step | faster than plain | peak memory | part | GFLOP | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps = [r for r in rows if r["part"] == "step"]
    plain_peak = {r["preset"]: r["peak_mib"] for r in steps if r["contender"] == str(PLAIN)}
    for r in steps:
        if r[NOT_MEASURED]:
            lines.append(f"| {r['preset']} | {r['batch']} | {r['contender']} | {cell(r[NOT_MEASURED])} |" + " |" * 5)
            continue
        faster = f"**{r['faster']:.1f}x**" if r["faster"] and r["contender"] != str(PLAIN) else ""
        peak = f"{r['peak_mib']:.0f} MiB" if r["peak_mib"] else ""
        part = f"{r['peak_mib'] / plain_peak[r['preset']]:.2f}" if peak and plain_peak[r["preset"]] else ""
        lines.append(
            f"| {r['preset']} | {r['batch']} | {r['contender']} "
            f"| {r['ms_median']:.0f} ms ({r['ms_p20']:.0f} to {r['ms_p80']:.0f}) | {faster} "
            f"| {peak} | {part} | {r['gflop']} | {r['error']} |"
        )
    presets = list(plain_peak)
    lines += ["", "Milliseconds by part, ours / plain:", "", f"| part | pass | {' | '.join(presets)} |"]
    lines.append("|---|---|" + "---|" * len(presets))
    ms = {(r["preset"], r["contender"], r["part"], r["pass"]): f"{r['ms_median']:.1f}" for r in rows if r["ms_median"]}
    for part, direction in dict.fromkeys((r["part"], r["pass"]) for r in rows if r["part"] != "step"):
        cells = (" / ".join(ms.get((p, str(c), part, direction), "-") for c in (OURS, PLAIN)) for p in presets)
        lines.append(f"| {part} | {direction} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(kind: type[Step], batches: Mapping[str, int], quick: Mapping[str, int], description: str | None) -> None:
    """The command of a task: `batches` by preset on a CPU, and the small ones of --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches")
    parser.add_argument("--rounds", type=at_least(2), help="timed rounds of each step (default 5; with --quick 3)")
    add_threads(parser)
    add_quick_out(parser)
    arguments = parser.parse_args()
    out = chosen_out(arguments)
    torch.set_num_threads(arguments.threads)
    where = "cuda" if on_gpu() else "cpu"
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    conditions = {
        **software("torch"),
        "where": where,
        "device": device_name(),
        "threads": arguments.threads,
    }
    if arguments.quick:
        batches = quick
    elif on_gpu():
        batches = {preset: PRESETS[kind.task][preset].batch_size for preset in batches}
    name = f"{kind.task}-{where}"
    for rows in measure(kind, batches, rounds, arguments.threads):
        rows = [{**row, **conditions} for row in rows]
        write_rows(out / f"{name}.csv", rows)
    write_results(name, rows, table, out)
