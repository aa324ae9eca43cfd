"""The picture of a set predictor: what it says of each slot, in words and colours, and what is wrong with it."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiles import assert_colour, at_own_resolution

from slotattn_fast.data.properties import Properties
from slotattn_fast.report import properties
from slotattn_fast.report.page import CAPTION_WIDTH, GAP, GROUP_GAP, HEADER, LINE, MARGIN, NEUTRAL, PALETTE
from slotattn_fast.report.properties import MISSED, draw_properties

SIZE, SCALE = 36, 4
SIDE = SIZE * SCALE
WRONG = "#d55e00"

# size, material, shape, color
SMALL_RED_METAL_CUBE = [0, 1, 0, 4]
LARGE_GRAY_RUBBER_SPHERE = [1, 0, 1, 0]
SMALL_CYAN_RUBBER_CYLINDER = [0, 0, 2, 7]


def _sets(*objects: tuple[list[float], list[int], float]) -> Properties:
    coords, attributes, real = zip(*objects, strict=True)
    return Properties(np.array([coords], float), np.array([attributes]), np.array([real], float))


def _both(one: Properties, other: Properties) -> Properties:
    return Properties(*map(np.concatenate, zip(one, other, strict=True)))


TRUE = _sets(
    ([0, 0, 0.5], SMALL_RED_METAL_CUBE, 1),
    ([2, 0, 0.5], LARGE_GRAY_RUBBER_SPHERE, 1),
    ([-2, 0, 0.5], SMALL_CYAN_RUBBER_CYLINDER, 1),
    ([0, 0, 0], [0, 0, 0, 0], 0),
)
"""Three objects and a row of padding."""


def _scenes(predicted: Properties, true: Properties = TRUE) -> dict[str, Any]:
    """Object n is in rows 10 n to 10 n + 5; slot k has the attention from rows 10 k on, and 3/4 below row 30."""
    scenes, slots = predicted.real.shape
    labels = np.zeros((scenes, SIZE, SIZE), np.uint8)
    for n in range(3):
        labels[:, 10 * n : 10 * n + 5] = n + 1
    attention = np.zeros((scenes, slots, SIZE // 2, SIZE // 2), np.float32)
    for k in range(slots):
        attention[:, k, 5 * k : 5 * k + 5 if k < slots - 1 else None] = 1
    attention[:, :, 15:] = 0.25 / max(1, slots - 1)
    attention[:, 0, 15:] = 0.75
    images = np.where(labels[..., None] > 0, [1.0, -1.0, 0.5], -0.5).astype(np.float32)
    return {"images": images, "attention": attention, "predicted": predicted, "true": true, "true_labels": labels}


def _draw(**arguments: Any) -> NDArray[np.uint8]:
    file = io.BytesIO()
    draw_properties(file, **arguments)
    return np.asarray(Image.open(file).convert("RGB"))


def _captions(monkeypatch: pytest.MonkeyPatch, predicted: Properties, true: Properties = TRUE) -> Any:
    pages = []
    with monkeypatch.context() as patch:
        patch.setattr(properties, "write_page", lambda file, tiles, **page: pages.append(page))
        draw_properties(io.BytesIO(), **_scenes(predicted, true))
    return [[[line.text for line in lines] for lines in row] for row in pages[0]["captions"]]


def _left(column: int, first: int) -> int:
    return MARGIN + column * (SIDE + GAP) + (GROUP_GAP - GAP) * (column >= first)


def _tile(page: NDArray[np.uint8], column: int, first: int = 3) -> NDArray[np.float64]:
    return at_own_resolution(page, MARGIN + HEADER, _left(column, first), SIZE, SCALE)


def test_right_wrong_and_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = _sets(
        ([2.1, -0.04, 0.5], [0, 1, 1, 0], 0.8),
        ([0.0, 0.0, 0.5], SMALL_CYAN_RUBBER_CYLINDER, 0.499),
        ([-0.3, 0.4, 0.5], SMALL_RED_METAL_CUBE, 0.987),
    )
    ((missed, *others, first, second, third),) = _captions(monkeypatch, predicted)
    assert missed == ["missed:", "small cyan rubber cylinder"]
    assert others == [[], []]
    assert first == [
        "confidence 80 %",
        "✗ small, is large",
        "gray",
        "✗ metal, is rubber",
        "sphere",
        "x 2.1  y 0.0",
        "off by 0.11",
    ]
    assert second == ["confidence 49 %", "no object"]
    assert third == ["confidence 99 %", "small", "red", "metal", "cube", "x -0.3  y 0.4", "off by 0.50"]


def test_half_is_an_object_and_what_is_less_is_not_told_as_half(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = _sets(*(([0, 0, 0.5], SMALL_RED_METAL_CUBE, real) for real in (0.4999, 0.495, 0.481, 0.5, 0.502)))
    ((_, _, _, *said),) = _captions(monkeypatch, predicted)
    assert [lines[0] for lines in said] == [f"confidence {percent} %" for percent in (49, 49, 48, 50, 50)]
    assert ["no object" in lines for lines in said] == [True, True, True, False, False]


def test_everything_found_leaves_nothing_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Properties(*(array[:, :3] for array in TRUE))
    ((missed, *_, last),) = _captions(monkeypatch, everything)
    assert missed == []
    assert last[-1] == "off by 0.00"


def test_padding_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    like_padding = _sets(([0, 0, 0.3], [0, 0, 0, 0], 0.9))
    ((_, _, _, said),) = _captions(monkeypatch, like_padding)
    assert said[1:] == ["small", "✗ gray, is red", "✗ rubber, is metal", "cube", "x 0.0  y 0.0", "off by 0.20"]


def test_far_off_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (_sets(([0, y, 0.5], SMALL_RED_METAL_CUBE, 1)) for y in (0.99, 1))
    assert _captions(monkeypatch, near)[0][-1][-1] == "off by 0.99"
    assert _captions(monkeypatch, far)[0][-1][-1] == "✗ off by 1.00"


def test_second_to_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in average precision it has no second choice, and the surer one, which is first, has the object."""
    twins = _sets(([0, 0, 0.5], SMALL_RED_METAL_CUBE, 1), ([2, 0, 0.5], SMALL_RED_METAL_CUBE, 1))
    predicted = _sets(([0, 0.1, 0.5], SMALL_RED_METAL_CUBE, 0.8), ([0.5, 0, 0.5], SMALL_RED_METAL_CUBE, 0.9))
    ((missed, _, _, first, second),) = _captions(monkeypatch, predicted, twins)
    assert missed == ["missed:", "small red metal cube"]
    assert first[-1] == "✗ same as slot 2"
    assert second[-1] == "off by 0.50"


