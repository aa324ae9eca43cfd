"""The sizes and ablations of the object-discovery model, as plain data. Imports no torch."""

import math
from dataclasses import dataclass

from slotattn_fast.models.slots_config import SlotsConfig


@dataclass(frozen=True)
class DiscoveryConfig(SlotsConfig):
    """Sizes of the auto-encoder, by default the paper's for Tetrominoes (Tables 4 and 6); the rest as in `SlotsConfig`.

    Raises TypeError or ValueError, naming the field, for a value that cannot be built.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if reached > 4 * self.image_size:
            raise ValueError(
                f"broadcast_size: got {self.broadcast_size}, which decoder_strides={self.decoder_strides} and "
                f"output_stride={self.output_stride} enlarge to {reached}, expected at most 4 * image_size="
                f"{4 * self.image_size}, as the rest is cut off"
            )
