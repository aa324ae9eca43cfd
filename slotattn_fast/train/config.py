"""What a training run is made of, as plain data, and the presets. Imports neither torch nor the models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

TaskName = Literal["discovery", "property"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]
Decay = Literal["exponential", "cosine", "none"]


_MOST_SCENES = 10**8
"""More is a slip of the keyboard."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Raises ValueError or TypeError, naming the field, for a value that cannot be used."""

    task: TaskName
    """Which pipeline."""
    data: str
    """A data set that is generated, by its name in the catalogue, or a prepared folder."""
    preset: str
    """The preset the run started from."""
    steps: int
    """Training steps."""
    batch_size: int
    """Images a step."""
    lr: float
    """Learning rate before the decay, which the warm-up leads to."""
    warmup_steps: int
    """Steps of linear warm-up from 0."""
    decay: Decay
    """How the rate falls: "exponential", halved every `decay_steps`; "cosine", to 0 where the steps end; "none"."""
    decay_steps: int | None
    """Steps in which the learning rate halves, None unless `decay` is "exponential"."""
    precision: Precision
    """Lightning Fabric's name: "32-true", where PyTorch lets a GPU's convolutions use TF32; "bf16-mixed", autocast."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration that differ from its defaults; all of them in a run's config.json."""
    data_sha256: str | None = None
    """Fingerprint of the prepared folder that the run began with; None of generated data."""
    scenes: int | None = None
    """Scenes to train on where they are generated, each drawn once and kept in memory; None: without end."""
    max_objects: int | None = None
    """Leave out scenes with more objects: 6 makes CLEVR6 of CLEVR."""
    greyscale: bool = False
    """Train on the mean over the channels of an image."""
    seed: int = 0
    """Of the weights, the scenes and the slot noise."""
    device: Device = "auto"
    """"cpu", "cuda", or "auto": CUDA where there is one."""
    devices: int = 1
    """GPUs of this machine, or processes on its CPU, that share a step's batch."""
    compile: bool = False
    """Compile the forward and backward pass with torch.compile."""
    cuda_graph: bool = False
    """Replay each step as one CUDA graph."""
    log_every: int = 50
    """Steps from one reading of the loss to the next."""
    image_every: int = 1000
    """Steps from one picture in images/ to the next."""
    checkpoint_every: int = 500
    """Steps from one checkpoint to the next."""

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("warmup_steps", 0),
            ("seed", 0),
            ("devices", 1),
            ("log_every", 1),
            ("image_every", 1),
            ("checkpoint_every", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: got {self.seed}, expected less than 2^63")
        if type(self.data) is not str or not self.data:
            raise ValueError(f"data: got {self.data!r}, expected a data set's name or a folder")
        for name in ("scenes", "max_objects"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1, or None")
        if self.scenes is not None and self.scenes > _MOST_SCENES:
            raise ValueError(f"scenes: got {self.scenes}, expected at most {_MOST_SCENES:,}, which are kept in memory")
        for name in ("greyscale", "compile", "cuda_graph"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        if type(self.lr) not in (int, float) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr: got {self.lr!r}, expected a finite number above 0")
        for name, choices in (
            ("task", get_args(TaskName)),
            ("device", get_args(Device)),
            ("precision", get_args(Precision)),
            ("decay", get_args(Decay)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")
        if self.decay == "exponential":
            if type(self.decay_steps) is not int or self.decay_steps < 1:
                raise ValueError(f"decay_steps: got {self.decay_steps!r}, expected an integer of at least 1")
        elif self.decay_steps is not None:
            raise ValueError(
                f"decay_steps: got {self.decay_steps!r}, expected None with decay={self.decay!r}; "
                "leave it out, or take decay='exponential'"
            )
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected a multiple of devices={self.devices}, which share it"
            )


def from_json(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that `dataclasses.asdict` turned into `values`, after a journey through JSON.

    `scenes`, which runs of before did not have, may be missing. Raises ValueError for another field that is missing,
    and for one that is unknown or of a value that cannot be used.
    """
    known, came = {f.name for f in fields(TrainConfig)}, set(values)
    if came - known or known - came - {"scenes"}:
        raise ValueError(f"fields missing: {sorted(known - came)}, unknown: {sorted(came - known)}")
    model = {name: tuple(v) if isinstance(v, list) else v for name, v in values["model"].items()}
    return TrainConfig(**{**values, "model": model})


# The paper's section 4.1 and Appendix E, with the authors' released settings.
PAPER_TETROMINOES = TrainConfig(
    task="discovery",
    data="tetrominoes",
    preset="tetrominoes",
    steps=500_000,
    batch_size=64,
    lr=4e-4,
    warmup_steps=10_000,
    decay="exponential",
    decay_steps=100_000,
    precision="32-true",
    image_every=10_000,
    checkpoint_every=2_000,
)

PAPER_MULTI_DSPRITES = replace(
    PAPER_TETROMINOES,
    data="multi-dsprites-colored-on-grayscale",
    preset="multi-dsprites",
    model={"image_size": 64, "broadcast_size": 64, "num_slots": 6},
)

# Section 4.1, where K = 4.
PAPER_MULTI_DSPRITES_BINARIZED = replace(
    PAPER_MULTI_DSPRITES,
    data="multi-dsprites-binarized",
    preset="multi-dsprites-binarized",
    greyscale=True,
    model={**PAPER_MULTI_DSPRITES.model, "image_channels": 1, "num_slots": 4},
)

# Tables 3 and 5.
PAPER_CLEVR6 = replace(
    PAPER_TETROMINOES,
    data="clevr-with-masks",
    preset="clevr6",
    max_objects=6,
    model={
        "image_size": 128,
        "encoder_channels": 64,
        "num_slots": 7,
        "decoder_channels": 64,
        "decoder_strides": (2, 2, 2, 2, 1),
        "broadcast_size": 8,
    },
)

PAPER_CLEVR6_GREYSCALE = replace(
    PAPER_CLEVR6, preset="clevr6-greyscale", greyscale=True, model={**PAPER_CLEVR6.model, "image_channels": 1}
)

# A small auto-encoder of the paper's kind, for minutes on two CPU cores: two encoder convolutions instead of four, the
# first with stride 2, a decoder that draws on a small map and enlarges it twice, and a slot for each piece, as a black
# background needs none. It learns faster by gradients through the last iteration alone than through all of them; more
# iterations then cost little, and keep two pieces from sharing a slot.
QUICK = TrainConfig(
    task="discovery",
    data="tetrominoes",
    preset="quick",
    steps=11_500,
    batch_size=16,
    lr=2e-3,
    warmup_steps=500,
    decay="cosine",
    decay_steps=None,
    precision="bf16-mixed",
    model={
        "encoder_channels": 64,
        "encoder_strides": (2, 1),
        "num_slots": 3,
        "iters": 10,
        "implicit": True,
        "decoder_strides": (1, 1, 2),
        "output_kernel": 5,
        "output_stride": 2,
        "broadcast_size": 9,
    },
)

# The paper's section 4.2 and Appendix E, with the authors' released settings: all of CLEVR.
PAPER_CLEVR10_PROPERTIES = TrainConfig(
    task="property",
    data="clevr",
    preset="clevr10",
    steps=150_000,
    batch_size=512,
    lr=4e-4,
    warmup_steps=1_000,
    decay="exponential",
    decay_steps=50_000,
    precision="32-true",
    image_every=10_000,
    checkpoint_every=1_000,
)

# Figure 5, right: trained on at most 6 objects, to be tested with more slots on more.
PAPER_CLEVR6_PROPERTIES = replace(PAPER_CLEVR10_PROPERTIES, preset="clevr6", max_objects=6, model={"num_slots": 6})

# A small set predictor for minutes on two CPU cores, which draw scenes more slowly than they learn from them: so of few
# scenes, many times. As in the other quick preset, more iterations, and gradients through the last alone, learn faster;
# and so does a slot to spare.
QUICK_PROPERTIES = replace(
    PAPER_CLEVR10_PROPERTIES,
    preset="quick",
    scenes=12_000,
    max_objects=6,
    steps=4_000,
    batch_size=32,
    lr=2e-3,
    warmup_steps=500,
    decay="cosine",
    decay_steps=None,
    precision="bf16-mixed",
    image_every=1000,
    checkpoint_every=500,
    model={
        "image_size": 48,
        "encoder_strides": (2, 2, 1),
        "num_slots": 7,
        "iters": 10,
        "implicit": True,
    },
)

PRESETS: dict[TaskName, dict[str, TrainConfig]] = {
    "discovery": {
        config.preset: config
        for config in (
            QUICK,
            PAPER_TETROMINOES,
            PAPER_MULTI_DSPRITES,
            PAPER_MULTI_DSPRITES_BINARIZED,
            PAPER_CLEVR6,
            PAPER_CLEVR6_GREYSCALE,
        )
    },
    "property": {
        config.preset: config for config in (QUICK_PROPERTIES, PAPER_CLEVR10_PROPERTIES, PAPER_CLEVR6_PROPERTIES)
    },
}
"""By task and name."""
