"""The stage `steps`: one training step of either task at the paper's batch, ours against the plain loop.

Contenders are those of benchmarks/step_contenders.py: the plain loop, eager in float32 with convolutions in TF32, which
is PyTorch's default, in bfloat16, and that compiled; ours in float32, in bfloat16, and that compiled; and ours as
`slotattn train --cuda-graph` takes its steps, in bfloat16 and replayed as one CUDA graph. All have the same weights,
images and noise. Before anything is timed, loss and gradients of the whole batch are held against the plain loop in
float64: a contender with more than twice the error of the plain loop in the same precision is not timed. The gradients
inside a graph are read off Adam's first moment after the first step. Peak memory is beyond what a step is given and
leaves behind; of the graph, while it is captured, with the copies that its capture keeps.

Of property prediction nothing is compiled: the plain loop's matching is SciPy's, between two graphs of the compiler.

The last part times the decoder's transposed convolutions alone, each in two ways: as the convolution and pixel shuffle
of slotattn_fast/models/convolution.py, and by `torch.nn.functional.conv_transpose2d`.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slotattn_fast.train.config import PRESETS

from .contenders import difference
from .discovery import DiscoveryStep
from .gpu_record import Found, Part, Record
from .gpu_steps_table import CLEVR6, CONVOLUTIONS, GRAPH, SETS, report
from .measure import ceilings, milliseconds, on_gpu, peak_bytes, time_rows
from .property import PropertyStep
from .reasons import NOT_MEASURED, failed, off
from .spread import percentiles
from .step_contenders import OURS, PLAIN, Contender, Step, agreeing

__all__ = ["compare", "convolutions", "parts", "passed", "report"]

ROUNDS, PART_ROUNDS = 20, 5
TOY_BATCH = 1
PLAIN_BF16, OURS_BF16 = Contender("plain", bf16=True), Contender("ours", bf16=True)
EAGER = (PLAIN, PLAIN_BF16, OURS, OURS_BF16)  # the plain ones first, whose errors are the others' bounds
COMPILED = tuple(contender._replace(compiled=True) for contender in (OURS_BF16, PLAIN_BF16))
IN_PARTS = (PLAIN, OURS_BF16)


class Layer(NamedTuple):
    """A transposed convolution from 64 channels: side of the map that it takes, channels out, kernel, stride."""

    size: int
    out: int
    kernel: int
    stride: int

    def __str__(self) -> str:
        return f"{self.size} to {self.size * self.stride}, {self.kernel}x{self.kernel}, 64 to {self.out} channels"


# Of the decoder for CLEVR6 (the paper's Table 5), but the first, which needs no map; a map for each of 7 slots.
LAYERS = (Layer(16, 64, 5, 2), Layer(32, 64, 5, 2), Layer(64, 64, 5, 2), Layer(128, 64, 5, 1), Layer(128, 4, 3, 1))
TOY_LAYERS = (Layer(4, 64, 5, 2), Layer(4, 4, 3, 1))
MAPS, TOY_MAPS, CHECKED_MAPS = 64 * 7, 3, 2


def parts(toy: bool) -> dict[str, Part]:
    """The most important first."""
    if toy:
        return {
            "tetrominoes": partial(compare, DiscoveryStep, "tetrominoes", toy),
            "clevr6 properties": partial(compare, PropertyStep, "clevr6", toy),
            CONVOLUTIONS: partial(convolutions, toy),
        }
    return {
        CLEVR6: partial(compare, DiscoveryStep, "clevr6", toy),
        SETS: partial(compare, PropertyStep, "clevr10", toy),
        CONVOLUTIONS: partial(convolutions, toy),
        "multi-dsprites": partial(compare, DiscoveryStep, "multi-dsprites", toy),
        "tetrominoes": partial(compare, DiscoveryStep, "tetrominoes", toy),
    }


class GraphedStep:
    """A step of ours by the training's own functions: Fabric in bf16-mixed, one CUDA graph; on a CPU without it.

    The batch is as the feed gives it; its noise is rounded to bfloat16, as Fabric does with all inputs of float32.
    """

    def __init__(self, kind: type[Step], preset: str, batch: int) -> None:
        from lightning_fabric import Fabric

        from slotattn_fast.train.step import eager_step, graphed_step, make_adam

        ours = kind(OURS, preset, batch)
        self.model, self.batch = ours.model, ours.batch
        self.optimizer = make_adam(self.model, 4e-4, capturable=on_gpu())
        fabric = Fabric(accelerator=ours.device, devices=1, precision="bf16-mixed")
        loss_of, wrapped = fabric.setup(_Loss(ours), self.optimizer)
        self.peak: int | None = None
        self.step = eager_step(fabric, loss_of, wrapped)
        if on_gpu():

            def capture() -> list[Tensor]:
                self.step = graphed_step(fabric, loss_of, wrapped, self.batch)
                return []

            self.peak = peak_bytes(capture)

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradients in the order of the parameters' names. To be called once, before other steps."""
        loss = self.step(self.batch)
        (first, _) = self.optimizer.param_groups[0]["betas"]
        named = sorted(self.model.named_parameters())
        return loss, [self.optimizer.state[p]["exp_avg"] / (1 - first) for _, p in named]

    def __call__(self) -> list[Tensor]:
        return [self.step(self.batch)]


