"""Object discovery (paper section 4.1): train the auto-encoder on images alone, measure FG-ARI, draw the slots."""

import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from slotattn_fast import explain_backend
from slotattn_fast.atomic import atomic_write
from slotattn_fast.data.catalogue import prepared_folder
from slotattn_fast.data.feed import feed
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.data.split import Split, open_split
from slotattn_fast.metrics.ari import fg_ari
from slotattn_fast.models.discovery import DiscoveryOutput, ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.report.figures import draw_slots
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.environment import environment, resolve_device
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.loop import EVAL_NOISE, fit, seed_of

EVAL_SCENES = 320
EVAL_BATCH = 32
# Every run of every seed is measured on the same scenes, with the same slot noise.
EVAL_SEED = 0
DRAWN_SCENES = 7


@dataclass(frozen=True)
class Discovery:
    """What the training loop asks of a task (`loop.Task`)."""

    config: TrainConfig

    def batches(self, start: int, device: torch.device) -> Generator[dict[str, Tensor]]:
        c = self.config
        split = open_split(c.data, "train", ["images"], seed=c.seed, max_objects=c.max_objects, device=device)
        return feed(split, seed=c.seed, batch_size=c.batch_size, start=start, device=device)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        images = to_model(batch["images"], self.config.greyscale)
        return nn.functional.mse_loss(model(images, generator=generator).reconstruction, images)

    def draw(self, model: nn.Module, path: Path) -> None:
        draw(model, self.config, path)


def create(config: TrainConfig, run: Path) -> None:
    """Makes the folder of a new run, ready for `train`.

    Raises ValueError for a model that cannot be built, `RunError` if the device is not there, the backend cannot run on
    it, the model takes other images, or the folder exists already, and `DataError` for data that cannot be used;
    nothing is written then.
    """
    device = resolve_device(config.device)
    model = DiscoveryConfig(**config.model)
    config = replace(config, data_sha256=_fingerprint(config.data))
    _require_fitting_images(config, model)
    try:
        explain_backend(torch.empty(1, 1, 1, device=device), model.backend)
    except RuntimeError as error:
        raise RunError(str(error)) from error
    config = replace(config, model=asdict(model))
    run_folder.create(run, config, environment(device))


def train(run: Path) -> dict[str, Any]:
    """Trains a run from its newest checkpoint, or from the start if there is none, and returns its evaluation.

    On a CPU a run that was stopped ends with bit by bit the weights of one that was not. Raises `RunError` if the
    folder or the device cannot be used or the run is complete, and what `loop.fit` raises.
    """
    config = run_folder.read_config(run)
    if (run / "eval.json").exists() and (run / "model.safetensors").exists():
        raise RunError(f"{run}: complete after {config.steps} steps; `slotattn eval {run}` measures it again")
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    model = _build(config, run)
    fabric = Fabric(accelerator=device, devices=1, precision=config.precision)
    _require_the_same_data(config)
    fit(fabric, model, Discovery(config), config, run)
    with atomic_write(run / "model.safetensors") as file:
        file.write(safetensors.torch.save({name: t.contiguous() for name, t in model.state_dict().items()}))
    draw(model, config, run / "slots.png")
    result = measure(model, config)
    run_folder.write_json(run / "eval.json", result)
    return result


def evaluate(run: Path, device: str | None = None) -> dict[str, Any]:
    """Measures a complete run again, writes its eval.json and returns it. `device` takes the place of the run's own."""
    model, config = _load(run, device)
    result = measure(model, config)
    run_folder.write_json(run / "eval.json", result)
    return result


def show(run: Path, device: str | None = None) -> Path:
    """Draws slots.png of a complete run again and returns its path."""
    model, config = _load(run, device)
    path = run / "slots.png"
    draw(model, config, path)
    return path


