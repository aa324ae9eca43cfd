"""The picture of an object-discovery model: what it saw, what it drew, and which slot drew what."""

from typing import BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette for colour-blind readers, without its black, then Paul Tol's "muted" for more slots.
_HEX = "0072B2 E69F00 009E73 CC79A7 56B4E9 D55E00 F0E442 332288 999933 882255 44AA99"
PALETTE = np.array([[int(h[i : i + 2], 16) / 255 for i in (0, 2, 4)] for h in _HEX.split()])
NEUTRAL = 0.93
"""Grey of what no slot claims, out of 1."""

# In pixels of the picture.
TILE = 140
GAP = 8
GROUP_GAP = 28
MARGIN = 20
HEADER = 40
DPI = 100


def draw_slots(
    file: BinaryIO,
    *,
    images: NDArray[np.float32],
    reconstructions: NDArray[np.float32],
    rgb: NDArray[np.float32],
    masks: NDArray[np.float32],
    true_labels: NDArray[np.uint8],
) -> None:
    """Writes a PNG with one row a scene: input, reconstruction, segmentation, true objects, then each slot's share.

    images, reconstructions [R, H, W, 3] and rgb [R, K, H, W, 3] hold values of -1..1 (clipped to that); masks
    [R, K, H, W] sum to 1 over the slots; true_labels [R, H, W] has 0 for the background. In the segmentation a pixel
    has the colour of the slot with the largest mask, the paler the less that slot dominates; a slot's share is its
    colours weighted by its mask, on grey. Pixels are repeated a whole number of times, never interpolated.
    """
    rows, slots, height, _ = masks.shape
    tiles = np.concatenate(
        [
            np.stack([_to_unit(images), _to_unit(reconstructions), segmentation(masks), _truth(masks, true_labels)], 1),
            masks[..., None] * _to_unit(rgb) + (1 - masks[..., None]) * NEUTRAL,
        ],
        axis=1,
    )
    scale = max(1, TILE // height)
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    tile_height, tile_width = tiles.shape[2:4]

    lefts = [MARGIN + c * (tile_width + GAP) + (GROUP_GAP - GAP) * (c >= 4) for c in range(4 + slots)]
    tops = [MARGIN + HEADER + r * (tile_height + GAP) for r in range(rows)]
    page = np.ones((tops[-1] + tile_height + MARGIN, lefts[-1] + tile_width + MARGIN, 3))
    for r, top in enumerate(tops):
        for c, left in enumerate(lefts):
            page[top : top + tile_height, left : left + tile_width] = tiles[r, c]

    swatch = MARGIN + HEADER - 10
    for k, left in enumerate(lefts[4:]):
        page[swatch : swatch + 4, left : left + tile_width] = _colour(k)

    figure = Figure(figsize=(page.shape[1] / DPI, page.shape[0] / DPI), dpi=DPI)
    figure.figimage(page)
    titles = ["input", "reconstruction", "segmentation", "true objects", *(f"slot {k + 1}" for k in range(slots))]
    for title, left in zip(titles, lefts, strict=True):
        figure.text(
            (left + tile_width / 2) / page.shape[1],
            1 - (swatch - 6) / page.shape[0],
            title,
            ha="center",
            va="bottom",
            fontsize=12,
            color="0.2",
        )
    FigureCanvasAgg(figure).print_png(file)


def segmentation(masks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Colours [R, H, W, 3] of the slots that own the pixels, from masks [R, K, H, W]: pale where none dominates."""
    slots = masks.shape[1]
    colours = _colour(masks.argmax(1))
    # 0 where all slots share the pixel alike, 1 where one has it alone.
    dominance = (slots * masks.max(1) - 1) / (slots - 1) if slots > 1 else masks.max(1)
    return NEUTRAL + (colours - NEUTRAL) * dominance[..., None]


def _truth(masks: NDArray[np.float32], true_labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The true objects, each in the colour of the slot that holds most of it, or in a free colour if that is taken."""
    slots = masks.shape[1]
    tiles = np.full((*true_labels.shape, 3), NEUTRAL)
    for tile, mask, labels in zip(tiles, masks, true_labels, strict=True):
        free = list(range(max(slots, int(labels.max()))))
        for label in range(1, int(labels.max()) + 1):
            held = mask[:, labels == label].sum(1)
            colour = max(free, key=lambda k: held[k] if k < slots else -1.0)
            free.remove(colour)
            tile[labels == label] = _colour(colour)
    return tiles


def _colour(slot: int | NDArray[np.intp]) -> NDArray[np.float64]:
    return PALETTE[np.asarray(slot) % len(PALETTE)]


def _to_unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip((values + 1) / 2, 0, 1)
