"""Object discovery: the paper's auto-encoder, which learns to draw each object with a slot of its own."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from slotattn_fast.mixture import reconstruction_loss
from slotattn_fast.models.decoder import SpatialBroadcastDecoder
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.encoder import Encoder
from slotattn_fast.models.slot_mlp import SlotMLP
from slotattn_fast.modules import SlotAttention


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


class ObjectDiscovery(nn.Module):
    """Convolutional encoder, Slot Attention or the baseline in its place, spatial broadcast decoder.

    Train it with `loss`. Source: the paper, section 3.1, Appendix E.3, for the baseline E.5.
    """

    def __init__(self, config: DiscoveryConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config.image_size,
            config.image_channels,
            config.encoder_channels,
            config.encoder_strides,
            config.position_embedding,
        )
        if config.grouping == "slot-mlp":
            self.slot_mlp = SlotMLP(self.encoder.size, config.encoder_channels, config.num_slots, config.slot_dim)
        else:
            self.slot_attention = _slot_attention(config)
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
        return self._draw(self._slots(self._tokens(images), num_slots, iters, generator, noise))

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """What training minimises: the mean squared error of the reconstruction over all elements, a scalar.

        Args:
            images: [B, C, H, W] in -1..1.
            noise: as in `forward`.

        Returns it in float32, or in float64 of a model in that type, also under autocast. Raises ValueError as
        `forward` does. Source: the paper, section 3.1.
        """
        slots = self._slots(self._tokens(images), None, None, None, noise)
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
        iters = self.config.iters if iters is None else iters
        if self.config.grouping == "slot-mlp":
            raise ValueError("iterations: got a model with grouping='slot-mlp', which has none; use forward")
        if iters < 1:
            raise ValueError(f"iters: got {iters}, expected at least 1")
        tokens = self._tokens(images)
        num_slots = self.config.num_slots if num_slots is None else num_slots
        slots = self.slot_attention.initial_slots(tokens, num_slots, generator, noise)
        every, attention = self.slot_attention(
            tokens, iters=iters, slots_init=slots, return_attn="all", return_all_slots=True
        )
        drawn = [self._draw(slots) for slots in every]
        return Iterations(
            torch.stack([output.reconstruction for output in drawn]),
            torch.stack([output.rgb for output in drawn]),
            torch.stack([output.masks for output in drawn]),
            attention.unflatten(-1, (self.encoder.size, self.encoder.size)),
        )

    def noise_shape(self, batch_size: int) -> tuple[int, int, int] | None:
        """The shape [B, K, D] of the noise that a call draws for `batch_size` images; None if it draws none."""
        if self.config.grouping == "slot-mlp":
            return None
        return batch_size, self.config.num_slots, self.config.slot_dim

    def _tokens(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, encoder_channels]"""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (self.config.image_channels, size, size):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected [B, {self.config.image_channels}, {size}, {size}]"
            )
        return self.encoder(images)

    def _slots(
        self,
        tokens: Tensor,
        num_slots: int | None,
        iters: int | None,
        generator: torch.Generator | None,
        noise: Tensor | None,
    ) -> Tensor:
        """[B, N, C] -> [B, K, D]"""
        c = self.config
        if c.grouping == "slot-mlp":
            for name, value, expected in (("num_slots", num_slots, c.num_slots), ("iters", iters, c.iters)):
                if value not in (None, expected):
                    raise ValueError(
                        f"{name}: got {value}, expected none, as the model has grouping='slot-mlp': "
                        f"{c.num_slots} slots and no iterations"
                    )
            if noise is not None:
                raise ValueError("noise: got a tensor, expected None, as grouping='slot-mlp' draws none")
            return self.slot_mlp(tokens)
        num_slots = c.num_slots if num_slots is None else num_slots
        iters = c.iters if iters is None else iters
        slots = self.slot_attention.initial_slots(tokens, num_slots, generator, noise)
        if c.implicit and iters > 1:
            with torch.no_grad():
                slots = self.slot_attention(tokens, iters=iters - 1, slots_init=slots)
            iters = 1
        return self.slot_attention(tokens, iters=iters, slots_init=slots)

    def _draw(self, slots: Tensor) -> DiscoveryOutput:
        rgb, logits = self.decoder(slots)
        masks = logits.softmax(dim=1)
        return DiscoveryOutput((masks * rgb).sum(dim=1), rgb, masks, slots)


def _slot_attention(config: DiscoveryConfig) -> SlotAttention:
    module = SlotAttention.paper(
        config.num_slots,
        config.slot_dim,
        input_dim=config.encoder_channels,
        iters=config.iters,
        hidden_dim=config.hidden_dim,
        backend=config.backend,
        slot_init=config.slot_init,
        softmax_over=config.softmax_over,
        aggregation=config.aggregation,
        eps_in=config.eps_in,
        scale=config.scale,
        use_gru=config.use_gru,
        use_norm=config.use_norm,
        use_mlp=config.use_mlp,
        use_projections=config.use_projections,
    )
    if config.implicit and config.iters > 1:
        # No gradient arrives there, and DistributedDataParallel waits for one of whatever asks for it.
        for parameter in (module.slots_mu, module.slots_logsigma):
            parameter.requires_grad_(False)
    return module
