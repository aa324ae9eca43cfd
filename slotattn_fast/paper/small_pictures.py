"""Pictures of few bytes, for a page that holds all of them."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from slotattn_fast.atomic import atomic_write

WIDTH = 1000
"""In pixels, at most."""


def save(figure: Figure, path: Path) -> None:
    """A plot, as a PNG of the few colours that it has."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as image, atomic_write(path) as file:
        image.convert("RGB").quantize(256).save(file, format="png", optimize=True)


def copy(source: Path, path: Path) -> None:
    """A picture of a run, as WebP no wider than WIDTH."""
    with Image.open(source) as image, atomic_write(path) as file:
        rgb = image.convert("RGB")
        if rgb.width > WIDTH:
            rgb = rgb.resize((WIDTH, round(rgb.height * WIDTH / rgb.width)), Image.Resampling.LANCZOS)
        rgb.save(file, format="webp", quality=85, method=6)
