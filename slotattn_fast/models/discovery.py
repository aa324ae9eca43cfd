"""Object discovery: the paper's auto-encoder, which learns to draw each object with a slot of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

from slotattn_fast.mixture import reconstruction_loss
from slotattn_fast.models.decoder import SpatialBroadcastDecoder
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.image_slots import ImageSlots


class DiscoveryOutput(NamedTuple):
    """What the auto-encoder makes of B images of C channels with K slots of width D."""

    reconstruction: Tensor
    """[B, C, H, W]: the sum over the slots of masks * rgb."""
    rgb: Tensor
    """[B, K, C, H, W]: what each slot draws."""
    masks: Tensor
    """[B, K, 1, H, W]: where it draws; sums to 1 over the slots."""
    slots: Tensor
    """[B, K, D]"""


class Iterations(NamedTuple):
    """What the slots are after each of T iterations; the rest as in `DiscoveryOutput`."""

    reconstruction: Tensor
    """[T, B, C, H, W]"""
    rgb: Tensor
    """[T, B, K, C, H, W]"""
    masks: Tensor
    """[T, B, K, 1, H, W]"""
    attention: Tensor
    """[T, B, K, h, w]: over the encoder's map, as it made these slots; a softmax over `softmax_over`."""


class ObjectDiscovery(ImageSlots):
    """Convolutional encoder, Slot Attention or the baseline in its place, spatial broadcast decoder.

    Train it with `loss`. Source: the paper, section 2.2, Appendix E.1 and E.3, for the baseline E.5.
    """

    config: DiscoveryConfig

    def __init__(self, config: DiscoveryConfig) -> None:
        super().__init__(config)
        self.decoder = SpatialBroadcastDecoder(
            config.image_size,
            config.image_channels,
            config.slot_dim,
            config.decoder_channels,
            config.decoder_strides,
            config.output_kernel,
            config.output_stride,
            config.broadcast_size,
        )

    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        iters: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> DiscoveryOutput:
        """Takes images apart.

        Args:
            images: [B, C, H, W] in -1..1.
            num_slots: K, in place of the configuration's.
            iters: iterations of Slot Attention, in place of the configuration's.
            generator: where the noise of the initial slots comes from, if any is drawn.
            noise: [B, K, D], standard normal, in place of what would be drawn.

        Raises:
            ValueError: images of another shape than the configuration's, num_slots or iters out of range or, with
                grouping="slot-mlp", others than the configuration's, noise of another shape than `noise_shape` says,
                or noise and a generator.
        """
        return self._draw(self.slots(self.tokens(images), num_slots, iters, generator, noise))

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """What training minimises: the mean squared error of the reconstruction over all elements, a scalar.

        Args:
            images: [B, C, H, W] in -1..1.
            noise: as in `forward`.

        Returns it in float32, or in float64 of a model in that type, also under autocast. Raises ValueError as
        `forward` does. Source: the paper, sections 2.2 and 4.1.
        """
        slots = self.slots(self.tokens(images), noise=noise)
        return reconstruction_loss(self.decoder.maps(slots), images, self.config.backend)

    @torch.no_grad()
    def iterations(
        self,
        images: Tensor,
        iters: int | None = None,
        noise: Tensor | None = None,
        *,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterations:
        """What every iteration of Slot Attention attends to and what would be drawn after it, without gradients.

        Args:
            images: [B, C, H, W] in -1..1.
            iters: T, in place of the configuration's.
            noise, num_slots, generator: as in `forward`.

        Raises:
            ValueError: grouping="slot-mlp", no iteration, or as in `forward`.

        Source: the paper, Figures 3 and 20.
        """
        every, attention = self.every_iteration(images, iters, num_slots, generator, noise)
        drawn = [self._draw(slots) for slots in every]
        return Iterations(
            torch.stack([output.reconstruction for output in drawn]),
            torch.stack([output.rgb for output in drawn]),
            torch.stack([output.masks for output in drawn]),
            attention,
        )

    def _draw(self, slots: Tensor) -> DiscoveryOutput:
        rgb, logits = self.decoder(slots)
        masks = logits.softmax(dim=1)
        return DiscoveryOutput((masks * rgb).sum(dim=1), rgb, masks, slots)
