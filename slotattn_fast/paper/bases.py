"""What the paper's experiments train, at each scale: the configurations that an arm changes a setting of.

paper   the paper's own
quick   small images and models, some minutes each on two CPU cores: enough for the direction of most ablations
smoke   a few steps, which show nothing but that everything runs
"""

from dataclasses import replace
from typing import Literal, NamedTuple

from slotattn_fast.train.config import PRESETS, TrainConfig

Scale = Literal["smoke", "quick", "paper"]
SEEDS: dict[Scale, int] = {"smoke": 1, "quick": 3, "paper": 5}
"""Trained where nothing else is asked for."""


class Base(NamedTuple):
    name: str
    """Of the runs."""
    config: TrainConfig


_DISCOVERY, _PROPERTY = PRESETS["discovery"], PRESETS["property"]

_PAPER = {
    "tetrominoes": _DISCOVERY["tetrominoes"],
    "multi-dsprites": _DISCOVERY["multi-dsprites"],
    "multi-dsprites-binarized": _DISCOVERY["multi-dsprites-binarized"],
    "clevr6": _DISCOVERY["clevr6"],
    "clevr6-greyscale": _DISCOVERY["clevr6-greyscale"],
    "clevr10-properties": _PROPERTY["clevr10"],
    "clevr6-properties": _PROPERTY["clevr6"],
}

# The paper's way of training, three iterations with gradients through all of them, so that every ablation applies.
_SMALL = replace(_DISCOVERY["quick"], steps=5_000, model={**_DISCOVERY["quick"].model, "iters": 3, "implicit": False})
_SMALL_SPRITES = replace(
    _SMALL,
    data="multi-dsprites-colored-on-grayscale",
    model={
        **_SMALL.model,
        "image_size": 64,
        "encoder_strides": (2, 2),
        "num_slots": 6,
        "decoder_strides": (1, 2, 2),
        "broadcast_size": 8,
    },
)
_SMALL_CLEVR = replace(
    _SMALL_SPRITES,
    data="clevr-with-masks",
    max_objects=6,
    scenes=12_000,
    model={**_SMALL_SPRITES.model, "num_slots": 7},
)
# A small set predictor learns nothing in so few steps with three iterations, so it has the ten of its preset.
_SMALL_PROPERTIES = _PROPERTY["quick"]

_QUICK = {
    "tetrominoes": _SMALL,
    "multi-dsprites": _SMALL_SPRITES,
    "multi-dsprites-binarized": replace(
        _SMALL_SPRITES,
        data="multi-dsprites-binarized",
        greyscale=True,
        model={**_SMALL_SPRITES.model, "image_channels": 1, "num_slots": 4},
    ),
    "clevr6": _SMALL_CLEVR,
    "clevr6-greyscale": replace(_SMALL_CLEVR, greyscale=True, model={**_SMALL_CLEVR.model, "image_channels": 1}),
    "clevr10-properties": replace(
        _SMALL_PROPERTIES, max_objects=10, model={**_SMALL_PROPERTIES.model, "num_slots": 10}
    ),
    "clevr6-properties": replace(_SMALL_PROPERTIES, model={**_SMALL_PROPERTIES.model, "num_slots": 6}),
    "quick-properties": _SMALL_PROPERTIES,
}


def _smoke(config: TrainConfig) -> TrainConfig:
    """The same in a few steps of a model that is as small as its images allow."""
    model = {**config.model, "encoder_channels": 16, "slot_dim": 16, "hidden_dim": 16}
    if config.task == "discovery":
        model["decoder_channels"] = 8
    if config.data.startswith("clevr"):
        model |= {"image_size": 32}
    if config.data == "clevr-with-masks":
        model |= {"broadcast_size": 4}
    return replace(
        config,
        steps=4,
        batch_size=4,
        warmup_steps=1,
        scenes=None if config.scenes is None else 16,
        log_every=2,
        image_every=4,
        checkpoint_every=4,
        model=model,
    )


BASES = tuple({**_PAPER, **_QUICK})

_CONFIGS: dict[Scale, dict[str, TrainConfig]] = {
    "smoke": {name: _smoke(config) for name, config in _QUICK.items()},
    "quick": _QUICK,
    "paper": _PAPER,
}
# The paper's ablations are of CLEVR6 and CLEVR10; small models of these take too long to tell arms apart.
_ABLATED = {"paper": ("clevr6", "clevr10-properties"), "quick": ("tetrominoes", "quick-properties")}
ABLATED_DISCOVERY, ABLATED_PROPERTIES = "ablated discovery", "ablated properties"


def base(scale: Scale, name: str) -> Base:
    """By the name of one of the paper's configurations, or of what it ablates."""
    discovery, properties = _ABLATED["paper" if scale == "paper" else "quick"]
    name = {ABLATED_DISCOVERY: discovery, ABLATED_PROPERTIES: properties}.get(name, name)
    return Base(name, _CONFIGS[scale][name])
