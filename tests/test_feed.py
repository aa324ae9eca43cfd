"""The batches of training: functions of seed and step, every scene once an epoch, in parts for several processes."""

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.feed import feed, step_indices
from slotattn_fast.data.split import Split, open_split

CPU = torch.device("cpu")


def numbered(count: int | None) -> Split:
    """Scenes that hold their own index."""

    def read(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        return {"index": torch.from_numpy(indices)}

    return Split(count, read)


def batches(count: int | None, steps: int, **others: int) -> list[list[int]]:
    arguments = {"seed": 1, "batch_size": 6, "start": 0, **others}
    with closing(feed(numbered(count), device=CPU, **arguments)) as endless:
        return [batch["index"].tolist() for batch in islice(endless, steps)]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_generated_scenes_come_in_the_order_of_their_index() -> None:
    assert batches(None, 2, start=3) == [list(range(18, 24)), list(range(24, 30))]


def test_every_scene_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    seen = list(chain(*batches(20, 10)))  # three epochs of 20
    epochs = [seen[i : i + 20] for i in (0, 20, 40)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert list(range(20)) not in epochs


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    uncut = batches(20, 12)
    assert batches(20, 5, start=7) == uncut[7:]
    assert batches(20, 12) == uncut
    assert batches(20, 12, seed=2) != uncut


def test_orders_are_uniform() -> None:
    # First and last scene of an epoch, over many seeds.
    ends = np.array([step_indices(0, 8, 8, seed)[[0, -1]] for seed in range(4000)])
    for column in ends.T:
        counts = np.bincount(column, minlength=8)
        assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001


def test_a_batch_may_hold_several_epochs() -> None:
    (one,) = batches(2, 1)
    assert [sorted(one[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_batch_of_one(world_size: int) -> None:
    parts = [batches(20, 7, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [list(chain(*(part[step] for part in parts))) for step in range(7)]
    assert together == batches(20, 7)
    assert {len(part[0]) for part in parts} == {6 // world_size}


def test_the_order_is_the_same_on_every_machine() -> None:
    # Written down once: a change of NumPy or of this project that alters it would alter every resumed run.
    assert step_indices(5, 4, 10, seed=3).tolist() == [3, 0, 2, 7]


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-3, 1), (6, 4)])
def test_batches_that_cannot_be_shared_are_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, expected a multiple of the {world_size} proc"):
        batches(20, 1, batch_size=batch_size, world_size=world_size)


def test_an_error_while_reading_reaches_the_training() -> None:
    def read(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        raise OSError("gone")

    endless = feed(Split(None, read), seed=0, batch_size=2, start=0, device=CPU)
    with pytest.raises(OSError, match="gone"):
        next(endless)


def test_reading_takes_one_core_and_leaves_the_training_its_own(restored_threads: None) -> None:
    torch.set_num_threads(2)
    seen = []

    def read(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        seen.append(torch.get_num_threads())
        return {}

    with closing(feed(Split(None, read), seed=0, batch_size=2, start=0, device=CPU)) as endless:
        next(endless)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_closing_ends_the_thread() -> None:
    before = set(threading.enumerate())
    endless = feed(numbered(None), seed=0, batch_size=2, start=0, device=CPU)
    next(endless)
    (thread,) = set(threading.enumerate()) - before
    endless.close()
    assert not thread.is_alive()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "scenes"), [("clevr", None), ("clevr-with-masks", 6), ("tetrominoes", None)])
def test_scenes_drawn_on_a_gpu_are_those_of_a_cpu(name: str, scenes: int | None) -> None:
    """Also while the training's stream is busy, which is not waited for."""
    batches = {}
    for device in (CPU, torch.device("cuda")):
        split = open_split(name, "train", ["images"], device=device, scenes=scenes)
        busy = torch.ones(4096, 4096, device=device) if device.type == "cuda" else None
        with closing(feed(split, seed=0, batch_size=4, start=0, device=device)) as endless:
            found = []
            for batch in islice(endless, 4):
                if busy is not None:
                    for _ in range(20):
                        busy = busy @ busy
                found.append(batch["images"] + 0)
            batches[device.type] = torch.cat(found).cpu()
    torch.testing.assert_close(batches["cuda"], batches["cpu"], rtol=0, atol=0)
