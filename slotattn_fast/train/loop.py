"""The training loop of every task: steps rather than epochs, and a run that can be cut anywhere and goes on exactly.

Batches and slot noise are functions of (seed, step), and a checkpoint holds the rest: weights, Adam's moments and the
step. Nothing is read back from the device but every `log_every` steps and at a checkpoint. Several processes share a
step's batch: each takes its part of the images and of the noise, and DistributedDataParallel averages their gradients.
"""

import math
import shlex
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from tqdm import tqdm

from slotattn_fast.train import checkpoint
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.errors import RunError, Stopped
from slotattn_fast.train.log import Log
from slotattn_fast.train.processes import by_the_first
from slotattn_fast.train.run_folder import differences
from slotattn_fast.train.schedule import learning_rate
from slotattn_fast.train.signals import Agreement, StopSignal
from slotattn_fast.train.step import Batch, Step, eager_step, graphed_step, make_adam, restore_adam, set_learning_rate

# What a random number is for. Part of every seed, so that no two uses share a stream.
TRAIN_NOISE, EVAL_NOISE = 1, 3


class Task(Protocol):
    """What the loop asks of a task."""

    def batches(self, start: int, fabric: Fabric) -> Generator[Batch]:
        """This process' part of the training batches of steps `start`, `start` + 1, ..., on its device."""

    def noise_shape(self, model: Any) -> tuple[int, ...] | None:
        """Of the standard normal numbers of a whole step, first the batch; None: it takes none."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The scalar to minimise: a mean over the images. `batch` has the noise beside what `batches` gave."""

    def draw(self, model: Any, path: Path) -> None:
        """A picture of what the model does by now."""


class _Loss(nn.Module):
    """The task's loss as a module, which can be compiled and shared by processes."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)


def fit(fabric: Fabric, model: nn.Module, task: Task, config: TrainConfig, run: Path, stop: StopSignal) -> None:
    """Trains `model` in place up to `config.steps` steps, from the newest checkpoint in `run` if it holds any.

    `stop` has been entered. Every process of `fabric` calls it; the first of them writes to `run`. Raises `Stopped`
    after SIGTERM or Ctrl-C, and `RunError` if the loss or the weights are no longer finite (the newest checkpoint is
    from before that), if there are checkpoints and none can be used, or if the configuration is not the one they were
    made with.
    """
    model.to(fabric.device)
    optimizer = make_adam(model, config.lr, capturable=config.cuda_graph)
    start, losses_before = _restore(run / "checkpoints", model, optimizer, config, fabric)
    plain = _Loss(model, task)
    loss_of, wrapped = fabric.setup(cast(nn.Module, torch.compile(plain)) if config.compile else plain, optimizer)
    step_once: Step | None = None if config.cuda_graph else eager_step(fabric, loss_of, wrapped)

    noise = _Noise(task.noise_shape(model), config.seed, fabric)
    agreement = Agreement() if fabric.world_size > 1 else None
    losses: list[Tensor] = list(torch.tensor(losses_before, device=fabric.device))
    images_seen = 0
    with ExitStack() as stack:
        log = stack.enter_context(Log(run, start)) if fabric.is_global_zero else None
        bar = stack.enter_context(_progress_bar(start, config.steps, shown=fabric.is_global_zero))
        batches = stack.enter_context(closing(task.batches(start, fabric)))
        if log is not None and start and not _picture(run, start).exists():  # killed between checkpoint and picture
            _draw(task, model, config, run, start, log)
        for step in range(start, config.steps):
            batch = noise.add_to(next(batches), step)
            lr = learning_rate(step, config)
            set_learning_rate(optimizer, lr)
            try:
                if step_once is None:
                    step_once = graphed_step(fabric, loss_of, wrapped, batch)
                losses.append(step_once(batch))
            except TorchDynamoException as error:
                reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
                go_on = f"go on with `slotattn train resume {shlex.quote(str(run))} --no-compile`"
                raise RunError(f"compile: torch.compile failed ({reason}); {go_on}") from error

            done = step + 1
            images_seen += config.batch_size
            bar.update()
            signal = stop.received  # read once: it may come at any moment
            if agreement is not None:
                signal = agreement.after_step(signal)
            save = done % config.checkpoint_every == 0 or done == config.steps or signal is not None
            write = done % config.log_every == 0 or done == config.steps
            unwritten = _finite_losses(fabric, losses, done) if save or write else []
            if write:
                if log is not None:
                    mean = math.fsum(unwritten) / len(unwritten)
                    speed = log.write(done, mean, lr, images_seen)
                    bar.set_postfix_str(f"loss {mean:.5f}, {speed:.0f} images/s")
                losses, unwritten, images_seen = [], [], 0
            if save:
                _require_finite(model, optimizer, done)
                if log is not None:
                    log.sync()  # before a checkpoint that counts its rows as written
                    states = model.state_dict(), optimizer.state_dict()
                    checkpoint.save(
                        run / "checkpoints", checkpoint.Checkpoint(done, *states, asdict(config), unwritten)
                    )
            if log is not None:
                _draw(task, model, config, run, done, log)
            if signal is not None:
                raise Stopped(signal, done)


def _draw(task: Task, model: nn.Module, config: TrainConfig, run: Path, done: int, log: Log) -> None:
    """The picture after `done` steps, if one is due then."""
    if done % config.image_every == 0 or done == config.steps:
        task.draw(model, _picture(run, done))
        log.picture(_picture(run, done), done)


def _picture(run: Path, step: int) -> Path:
    return run / "images" / f"step-{step:08d}.png"


def seed_of(seed: int, use: int, step: int) -> int:
    """A 64-bit seed for a torch generator, a function of the run's seed, what it is for, and the step."""
    return int(np.random.SeedSequence([seed, use, step]).generate_state(1, np.uint64)[0])


