"""PNGs of few bytes, for a page that holds all of its pictures."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from slotattn_fast.atomic import atomic_write

WIDTH = 1200
"""In pixels, at most."""
_COLOURS = 128


def save(figure: Figure, path: Path) -> None:
    """A plot."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    _write(Image.open(drawn), path)


def copy(source: Path, path: Path) -> None:
    """A picture of a run, no wider than WIDTH."""
    with Image.open(source) as image:
        _write(image, path)


def _write(image: Image.Image, path: Path) -> None:
    rgb = image.convert("RGB")
    if rgb.width > WIDTH:
        rgb = rgb.resize((WIDTH, round(rgb.height * WIDTH / rgb.width)), Image.Resampling.LANCZOS)
    with atomic_write(path) as file:
        rgb.quantize(_COLOURS).save(file, format="png", optimize=True)