def test_slots_that_agree_with_none_take_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After those that agree with one, though surer; the nearest first; one may go empty."""
    wrong = [1, 1, 1, 1]
    predicted = _sets(
        ([0.2, 0, 0.5], wrong, 0.95),
        ([0, 0, 0.5], SMALL_RED_METAL_CUBE, 0.6),
        ([0.5, 0, 0.5], wrong, 0.9),
        ([0, 0, 0.5], wrong, 0.8),
    )
    ((missed, _, _, first, second, third, last),) = _captions(monkeypatch, predicted)
    assert missed == []
    assert first[1:5] == ["large", "✗ blue, is gray", "✗ metal, is rubber", "sphere"]
    assert first[-1] == "✗ off by 1.80"
    assert second[-1] == "off by 0.00"
    assert third[1:5] == ["✗ large, is small", "✗ blue, is cyan", "✗ metal, is rubber", "✗ sphere, is cylinder"]
    assert third[-1] == "✗ off by 2.50"
    assert last[1:] == ["large", "blue", "metal", "sphere", "x 0.0  y 0.0", "✗ no object is left"]


def test_colours() -> None:
    predicted = _sets(
        ([2, 0, 0.5], LARGE_GRAY_RUBBER_SPHERE, 0.9),
        ([0, 0, 0.5], SMALL_RED_METAL_CUBE, 0.9),
        ([0, 0, 0.5], SMALL_RED_METAL_CUBE, 0.4),
    )
    scenes = _scenes(predicted)
    page = _draw(**scenes)
    image = (scenes["images"][0] + 1) / 2
    assert_colour(_tile(page, 0), image)
    owned = _tile(page, 1)
    for k, rows in enumerate((slice(0, 10), slice(10, 20), slice(20, 30))):
        assert_colour(owned[rows], PALETTE[k])
    assert_colour(owned[30:], NEUTRAL + (PALETTE[0] - NEUTRAL) * (3 * 0.75 - 1) / 2)
    true = _tile(page, 2)
    assert_colour(true[:5], PALETTE[1])
    assert_colour(true[10:15], PALETTE[0])
    assert_colour(true[20:25], MISSED)
    assert_colour(true[5:10], NEUTRAL)
    for k in (0, 1):
        slot = _tile(page, 3 + k)
        held = slice(10 * k, 10 * k + 10)
        assert_colour(slot[held], image[held])
        assert_colour(slot[10 * (1 - k) : 10 * (1 - k) + 10], NEUTRAL)
        weight = (0.75, 0.125)[k]
        assert_colour(slot[30:], weight * image[30:] + (1 - weight) * NEUTRAL)
    pale = _tile(page, 5)
    assert_colour(pale[20:30], 0.7 + 0.3 * image[20:30])


def test_attention_counts_over_the_slots() -> None:
    """A softmax over the inputs is tiny everywhere, and may be 0 for all slots."""
    scenes = _scenes(Properties(*(array[:, :3] for array in TRUE)))
    page = _draw(**scenes)
    np.testing.assert_array_equal(_draw(**{**scenes, "attention": scenes["attention"] / 1000}), page)
    _draw(**{**scenes, "attention": scenes["attention"] * 0})


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("attended", [False, True])
def test_columns_and_captions(labelled: bool, attended: bool) -> None:
    right, wrong = _sets(([0, 0, 0.5], SMALL_RED_METAL_CUBE, 0.9)), _sets(([0, 0, 0.5], [1, 0, 1, 1], 0.9))
    scenes = _scenes(_both(right, wrong), _both(TRUE, TRUE))
    left_out = {"true_labels": None} if not labelled else {}
    left_out |= {"attention": None} if not attended else {}
    page = _draw(**{**scenes, **left_out})
    first = 1 + labelled + attended
    # Two are missed: with their heading 3 lines below the tile; a slot has 7, below its tile or beside the input.
    row = SIDE + LINE * (7 if attended else 3)
    assert page.shape[:2] == (2 * MARGIN + HEADER + 2 * row + GROUP_GAP, _left(first, first) + SIDE + MARGIN)
    below = [MARGIN + HEADER + r * (row + GROUP_GAP) + SIDE for r in range(2)]
    for r, top in enumerate(below):
        missed = page[top : top + 3 * LINE, MARGIN : MARGIN + CAPTION_WIDTH]
        assert _has(missed, WRONG)
        start = top if attended else top - SIDE
        said = page[start : start + 7 * LINE, _left(first, first) :]
        assert _has(said, "#333333")
        assert _has(said, WRONG) == (r == 1)
    assert_colour(page[:, -MARGIN:] / 255, 1)
    assert_colour(page[-MARGIN + 5 :] / 255, 1)


def _has(part: NDArray[np.uint8], colour: str) -> bool:
    """Within rounding, which antialiasing of thin letters seldom reaches."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(part.astype(int) - wanted).max(-1) <= 12).any())