class _Noise:
    """This process' part of the standard normal numbers of each step, which do not depend on how many processes are."""

    def __init__(self, shape: tuple[int, ...] | None, seed: int, fabric: Fabric) -> None:
        self.shape = shape
        self.seed = seed
        self.generator = torch.Generator(fabric.device)
        self.rank, self.world_size = fabric.global_rank, fabric.world_size

    def add_to(self, batch: Batch, step: int) -> Batch:
        if self.shape is None:
            return batch
        self.generator.manual_seed(seed_of(self.seed, TRAIN_NOISE, step))
        # Drawn in float32; Lightning Fabric rounds it to bfloat16 where that is the run's precision.
        noise = torch.randn(self.shape, generator=self.generator, device=self.generator.device)
        return {**batch, "noise": noise.chunk(self.world_size)[self.rank]}


def _progress_bar(start: int, steps: int, shown: bool) -> "tqdm[Any]":
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(initial=start, total=steps, unit="step", dynamic_ncols=True, mininterval=interval, disable=not shown)


def _restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, fabric: Fabric
) -> tuple[int, list[float]]:
    """Loads the newest usable checkpoint, if there is one: the one that the first process finds, in every process.

    Returns the number of steps it has done, and the losses of those that metrics.csv has no row of yet.
    """
    # Another machine may see a shared disk's folder as it was some time ago.
    newest, passed_over = by_the_first(fabric, partial(checkpoint.load_newest, folder))
    for line in passed_over if fabric.is_global_zero else ():
        print(f"{line}: going back to the checkpoint before it", file=sys.stderr)
    if newest is None:
        return 0, []
    if changes := differences(newest.config, config):
        said = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
        raise RunError(
            f"{folder.parent / 'config.json'}: not the configuration that the checkpoints were made with: {said}; "
            "put that back, or train anew"
        )
    try:
        model.load_state_dict(newest.model)
        restore_adam(optimizer, newest.optimizer)
        losses = [float(loss) for loss in newest.losses]
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{folder}: the checkpoints are of another model than config.json; train again") from error
    if newest.step > config.steps:
        raise RunError(
            f"{folder}: got a checkpoint of step {newest.step}, expected at most {config.steps}; train again"
        )
    return newest.step, losses


def _finite_losses(fabric: Fabric, losses: list[Tensor], done: int) -> list[float]:
    """The last losses of all processes, in one copy from the device. Raises `RunError` naming the first not finite."""
    stacked = torch.stack(losses)
    if fabric.world_size > 1:
        stacked = cast(Tensor, fabric.all_reduce(stacked, reduce_op="mean"))
    values: list[float] = stacked.tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} in step {done - len(values) + 1 + i}; {_DIVERGED}")
    return values


def _require_finite(model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    """Weights and Adam's moments: an infinite moment stops a weight from learning without ever showing in the loss."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    if not torch.stack([value.isfinite().all() for value in (*model.parameters(), *moments)]).all():
        raise RunError(f"weights or Adam's moments are no longer finite after step {done}; {_DIVERGED}")


_DIVERGED = "checkpoints in the run folder, if there are any, are from before that; train again with a lower --lr"
