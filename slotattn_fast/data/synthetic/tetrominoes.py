"""Tetrominoes scenes: three coloured pieces of four bevelled blocks on black.

The looks are those of DeepMind's Multi-Object Datasets (github.com/deepmind/multi_object_datasets, Tetrominoes): image
size, the 19 pieces, the six colours and the brightness of every pixel of a block.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slotattn_fast.data.synthetic.random import below, random_words

IMAGE_SIZE = 35
BLOCK_SIZE = 5
NUM_PIECES = 3

# Every free tetromino in every orientation ("fixed" tetrominoes); rows separated by "/".
PIECES = (
    "####", "#/#/#/#",
    "###/#..", "#../###", "..#/###", "###/..#", "##/.#/.#", ".#/.#/##", "##/#./#.", "#./#./##",
    "##./.##", ".##/##.", ".#/##/#.", "#./##/.#",
    ".#./###", "###/.#.", ".#/##/.#", "#./##/#.",
    "##/##",
)  # fmt: skip

COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.uint8)

# Brightness of a block, lit from above, lighter on the left than on the right.
BEVEL = np.array(
    [
        [191, 255, 255, 255, 223],
        [127, 159, 159, 159, 191],
        [127, 159, 159, 159, 191],
        [127, 159, 159, 159, 191],
        [95, 63, 63, 63, 127],
    ],
    dtype=np.uint8,
)


def _blocks(piece: str) -> list[tuple[int, int]]:
    rows = enumerate(piece.split("/"))
    return [(r * BLOCK_SIZE, c * BLOCK_SIZE) for r, row in rows for c, cell in enumerate(row) if cell == "#"]


# Where a piece's four blocks start, in pixels from the piece's top left corner [19, 4, 2] (row, column), and the
# number of places its corner can have in the image [19, 2].
_BLOCKS = np.array([_blocks(piece) for piece in PIECES])
_PLACES = IMAGE_SIZE + 1 - BLOCK_SIZE - _BLOCKS.max(axis=1)

# Places drawn at once for every scene that still needs one; about half of them do not overlap.
_TRIES = 8

# Streams of a seed: pieces and colours, then one stream for each round of tries.
_LOOKS, _PLACES_FROM = 0, 1


def sample_tetrominoes(seed: int, scenes: ArrayLike) -> dict[str, NDArray[np.uint8]]:
    """The scenes of these indices [B] of a seed; a scene depends on the seed and its own index alone.

    Pieces and colours are independent and uniform, so both may repeat within a scene. The places are uniform over all
    ways to lay the three pieces into the image without overlap; pieces may touch.

    Returns images [B, 35, 35, 3] of 0..255 (RGB), labels [B, 35, 35] (0 background, 1 to 3 the pieces) and num_objects
    [B], always 3. Raises ValueError for a negative seed or index.
    """
    indices = np.asarray(scenes, np.int64)
    looks = random_words(seed, _LOOKS, indices, 2 * NUM_PIECES)
    pieces = below(looks[:, :NUM_PIECES], len(PIECES))
    colours = COLOURS[below(looks[:, NUM_PIECES:], len(COLOURS))]
    blocks = _place(seed, indices, pieces)

    # Every pixel of every block, as an index into all pixels of the batch [B, 3, 4, 5, 5].
    corners = (np.arange(len(indices))[:, None, None] * IMAGE_SIZE + blocks[..., 0]) * IMAGE_SIZE + blocks[..., 1]
    pixels = np.arange(BLOCK_SIZE)[:, None] * IMAGE_SIZE + np.arange(BLOCK_SIZE)
    where = corners[..., None, None] + pixels
    labels = np.zeros((len(indices), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    labels.reshape(-1)[where] = np.arange(1, NUM_PIECES + 1, dtype=np.uint8)[:, None, None, None]
    images = np.zeros((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    images.reshape(-1, 3)[where] = colours[:, :, None, None, None] * BEVEL[..., None]
    return {"images": images, "labels": labels, "num_objects": np.full(len(indices), NUM_PIECES, dtype=np.uint8)}


def _place(seed: int, scenes: NDArray[np.int64], pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Corners of the blocks [B, 3, 4, 2] (row, column) of the pieces [B, 3], by rejection."""
    blocks = np.empty((*pieces.shape, 4, 2), dtype=np.int64)
    waiting = np.arange(len(pieces))
    stream = _PLACES_FROM
    while len(waiting):
        shapes = pieces[waiting]
        words = random_words(seed, stream, scenes[waiting], _TRIES * NUM_PIECES * 2)
        corners = below(words.reshape(-1, _TRIES, NUM_PIECES, 2), _PLACES[shapes][:, None])
        tries = _BLOCKS[shapes][:, None] + corners[..., None, :]  # [waiting, tries, 3, 4, 2]
        fits = ~_overlap(tries)  # [waiting, tries]
        found = fits.any(axis=1)
        blocks[waiting[found]] = tries[np.arange(len(waiting)), fits.argmax(axis=1)][found]
        waiting = waiting[~found]
        stream += 1
    return blocks


def _overlap(blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any two pieces share a pixel [...], for blocks [..., 3, 4, 2]."""
    # Short axes first, so that NumPy's inner loops run over the scenes: several times faster.
    corners = np.moveaxis(blocks, (-1, -3, -2), (0, 1, 2)).astype(np.int8, order="C")  # [2, 3, 4, ...]
    one, other = corners[:, [0, 0, 1], :, None], corners[:, [1, 2, 2], None]
    row, column = np.abs(one - other) < BLOCK_SIZE  # [3, 4, 4, ...] each
    return (row & column).any(axis=(0, 1, 2))