def measure(model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """FG-ARI and reconstruction error on 320 held-out scenes of a run's data, in float32 (paper section 4.1).

    A prepared folder with fewer scenes to evaluate is measured on those.

    Returns fg_ari (mean over the scenes that count), scenes, left_out (scenes without a foreground pixel), mse (mean
    over all elements, images in -1..1) and seconds.
    """
    began = time.perf_counter()
    scores, errors = [], []
    split = _open_held_out(config)
    scenes = split.at_most(EVAL_SCENES)
    for first in range(0, scenes, EVAL_BATCH):
        images, labels, output = _held_out(model, config, split, first, min(EVAL_BATCH, scenes - first))
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
    }


def draw(model: nn.Module, config: TrainConfig, path: Path) -> None:
    """Writes a PNG of the first held-out scenes of a run's data, as the model takes them apart."""
    split = _open_held_out(config)
    images, labels, output = _held_out(model, config, split, 0, split.at_most(DRAWN_SCENES))
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


def _load(run: Path, device: str | None) -> tuple[nn.Module, TrainConfig]:
    """The trained model of a complete run, on `device` or the run's own, and its configuration."""
    config = run_folder.read_config(run)
    _require_the_same_data(config)
    path = run / "model.safetensors"
    if not path.exists():
        raise RunError(f"{run}: not trained to its end; `slotattn train resume {run}` goes on with it")
    model = _build(config, run)
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{path}: damaged, or not of this run ({reason}); restore it, or remove it, and "
            f"`slotattn train resume {run}` makes it anew from its checkpoints"
        ) from error
    return model.to(resolve_device(device or config.device)), config


def _build(config: TrainConfig, run: Path) -> ObjectDiscovery:
    try:
        model_config = DiscoveryConfig(**config.model)
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / 'config.json'}: damaged ({error}); restore it or train again") from error
    model = ObjectDiscovery(model_config)
    # Convolutions are faster in this order. (PyTorch's annotations of `to` forgot the argument.)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _require_fitting_images(config: TrainConfig, model: DiscoveryConfig) -> None:
    """Raises `RunError` if the data's images are not of the size that the model takes."""
    images = to_model(_open_held_out(config).read(np.arange(1))["images"], config.greyscale)
    came, expected = images.shape[1:], (model.image_channels, model.image_size, model.image_size)
    if came != expected:
        or_greyscale = ", or add --greyscale" if came[0] == 1 and not config.greyscale else ""
        raise RunError(
            f"data: the images of {config.data} are {_size(came)}, but the model of preset {config.preset} takes "
            f"{_size(expected)}; choose another --preset{or_greyscale}"
        )


def _fingerprint(data: str) -> str | None:
    folder = prepared_folder(data)
    return None if folder is None else open_prepared(folder).fingerprint


def _require_the_same_data(config: TrainConfig) -> None:
    """Raises `RunError` if the prepared folder of a run has been replaced since it began."""
    if _fingerprint(config.data) != config.data_sha256:
        raise RunError(f"{config.data}: not the data that the run began with; put that back, or train anew")


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' * (channels > 1)}"


def _open_held_out(config: TrainConfig) -> Split:
    return open_split(config.data, "eval", ["images", "labels"], max_objects=config.max_objects)


def _held_out(
    model: nn.Module, config: TrainConfig, split: Split, first: int, count: int
) -> tuple[Tensor, Tensor, DiscoveryOutput]:
    """Images, true labels and what the model makes of them, in float32, on the model's device."""
    device = next(model.parameters()).device
    scenes = split.read(np.arange(first, first + count))
    generator = torch.Generator(device).manual_seed(seed_of(EVAL_SEED, EVAL_NOISE, first // EVAL_BATCH))
    inputs = to_model(scenes["images"].to(device), config.greyscale)
    with torch.no_grad():
        return inputs, scenes["labels"].to(device), model(inputs, generator=generator)


def _channels_last(images: Tensor) -> NDArray[np.float32]:
    """[..., C, H, W] to [..., H, W, 3]: one channel is shown as grey."""
    pixels = images.movedim(-3, -1)
    return pixels.expand(*pixels.shape[:-1], 3).cpu().numpy()
