"""The data of a run: opened, as the model takes it, whether it is what it was, and whether it fits."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.catalogue import prepared_folder
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.feed import feed
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.data.split import Split, open_split
from slotattn_fast.models.slots_config import SlotsConfig
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.loop import EVAL_NOISE, seed_of

EVAL_BATCH = 32
# Every run of every seed is measured on the same scenes, with slot noise that is the same on the same kind of device.
EVAL_SEED = 0


def open_held_out(
    config: TrainConfig, model: SlotsConfig, names: Sequence[str], device: torch.device | None = None
) -> Split:
    """The scenes to evaluate; CLEVR, where it is drawn, on this device (None: a CPU), as large as the model takes."""
    return open_split(config.data, "eval", names, max_objects=config.max_objects, size=model.image_size, device=device)


def training_batches(
    config: TrainConfig, model: SlotsConfig, names: Sequence[str], start: int, fabric: Fabric
) -> Generator[dict[str, Tensor]]:
    """A process' part of the batches of steps `start`, `start` + 1, ..., without end, on its device."""
    split = open_split(
        config.data,
        "train",
        names,
        seed=config.seed,
        max_objects=config.max_objects,
        device=fabric.device,
        size=model.image_size,
        scenes=config.scenes,
    )
    return feed(
        split,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )


def evaluation_batches(
    split: Split, scenes: int, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], torch.Generator]]:
    """The first scenes of a split on a device, and the source of each batch's slot noise, the same on such a device."""
    for first in range(0, scenes, EVAL_BATCH):
        batch = split.read(np.arange(first, min(first + EVAL_BATCH, scenes)))
        generator = torch.Generator(device).manual_seed(seed_of(EVAL_SEED, EVAL_NOISE, first // EVAL_BATCH))
        yield {name: array.to(device) for name, array in batch.items()}, generator


def to_model(images: Tensor, greyscale: bool = False) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in -1..1, in channels-last order in memory; C = 1 if `greyscale`."""
    values = images.permute(0, 3, 1, 2).float()
    return (values.mean(1, keepdim=True) if greyscale else values) / 127.5 - 1


def to_picture(images: Tensor) -> NDArray[np.float32]:
    """[..., C, H, W] to [..., H, W, 3] on the CPU: one channel is shown as grey."""
    pixels = images.movedim(-3, -1)
    return pixels.expand(*pixels.shape[:-1], 3).cpu().numpy()


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


def require_fitting_images(config: TrainConfig, came: tuple[int, ...], model: SlotsConfig, advice: str) -> None:
    """Raises `RunError`, which ends with the advice, if the data's images [C, H, W] are not what the model takes."""
    expected = model.image_channels, model.image_size, model.image_size
    if came != expected:
        raise RunError(
            f"data: the images of {config.data} are {_size(came)}, but the model of preset {config.preset} takes "
            f"{_size(expected)}; {advice}"
        )


def require_so_many_objects(config: TrainConfig) -> None:
    """Raises `DataError` for a folder that was generated with fewer objects than the configuration's `max_objects`."""
    folder = prepared_folder(config.data)
    generator = None if folder is None else open_prepared(folder).generator
    most = None if generator is None else generator.get("max_objects")
    if isinstance(most, int) and config.max_objects is not None and most < config.max_objects:
        raise DataError(
            f"{folder}: got max_objects {config.max_objects}, expected at most {most}, with which it was generated; "
            f"give --max-objects {most}, or generate another folder with {config.max_objects}"
        )


def image_shape(config: TrainConfig, model: SlotsConfig) -> tuple[int, ...]:
    """C, H and W of the data's images, as the model gets them."""
    images = open_held_out(config, model, ["images"]).read(np.arange(1))["images"]
    return tuple(to_model(images, config.greyscale).shape[1:])


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' * (channels > 1)}"
