"""What the pictures of a model share: a page of tiles with titles and captions, and the colours of slots."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette for colour-blind readers, without its black, then for more slots three of Paul Tol's "muted",
# and a brown: the others of "muted" are too close to what is there.
_HEX = "0072B2 E69F00 009E73 CC79A7 56B4E9 D55E00 F0E442 332288 999933 882255 663300"
PALETTE = np.array([[int(h[i : i + 2], 16) / 255 for i in (0, 2, 4)] for h in _HEX.split()])
NEUTRAL = 0.93
"""Grey of what no slot claims, out of 1."""

# In pixels of the picture.
TILE = 144
GAP = 8
GROUP_GAP = 28
MARGIN = 20
HEADER = 40
LABEL = 24
LINE = 15
CAPTION_WIDTH = 128
DPI = 100


class Line(NamedTuple):
    """Of a caption."""

    text: str
    color: str = "0.2"
    """As matplotlib names it; a number is a grey out of 1."""


def write_page(
    file: BinaryIO,
    tiles: NDArray[np.floating],
    *,
    titles: Sequence[str],
    column_groups: Sequence[int],
    slots: Mapping[int, int],
    labels: Sequence[str] = (),
    row_groups: Sequence[int] = (),
    captions: Sequence[Sequence[Sequence[Line]]] = (),
) -> None:
    """Writes a PNG of tiles [R, C, H, W, 3] with values of 0..1, each pixel repeated a whole number of times.

    titles: one above each column. column_groups, row_groups: those that a wider gap comes before. slots: the slot of
    each column that has one, whose colour stands above it. labels: one at the left of each row, if any. captions: for
    each row and column the lines below the tile. With more titles and captions than C, the last columns have lines in
    place of tiles.
    """
    rows, tiled, height, _, _ = tiles.shape
    scale = max(1, TILE // height)
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    tile_height, tile_width = tiles.shape[2:4]
    start = MARGIN + (LABEL if labels else 0)
    width = max(tile_width, CAPTION_WIDTH) if captions else tile_width
    captions = captions or [[]] * rows
    uppers = [max(tile_height, _height(row[tiled:])) for row in captions]
    heights = [upper + _height(row[:tiled]) for upper, row in zip(uppers, captions, strict=True)]
    lefts, right = _places([width] * len(titles), column_groups, start)
    tops, bottom = _places(heights, row_groups, MARGIN + HEADER)
    page = np.ones((bottom + MARGIN, right + MARGIN, 3))
    for r, top in enumerate(tops):
        for tile, left in zip(tiles[r], lefts, strict=False):
            page[top : top + tile_height, left : left + tile_width] = tile
    swatch = MARGIN + HEADER - 10
    for c, k in slots.items():
        page[swatch : swatch + 4, lefts[c] : lefts[c] + tile_width] = colour(k)

    page_height, page_width = page.shape[:2]
    figure = Figure(figsize=(page_width / DPI, page_height / DPI), dpi=DPI)
    figure.figimage(page)
    style: dict[str, Any] = {"ha": "center", "fontsize": 12, "color": "0.2"}
    for title, left in zip(titles, lefts, strict=True):
        x, y = (left + tile_width / 2) / page_width, 1 - (swatch - 6) / page_height
        figure.text(x, y, title, va="bottom", **style)
    for label, top in zip(labels, tops, strict=False):
        x, y = (start - LABEL / 2) / page_width, 1 - (top + tile_height / 2) / page_height
        figure.text(x, y, label, va="center", rotation="vertical", **style)
    for row, top, upper in zip(captions, tops, uppers, strict=True):
        for c, (lines, left) in enumerate(zip(row, lefts, strict=False)):
            for i, line in enumerate(lines, 1):
                y = 1 - (top + (upper if c < tiled else 0) + LINE * i) / page_height
                figure.text(left / page_width, y, line.text, va="baseline", fontsize=8.5, color=line.color)
    FigureCanvasAgg(figure).print_png(file)


def segmentation(masks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Colours [R, H, W, 3] of the slots that own the pixels, from masks [R, K, H, W]: pale where none dominates."""
    slots = masks.shape[1]
    colours = colour(masks.argmax(1))
    # 0 where all slots share the pixel alike, 1 where one has it alone.
    dominance = (slots * masks.max(1) - 1) / (slots - 1) if slots > 1 else masks.max(1)
    return NEUTRAL + (colours - NEUTRAL) * dominance[..., None]


def shares(rgb: NDArray[np.float32], masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each slot draws, weighted by its mask, on grey: [R, K, H, W, 3] of rgb in -1..1 and masks [R, K, H, W]."""
    return masks[..., None] * to_unit(rgb) + (1 - masks[..., None]) * NEUTRAL


def enlarged(maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Maps [..., h, h] over the encoder's output as [..., size, size]: a value covers the pixels of the stride."""
    nearest = np.arange(size) // -(-size // maps.shape[-1])
    return maps[..., nearest[:, None], nearest]


def colour(slot: int | NDArray[np.intp]) -> NDArray[np.float64]:
    """Of a slot, or of each of an array [...]: [..., 3]."""
    return PALETTE[np.asarray(slot) % len(PALETTE)]


def to_unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """-1..1 to 0..1, what lies outside clipped."""
    return np.clip((values + 1) / 2, 0, 1)


def _height(captions: Sequence[Sequence[Line]]) -> int:
    """Of the longest, in pixels."""
    return LINE * max(map(len, captions), default=0)


def _places(sizes: Sequence[int], groups: Sequence[int], start: int) -> tuple[list[int], int]:
    """Where each of a row of tiles of these sizes begins, in pixels, and where the last one ends."""
    places = []
    for i, size in enumerate(sizes):
        start += GAP * (i > 0) + (GROUP_GAP - GAP) * (i in groups)
        places.append(start)
        start += size
    return places, start
