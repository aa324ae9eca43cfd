"""Looking at the tiles of a picture that the reports draw."""

import numpy as np
from numpy.typing import NDArray


def at_own_resolution(page: NDArray[np.uint8], top: int, left: int, size: int, scale: int) -> NDArray[np.float64]:
    """A tile [size, size, 3] in 0..1, after checking that each of its pixels is a block of one colour."""
    tile = page[top : top + size * scale, left : left + size * scale] / 255
    blocks = tile.reshape(size, scale, size, scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


def assert_colour(actual: NDArray[np.float64], expected: object) -> None:
    np.testing.assert_allclose(actual, np.broadcast_to(np.asarray(expected), actual.shape), atol=1 / 255)
