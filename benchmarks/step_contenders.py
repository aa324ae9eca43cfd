"""Who takes a training step of either task: the plain loop and ours, each a model, its optimiser and a batch.

A step is loss, gradients and Adam's update. The plain loop is a model of `slotattn_fast.reference` as one would write
it down: eager, NCHW, PyTorch's default Adam. Ours is the fast model as `slotattn train` runs it: channels-last, fused
Adam, in float32 and with bfloat16 autocast. All have the same weights, images and noise, and before anything is timed
their loss and gradients are held against the plain loop's in float64: the error of ours, in parts of the norm, is at
most twice that of the plain loop in the same precision, plus KINKS, or it is not timed.
"""

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import on_gpu
from benchmarks.reasons import NOT_MEASURED, failed, too_wrong
from slotattn_fast.train.config import PRESETS, TaskName

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
    kind: type[Step], preset: str, batch: int, makers: Mapping[Any, Callable[[], Any]]
) -> tuple[dict[Any, Any], dict[Any, dict[str, Any]]]:
    """The steps of those that agree with the plain loop in float64; of each its error, or why it is not among them.

    At most twice the error of the plain loop in the same precision, beyond KINKS: where the input of a ReLU is 0 but
    for rounding, either model may have its gradient or none. A contender that fails is no reason to lose the others.
    What makes the steps is given by contender, or by its name, in either precision that of the plain loop first.
    """
    steps: dict[Any, Any] = {}
    notes: dict[Any, dict[str, Any]] = {}
    allowed: dict[bool, float] = {}
    try:
        exact = kind(PLAIN, preset, batch).double().gradients()
    except Exception as failure:
        return steps, {contender: {NOT_MEASURED: failed(failure)} for contender in makers}
    if on_gpu():
        torch.cuda.empty_cache()  # twice what others need
    for contender, make in makers.items():
        name = str(contender)
        try:
            step = make()
            found = error(step.gradients(), exact)
        except Exception as failure:
            notes[contender] = {NOT_MEASURED: failed(failure)}
            continue
        notes[contender] = {"error": found}
        bf16 = "bf16" in name
        if name == str(Contender(PLAIN.model, bf16)):
            allowed[bf16] = 2 * found + KINKS
        if why := too_wrong(found, allowed.get(bf16), "the plain loop"):
            notes[contender][NOT_MEASURED] = why
        else:
            steps[contender] = step
    return steps, notes
