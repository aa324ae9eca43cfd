"""Object discovery: the paper's auto-encoder, which learns to draw each object with a slot of its own."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slotattn_fast.models.decoder import SpatialBroadcastDecoder
from slotattn_fast.models.encoder import Encoder
from slotattn_fast.modules import SlotAttention


@dataclass(frozen=True)
class DiscoveryConfig:
    """Sizes of the auto-encoder. The defaults are the paper's for Tetrominoes (Tables 4 and 6).

    Raises TypeError or ValueError, naming the field, for a value that cannot be built.
    """

    image_size: int = 35
    """Height and width in pixels."""
    image_channels: int = 3
    encoder_channels: int = 32
    """Channels of every 5x5 convolution, and the width of the tokens."""
    encoder_strides: tuple[int, ...] = (1, 1, 1, 1)
    """One for each convolution."""
    num_slots: int = 4
    slot_dim: int = 64
    iters: int = 3
    """Iterations of Slot Attention."""
    implicit: bool = False
    """Whether gradients flow through the last iteration alone, at the slots that the others arrive at; the slots are
    the same. A step costs less and the quick preset learns faster, but the initial slots are not learned. Source:
    Chang, Griffiths and Levine (2022), Object Representations as Fixed Points, section 4. The paper: through all."""
    hidden_dim: int = 128
    """Hidden units of Slot Attention's MLP."""
    decoder_channels: int = 32
    """Channels of every 5x5 transposed convolution."""
    decoder_strides: tuple[int, ...] = (1, 1, 1)
    """One for each 5x5 transposed convolution."""
    output_kernel: int = 3
    """Kernel size of the last transposed convolution, to the image's channels and the mask."""
    output_stride: int = 1
    """Its stride; at most its kernel size."""
    broadcast_size: int = 35
    """Side of the map that a slot is copied to. Times all strides of the decoder it must reach `image_size`."""
    backend: str = "auto"
    """Of Slot Attention; see `slotattn_fast.explain_backend`."""

    def __post_init__(self) -> None:
        for name in ("encoder_strides", "decoder_strides"):
            strides = getattr(self, name)
            if type(strides) is not tuple or not all(type(stride) is int for stride in strides):
                raise TypeError(f"{name}: got {strides!r}, expected a tuple of integers")
            if not strides or not all(1 <= stride <= 5 for stride in strides):
                raise ValueError(f"{name}: got {strides!r}, expected at least one stride, each from 1 to 5")
        for name in (field.name for field in fields(self) if field.type is int):
            value, least = getattr(self, name), 0 if name == "iters" else 1
            if type(value) is not int:
                raise TypeError(f"{name}: got {value!r}, expected an integer")
            if value < least:
                raise ValueError(f"{name}: got {value!r}, expected at least {least}")
        if type(self.implicit) is not bool:
            raise TypeError(f"implicit: got {self.implicit!r}, expected True or False")
        if self.output_stride > self.output_kernel:
            raise ValueError(
                f"output_stride: got {self.output_stride}, expected at most output_kernel={self.output_kernel}"
            )
        reached = self.broadcast_size * math.prod(self.decoder_strides) * self.output_stride
        if reached < self.image_size:
            raise ValueError(
                f"broadcast_size: got {self.broadcast_size}, which decoder_strides={self.decoder_strides} and "
                f"output_stride={self.output_stride} enlarge to {reached}, "
                f"expected at least image_size={self.image_size}"
            )


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


class ObjectDiscovery(nn.Module):
    """Convolutional encoder, Slot Attention, spatial broadcast decoder (the paper, section 3.1, Appendix E.3).

    Train it with the mean squared error between `reconstruction` and the images.
    """

    def __init__(self, config: DiscoveryConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config.image_size, config.image_channels, config.encoder_channels, config.encoder_strides
        )
        self.slot_attention = SlotAttention.paper(
            config.num_slots,
            config.slot_dim,
            input_dim=config.encoder_channels,
            iters=config.iters,
            hidden_dim=config.hidden_dim,
            backend=config.backend,
        )
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
    ) -> DiscoveryOutput:
        """Takes images apart.

        Args:
            images: [B, C, H, W] in -1..1.
            num_slots: K, in place of the configuration's.
            iters: iterations of Slot Attention, in place of the configuration's.
            generator: where the noise of the initial slots comes from.

        Raises:
            ValueError: images of another shape than the configuration's, or num_slots or iters out of range.
        """
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (self.config.image_channels, size, size):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected [B, {self.config.image_channels}, {size}, {size}]"
            )
        tokens, slots = self.encoder(images), None
        iters = self.config.iters if iters is None else iters
        if self.config.implicit and iters > 1:
            with torch.no_grad():
                slots = self.slot_attention(tokens, num_slots, iters=iters - 1, generator=generator)
            iters = 1
        slots = self.slot_attention(tokens, num_slots, iters=iters, slots_init=slots, generator=generator)
        rgb, logits = self.decoder(slots)
        masks = logits.softmax(dim=1)
        return DiscoveryOutput((masks * rgb).sum(dim=1), rgb, masks, slots)
