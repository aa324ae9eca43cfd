"""A run of either task, from its folder to its trained and measured model."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from slotattn_fast import explain_backend
from slotattn_fast.atomic import atomic_write
from slotattn_fast.models.image_slots import ImageSlots
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import PRESETS, Device, TrainConfig
from slotattn_fast.train.environment import environment
from slotattn_fast.train.errors import RunError, Stopped
from slotattn_fast.train.evaluation import build, evaluate_model, keep
from slotattn_fast.train.loop import fit
from slotattn_fast.train.processes import check_devices, connect, is_first, one_line_if_another_ends, other_processes
from slotattn_fast.train.run_data import fingerprint, image_shape, require_fitting_images, require_the_same_data
from slotattn_fast.train.signals import StopSignal
from slotattn_fast.train.tasks import task_of


def create(config: TrainConfig, run: Path) -> None:
    """Makes the folder of a new run, ready for `train`.

    Raises ValueError for a model or devices that cannot be had, `BackendUnavailable` if the backend cannot serve the
    model on the device, `RunError` if the device is not there, the data does not fit the model, or the folder exists
    already, and `DataError` for data that cannot be used; nothing is written then.
    """
    device, _ = check_devices(config)
    model = task_of(config).model_config()
    config = resolved(config)
    _require_trainable(config, device)
    shape = image_shape(config, model)
    require_fitting_images(config, shape, model, f"choose {_fitting_presets(config, shape)}")
    explain_backend(
        torch.empty(1, 1, model.encoder_channels, device=device),
        model.backend,
        num_slots=model.num_slots,
        softmax_over=model.softmax_over,
        aggregation=model.aggregation,
    )
    run_folder.create(run, config, environment(device))


def resolved(config: TrainConfig) -> TrainConfig:
    """As in the run's config.json: with every field of the model, and the fingerprint of the data."""
    return replace(config, model=asdict(task_of(config).model_config()), data_sha256=fingerprint(config.data))


def _require_trainable(config: TrainConfig, device: str) -> None:
    task = task_of(config)
    if task.model_config().iters == 0:
        raise ValueError("iters: got 0, expected at least 1 to train with: the encoder learns nothing without")
    task.require_fitting_data(device)


def configuration(
    run: Path,
    device: Device | None = None,
    devices: int | None = None,
    data: str | None = None,
    compile: bool | None = None,
    cuda_graph: bool | None = None,
) -> TrainConfig:
    """Of a run that can be trained. What is given takes the place of what it was made with.

    Raises `RunError` if the folder or the devices cannot be used or the run is complete, and ValueError for devices
    that cannot share its batch and for a place of data that it draws itself.
    """
    config = run_folder.read_config(run)
    if data is not None and config.data_sha256 is None:
        raise ValueError(f"data: got {data!r}, expected nothing: the run draws {config.data} while it trains")
    place = None if data is None else str(Path(data).resolve())
    given: dict[str, Any] = {
        "device": device,
        "devices": devices,
        "data": place,
        "compile": compile,
        "cuda_graph": cuda_graph,
    }
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    if run_folder.is_complete(run):
        raise RunError(f"{run}: complete after {config.steps} steps; `slotattn eval {run}` measures it again")
    check_devices(config)
    return config


def train(run: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Trains a run from its newest checkpoint, or from the start if there is none, and returns its evaluation.

    On a CPU a run that was stopped ends with bit by bit the weights of one that was not. Of several processes the first
    returns the evaluation, the others None. Raises `RunError` if its data is not what it was or another process trains
    it, and what `loop.fit` raises.
    """
    require_the_same_data(config)
    torch.manual_seed(config.seed)
    model = build(config, run)
    device, devices = check_devices(config)
    try:  # again: a folder or a configuration may have been written to since
        _require_trainable(config, device)
    except ValueError as error:
        raise RunError(f"{run / 'config.json'}: {error}") from error
    others = ["train", "resume", str(run), "--device", device, "--devices", str(devices)]
    others += [] if config.data_sha256 is None else ["--data", config.data]
    others += ["--compile" if config.compile else "--no-compile", "--no-cuda-graph"]  # a graph is of one process
    with run_folder.in_use(run) if is_first() else nullcontext():
        run_folder.make_folders(run)
        # A signal is kept from before the others are started, so that none is left behind.
        with StopSignal() as stop, other_processes(others, devices), one_line_if_another_ends():
            fabric = connect(config)
            fit(fabric, model, task_of(config), config, run, stop)
            if stop.received is not None:  # too late for the loop
                raise Stopped(stop.received, config.steps)
        return _finish(run, model, config) if fabric.is_global_zero else None


def _fitting_presets(config: TrainConfig, shape: tuple[int, ...]) -> str:
    """The options with which a model of the task takes such images [C, H, W]."""
    models = {name: task_of(preset).model_config() for name, preset in PRESETS[config.task].items()}
    fitting = [name for name, m in models.items() if (m.image_channels, m.image_size, m.image_size) == shape]
    options = [f"--preset {' or '.join(fitting)}"] if fitting else []
    channels, height, width = shape
    if config.task == "property" and height == width and channels == config.model.get("image_channels", 3):
        options.append(f"--image-size {height}")  # the set predictor has one free size
    return ", or ".join(options) or "other --data"


def _finish(run: Path, model: ImageSlots, config: TrainConfig) -> dict[str, Any]:
    with atomic_write(run / "model.safetensors") as file:
        file.write(safetensors.torch.save({name: t.contiguous() for name, t in model.state_dict().items()}))
    task_of(config).draw_all(model, run)
    return keep(evaluate_model(model, config, run), run)