class _Loss(nn.Module):
    """As in slotattn_fast/train, without the libraries that are needed besides."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.model = step.model
        self.converted = step.converted

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.loss(*self.converted(batch, self.model.config.num_slots))


def compare(kind: type[Step], preset: str, toy: bool, seconds: float) -> Found:
    """Rows, one for each contender; milliseconds by part of a step; and the ceilings of the same minute."""
    config = PRESETS[kind.task][preset]
    batch = TOY_BATCH if toy else config.batch_size
    torch.compiler.reset()
    steps, notes = agreeing(kind, preset, batch, makers(kind, preset, batch, toy))
    rows: list[dict[str, Any]] = [{"contender": name, **note} for name, note in notes.items()]
    for row in rows:
        if step := steps.get(row["contender"]):
            try:
                row["peak_bytes"] = step.peak if isinstance(step, GraphedStep) else peak_beside_adam(step)
            except Exception as failure:
                row[NOT_MEASURED] = failed(failure)
                del steps[row["contender"]]
    times = time_rows(rows, steps, 1 if toy else ROUNDS, str(PLAIN))
    by_part = {str(c): part_times(steps[str(c)]) for c in IN_PARTS if str(c) in times}
    return {"rows": rows, "batch": batch, "steps": config.steps, "parts": by_part, **ceilings()}


def makers(kind: type[Step], preset: str, batch: int, toy: bool) -> dict[str, Callable[[], Step | GraphedStep]]:
    """What makes each contender. A toy is not compiled by Inductor, whose code for a CPU is not what is measured."""

    def compiled(contender: Contender) -> Step:
        step = kind(contender._replace(compiled=False), preset, batch)
        step.loss = torch.compile(step.model.loss, backend="eager" if toy else "inductor")
        return step

    found: dict[str, Callable[[], Step | GraphedStep]] = {str(c): partial(kind, c, preset, batch) for c in EAGER}
    if kind.task == "discovery":
        found |= {str(c): partial(compiled, c) for c in COMPILED}
    return found | {GRAPH: partial(GraphedStep, kind, preset, batch)}  # last: what fails in a capture may fail the next


def peak_beside_adam(step: Step) -> int | None:
    """Of a step that is not the first, in which Adam makes its moments."""
    step()
    return peak_bytes(step)


def part_times(step: Step) -> list[dict[str, Any]]:
    """Rows of medians in milliseconds, one for each part and direction; None instead on a CPU."""
    found = [step.parts() for _ in range(1 + (PART_ROUNDS if on_gpu() else 0))]
    return [
        {
            "part": part,
            "direction": direction,
            "ms": statistics.median(1000 * each[part, direction] for each in found[1:]) if on_gpu() else None,
        }
        for part, direction in found[0]
    ]


def convolutions(toy: bool, seconds: float) -> Found:
    """Rows: the time of forward and backward of each layer in each of two ways, under bfloat16 autocast."""
    from slotattn_fast.reference.auto_encoder import SameConvTranspose2d as Strided

    from slotattn_fast.models.convolution import SameConvTranspose2d as Shuffled

    ways = {"conv_transpose2d": Strided, "convolution and pixel shuffle": Shuffled}
    rows: list[dict[str, Any]] = []
    for layer in TOY_LAYERS if toy else LAYERS:
        made = made_alike(list(ways.values()), layer)
        maps, incoming = maps_of(layer, TOY_MAPS if toy else MAPS)
        few = maps.detach()[:CHECKED_MAPS].requires_grad_(), incoming[:CHECKED_MAPS]
        exact = pass_both_ways(made_alike([Strided], layer)[0].double(), few[0].double(), few[1].double())
        allowed, calls = float("inf"), {}
        for name, module in zip(ways, made, strict=True):
            row: dict[str, Any] = {"layer": str(layer), "contender": name}
            rows.append(row)
            found = pass_both_ways(module, *few)
            row["error"] = difference(found, exact)
            row["channels_last"] = is_channels_last(module, few[0])
            if name == "conv_transpose2d":
                allowed = 2 * row["error"] + 1e-6
            if not row["error"] <= allowed:
                row[NOT_MEASURED] = off(row["error"], allowed)
                continue
            calls[name] = partial(pass_both_ways, module, maps, incoming)
        times = milliseconds(calls, 1 if toy else ROUNDS)
        for row in rows[-len(ways) :]:
            if values := times.get(row["contender"]):
                row["ms"] = percentiles(values)
    return {"rows": rows, **ceilings()}


def made_alike(kinds: Sequence[type[nn.ConvTranspose2d]], layer: Layer) -> list[nn.ConvTranspose2d]:
    """A module of each kind, with the same weights, in channels-last order, in float32 as under autocast."""
    torch.manual_seed(0)
    weights = nn.ConvTranspose2d(64, layer.out, layer.kernel, layer.stride).state_dict()
    made = []
    for kind in kinds:
        module = kind(64, layer.out, layer.kernel, layer.stride)
        module.load_state_dict(weights)
        made.append(module.to("cuda" if on_gpu() else "cpu", memory_format=torch.channels_last))
    return made


def maps_of(layer: Layer, count: int) -> tuple[Tensor, Tensor]:
    """Maps, and the gradient to what the layer makes of them, in bfloat16 and channels-last order."""
    side = layer.size * layer.stride
    device = "cuda" if on_gpu() else "cpu"
    maps, incoming = (
        torch.randn(count, channels, size, size, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
        for channels, size in ((64, layer.size), (layer.out, side))
    )
    return maps.requires_grad_(), incoming


def pass_both_ways(module: nn.Module, maps: Tensor, incoming: Tensor) -> list[Tensor]:
    """Output in channels-last order, as the next layer takes it, and the gradients to input, weight and bias."""
    with torch.autocast(maps.device.type, torch.bfloat16, enabled=maps.dtype == torch.bfloat16):
        out = module(maps).contiguous(memory_format=torch.channels_last)
    return [out.detach(), *torch.autograd.grad(out, [maps, *module.parameters()], incoming)]


def is_channels_last(module: nn.Module, maps: Tensor) -> bool:
    """Whether the output is in channels-last order without a further copy."""
    with torch.no_grad(), torch.autocast(maps.device.type, torch.bfloat16):
        return module(maps).is_contiguous(memory_format=torch.channels_last)


def passed(record: Record) -> bool:
    """Whether ours was right wherever it was called; times do not fail."""
    rows = [row for entry in record.values() for row in entry["found"].get("rows", [])]
    ours = [row for row in rows if row["contender"].startswith(("ours", "convolution"))]
    return not any(NOT_MEASURED in row for row in ours)
