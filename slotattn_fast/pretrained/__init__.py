"""Trained models that come with the package: finished run folders, without their checkpoints."""

from pathlib import Path

PRETRAINED = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/model.safetensors")))


def pretrained(name: str) -> Path:
    """The run folder of a trained model. Raises ValueError for a name that is none of `PRETRAINED`."""
    if name not in PRETRAINED:
        raise ValueError(f"pretrained: got {name!r}, expected one of {', '.join(PRETRAINED)}")
    return Path(__file__).parent / name
