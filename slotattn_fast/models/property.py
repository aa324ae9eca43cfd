"""Property prediction: the paper's set predictor, which learns to say of each object what and where it is."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slotattn_fast.data.properties import LAYOUT, NUM_FEATURES
from slotattn_fast.matching import match
from slotattn_fast.models.convolution import init_glorot
from slotattn_fast.models.image_slots import ImageSlots
from slotattn_fast.models.property_config import PropertyConfig


class Steps(NamedTuple):
    """What the slots say after each of T iterations."""

    predictions: Tensor
    """[T, B, K, 19]"""
    attention: Tensor
    """[T, B, K, h, w]: over the encoder's map, as it made these slots; a softmax over `softmax_over`."""


class PropertyPrediction(ImageSlots):
    """Convolutional encoder, Slot Attention or the baseline in its place, and an MLP that reads the slots.

    A prediction has 19 numbers from 0 to 1, as `slotattn_fast.data.properties.LAYOUT` names them. Train it with `loss`.
    Source: the paper, section 2.3, Appendix E.4, for the baseline E.5.
    """

    config: PropertyConfig

    def __init__(self, config: PropertyConfig) -> None:
        super().__init__(config)
        hidden, out = nn.Linear(config.slot_dim, config.classifier_dim), nn.Linear(config.classifier_dim, NUM_FEATURES)
        init_glorot(hidden)
        init_glorot(out)
        self.classifier = nn.Sequential(hidden, nn.ReLU(inplace=True), out, nn.Sigmoid())

    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        iters: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predicts a set [B, K, 19] for each of B images.

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
        return self.classifier(self.slots(self.tokens(images), num_slots, iters, generator, noise))

    def loss(self, images: Tensor, targets: Tensor, noise: Tensor | None = None) -> Tensor:
        """What training minimises: `set_loss`, with `stepwise` its mean over the iterations; a scalar in float32.

        Args:
            images: [B, C, H, W] in -1..1.
            targets: [B, K, 19], padded with rows of 0.
            noise: as in `forward`.

        Raises ValueError as `forward` and `set_loss` do.
        """
        tokens = self.tokens(images)
        if not self.config.stepwise:
            predictions = self.classifier(self.slots(tokens, noise=noise))
        else:
            every = self.slot_attention(
                tokens, slots_init=self.initial_slots(tokens, noise=noise), return_all_slots=True
            )
            predictions = self.classifier(every).flatten(0, 1)
            targets = targets.repeat(len(every), 1, 1)
        return set_loss(predictions, targets, self.config.coordinate_scale)

    @torch.no_grad()
    def iterations(
        self,
        images: Tensor,
        iters: int | None = None,
        noise: Tensor | None = None,
        *,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Steps:
        """What every iteration of Slot Attention attends to and would predict, without gradients.

        Args:
            images: [B, C, H, W] in -1..1.
            iters: T, in place of the configuration's.
            noise, num_slots, generator: as in `forward`.

        Raises:
            ValueError: grouping="slot-mlp", no iteration, or as in `forward`.

        Source: the paper, Figures 5 and 6.
        """
        every, attention = self.every_iteration(images, iters, num_slots, generator, noise)
        return Steps(self.classifier(every), attention)


def set_loss(predictions: Tensor, targets: Tensor, coordinate_scale: float = 1) -> Tensor:
    """The Huber loss of each target and the prediction that it is matched with, a scalar in float32 or float64.

    The mean over the features, the sum over the K pairs, those of padding among them, and the mean over the images. The
    pairs are those of the least sum. Where predictions are not finite, neither is the loss; nothing waits for the
    device.

    Args:
        predictions, targets: [B, K, 19], in any order. Differentiable by the predictions.
        coordinate_scale: a factor on the coordinates of both.

    Raises:
        ValueError: the shapes differ.

    Source: the paper, section 2.3 and Appendix E.4; the scale: Appendix C.2.
    """
    if predictions.shape != targets.shape or predictions.shape[-1] != NUM_FEATURES:
        raise ValueError(
            f"targets: got shape {list(targets.shape)} for predictions {list(predictions.shape)}, "
            f"expected both [B, K, {NUM_FEATURES}]"
        )
    dtype = torch.float64 if predictions.dtype == torch.float64 else torch.float32
    x, y = predictions.to(dtype), targets.to(dtype)
    if coordinate_scale != 1:
        scale = x.new_ones(NUM_FEATURES)
        scale[LAYOUT["coords"]] = coordinate_scale
        x, y = x * scale, y * scale
    with torch.no_grad():
        cost = _huber(x[:, None], y[:, :, None])  # [B, K targets, K predictions]
        _, matched = match(cost, check=False)
    x = x.gather(1, matched[..., None].expand_as(x))
    return _huber(x, y).sum(1).mean()


def _huber(x: Tensor, y: Tensor) -> Tensor:
    """With delta = 1, the mean over the last axis."""
    x, y = torch.broadcast_tensors(x, y)
    return F.huber_loss(x, y, reduction="none").mean(-1)
