"""The sizes and choices of the object-discovery model, as plain data. Imports no torch."""

import math
from dataclasses import dataclass, fields


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
