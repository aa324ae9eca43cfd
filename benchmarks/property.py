"""Time and memory of one training step of property prediction: ours and the plain loop, with the paper's preset.

    python -m benchmarks.property [--quick] [--rounds 5] [--threads 2] [--out benchmarks/results]

The plain loop is that of `slotattn_fast.reference.SetPredictor`, which compares every prediction with every target and
matches them by SciPy, image by image; ours that of `PropertyPrediction`, which on a CPU matches by SciPy too. How the
two are compared, and what is measured: benchmarks/training_step.py.

Scenes hold 3 to 10 objects. Where two ways to pair them with the slots cost almost the same, rounding decides, and with
it the gradient of that image: so each image gets, of several random scenes, the one whose pairs are the clearest.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from slotattn_fast.reference import SetPredictor
from slotattn_fast.reference.set_prediction import set_loss as plain_set_loss
from torch import Tensor, nn

from benchmarks.conditions import command
from benchmarks.step_contenders import Call, Step, to_images
from benchmarks.training_step import main
from slotattn_fast.data.clevr_published import MAX_OBJECTS, MIN_OBJECTS, PROPERTIES
from slotattn_fast.data.properties import ATTRIBUTES, COORDS_LIMIT, targets_of
from slotattn_fast.matching import match
from slotattn_fast.models.property import PropertyPrediction, set_loss
from slotattn_fast.models.property_config import PropertyConfig

BATCHES = {"clevr10": 16}  # on a CPU
QUICK_BATCHES = {"clevr10": 2}
CANDIDATES = 16  # scenes for each image


class PropertyStep(Step):
    task = "property"
    config_class, plain_class, fast_class = PropertyConfig, SetPredictor, PropertyPrediction

    @staticmethod
    def scenes(plain: nn.Module, images: Tensor, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As the task gives them to the loop, but that they have nothing to do with the images."""
        B = len(images)
        drawn = random_scenes(CANDIDATES * B, generator)
        with torch.no_grad():
            predictions = plain(images, noise).cpu().repeat(CANDIDATES, 1, 1)
        clear = clearness(predictions, targets_of(drawn, noise.shape[1])).unflatten(0, (CANDIDATES, B))
        chosen = {name: value[clear.argmax(0) * B + torch.arange(B)].to(images.device) for name, value in drawn.items()}
        return {**chosen, "coords": chosen["coords"].view(torch.int32)}

    @staticmethod
    def converted(batch: Mapping[str, Tensor], num_slots: int) -> tuple[Tensor, ...]:
        # Coordinates come as bits, as Lightning Fabric would round them.
        targets = targets_of({**batch, "coords": batch["coords"].view(torch.float32)}, num_slots)
        return to_images(batch["images"]), targets, batch["noise"]

    def calls(self) -> dict[str, Call]:
        _, targets, _ = self.given
        loss = set_loss if self.is_ours else plain_set_loss
        return {
            "encoder": self.model.encoder,
            "slot attention": self.slot_attention(),
            "classifier": self.model.classifier,
            "matching and loss": lambda predictions: loss(predictions, targets),
        }


def random_scenes(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The arrays that `targets_of` takes."""
    shape = (count, MAX_OBJECTS)
    codes = {
        name: torch.randint(len(PROPERTIES[name]), shape, generator=generator, dtype=torch.uint8) for name in ATTRIBUTES
    }
    return {
        "coords": (2 * torch.rand(*shape, 3, generator=generator) - 1) * COORDS_LIMIT,
        **codes,
        "num_objects": torch.randint(MIN_OBJECTS, MAX_OBJECTS + 1, (count,), generator=generator, dtype=torch.uint8),
    }


def clearness(predictions: Tensor, targets: Tensor) -> Tensor:
    """[B, K, 19] -> [B]: by how much the cost of the pairs grows at least if two objects exchange their slots."""
    x, y = torch.broadcast_tensors(predictions[:, None], targets[:, :, None])
    cost = F.huber_loss(x, y, reduction="none").mean(-1)  # [B, K targets, K predictions]
    cost = cost.gather(2, match(cost)[1][:, None].expand_as(cost))  # of target i and the slot of target j
    own = cost.diagonal(dim1=1, dim2=2)
    growth = cost + cost.mT - own[:, :, None] - own[:, None]
    same = (targets[:, :, None] == targets[:, None]).all(-1)  # i and j are one, or both padding
    return growth.masked_fill(same, torch.inf).amin((1, 2))


if __name__ == "__main__":
    command(lambda: main(PropertyStep, BATCHES, QUICK_BATCHES, __doc__))
