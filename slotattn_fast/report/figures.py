"""The picture of an object-discovery model: what it saw, what it drew, and which slot drew what."""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.report.page import NEUTRAL, colour, segmentation, shares, to_unit, write_page


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
    slots = masks.shape[1]
    scenes = np.stack([to_unit(images), to_unit(reconstructions), segmentation(masks), _truth(masks, true_labels)], 1)
    write_page(
        file,
        np.concatenate([scenes, shares(rgb, masks)], axis=1),
        titles=["input", "reconstruction", "segmentation", "true objects", *(f"slot {k + 1}" for k in range(slots))],
        column_groups=[4],
        slots={4 + k: k for k in range(slots)},
    )


def _truth(masks: NDArray[np.float32], true_labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The true objects, each in the colour of the slot that holds most of it, or in a free colour if that is taken."""
    slots = masks.shape[1]
    tiles = np.full((*true_labels.shape, 3), NEUTRAL)
    for tile, mask, labels in zip(tiles, masks, true_labels, strict=True):
        free = list(range(max(slots, int(labels.max()))))
        for label in range(1, int(labels.max()) + 1):
            held = mask[:, labels == label].sum(1)
            chosen = max(free, key=lambda k: held[k] if k < slots else -1.0)
            free.remove(chosen)
            tile[labels == label] = colour(chosen)
    return tiles
