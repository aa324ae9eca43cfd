"""Batches for training: the batch of a step is a function of seed and step, whoever asks and whenever."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.split import Split
from slotattn_fast.data.synthetic.random import random_words

_SHUFFLE = 1 << 32
"""The stream of a seed that shuffles; those of the generators are small numbers."""
_AHEAD = 2
"""Batches that are read while the step before them computes."""


def feed(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[dict[str, Tensor]]:
    """The batches of steps `start`, `start` + 1, ..., without end, on `device`.

    A step's batch of `batch_size` scenes is cut into `world_size` equal parts, of which this gives the one of `rank`.
    Prepared scenes come in a new order each epoch, every scene once before any comes again; generated ones in the order
    of their index. Reading goes on in one thread, two batches ahead, and leaves the other cores to the training; images
    stay uint8 until they are on the device.

    Raises ValueError for a `batch_size` that the processes cannot share alike.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size: got {batch_size}, expected a multiple of the {world_size} processes")
    part = batch_size // world_size
    mine = slice(rank * part, (rank + 1) * part)

    def read(step: int) -> dict[str, Tensor]:
        batch = split.read(step_indices(step, batch_size, split.count, seed)[mine])
        if device.type == "cuda":  # pinned, so that the copy can run beside the computation
            batch = {key: value if value.is_cuda else value.pin_memory() for key, value in batch.items()}
        return batch

    return _prefetched(read, start, device)


def _prefetched(
    read: Callable[[int], dict[str, Tensor]], start: int, device: torch.device
) -> Generator[dict[str, Tensor]]:
    # PyTorch's number of threads belongs to the thread that sets it: the training keeps its own.
    background = ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1))
    try:
        ahead: deque[Future[dict[str, Tensor]]] = deque(background.submit(read, start + i) for i in range(_AHEAD))
        for step in count(start + _AHEAD):
            batch = ahead.popleft().result()
            ahead.append(background.submit(read, step))
            yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    finally:
        background.shutdown(cancel_futures=True)


def step_indices(step: int, batch_size: int, scenes: int | None, seed: int) -> NDArray[np.int64]:
    """The scenes [batch_size] of a step, counted from 0, out of so many; None: there is no end of them."""
    places = step * batch_size + np.arange(batch_size)
    if scenes is None:
        return places
    epochs, rows = np.divmod(places, scenes)
    indices = np.empty_like(rows)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = _order(seed, epoch, scenes)[rows[here]]
    return indices


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, scenes: int) -> NDArray[np.int64]:
    """A permutation of the scenes, uniform over all."""
    (words,) = random_words(seed, _SHUFFLE, [epoch], scenes)
    return np.argsort(words, kind="stable")
