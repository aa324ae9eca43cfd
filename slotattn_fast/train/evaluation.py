"""Finished runs of either task, measured and drawn."""

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from slotattn_fast.models.image_slots import ImageSlots
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.environment import resolve_device
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.run_data import (
    image_shape,
    require_fitting_images,
    require_so_many_objects,
    require_the_same_data,
)
from slotattn_fast.train.setting import DEFAULT, Setting
from slotattn_fast.train.tasks import task_of

# Of a run's training loss: the mean over so much of the end of its metrics.csv.
LAST_PART = 0.02


def evaluate(run: Path, setting: Setting, device: str | None = None) -> dict[str, Any]:
    """Measures a complete run and returns what its task's `measure` does, with train_loss, the loss at the end.

    `device` takes the place of the run's own. Raises `RunError` or `DataError` for a run or data that cannot be used,
    ValueError for a setting that the model cannot have.
    """
    model, config = load(run, device, setting)
    return evaluate_model(model, config, run, setting)


def evaluate_model(model: ImageSlots, config: TrainConfig, run: Path, setting: Setting = DEFAULT) -> dict[str, Any]:
    """`evaluate` of a model that is there."""
    result = {"task": config.task, **task_of(config).measure(model, setting)}
    result["train_loss"] = train_loss(run, config.steps)
    return result


def keep(result: dict[str, Any], run: Path, setting: Setting = DEFAULT) -> dict[str, Any]:
    """Writes an evaluation to the run's eval.json, or to a file named after the setting; returns it."""
    run_folder.write_json(run / setting.file(), result)
    return result


def show(run: Path, setting: Setting, device: str | None = None, out: Path | None = None) -> list[Path]:
    """Draws the pictures of a complete run into `out`; returns their paths.

    Without `out` into its folder, those of a setting that is not the training's into one in it.
    """
    model, config = load(run, device, setting)
    folder = out or (run if setting == DEFAULT else run / f"show{setting.suffix()}")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return task_of(config).draw_all(model, folder, setting)
    except BaseException:
        if made:
            with suppress(OSError):  # of a picture in it
                folder.rmdir()
        raise


def train_loss(run: Path, steps: int) -> float | None:
    """The mean training loss of about the last fiftieth of a run, from its metrics.csv; None if that has no such row.

    A row is the mean of the steps since the row before, of which there are fewer where a run was cut.
    """
    last = [reading for reading in readings(run) or () if reading.step > (1 - LAST_PART) * steps]
    counted = sum(reading.steps for reading in last)
    return sum(reading.steps * reading.loss for reading in last) / counted if counted else None


class Reading(NamedTuple):
    """A row of a run's metrics.csv."""

    step: int
    steps: int
    """Since the row before."""
    loss: float
    images_per_second: float
    """NaN where a row has none."""


def readings(run: Path) -> list[Reading] | None:
    """All of a run; None where they cannot be read."""
    rows, before = [], 0
    try:
        with (run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                speed = float(row.get("images_per_second") or "nan")
                rows.append(Reading(step, step - before, float(row["loss"]), speed))
                before = step
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return rows


def load(run: str | Path, device: str | None, setting: Setting = DEFAULT) -> tuple[ImageSlots, TrainConfig]:
    """The trained model of a complete run, on `device` or the run's own, and its configuration.

    Raises `RunError` or `DataError` for a run that is not complete, and data that the setting cannot be measured on.
    """
    run = Path(run)
    config = run_folder.read_config(run)
    if setting.data is None:
        require_the_same_data(config)
    require_complete(run)
    path = run / "model.safetensors"
    model = build(config, run)
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{path}: damaged, or not of this run ({reason}); restore it, or remove it, and "
            f"`slotattn train resume {run}` makes it anew from its checkpoints"
        ) from error
    used = setting.of(config)
    if setting.max_objects is not None:  # a training's just leaves scenes out
        require_so_many_objects(used)
    require_fitting_images(used, image_shape(used, model.config), model.config, "give other --data")
    return model.to(resolve_device(device or config.device)), config


def require_complete(run: Path) -> TrainConfig:
    """The configuration of a run. Raises `RunError` if there is none, or it has no trained model yet."""
    config = run_folder.read_config(run)
    if not (run / "model.safetensors").exists():
        raise RunError(f"{run}: not trained to its end; `slotattn train resume {run}` goes on with it")
    return config


def build(config: TrainConfig, run: Path) -> ImageSlots:
    """The model of a run, with fresh weights. Raises `RunError` if the run's configuration cannot be built."""
    task = task_of(config)
    try:
        task.model_config()
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / 'config.json'}: damaged ({error}); restore it or train again") from error
    # Convolutions are faster in this order. (PyTorch's annotations of `to` forgot the argument.)
    return task.model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
