"""The sizes and ablations of what both of the paper's models begin with, as plain data. Imports no torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

Grouping = Literal["slot-attention", "slot-mlp"]
BackendName = Literal["auto", "triton", "torch"]
SlotInit = Literal["shared", "per_slot"]
SoftmaxOver = Literal["slots", "inputs"]
Aggregation = Literal["mean", "sum", "sum_norm"]
EpsIn = Literal["numerator", "denominator"]
# Of any size: more is a slip of the keyboard.
_MOST = 65_536
# Of Slot Attention alone.
_ABLATIONS = (
    "slot_init",
    "softmax_over",
    "aggregation",
    "eps_in",
    "scale",
    "use_gru",
    "use_norm",
    "use_mlp",
    "use_projections",
)


@dataclass(frozen=True)
class SlotsConfig:
    """Sizes of encoder and Slot Attention, by default the paper's for Tetrominoes (Table 4), and the paper's ablations.

    Soft k-means (the end of the paper's Appendix B) is `use_gru`, `use_mlp`, `use_norm`, `use_projections` all False:
    the next slots are "the output of Line 8", which we read as without the MLP too.
    Raises TypeError or ValueError, naming the field, for a value that cannot be built.
    """

    image_size: int = 35
    """Height and width in pixels."""
    image_channels: int = 3
    """Channels of an image: 3, or 1 for greyscale."""
    encoder_channels: int = 32
    """Channels of every 5x5 convolution, and the width of the tokens."""
    encoder_strides: tuple[int, ...] = (1, 1, 1, 1)
    """One for each convolution."""
    num_slots: int = 4
    """Slots K."""
    slot_dim: int = 64
    """Width D of a slot."""
    iters: int = 3
    """Iterations of Slot Attention."""
    implicit: bool = False
    """Whether gradients flow through the last iteration alone, at the slots that the others arrive at; the slots are
    the same. A step costs less and the quick preset learns faster, but the initial slots are not learned. Source:
    Chang, Griffiths and Levine (2022), Object Representations as Fixed Points, section 4. The paper: through all."""
    hidden_dim: int = 128
    """Hidden units of Slot Attention's MLP."""
    backend: BackendName = "auto"
    """Of Slot Attention and of the auto-encoder's loss; see `slotattn_fast.explain_backend`."""
    grouping: Grouping = "slot-attention"
    """"slot-mlp": the paper's baseline (Appendix E.5), which takes none of Slot Attention's ablations and to which
    `iters`, `implicit`, `hidden_dim` and `backend` are nothing."""
    position_embedding: bool = True
    """Of the encoder. False: Figure 8."""
    slot_init: SlotInit = "shared"
    """"per_slot": a Gaussian is learned for each slot, and evaluation has no other number of slots (Figure 9)."""
    softmax_over: SoftmaxOver = "slots"
    """"inputs", which goes with aggregation="sum": no competition between the slots (Figure 10)."""
    aggregation: Aggregation = "mean"
    """Of the values, weighted by the attention; "sum_norm": the sum, then a LayerNorm (Figure 7)."""
    eps_in: EpsIn = "numerator"
    """What the offset of the weighted mean is added to (Figure 16)."""
    scale: float | None = None
    """Factor on the logits of the attention; None: 1 / sqrt(slot_dim). The paper's temperature 1 is 1 (Figure 15)."""
    use_gru: bool = True
    """False: the update itself is the new slot (Figure 11)."""
    use_norm: bool = True
    """False: no LayerNorm in Slot Attention (Figure 13)."""
    use_mlp: bool = True
    """False: no residual MLP (Figure 14)."""
    use_projections: bool = True
    """False: queries, keys and values are the slots and inputs themselves; needs encoder_channels = slot_dim."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if get_origin(field.type) is tuple):
            strides = getattr(self, name)
            if type(strides) is not tuple or not all(type(stride) is int for stride in strides):
                raise TypeError(f"{name}: got {strides!r}, expected a tuple of integers")
            if not strides or not all(1 <= stride <= 5 for stride in strides):
                raise ValueError(f"{name}: got {strides!r}, expected at least one stride, each from 1 to 5")
        for name in (field.name for field in fields(self) if field.type is int):
            value, least = getattr(self, name), 0 if name == "iters" else 1
            if type(value) is not int:
                raise TypeError(f"{name}: got {value!r}, expected an integer")
            if not least <= value <= _MOST:
                raise ValueError(f"{name}: got {value!r}, expected at least {least} and at most {_MOST}")
        for name in (field.name for field in fields(self) if field.type is bool):
            if type(getattr(self, name)) is not bool:
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        for field in fields(self):
            if get_origin(field.type) is Literal and getattr(self, field.name) not in get_args(field.type):
                choices = ", ".join(map(repr, get_args(field.type)))
                raise ValueError(f"{field.name}: got {getattr(self, field.name)!r}, expected one of {choices}")
        if self.scale is not None and (type(self.scale) not in (int, float) or not 0 < self.scale < math.inf):
            raise ValueError(f"scale: got {self.scale!r}, expected a finite number above 0, or None")
        for field in (field for field in fields(self) if self.grouping == "slot-mlp" and field.name in _ABLATIONS):
            if getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}: got {getattr(self, field.name)!r}, expected {field.default!r} with "
                    "grouping='slot-mlp', which has no Slot Attention"
                )
        if self.slot_init == "per_slot" and self.implicit and self.iters > 1:
            raise ValueError(
                "implicit: got True, expected False (--no-implicit) with slot_init='per_slot', as it does not learn "
                "the initial slots"
            )
        if self.softmax_over == "inputs" and self.aggregation != "sum":
            raise ValueError(f"aggregation: got {self.aggregation!r}, expected 'sum' with softmax_over='inputs'")
        if self.eps_in == "denominator" and self.aggregation != "mean":
            raise ValueError(
                f"eps_in: got 'denominator', expected 'numerator' with aggregation={self.aggregation!r}, "
                "which has no denominator"
            )
        if not self.use_projections and self.encoder_channels != self.slot_dim:
            raise ValueError(
                f"encoder_channels: got {self.encoder_channels}, expected slot_dim={self.slot_dim} with "
                "use_projections=False"
            )
        size = self.image_size
        for stride in self.encoder_strides:
            # Also as PyTorch 2.13's bfloat16 convolutions on a CPU give gradients of chance there.
            if stride > size:
                raise ValueError(
                    f"encoder_strides: got {self.encoder_strides!r}, expected none larger than the map it meets, which "
                    f"is {size} wide for {stride}"
                )
            size = -(-size // stride)
