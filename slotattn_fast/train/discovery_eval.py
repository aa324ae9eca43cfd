"""Object discovery, measured and looked at: FG-ARI on held-out scenes, and pictures of the slots."""

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.atomic import atomic_write
from slotattn_fast.data.catalogue import prepared_folder
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.data.split import Split, open_split
from slotattn_fast.metrics.ari import fg_ari
from slotattn_fast.models.discovery import DiscoveryOutput, ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.report.figures import draw_slots
from slotattn_fast.report.iterations import draw_iterations
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.environment import resolve_device
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.loop import EVAL_NOISE, seed_of

EVAL_SCENES = 320
EVAL_BATCH = 32
# Every run of every seed is measured on the same scenes, with the same slot noise.
EVAL_SEED = 0
DRAWN_SCENES, DRAWN_SCENES_BY_ITERATION = 7, 2
# Of a run's training loss: the mean over so much of the end of its metrics.csv.
LAST_PART = 0.02


@dataclass(frozen=True)
class Setting:
    """What an evaluation has otherwise than the training had; None: nothing."""

    iters: int | None = None
    """Iterations of Slot Attention (the paper's Figure 2)."""
    num_slots: int | None = None
    max_objects: int | None = None
    data: str | None = None
    """A data set that is generated, or a prepared folder."""

    def of(self, config: TrainConfig) -> TrainConfig:
        """The run's configuration with the data of this setting."""
        data = config.data if self.data is None else self.data
        most = config.max_objects if self.max_objects is None else self.max_objects
        return replace(config, data=data, max_objects=most)

    def iters_of(self, model: ObjectDiscovery) -> int | None:
        """Iterations of Slot Attention; None of a model without it."""
        if model.config.grouping != "slot-attention":
            return None
        return model.config.iters if self.iters is None else self.iters

    def file(self) -> str:
        """eval.json, or a name that tells what is otherwise."""
        given = (("iters", self.iters), ("slots", self.num_slots), ("objects", self.max_objects), ("data", self.data))
        words = [f"-{name}-{Path(str(value)).name}" for name, value in given if value is not None]
        return f"eval{''.join(words)}.json"


DEFAULT = Setting()


def evaluate(run: Path, setting: Setting, device: str | None = None, *, keep: bool = True) -> dict[str, Any]:
    """Measures a complete run and returns what `measure` does, with train_loss, the training loss at the end.

    Written to the run's eval.json, or to a file named after the setting, if `keep`. `device` takes the place of the
    run's own. Raises `RunError` or `DataError` for a run or data that cannot be used, ValueError for a setting that the
    model cannot have.
    """
    model, config = load(run, device, setting)
    return evaluate_model(model, config, run, setting, keep=keep)


def evaluate_model(
    model: ObjectDiscovery, config: TrainConfig, run: Path, setting: Setting = DEFAULT, *, keep: bool = True
) -> dict[str, Any]:
    """`evaluate` of a model that is there."""
    result = {**measure(model, config, setting), "train_loss": train_loss(run, config.steps)}
    if keep:
        run_folder.write_json(run / setting.file(), result)
    return result


def show(run: Path, setting: Setting, device: str | None = None, out: Path | None = None) -> list[Path]:
    """Draws slots.png and iterations.png of a complete run into its folder, or into `out`; returns their paths."""
    model, config = load(run, device, setting)
    folder = run if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    return draw_all(model, config, folder, setting)


def measure(model: ObjectDiscovery, config: TrainConfig, setting: Setting = DEFAULT) -> dict[str, Any]:
    """FG-ARI and reconstruction error on 320 held-out scenes of a run's data, in float32 (paper section 4.1).

    A prepared folder with fewer scenes to evaluate is measured on those.

    Returns fg_ari (mean over the scenes that count), scenes, left_out (scenes without a foreground pixel), mse (mean
    over all elements, images in -1..1), seconds, and what it was measured with: data, max_objects, num_slots, iters.
    """
    began = time.perf_counter()
    scores, errors = [], []
    used = setting.of(config)
    split = open_held_out(used)
    scenes = split.at_most(EVAL_SCENES)
    for first in range(0, scenes, EVAL_BATCH):
        images, labels, output = _held_out(model, config, split, first, min(EVAL_BATCH, scenes - first), setting)
        scores.append(fg_ari(output.masks.squeeze(2).argmax(1), labels))
        errors.append((output.reconstruction - images).square().mean((1, 2, 3), dtype=torch.float64))
    score = torch.cat(scores)
    counted = ~score.isnan()
    return {
        "fg_ari": score[counted].mean().item(),
        "scenes": scenes,
        "left_out": int((~counted).sum()),
        "mse": torch.cat(errors).mean().item(),
        "seconds": round(time.perf_counter() - began, 3),
        "data": used.data,
        "max_objects": used.max_objects,
        "num_slots": setting.num_slots or model.config.num_slots,
        "iters": setting.iters_of(model),
    }


