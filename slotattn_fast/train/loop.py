"""The training loop of every task: steps rather than epochs, and a run that can be cut anywhere and goes on exactly.

Batches and slot noise are functions of (seed, step), and a checkpoint holds the rest: weights, Adam's moments and the
step. Nothing is read back from the device but every `log_every` steps and at a checkpoint.
"""

import math
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from signal import Signals
from typing import Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from slotattn_fast.train import checkpoint
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.log import Log
from slotattn_fast.train.schedule import learning_rate
from slotattn_fast.train.signals import StopSignal

# What a random number is for. Part of every seed, so that no two uses share a stream.
TRAIN_NOISE, EVAL_NOISE = 1, 3


class Task(Protocol):
    """What the loop asks of a task."""

    def batches(self, start: int, device: torch.device) -> Generator[dict[str, Tensor]]:
        """The training batches of steps `start`, `start` + 1, ..., on `device`."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """The scalar to minimise."""

    def draw(self, model: nn.Module, path: Path) -> None:
        """A picture of what the model does by now."""


class Stopped(Exception):
    """SIGTERM or Ctrl-C ended the loop after a checkpoint."""

    def __init__(self, signal: Signals, step: int) -> None:
        super().__init__(f"{signal.name}: checkpoint saved at step {step}")
        self.signal = signal


def fit(fabric: Fabric, model: nn.Module, task: Task, config: TrainConfig, run: Path) -> None:
    """Trains `model` in place up to `config.steps` steps, from the newest checkpoint in `run` if it holds any.

    Raises `Stopped` after SIGTERM or Ctrl-C, and `RunError` if the loss or the weights are no longer finite (the newest
    checkpoint is from before that) or if there are checkpoints and none can be used.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
    wrapped, optimizer = fabric.setup(model, optimizer)
    start = _restore(run / "checkpoints", model, optimizer)
    generator = torch.Generator(fabric.device)
    losses: list[Tensor] = []
    images_seen = 0

    with (
        StopSignal() as stop,
        Log(run, start) as log,
        tqdm(
            initial=start,
            total=config.steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as bar,
        closing(task.batches(start, fabric.device)) as batches,
    ):
        for step in range(start, config.steps):
            batch = next(batches)
            lr = learning_rate(
                step,
                base=config.lr,
                warmup_steps=config.warmup_steps,
                decay_steps=config.decay_steps,
                steps=config.steps,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            generator.manual_seed(seed_of(config.seed, TRAIN_NOISE, step))

            loss = task.loss(wrapped, batch, generator)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            losses.append(loss.detach())
            images_seen += config.batch_size
            done = step + 1
            bar.update()
            signal = stop.received  # read once: it may come at any moment
            save = done % config.checkpoint_every == 0 or done == config.steps or signal is not None
            if save or done % config.log_every == 0:
                mean = _mean_of_finite(losses, done)
                speed = log.write(done, mean, lr, images_seen)
                bar.set_postfix_str(f"loss {mean:.5f}, {speed:.0f} images/s")
                losses, images_seen = [], 0
            if save:
                _require_finite(model, optimizer, done)
                state = checkpoint.Checkpoint(done, model.state_dict(), optimizer.state_dict())
                checkpoint.save(run / "checkpoints", state)
            if done % config.image_every == 0 or done == config.steps:
                task.draw(model, run / "images" / f"step-{done:08d}.png")
            if signal is not None:
                raise Stopped(signal, done)


def seed_of(seed: int, use: int, step: int) -> int:
    """A 64-bit seed for a torch generator, a function of the run's seed, what it is for, and the step."""
    return int(np.random.SeedSequence([seed, use, step]).generate_state(1, np.uint64)[0])


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest usable checkpoint, if there is one, and returns the number of steps it has done."""
    newest, passed_over = checkpoint.load_newest(folder)
    for line in passed_over:
        print(f"{line}: going back to the checkpoint before it", file=sys.stderr)
    if newest is None:
        return 0
    try:
        model.load_state_dict(newest.model)
        optimizer.load_state_dict(newest.optimizer)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{folder}: the checkpoints are of another model than config.json; train again") from error
    return newest.step


def _mean_of_finite(losses: list[Tensor], done: int) -> float:
    """The mean of the last losses, in one copy from the device. Raises `RunError` naming the first not finite."""
    values = torch.stack(losses).tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} in step {done - len(values) + 1 + i}; {_DIVERGED}")
    return math.fsum(values) / len(values)


def _require_finite(model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    """Weights and Adam's moments: an infinite moment stops a weight from learning without ever showing in the loss."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    if not torch.stack([value.isfinite().all() for value in (*model.parameters(), *moments)]).all():
        raise RunError(f"weights or Adam's moments are no longer finite after step {done}; {_DIVERGED}")


_DIVERGED = "the checkpoints in the run folder are from before that; train again with a lower --lr"
