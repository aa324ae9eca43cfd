"""Time and memory of one training step of object discovery: ours and the plain loop, with the paper's presets.

    python -m benchmarks.discovery [--quick] [--rounds 5] [--threads 2] [--out benchmarks/results]

The plain loop is that of `slotattn_fast.reference.AutoEncoder`, ours that of `ObjectDiscovery`. How they are compared,
and what is measured: benchmarks/training_step.py.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from slotattn_fast.reference import AutoEncoder
from torch import Tensor, nn

from benchmarks.conditions import command
from benchmarks.step_contenders import Call, Step, to_images
from benchmarks.training_step import main
from slotattn_fast.mixture import reconstruction_loss
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig

BATCHES = {"tetrominoes": 32, "multi-dsprites": 8, "clevr6": 2}  # on a CPU
QUICK_BATCHES = {"tetrominoes": 4}


class DiscoveryStep(Step):
    task = "discovery"
    config_class, plain_class, fast_class = DiscoveryConfig, AutoEncoder, ObjectDiscovery

    @staticmethod
    def converted(batch: Mapping[str, Tensor], num_slots: int) -> tuple[Tensor, ...]:
        return to_images(batch["images"]), batch["noise"]

    def calls(self) -> dict[str, Call]:
        model = self.model
        relu, *others = model.decoder.convolutions  # ours has its ReLU in `broadcast`, and the identity here
        return {
            "encoder": model.encoder,
            "slot attention": self.slot_attention(),
            "decoder's first layer": lambda slots: relu(model.decoder.broadcast(slots.flatten(0, 1))),
            "decoder's other layers": nn.Sequential(*others),
            "mixture and loss": self.mixture_loss,
        }

    def mixture_loss(self, maps: Tensor) -> Tensor:
        images, noise = self.given
        maps = maps.unflatten(0, noise.shape[:2])[..., : images.shape[-1], : images.shape[-1]]
        if self.is_ours:
            return reconstruction_loss(maps, images)
        reconstruction = (maps[:, :, -1:].softmax(1) * maps[:, :, :-1]).sum(1)
        return F.mse_loss(reconstruction, images)


if __name__ == "__main__":
    command(lambda: main(DiscoveryStep, BATCHES, QUICK_BATCHES, __doc__))
