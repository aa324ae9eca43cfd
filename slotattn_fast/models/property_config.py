"""The sizes and variants of the set-prediction model, as plain data. Imports no torch."""

from dataclasses import dataclass

from slotattn_fast.models.slots_config import SlotsConfig


@dataclass(frozen=True)
class PropertyConfig(SlotsConfig):
    """Sizes of the set predictor, by default the paper's for CLEVR10 (Appendix E.4); the rest as in `SlotsConfig`.

    Raises TypeError or ValueError, naming the field, for a value that cannot be built.
    """

    image_size: int = 128
    """Height and width in pixels."""
    encoder_channels: int = 64
    """Channels of every 5x5 convolution, and the width of the tokens."""
    encoder_strides: tuple[int, ...] = (1, 2, 2, 1)
    """One for each convolution."""
    num_slots: int = 10
    """Slots K; at least as many as a scene has objects."""
    classifier_dim: int = 64
    """Hidden units of the MLP that reads the properties off a slot."""
    stepwise: bool = False
    """Whether the loss is the mean over those of all iterations, and not that of the last (Appendix C.2, Figure 23)."""
    coordinate_scale: float = 1
    """Factor on the coordinates in the loss: they are counted in 0..scale, what else there is in 0..1 (Figure 23)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.coordinate_scale
        if type(scale) not in (int, float) or not 1e-6 <= scale <= 1e6:
            raise ValueError(f"coordinate_scale: got {scale!r}, expected a number from 1e-6 to 1e6")
        if self.stepwise and (self.grouping == "slot-mlp" or self.implicit):
            other = "grouping='slot-mlp'" if self.grouping == "slot-mlp" else "implicit=True (see --no-implicit)"
            raise ValueError(f"stepwise: got True, expected False with {other}, which learns from one output alone")