def train_loss(run: Path, steps: int) -> float | None:
    """The mean training loss of about the last fiftieth of a run, from its metrics.csv; None if that has no such row.

    A row is the mean of the steps since the row before, of which there are fewer where a run was cut.
    """
    total, counted, before = 0.0, 0, 0
    try:
        with (run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                if step > (1 - LAST_PART) * steps:
                    total, counted = total + (step - before) * float(row["loss"]), counted + step - before
                before = step
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return total / counted if counted else None


def draw_all(model: ObjectDiscovery, config: TrainConfig, folder: Path, setting: Setting = DEFAULT) -> list[Path]:
    """Writes slots.png and, of a model that iterates, iterations.png; returns their paths."""
    paths = [folder / "slots.png", folder / "iterations.png"]
    draw(model, config, paths[0], setting)
    if not setting.iters_of(model):
        return paths[:1]
    split = open_held_out(setting.of(config))
    images, _, generator = _scenes(model, config, split, 0, split.at_most(DRAWN_SCENES_BY_ITERATION))
    every = model.iterations(images, setting.iters, num_slots=setting.num_slots, generator=generator)
    with atomic_write(paths[1]) as file:
        draw_iterations(
            file,
            images=_channels_last(images),
            reconstructions=_channels_last(every.reconstruction),
            rgb=_channels_last(every.rgb),
            masks=every.masks.squeeze(3).cpu().numpy(),
            attention=every.attention.cpu().numpy(),
        )
    return paths


def draw(model: ObjectDiscovery, config: TrainConfig, path: Path, setting: Setting = DEFAULT) -> None:
    """Writes a PNG of the first held-out scenes of a run's data, as the model takes them apart."""
    split = open_held_out(setting.of(config))
    images, labels, output = _held_out(model, config, split, 0, split.at_most(DRAWN_SCENES), setting)
    with atomic_write(path) as file:
        draw_slots(
            file,
            images=_channels_last(images),
            reconstructions=_channels_last(output.reconstruction),
            rgb=_channels_last(output.rgb),
            masks=output.masks.squeeze(2).cpu().numpy(),
            true_labels=labels.cpu().numpy(),
        )


def to_model(images: Tensor, greyscale: bool = False) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in -1..1, in channels-last order in memory; C = 1 if `greyscale`."""
    values = images.permute(0, 3, 1, 2).float()
    return (values.mean(1, keepdim=True) if greyscale else values) / 127.5 - 1


def load(run: Path, device: str | None, setting: Setting = DEFAULT) -> tuple[ObjectDiscovery, TrainConfig]:
    """The trained model of a complete run, on `device` or the run's own, and its configuration.

    Raises `RunError` or `DataError` for a run that is not complete, and data that the setting cannot be measured on.
    """
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
    require_fitting_images(used, image_shape(used), model.config, "give other --data")
    return model.to(resolve_device(device or config.device)), config


def require_complete(run: Path) -> TrainConfig:
    """The configuration of a run. Raises `RunError` if there is none, or it has no trained model yet."""
    config = run_folder.read_config(run)
    if not (run / "model.safetensors").exists():
        raise RunError(f"{run}: not trained to its end; `slotattn train resume {run}` goes on with it")
    return config


def build(config: TrainConfig, run: Path) -> ObjectDiscovery:
    """The model of a run, with fresh weights. Raises `RunError` if the run's configuration cannot be built."""
    try:
        model_config = DiscoveryConfig(**config.model)
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / 'config.json'}: damaged ({error}); restore it or train again") from error
    model = ObjectDiscovery(model_config)
    # Convolutions are faster in this order. (PyTorch's annotations of `to` forgot the argument.)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fingerprint(data: str) -> str | None:
    """Of a prepared folder; None of a data set that is generated."""
    folder = prepared_folder(data)
    return None if folder is None else open_prepared(folder).fingerprint


def require_the_same_data(config: TrainConfig) -> None:
    """Raises `RunError` if the prepared folder of a run has been moved or replaced since it began."""
    if config.data_sha256 is not None and not Path(config.data).exists():
        raise RunError(f"{config.data}: the run's data is not there; put it back, or say by --data where it is now")
    if fingerprint(config.data) != config.data_sha256:
        raise RunError(
            f"{config.data}: not the data that the run began with; put that back, or say by --data where it is now"
        )


def require_fitting_images(config: TrainConfig, came: tuple[int, ...], model: DiscoveryConfig, advice: str) -> None:
    """Raises `RunError`, which ends with the advice, if the data's images [C, H, W] are not what the model takes."""
    expected = model.image_channels, model.image_size, model.image_size
    if came != expected:
        raise RunError(
            f"data: the images of {config.data} are {_size(came)}, but the model of preset {config.preset} takes "
            f"{_size(expected)}; {advice}"
        )


def image_shape(config: TrainConfig) -> tuple[int, ...]:
    """C, H and W of the data's images, as the model gets them."""
    return tuple(to_model(open_held_out(config).read(np.arange(1))["images"], config.greyscale).shape[1:])


def open_held_out(config: TrainConfig) -> Split:
    """The scenes to evaluate, with images and labels."""
    return open_split(config.data, "eval", ["images", "labels"], max_objects=config.max_objects)


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' * (channels > 1)}"


def _held_out(
    model: ObjectDiscovery, config: TrainConfig, split: Split, first: int, count: int, setting: Setting
) -> tuple[Tensor, Tensor, DiscoveryOutput]:
    """Images, true labels and what the model makes of them, in float32, on the model's device."""
    images, labels, generator = _scenes(model, config, split, first, count)
    with torch.no_grad():
        return images, labels, model(images, num_slots=setting.num_slots, iters=setting.iters, generator=generator)


def _scenes(
    model: ObjectDiscovery, config: TrainConfig, split: Split, first: int, count: int
) -> tuple[Tensor, Tensor, torch.Generator]:
    """Images, true labels, and the source of their slot noise, the same in every evaluation."""
    device = next(model.parameters()).device
    scenes = split.read(np.arange(first, first + count))
    generator = torch.Generator(device).manual_seed(seed_of(EVAL_SEED, EVAL_NOISE, first // EVAL_BATCH))
    return to_model(scenes["images"].to(device), config.greyscale), scenes["labels"].to(device), generator


def _channels_last(images: Tensor) -> NDArray[np.float32]:
    """[..., C, H, W] to [..., H, W, 3]: one channel is shown as grey."""
    pixels = images.movedim(-3, -1)
    return pixels.expand(*pixels.shape[:-1], 3).cpu().numpy()
