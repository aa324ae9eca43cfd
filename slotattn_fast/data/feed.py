"""Batches for training: the batch of a step is a function of seed and step, whoever asks and whenever."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.split import Split
from slotattn_fast.data.synthetic.random import random_words

T = TypeVar("T")

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
    of their index. Reading goes on in one thread, two batches ahead, and leaves the other cores to the training; on a
    GPU in a stream of its own, beside the training's. Images stay uint8 until they are on the device.

    Raises ValueError for a `batch_size` that the processes cannot share alike.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size: got {batch_size}, expected a multiple of the {world_size} processes")
    part = batch_size // world_size
    mine = slice(rank * part, (rank + 1) * part)

    def read(step: int) -> dict[str, Tensor]:
        return split.read(step_indices(step, batch_size, split.count, seed)[mine])

    if device.type != "cuda":
        return _prefetched(read, start)
    return _from_stream(torch.cuda.Stream(device), read, start, device)


def _from_stream(
    stream: torch.cuda.Stream, read: Callable[[int], dict[str, Tensor]], start: int, device: torch.device
) -> Generator[dict[str, Tensor]]:
    """Batches that are drawn and copied in `stream`, which does not wait for the training's steps."""

    def copied(step: int) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            batch = {key: x if x.is_cuda else x.pin_memory() for key, x in read(step).items()}
            batch = {key: x.to(device, non_blocking=True) for key, x in batch.items()}
            return batch, stream.record_event()

    stream.wait_stream(torch.cuda.current_stream(device))  # for scenes that are kept there
    with closing(_prefetched(copied, start)) as batches:
        for batch, there in batches:
            used_by = torch.cuda.current_stream(device)
            used_by.wait_event(there)
            for x in batch.values():
                x.record_stream(used_by)  # so that its memory is not given out again before
            yield batch


def _prefetched(read: Callable[[int], T], start: int) -> Generator[T]:
    # PyTorch's number of threads belongs to the thread that sets it: the training keeps its own.
    background = ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1))
    try:
        ahead: deque[Future[T]] = deque(background.submit(read, start + i) for i in range(_AHEAD))
        for step in count(start + _AHEAD):
            batch = ahead.popleft().result()
            ahead.append(background.submit(read, step))
            yield batch
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
