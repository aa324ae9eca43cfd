"""The picture of Slot Attention at work: what each iteration attends to, and what its slots would draw."""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.report.page import NEUTRAL, enlarged, segmentation, shares, to_unit, write_page


def draw_iterations(
    file: BinaryIO,
    *,
    images: NDArray[np.float32],
    reconstructions: NDArray[np.float32],
    rgb: NDArray[np.float32],
    masks: NDArray[np.float32],
    attention: NDArray[np.float32],
) -> None:
    """Writes a PNG with one row an iteration of each scene, in the manner of the paper's Figures 3 and 20.

    The columns: the input, once a scene; reconstruction and segmentation; where each slot attends; what it draws. Of R
    scenes and T iterations, images [R, H, W, 3], reconstructions [T, R, H, W, 3] and rgb [T, R, K, H, W, 3] hold values
    of -1..1 (clipped to that), masks [T, R, K, H, W] sum to 1 over the slots, and attention [T, R, K, h, w] is over the
    encoder's map, of the image's size or smaller. It is drawn from light for 0 to black for the largest of the picture;
    the rest is as in `figures.draw_slots`. Pixels are repeated a whole number of times, never interpolated.
    """
    iters, scenes, slots, size, _ = masks.shape
    tiles = np.ones((scenes, iters, 3 + 2 * slots, size, size, 3))
    tiles[:, 0, 0] = to_unit(images)
    tiles[:, :, 1] = to_unit(reconstructions).swapaxes(0, 1)
    for t in range(iters):
        tiles[:, t, 2] = segmentation(masks[t])
        tiles[:, t, 3 : 3 + slots] = _dark(enlarged(attention[t] / attention.max(), size))
        tiles[:, t, 3 + slots :] = shares(rgb[t], masks[t])
    each = range(slots)
    write_page(
        file,
        tiles.reshape(scenes * iters, *tiles.shape[2:]),
        titles=[
            *("input", "reconstruction", "segmentation"),
            *(f"attention {k + 1}" for k in each),
            *(f"slot {k + 1}" for k in each),
        ],
        column_groups=[3, 3 + slots],
        slots={first + k: k for first in (3, 3 + slots) for k in each},
        labels=[f"iteration {t + 1}" for t in range(iters)] * scenes,
        row_groups=[iters * r for r in range(1, scenes)],
    )


def _dark(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """[...] of 0..1 to [..., 3]: light for 0, black for 1."""
    return np.repeat(NEUTRAL * (1 - values[..., None]), 3, axis=-1)
