"""Property vectors: their layout, to and from the arrays of a data set, and data that would make wrong ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from slotattn_fast.data.clevr_published import PROPERTIES
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import sampler
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.data.properties import (
    ATTRIBUTES,
    LAYOUT,
    NAMES,
    NUM_FEATURES,
    check_properties,
    properties_of,
    targets_of,
)
from slotattn_fast.data.split import open_split

CLEVR = Path(__file__).parents[2] / "shared" / "data" / "CLEVR_v1.0"


@pytest.fixture(scope="module")
def scenes() -> dict[str, torch.Tensor]:
    return {name: values for name, values in sampler("clevr")(0, np.arange(8)).items() if name in NAMES}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """5 scenes with 0 to 4 of 4 objects, every value at the end of its range."""
    made = {"num_objects": np.arange(5, dtype=np.uint8), "coords": np.full((5, 4, 3), -3, np.float32)}
    made["coords"][2:] = 3
    return made | {name: np.full((5, 4), len(labels) - 1, np.uint8) for name, labels in PROPERTIES.items()}


def test_the_layout_is_that_of_the_paper() -> None:
    ends = [0]
    for name, part in LAYOUT.items():
        assert part.start == ends[-1]
        assert part.stop - part.start == {"coords": 3, "real": 1}.get(name) or len(PROPERTIES[name])
        ends.append(part.stop)
    assert ends == [0, 3, 5, 7, 10, 18, NUM_FEATURES]
    assert list(LAYOUT) == ["coords", "size", "material", "shape", "color", "real"] == ["coords", *ATTRIBUTES, "real"]
    assert PROPERTIES.keys() == set(ATTRIBUTES)


def test_a_scene_by_hand() -> None:
    scene = {
        "num_objects": torch.tensor([2], dtype=torch.uint8),
        "coords": torch.tensor([[[-3.0, 0, 3], [1.5, -1.5, 0.75], [torch.nan, 1, 1]]]),
        "size": torch.tensor([[1, 0, 1]], dtype=torch.uint8),
        "material": torch.tensor([[0, 1, 1]], dtype=torch.uint8),
        "shape": torch.tensor([[2, 1, 1]], dtype=torch.uint8),
        "color": torch.tensor([[7, 3, 1]], dtype=torch.uint8),
    }
    rows = [
        [0, 0.5, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        [0.75, 0.25, 0.625, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [0] * 19,
        [0] * 19,
    ]
    for num_slots in (
        1,
        2,
        3,
        4,
    ):  # fewer cut off the last objects, more are padding, which is 0 whatever the data hold
        vectors = targets_of(scene, num_slots)
        assert vectors.dtype == torch.float32
        assert vectors.tolist() == [rows[:num_slots]]


@pytest.mark.parametrize("num_slots", [10, 12])
def test_there_and_back(scenes: dict[str, torch.Tensor], num_slots: int) -> None:
    vectors = targets_of(scenes, num_slots)
    assert vectors.shape == (8, num_slots, NUM_FEATURES)
    found = properties_of(vectors)
    exists = np.arange(num_slots) < scenes["num_objects"].numpy()[:, None]
    assert 0 < exists.sum() < exists.size
    np.testing.assert_array_equal(found.real, exists)
    exists = exists[:, :10]
    for i, name in enumerate(ATTRIBUTES):
        np.testing.assert_array_equal(found.attributes[:, :10, i][exists], scenes[name].numpy()[exists])
    assert found.coords.dtype == np.float64
    # One rounding to float32 of numbers up to 1, six times.
    np.testing.assert_allclose(found.coords[:, :10][exists], scenes["coords"].numpy()[exists], rtol=0, atol=6 * 2e-7)


def test_predictions_say_what_is_largest() -> None:
    vectors = torch.zeros(1, 2, NUM_FEATURES, requires_grad=True)
    with torch.no_grad():
        vectors[0, 0] = torch.tensor([0.5, 1, 0, 0.2, 0.1, 0.1, 0.2, 0.3, 0.9, 0.8, *[0.1] * 5, 0.2, 0.1, 0.2, 0.75])
    found = properties_of(vectors)
    assert found.coords[0, 0].tolist() == [0, 3, -3]
    assert found.attributes.tolist() == [[[0, 1, 1, 5], [0, 0, 0, 0]]]  # the first of equal ones
    assert found.real.tolist() == [[0.75, 0]]


@pytest.mark.parametrize(
    ("shape", "bad", "says"),
    [
        ((2, 3, 18), None, r"vectors: got shape \(2, 3, 18\), expected \[B, K, 19\]"),
        ((3, 19), None, r"vectors: got shape \(3, 19\)"),
        ((2, 3, 19), torch.nan, r"vectors: got nan at \[1, 2, 4\], expected finite numbers"),
        ((2, 3, 19), -torch.inf, r"vectors: got -inf at \[1, 2, 4\]"),
    ],
)
def test_vectors_that_say_nothing(shape: tuple[int, ...], bad: float | None, says: str) -> None:
    vectors = torch.zeros(shape)
    if bad is not None:
        vectors[1, 2, 4] = vectors[1, 2, 5] = bad
    with pytest.raises(ValueError, match=says):
        properties_of(vectors)


def test_targets_never_wait_for_the_device(scenes: dict[str, torch.Tensor]) -> None:
    """Where there are no values, nothing can look at them."""
    assert targets_of({name: values.to("meta") for name, values in scenes.items()}, 12).shape == (8, 12, NUM_FEATURES)


def test_a_folder_has_all_that_targets_take(tmp_path: Path) -> None:
    opened = generate("clevr", tmp_path / "clevr", train=3, held_out=2, max_objects=4)
    for split, arrays in opened.splits.items():
        check_properties(f"{opened.path}: {split}", arrays)
    drawn, read = (
        open_split(data, "eval", NAMES, max_objects=4).read(np.arange(2)) for data in ("clevr", str(opened.path))
    )
    assert torch.equal(targets_of(drawn, 4), targets_of(read, 4))
    generate("tetrominoes", tmp_path / "tetrominoes", train=1, held_out=1)
    with pytest.raises(DataError, match=r"tetrominoes: has no coords in its train split"):
        open_split(str(tmp_path / "tetrominoes"), "train", NAMES)


@pytest.mark.skipif(not CLEVR.exists(), reason="a few scenes of CLEVR beside the repository")
def test_clevr_passes(tmp_path: Path) -> None:
    prepare("clevr", CLEVR, tmp_path / "clevr", train=3, held_out=2)
    for split, arrays in open_prepared(tmp_path / "clevr").splits.items():
        check_properties(split, arrays)


def test_values_at_the_ends_and_in_the_padding_pass(arrays: dict[str, np.ndarray]) -> None:
    check_properties("here", arrays)
    for name, array in arrays.items():
        if name != "num_objects":
            array[3, 3] = 255
    arrays["coords"][3, 3] = np.nan
    arrays["coords"][2, 0] = 3.0005  # another writer's rounding
    check_properties("here", arrays)


@pytest.mark.parametrize(
    ("name", "index", "value", "says"),
    [
        ("coords", (3, 2, 1), np.nan, r"here: coords\[3, 2, 1\] is nan, expected -3 to 3; make it anew with `slotattn"),
        ("coords", (3, 2, 1), -np.inf, r"here: coords\[3, 2, 1\] is -inf"),
        ("coords", (4, 3, 2), 3.01, r"here: coords\[4, 3, 2\] is 3.01"),
        ("coords", (1, 0, 0), -3.01, r"here: coords\[1, 0, 0\] is -3.01"),
        ("size", (4, 3), 2, r"here: size\[4, 3\] is 2, expected 0 to 1; make"),
        ("material", (2, 1), 2, r"here: material\[2, 1\] is 2, expected 0 to 1; make"),
        ("shape", (1, 0), 3, r"here: shape\[1, 0\] is 3, expected 0 to 2; make"),
        ("color", (1, 0), 8, r"here: color\[1, 0\] is 8, expected 0 to 7; make"),
        ("num_objects", (2,), 5, r"here: num_objects\[2\] is 5, expected 0 to 4; make"),
    ],
)
def test_values_out_of_range(
    arrays: dict[str, np.ndarray], name: str, index: tuple[int, ...], value: float, says: str
) -> None:
    arrays[name][index] = value
    with pytest.raises(DataError, match=says):
        check_properties("here", arrays)


@pytest.mark.parametrize("name", [*ATTRIBUTES, "num_objects"])
def test_codes_below_zero(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name] = arrays[name].astype(np.int8)
    arrays[name][4] = -1
    with pytest.raises(DataError, match=rf"here: {name}\[4.* is -1, expected 0 to"):
        check_properties("here", arrays)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("coords", lambda a: a.astype(int), r"here: coords is int64 \[5, 4, 3\], expected float32 \[5, 4, 3\]"),
        ("coords", lambda a: a[..., :2], r"here: coords is float32 \[5, 4, 2\], expected float32 \[5, 4, 3\]"),
        (
            "shape",
            lambda a: a.astype(np.float32),
            r"here: shape is float32 \[5, 4\], expected uint8 or signed integers \[5, 4\]",
        ),
        ("color", lambda a: a[:, :3], r"here: color is uint8 \[5, 3\], expected uint8 or signed"),
        ("num_objects", lambda a: a[:4], r"here: num_objects is uint8 \[4\], expected uint8 or signed integers \[5\]"),
        ("coords", lambda a: a.astype(np.float64), r"here: coords is float64 \[5, 4, 3\], expected float32"),
        ("size", lambda a: a.astype(np.uint16), r"here: size is uint16 \[5, 4\], expected uint8 or signed"),
        ("size", lambda a: a.astype(">i4"), r"here: size is >i4 \[5, 4\], expected uint8 or signed"),
    ],
)
def test_arrays_of_another_kind(arrays: dict[str, np.ndarray], name: str, change, says: str) -> None:
    arrays[name] = change(arrays[name])
    with pytest.raises(DataError, match=says):
        check_properties("here", arrays)
