"""Object discovery (paper section 4.1): the auto-encoder trained on images alone, its FG-ARI and its pictures."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from slotattn_fast.atomic import atomic_write
from slotattn_fast.metrics.ari import fg_ari
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.report.figures import draw_slots
from slotattn_fast.report.iterations import draw_iterations
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.run_data import evaluation_batches, open_held_out, to_model, to_picture, training_batches
from slotattn_fast.train.run_folder import number_or_none
from slotattn_fast.train.setting import DEFAULT, Setting, iters_of

EVAL_SCENES = 320
DRAWN_SCENES, DRAWN_SCENES_BY_ITERATION = 7, 2


@dataclass(frozen=True)
class Discovery:
    """What a run asks of its task (`tasks.Task`)."""

    config: TrainConfig

    def model_config(self) -> DiscoveryConfig:
        return DiscoveryConfig(**self.config.model)

    def model(self) -> ObjectDiscovery:
        return ObjectDiscovery(self.model_config())

    def require_fitting_data(self, device: str) -> None:
        """Raises `DataError` for data without labels: images are trained on, but measured and drawn with labels."""
        open_held_out(self.config, self.model_config(), ["images", "labels"])

    def batches(self, start: int, fabric: Fabric) -> Generator[dict[str, Tensor]]:
        return training_batches(self.config, self.model_config(), ["images"], start, fabric)

    def noise_shape(self, model: ObjectDiscovery) -> tuple[int, ...] | None:
        return model.noise_shape(self.config.batch_size)

    def loss(self, model: ObjectDiscovery, batch: dict[str, Tensor]) -> Tensor:
        return model.loss(to_model(batch["images"], self.config.greyscale), batch.get("noise"))

    @torch.no_grad()
    def measure(self, model: ObjectDiscovery, setting: Setting = DEFAULT) -> dict[str, Any]:
        """FG-ARI and reconstruction error on 320 held-out scenes of a run's data (paper section 4.1).

        In float32, but for a GPU's convolutions, which have TF32 as PyTorch's default is.

        A prepared folder with fewer scenes to evaluate is measured on those.

        Returns fg_ari (mean over the scenes that count, None without any), scenes, left_out (scenes without a
        foreground pixel), mse (mean over all elements, images in -1..1), seconds, and what it was measured with: data,
        max_objects, num_slots, iters.
        """
        began = time.perf_counter()
        scores, errors = [], []
        used, device = setting.of(self.config), _device(model)
        split = open_held_out(used, model.config, ["images", "labels"], device)
        scenes = split.at_most(EVAL_SCENES)
        for batch, generator in evaluation_batches(split, scenes, device):
            images = to_model(batch["images"], self.config.greyscale)
            output = model(images, num_slots=setting.num_slots, iters=setting.iters, generator=generator)
            scores.append(fg_ari(output.masks.squeeze(2).argmax(1), batch["labels"]))
            errors.append((output.reconstruction - images).square().mean((1, 2, 3), dtype=torch.float64))
        score = torch.cat(scores)
        counted = ~score.isnan()
        return {
            "fg_ari": number_or_none(score[counted].mean().item()),
            "scenes": scenes,
            "left_out": int((~counted).sum()),
            "mse": torch.cat(errors).mean().item(),
            "seconds": round(time.perf_counter() - began, 3),
            "data": used.data,
            "max_objects": used.max_objects,
            "num_slots": setting.num_slots or model.config.num_slots,
            "iters": iters_of(model.config, setting),
        }

    def draw_all(self, model: ObjectDiscovery, folder: Path, setting: Setting = DEFAULT) -> list[Path]:
        """Writes slots.png and, of a model that iterates, iterations.png; returns their paths."""
        paths = [folder / "slots.png", folder / "iterations.png"]
        self.draw(model, paths[0], setting)
        if not iters_of(model.config, setting):
            return paths[:1]
        images, _, generator = self._first_scenes(model, setting, DRAWN_SCENES_BY_ITERATION)
        every = model.iterations(images, setting.iters, num_slots=setting.num_slots, generator=generator)
        with atomic_write(paths[1]) as file:
            draw_iterations(
                file,
                images=to_picture(images),
                reconstructions=to_picture(every.reconstruction),
                rgb=to_picture(every.rgb),
                masks=every.masks.squeeze(3).cpu().numpy(),
                attention=every.attention.cpu().numpy(),
            )
        return paths

    @torch.no_grad()
    def draw(self, model: ObjectDiscovery, path: Path, setting: Setting = DEFAULT) -> None:
        """Writes a PNG of the first held-out scenes of a run's data, as the model takes them apart."""
        images, labels, generator = self._first_scenes(model, setting, DRAWN_SCENES)
        output = model(images, num_slots=setting.num_slots, iters=setting.iters, generator=generator)
        with atomic_write(path) as file:
            draw_slots(
                file,
                images=to_picture(images),
                reconstructions=to_picture(output.reconstruction),
                rgb=to_picture(output.rgb),
                masks=output.masks.squeeze(2).cpu().numpy(),
                true_labels=labels.cpu().numpy(),
            )

    def _first_scenes(
        self, model: ObjectDiscovery, setting: Setting, number: int
    ) -> tuple[Tensor, Tensor, torch.Generator]:
        """Images, true labels, and the source of their slot noise."""
        device = _device(model)
        split = open_held_out(setting.of(self.config), model.config, ["images", "labels"], device)
        batch, generator = next(evaluation_batches(split, split.at_most(number), device))
        return to_model(batch["images"], self.config.greyscale), batch["labels"], generator


def _device(model: ObjectDiscovery) -> torch.device:
    return next(model.parameters()).device
