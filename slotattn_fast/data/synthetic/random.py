"""Random numbers that belong to a scene: scene i of a seed is the same in every batch, process and machine.

NumPy's Philox (Salmon et al., 2011) is a function of (key, counter). The key is the seed and what the numbers are for
(the stream); the counter is the scene. Nothing is carried from one scene to the next.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WORDS_A_COUNT = 4
"""64-bit words that Philox makes from one value of its counter."""


def random_words(seed: int, stream: int, scenes: ArrayLike, count: int) -> NDArray[np.uint64]:
    """64 random bits each, [len(scenes), count], for scenes of these indices [B]; a row depends on its own index alone.

    Streams of one seed are independent of each other, and so are the seeds; use one `count` a stream. Consecutive
    indices are drawn at once, a hundred times as fast. Raises ValueError for a negative seed, stream or index.
    """
    indices = np.asarray(scenes, np.int64)
    if min(seed, stream, indices.min(initial=0)) < 0:
        raise ValueError(f"seed, stream, scenes: got {seed}, {stream}, {indices}, expected none below 0")
    key = np.random.SeedSequence([seed, stream]).generate_state(2, np.uint64)
    counts = -(-count // _WORDS_A_COUNT)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    words = [
        np.random.Philox(key=key, counter=int(run[0]) * counts).random_raw(len(run) * counts * _WORDS_A_COUNT)
        for run in runs
        if len(run)
    ]
    return np.concatenate([np.empty(0, np.uint64), *words]).reshape(len(indices), counts * _WORDS_A_COUNT)[:, :count]


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers in [0, 1), the multiples of 2^-53."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(words: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.int64]:
    """Words as integers 0 .. bound - 1, uniform to within bound * 2^-32; bounds (below 2^31) broadcast to the words."""
    high = (words >> np.uint64(32)).astype(np.int64)
    return (high * np.asarray(bound, np.int64)) >> 32
