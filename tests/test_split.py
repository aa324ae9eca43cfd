"""Splits: the same scenes from a generator and from the folder made of it, filters, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slotattn_fast.data import generated
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import FIRST_HELD_OUT, HELD_OUT_SEED, sampler
from slotattn_fast.data.prepare import generate
from slotattn_fast.data.split import open_split
from slotattn_fast.data.synthetic.tetrominoes import sample_tetrominoes

NAMES = ["images", "labels"]
SPRITES = "multi-dsprites-colored-on-grayscale"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(generate(SPRITES, tmp_path_factory.mktemp("data") / "sprites", seed=4, train=150, held_out=20).path)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_folder_holds_what_its_generator_draws(folder: str, split: str) -> None:
    indices = np.array([3, 0, 19, 3])
    made, drawn = (open_split(data, split, NAMES, seed=4).read(indices) for data in (folder, SPRITES))
    assert list(made) == list(drawn) == NAMES
    for name in NAMES:
        assert made[name].dtype == torch.uint8
        assert torch.equal(made[name], drawn[name])


def test_ends(folder: str) -> None:
    assert open_split(folder, "train", NAMES).count == 150
    assert open_split(folder, "eval", NAMES).count == 20
    assert open_split(SPRITES, "train", NAMES).count is None


def test_the_scenes_to_evaluate_do_not_depend_on_the_seed() -> None:
    one, other = (open_split("tetrominoes", "eval", NAMES, seed=seed).read(np.arange(5)) for seed in (0, 1))
    assert torch.equal(one["images"], other["images"])
    expected = sampler("tetrominoes")(HELD_OUT_SEED, FIRST_HELD_OUT + np.arange(5))["images"]
    np.testing.assert_array_equal(one["images"].numpy(), expected)


def test_scenes_with_more_objects_are_left_out(folder: str) -> None:
    few = open_split(folder, "train", ["images", "num_objects"], max_objects=3)
    every = open_split(folder, "train", ["images", "num_objects"]).read(np.arange(150))
    kept = every["num_objects"] <= 3
    assert 0 < few.count == int(kept.sum()) < 150
    scenes = few.read(np.arange(few.count))
    assert torch.equal(scenes["images"], every["images"][kept])
    assert set(scenes["num_objects"].tolist()) == {2, 3}


def test_clevr6_is_drawn() -> None:
    scenes = open_split("clevr-with-masks", "train", ["num_objects", "labels"], max_objects=4).read(np.arange(6))
    assert set(scenes["num_objects"].tolist()) <= {3, 4}
    assert scenes["labels"].max() <= 4


@pytest.mark.parametrize(
    ("data", "names", "max_objects", "message"),
    [
        ("photos", NAMES, None, "got 'photos', which is neither a prepared folder nor one of clevr, .*tetrominoes"),
        ("FOLDER", ["depth"], None, "has no depth in its train split, only .*images"),
        ("FOLDER", NAMES, 1, "no scene of at most 1 objects in its train split; raise max_objects"),
        ("tetrominoes", NAMES, 2, "max_objects: got 2 for tetrominoes; only CLEVR is drawn with fewer objects"),
        ("clevr", NAMES, 2, "max_objects: got 2, expected 3 to 10 for clevr"),
        ("clevr-with-masks", NAMES, 11, "max_objects: got 11, expected 3 to 10"),
    ],
)
def test_what_cannot_be_read_is_refused(
    folder: str, data: str, names: list[str], max_objects: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_split(data.replace("FOLDER", folder), "train", names, max_objects=max_objects)


def test_generated_scenes_that_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    split = open_split("tetrominoes", "train", ["images"], scenes=1_000_000)
    monkeypatch.setattr(torch.Tensor, "new_empty", fails)
    with pytest.raises(DataError, match=r"scenes: got 1000000, .* take 3\.7 GB .*; train anew with fewer --scenes"):
        split.read(np.arange(2))


def test_a_name_that_is_not_generated() -> None:
    with pytest.raises(ValueError, match="name: got 'objects-room', expected one of clevr, "):
        sampler("objects-room")


def test_the_folder_is_mapped_and_never_written_to(folder: str) -> None:
    file = Path(folder) / "train" / "images.npy"
    before = file.read_bytes()
    images = open_split(folder, "train", ["images"]).read(np.arange(4))["images"]
    images.zero_()
    assert file.read_bytes() == before


def test_a_number_of_generated_scenes_is_drawn_once_and_gone_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def sample(seed: int, scenes: NDArray[np.int64]) -> dict[str, NDArray[np.uint8]]:
        asked.extend(np.asarray(scenes).tolist())
        return sample_tetrominoes(seed, scenes)

    monkeypatch.setattr(generated, "sample_tetrominoes", sample)
    split = open_split("tetrominoes", "train", ["images", "labels"], seed=3, scenes=5)
    assert split.count == 5
    first, again = split.read(np.array([4, 1, 4])), split.read(np.array([1, 2, 4]))
    assert sorted(asked) == [1, 2, 4]
    drawn = sample_tetrominoes(3, [1, 2, 4])
    for name in ("images", "labels"):
        np.testing.assert_array_equal(first[name].numpy(), drawn[name][[2, 0, 2]])
        np.testing.assert_array_equal(again[name].numpy(), drawn[name])
