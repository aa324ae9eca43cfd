"""The slots picture: every tile where it belongs, in the right colours, with pixels repeated and never blended."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiles import assert_colour, at_own_resolution

from slotattn_fast.report.figures import draw_slots
from slotattn_fast.report.page import GAP, GROUP_GAP, HEADER, MARGIN, NEUTRAL, PALETTE, segmentation

SIZE = 35
SCALE = 4  # 140 // 35


def _scenes(rows: int, slots: int) -> dict[str, NDArray[np.generic]]:
    """Two objects a scene, held by slots 2 and 0 alone; the background by slot 1 alone."""
    labels = np.zeros((rows, SIZE, SIZE), np.uint8)
    labels[:, 5:15, 5:20] = 1
    labels[:, 20:30, 10:15] = 2
    owner = np.array([1, 2, 0])[labels]
    masks = (owner[:, None] == np.arange(slots)[None, :, None, None]).astype(np.float32)
    images = np.where(labels[..., None] > 0, [1.0, -1.0, 0.5], -1.0).astype(np.float32)
    rgb = np.broadcast_to(images[:, None], (rows, slots, SIZE, SIZE, 3))
    return {"images": images, "reconstructions": images, "rgb": rgb, "masks": masks, "true_labels": labels}


def _draw(**arrays: NDArray[np.generic]) -> tuple[NDArray[np.uint8], int]:
    file = io.BytesIO()
    draw_slots(file, **arrays)  # type: ignore[arg-type]
    return np.asarray(Image.open(file).convert("RGB")), len(file.getvalue())


def _tile(page: NDArray[np.uint8], row: int, column: int) -> NDArray[np.float64]:
    """A tile at its own resolution, after checking that each of its pixels is a block of one colour."""
    side = SIZE * SCALE
    top = MARGIN + HEADER + row * (side + GAP)
    left = MARGIN + column * (side + GAP) + (GROUP_GAP - GAP if column >= 4 else 0)
    return at_own_resolution(page, top, left, SIZE, SCALE)


def test_every_tile() -> None:
    scenes = _scenes(rows=2, slots=4)
    page, _ = _draw(**scenes)
    side = SIZE * SCALE
    assert page.shape == (2 * MARGIN + HEADER + 2 * side + GAP, 2 * MARGIN + 8 * side + 6 * GAP + GROUP_GAP, 3)
    for row in range(2):
        first, second = scenes["true_labels"][row] == 1, scenes["true_labels"][row] == 2
        background = ~(first | second)
        for column in (0, 1):
            assert_colour(_tile(page, row, column), (scenes["images"][row] + 1) / 2)
        predicted, true = _tile(page, row, 2), _tile(page, row, 3)
        assert_colour(predicted[first], PALETTE[2])
        assert_colour(predicted[second], PALETTE[0])
        assert_colour(predicted[background], PALETTE[1])
        assert_colour(true[first], PALETTE[2])
        assert_colour(true[second], PALETTE[0])
        assert_colour(true[background], NEUTRAL)
        for slot, area in enumerate((second, background, first, np.zeros_like(first))):
            share = _tile(page, row, 4 + slot)
            assert_colour(share[area], ((scenes["images"][row] + 1) / 2)[area])
            assert_colour(share[~area], NEUTRAL)


def test_segmentation_pales_where_slots_share_a_pixel() -> None:
    masks = np.array([[0.25, 0.25, 0.25, 0.25], [0.625, 0.125, 0.125, 0.125]], np.float32).T[None, :, None, :]
    shared, half = segmentation(masks)[0, 0]
    np.testing.assert_allclose(shared, NEUTRAL, atol=1e-6)
    np.testing.assert_allclose(half, (NEUTRAL + PALETTE[0]) / 2, atol=1e-6)


def test_true_objects_held_by_one_slot_get_different_colours() -> None:
    scenes = _scenes(rows=1, slots=1)
    page, _ = _draw(**{**scenes, "masks": np.ones((1, 1, SIZE, SIZE), np.float32)})
    true = _tile(page, 0, 3)
    assert (true[7, 7] != true[25, 12]).any()


def test_values_out_of_range_are_clipped() -> None:
    scenes = _scenes(rows=1, slots=4)
    page, _ = _draw(**{**scenes, "reconstructions": scenes["images"] * 5})
    assert set(np.unique(_tile(page, 0, 1))) == {0.0, 1.0}


def test_colours_can_be_told_apart() -> None:
    """From each other, from white and from what no slot claims: by the distance in Oklab, 1 from black to white."""
    colours = np.concatenate([PALETTE, np.ones((1, 3)), np.full((1, 3), NEUTRAL)])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    opponents = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    oklab = np.cbrt(linear @ np.transpose(cones)) @ np.transpose(opponents)
    distance = np.linalg.norm(oklab[:, None] - oklab, axis=-1)
    slots = len(PALETTE)
    assert distance[:slots, :slots][~np.eye(slots, dtype=bool)].min() > 0.12
    assert distance[:slots, slots:].min() > 0.17


@pytest.mark.parametrize("slots", [4, 11])
def test_small_file(slots: int) -> None:
    scenes = _scenes(rows=7, slots=slots)
    noise = np.random.default_rng(0).normal(0, 0.02, (7, SIZE, SIZE, 3)).astype(np.float32)
    _, size = _draw(**{**scenes, "reconstructions": scenes["images"] + noise})
    assert size < 500_000
    assert len(PALETTE) >= slots
