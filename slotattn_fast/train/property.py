"""Property prediction (paper section 4.2): the set predictor trained on true properties, its AP and its pictures."""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.atomic import atomic_write
from slotattn_fast.data.catalogue import prepared_folder
from slotattn_fast.data.clevr_published import MAX_OBJECTS
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.data.properties import NAMES, check_properties, properties_of, targets_of
from slotattn_fast.data.resize import resize_labels
from slotattn_fast.data.split import has_labels, open_split
from slotattn_fast.kernels.support import why_not_matching
from slotattn_fast.metrics.ari import fg_ari
from slotattn_fast.metrics.average_precision import THRESHOLDS, ap_by_count, average_precision
from slotattn_fast.models.property import PropertyPrediction
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.report.properties import draw_properties
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.run_data import evaluation_batches, open_held_out, to_model, to_picture, training_batches
from slotattn_fast.train.run_folder import number_or_none
from slotattn_fast.train.setting import DEFAULT, Setting, iters_of

GENERATED_SCENES = 500
"""To evaluate, of data without an end; of a prepared folder all, which are 15 000 of CLEVR."""
DRAWN_SCENES = 5


@dataclass(frozen=True)
class PropertyTask:
    """What a run asks of its task (`tasks.Task`)."""

    config: TrainConfig

    def model_config(self) -> PropertyConfig:
        return PropertyConfig(**self.config.model)

    def model(self) -> PropertyPrediction:
        return PropertyPrediction(self.model_config())

    def require_fitting_data(self, device: str) -> None:
        """Raises `DataError` for data with wrong properties or none.

        `RunError` for more objects than slots, and for slots that cannot be matched on this device.
        """
        c, slots = self.config, self.model_config().num_slots
        if device != "cpu" and (reason := why_not_matching(device, slots, slots)):
            raise RunError(f"{reason}; use --device cpu")
        most = MAX_OBJECTS
        folder = prepared_folder(c.data)
        if folder is None:
            open_split(c.data, "eval", NAMES)
        else:
            splits = open_prepared(folder).splits
            for name, arrays in splits.items():
                open_split(c.data, name, NAMES, max_objects=c.max_objects)
                check_properties(f"{folder}: {name}", arrays)
            most = int(splits["train"]["num_objects"].max(initial=0))
        most = most if c.max_objects is None else min(most, c.max_objects)
        if most > slots:
            raise RunError(
                f"num_slots: got {slots}, but scenes of {c.data} have up to {most} objects, each of which needs a "
                f"slot; give --num-slots {most}, or --max-objects {slots}"
            )

    def batches(self, start: int, fabric: Fabric) -> Generator[dict[str, Tensor]]:
        for batch in training_batches(self.config, self.model_config(), ["images", *NAMES], start, fabric):
            # As bits, because Lightning Fabric rounds whatever is real to the precision of the run.
            yield {**batch, "coords": batch["coords"].view(torch.int32)}

    def noise_shape(self, model: PropertyPrediction) -> tuple[int, ...] | None:
        return model.noise_shape(self.config.batch_size)

    def loss(self, model: PropertyPrediction, batch: dict[str, Tensor]) -> Tensor:
        scenes = {**batch, "coords": batch["coords"].view(torch.float32)}
        targets = targets_of(scenes, model.config.num_slots)
        return model.loss(to_model(batch["images"], self.config.greyscale), targets, batch.get("noise"))

    def measure(self, model: PropertyPrediction, setting: Setting = DEFAULT) -> dict[str, Any]:
        """AP on the held-out scenes of a run's data (paper section 4.2).

        In float32, but for a GPU's convolutions, which have TF32 as PyTorch's default is.

        Returns ap, by distance, of None without properties; ap_by_objects, the same and the scenes by number of
        objects, empty without properties; attention_ari, the mean FG-ARI of the last attention at the encoder's
        resolution, over the scenes with a foreground pixel there, None without labels or attention; scenes, objects
        (None without properties), seconds, and what it was measured with: data, max_objects, num_slots, iters.
        """
        began = time.perf_counter()
        used = setting.of(self.config)
        predictions, targets, scores = [], [], []
        for scenes, vectors, attention in self._predicted(model, setting, None):
            predictions.append(vectors.cpu())
            if "coords" in scenes:
                targets.append(_targets(scenes).cpu())
            if attention is not None and "labels" in scenes:
                labels = resize_labels(scenes["labels"].cpu().numpy(), attention.shape[-1])
                scores.append(fg_ari(attention.argmax(1).cpu(), torch.from_numpy(labels)))
        predicted = properties_of(torch.cat(predictions))
        score = torch.cat(scores) if scores else torch.full((1,), math.nan)
        ap, by_count, objects = np.full(len(THRESHOLDS), math.nan), {}, None
        if targets:
            true = properties_of(torch.cat(targets))
            count = true.real.sum(1).astype(int)
            ap, objects = average_precision(predicted, true), int(count.sum())
            by_count = {
                str(number): {"scenes": int((count == number).sum()), **_by_distance(of_them)}
                for number, of_them in ap_by_count(predicted, true).items()
            }
        return {
            "ap": _by_distance(ap),
            "ap_by_objects": by_count,
            "attention_ari": number_or_none(score.nanmean().item()),
            "scenes": len(predicted.real),
            "objects": objects,
            "seconds": round(time.perf_counter() - began, 3),
            "data": used.data,
            "max_objects": used.max_objects,
            "num_slots": setting.num_slots or model.config.num_slots,
            "iters": iters_of(model.config, setting),
        }

    def draw_all(self, model: PropertyPrediction, folder: Path, setting: Setting = DEFAULT) -> list[Path]:
        """Writes slots.png; returns its path."""
        self.draw(model, folder / "slots.png", setting)
        return [folder / "slots.png"]

    def draw(self, model: PropertyPrediction, path: Path, setting: Setting = DEFAULT) -> None:
        """Writes a PNG of the first held-out scenes of a run's data: attention, predicted and true properties."""
        scenes, predicted, attention = next(self._predicted(model, setting, DRAWN_SCENES, need_properties=True))
        with atomic_write(path) as file:
            draw_properties(
                file,
                images=to_picture(to_model(scenes["images"], self.config.greyscale)),
                attention=None if attention is None else attention.cpu().numpy(),
                predicted=properties_of(predicted),
                true=properties_of(_targets(scenes)),
                true_labels=scenes["labels"].cpu().numpy() if "labels" in scenes else None,
            )

    @torch.no_grad()
    def _predicted(
        self, model: PropertyPrediction, setting: Setting, most: int | None, *, need_properties: bool = False
    ) -> Generator[tuple[dict[str, Tensor], Tensor, Tensor | None]]:
        """Held-out scenes in batches, what the model predicts of them, and the attention that it does so by, if any.

        The scenes have properties; where their data have none, as the published CLEVR with masks, labels will do for a
        model that attends.
        """
        used, attends = setting.of(self.config), (iters_of(model.config, setting) or 0) > 0
        folder = prepared_folder(used.data)
        labels = ["labels"] if has_labels(used.data) else []
        arrays = None if folder is None else open_prepared(folder).splits["eval"]
        without = arrays is not None and "coords" not in arrays and labels and attends and not need_properties
        properties = () if without else NAMES
        device = next(model.parameters()).device
        split = open_held_out(used, model.config, ["images", *properties, *labels], device)
        if arrays is not None and properties:
            check_properties(f"{folder}: eval", arrays)
        number = split.at_most(most or split.count or GENERATED_SCENES)
        slots: dict[str, Any] = {"num_slots": setting.num_slots, "iters": setting.iters}
        for scenes, generator in evaluation_batches(split, number, device):
            images = to_model(scenes["images"], self.config.greyscale)
            if attends:
                every = model.iterations(images, generator=generator, **slots)
                predictions, attention = every.predictions[-1], every.attention[-1]
            else:
                predictions, attention = model(images, generator=generator, **slots), None
            if not predictions.isfinite().all():
                raise RunError("the model's predictions are not finite: it diverged; train again with a lower --lr")
            yield scenes, predictions, attention


def _targets(scenes: dict[str, Tensor]) -> Tensor:
    """As many as a scene can have."""
    return targets_of(scenes, scenes["coords"].shape[1])


def _by_distance(ap: NDArray[np.float64]) -> dict[str, float | None]:
    return {f"{threshold:g}": number_or_none(value) for threshold, value in zip(THRESHOLDS, ap.tolist(), strict=True)}
