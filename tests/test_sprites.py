"""Multi-dSprites scenes, against the laws in sample_sprites' docstring."""

import colorsys
import hashlib
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from slotattn_fast.data.synthetic import sprites
from slotattn_fast.data.synthetic.sprites import MIN_VISIBLE, NUM_SPRITES, SCALES, rasterise, sample_sprites

SCENES = 6000
VARIANTS = tuple(NUM_SPRITES)
Scenes = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scenes]:
    return {variant: sample_sprites(1, np.arange(SCENES), variant) for variant in VARIANTS}


def colours_of(scenes: Scenes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Colours of all backgrounds [B, C] and of all sprites [number, C], taken from the first pixel of each label."""
    images = scenes["images"].reshape(SCENES, -1, scenes["images"].shape[-1])
    labels = scenes["labels"].reshape(SCENES, -1)
    found = []
    for label in range(labels.max() + 1):
        pixel = (labels == label).argmax(1)
        there = labels[np.arange(SCENES), pixel] == label
        found.append(images[np.arange(SCENES), pixel][there])
    return found[0], np.concatenate(found[1:])


def chi_squared(counts: NDArray[np.int64]) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_scene_is_the_same_in_any_batch_and_order(variant: str) -> None:
    together = sample_sprites(3, np.arange(200), variant)  # some are drawn again
    order = [150, 3, 4, 5, 199, 3, 0, 2]
    shuffled = sample_sprites(3, order, variant)
    for name, value in together.items():
        np.testing.assert_array_equal(shuffled[name], value[order])
    for first in range(0, 200, 40):
        part = sample_sprites(3, np.arange(first, first + 40), variant)
        for name, value in together.items():
            np.testing.assert_array_equal(part[name], value[first : first + 40])


def test_seeds_and_far_indices_differ() -> None:
    one, other, far = (
        sample_sprites(seed, first + np.arange(50), "binarized")["labels"].reshape(50, -1)
        for seed, first in ((0, 0), (1, 0), (0, 2**40))
    )
    assert len(np.unique(np.concatenate([one, other, far]), axis=0)) == 150


# SHA-256 of images, labels and num_objects of 201 scenes, among them some that were drawn again.
GOLDEN = {
    "binarized": "9fcc6a64f299dfea1caa24d311f693825676e1ec1bb2c3e78c956b3d3b8fdca4",
    "colored_on_grayscale": "a375b1db0ac2643dade6bb3f6485d11f308812e873481bcb16f9ca9cd7ee4f74",
    "colored_on_colored": "c1d75f6fd4c8ead3a1469f3cd90c67262c74708cb5af4602fc2bad06d7fcb245",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_scenes_stay_the_same_from_version_to_version(variant: str) -> None:
    made = sample_sprites(7, [*range(200), 2**40], variant)
    digest = hashlib.sha256(made["images"].tobytes() + made["labels"].tobytes() + made["num_objects"].tobytes())
    assert digest.hexdigest() == GOLDEN[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_types_and_number_of_sprites(variant: str, scenes: dict[str, Scenes]) -> None:
    made = scenes[variant]
    assert list(made) == ["images", "labels", "num_objects"]
    assert made["images"].shape == (SCENES, 64, 64, 1 if variant == "binarized" else 3)
    assert made["labels"].shape == (SCENES, 64, 64)
    assert made["num_objects"].shape == (SCENES,)
    assert all(value.dtype == np.uint8 for value in made.values())
    fewest, most = NUM_SPRITES[variant]
    counts = np.bincount(made["num_objects"], minlength=most + 1)
    assert not counts[:fewest].any()
    assert len(counts) == most + 1
    assert chi_squared(counts[fewest:]) < (10.8 if most - fewest == 1 else 16.3)  # 1 or 3 degrees, p = 0.001


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sprite_shows_enough_pixels_of_one_colour(variant: str, scenes: dict[str, Scenes]) -> None:
    made = scenes[variant]
    for image, labels, number in zip(made["images"], made["labels"], made["num_objects"], strict=True):
        areas = np.bincount(labels.ravel(), minlength=number + 1)
        assert len(areas) == number + 1
        assert areas.min() >= MIN_VISIBLE
        # Drawn again from the labels, the image is the same: one colour a label.
        first = [(labels == label).argmax() for label in range(number + 1)]
        np.testing.assert_array_equal(image.reshape(4096, -1)[first][labels], image)


def test_later_sprites_cover_earlier_ones() -> None:
    masks = rasterise()
    # Oval, heart and square of the largest scale, upright, each 6 places (7 or 8 pixels) right of the one before.
    factors = np.array([[[shape, 5, 0, 6 * shape, 0] for shape in range(3)]])
    labels, visible = sprites._paint(factors, np.array([3]))
    expected = np.zeros((64, 64), np.uint8)
    for shape, left in enumerate((0, 7, 15)):  # floor(place / 31 * 40)
        expected[:24, left : left + 24][masks[shape, 5, 0]] = shape + 1
    np.testing.assert_array_equal(labels[0], expected)
    assert visible.tolist() == [[(expected == i).sum() for i in (1, 2, 3)]]
    assert visible[0, 0] < masks[0, 5, 0].sum()
    # Only as many as the scene has.
    labels, visible = sprites._paint(factors, np.array([1]))
    assert labels.max() == 1
    assert visible.tolist() == [[masks[0, 5, 0].sum(), 0, 0]]


def crop(mask: NDArray[np.bool_]) -> tuple[bytes, tuple[int, int]]:
    """What is in a mask's bounding box, as a key, and the box's corner (row, column)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(box.shape) + box.tobytes(), (int(rows[0]), int(columns[0]))


def test_shapes_scales_orientations_and_places_are_uniform() -> None:
    table = [crop(mask) for mask in rasterise().reshape(-1, 24, 24)]
    patterns = sorted({key for key, _ in table})  # some factors make the same pixels
    expected = np.bincount([patterns.index(key) for key, _ in table]) / 720
    corner_of = dict(table)
    unsure = {key for key, corner in table if corner_of[key] != corner}

    made = sample_sprites(2, np.arange(24_000), "colored_on_colored")
    alone = [crop(labels > 0) for labels in made["labels"][made["num_objects"] == 1]]
    counts = np.bincount([patterns.index(key) for key, _ in alone], minlength=len(patterns))
    expected *= len(alone)
    freedom = len(patterns) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 3.3 * np.sqrt(2 * freedom)  # p < 0.001

    for axis in (0, 1):
        places = np.array([corner[axis] - corner_of[key][axis] for key, corner in alone if key not in unsure])
        values, counts = np.unique(places, return_counts=True)
        assert values.tolist() == [int(x * (64 - 24)) for x in np.linspace(0, 1, 32) + 1e-12]
        assert chi_squared(counts) < 61.1  # 31 degrees of freedom, p = 0.001


def test_sprites_that_hide_another_are_drawn_again_as_a_whole() -> None:
    # No sprite is favoured: the first ones, which others cover, are as large as the law lets them be, but every scene
    # that shows too little of one is replaced, about one of twenty. The scenes that stay are those of the first round.
    seed, most = 5, 5
    indices = np.arange(2000)
    words = sprites.random_words(seed, 1, indices, most * 5).reshape(-1, most, 5)
    made = sample_sprites(seed, indices, "colored_on_grayscale")
    labels, visible = sprites._paint(sprites.below(words, [3, 6, 40, 32, 32]), made["num_objects"].astype(np.int64))
    hidden = ((visible < MIN_VISIBLE) & (np.arange(most) < made["num_objects"][:, None])).any(1)
    assert 0.03 < hidden.mean() < 0.09
    same = (labels == made["labels"]).all((1, 2))
    np.testing.assert_array_equal(same, ~hidden)


def test_every_sprite_fits_its_patch_and_has_its_outlines_area() -> None:
    masks = rasterise()
    assert masks.shape == (3, 6, 40, 24, 24)
    edge = np.ones((24, 24), bool)
    edge[2:-2, 2:-2] = False  # 20 pixels across at most
    assert not masks[..., edge].any()
    assert masks[:, 5].any((-1, -2, 1)).all()

    # Oval: pi a b. Square in a circle of radius 10: 2 r^2. Heart: square of side s and a disc of diameter s, where
    # a circle of radius 10 goes through the lower corner and touches both half discs.
    c = (np.sqrt(2) - 1) / (3 * np.sqrt(2) - 2)
    assert np.hypot(np.sqrt(1 / 8), np.sqrt(1 / 8) - c) + 0.5 == pytest.approx(c + np.sqrt(0.5))
    side = 10 / (c + np.sqrt(0.5))
    outlines = np.array([np.pi * 60, side**2 * (1 + np.pi / 4), 200])
    areas = masks.sum((-1, -2)).mean(-1)  # over the orientations
    np.testing.assert_allclose(areas, outlines[:, None] * SCALES**2, rtol=0.04)


def test_extent_of_the_largest_upright_sprites() -> None:
    oval, heart, square = rasterise()[:, 5, 0]
    extents = [(mask.any(1).sum(), mask.any(0).sum()) for mask in (oval, heart, square)]
    assert extents == [(12, 20), (17, 20), (14, 14)]  # height, width


def test_symmetries_of_the_sprites() -> None:
    masks = rasterise()
    np.testing.assert_array_equal(masks[:, :, 0], masks[:, :, 39])  # 0 and 2 pi
    # Turned by -angle is the mirror image of turned by angle; all three outlines are symmetric left to right.
    np.testing.assert_array_equal(masks, masks[:, :, ::-1, :, ::-1])
    # Half a turn changes neither oval nor square, but the heart.
    turned = masks[..., ::-1, ::-1]
    np.testing.assert_array_equal(masks[[0, 2]], turned[[0, 2]])
    assert (masks[1] != turned[1]).any((-1, -2)).all()
    # The upright heart's point is below, its notch above.
    heart = masks[1, 5, 0]
    rows = np.flatnonzero(heart.any(1))
    assert heart[rows[-1]].sum() <= 2
    assert not heart[rows[0], 11:13].any()
    # Counterclockwise, the point goes to the right after about a quarter of a turn.
    columns = np.flatnonzero(masks[1, 5, 10].any(0))
    assert masks[1, 5, 10][:, columns[-1]].sum() < masks[1, 5, 10][:, columns[0]].sum()


def test_scales_grow_within_each_other() -> None:
    masks = rasterise()
    for smaller, larger in pairwise(range(6)):
        # Outlines are star-shaped about the patch's middle, so a larger one holds the smaller one.
        assert not (masks[:, smaller] & ~masks[:, larger]).any()


def test_rasterising_does_not_hang_on_the_last_bit_of_a_sine(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = rasterise()
    for direction in (-np.inf, np.inf):
        monkeypatch.setattr(sprites, "ORIENTATIONS", np.nextafter(sprites.ORIENTATIONS, direction))
        np.testing.assert_array_equal(rasterise(), masks)
        monkeypatch.undo()


def test_binarized_is_white_on_black(scenes: dict[str, Scenes]) -> None:
    made = scenes["binarized"]
    np.testing.assert_array_equal(made["images"][..., 0], np.where(made["labels"] > 0, 255, 0))


def test_colours_on_grey(scenes: dict[str, Scenes]) -> None:
    backgrounds, colours = colours_of(scenes["colored_on_grayscale"])
    assert (backgrounds == backgrounds[:, :1]).all()
    assert chi_squared(np.bincount(backgrounds[:, 0], minlength=256)) < 330.6  # 255 degrees of freedom, p = 0.001

    high, low = (f(colours.astype(float), axis=1) for f in (np.max, np.min))
    value, saturation = high / 255, (high - low) / high
    for number in (value, saturation):
        assert number.min() >= 0.5 - 0.004  # a rounding of the channels
        # Uniform on 0.5..1: mean and variance, five standard errors.
        error = 5 / np.sqrt(12 * 4 * len(colours))
        assert number.mean() == pytest.approx(0.75, abs=error)
        assert number.var() == pytest.approx(1 / 48, rel=0.05)
    assert (high - low).min() >= 63

    # Each of the six orders of the channels is a sixth of the hues.
    order = np.argsort(colours[np.array([len(set(c)) == 3 for c in colours.tolist()])], axis=1)
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 6
    assert chi_squared(counts) < 20.5  # 5 degrees of freedom, p = 0.001


def test_rgb_agrees_with_the_standard_library() -> None:
    rng = np.random.default_rng(0)
    hsv = rng.random((500, 3))
    hsv[:7, 0] = np.arange(7) / 6
    expected = np.array([colorsys.hsv_to_rgb(*x) for x in hsv.tolist()]) * 255
    rgb = sprites._rgb(*hsv.T)
    assert np.abs(rgb - expected).max() <= 0.5 + 1e-9


def test_colours_on_colour(scenes: dict[str, Scenes]) -> None:
    for colours in colours_of(scenes["colored_on_colored"]):
        assert colours.min(0).tolist() == [0, 0, 0]
        assert colours.max(0).tolist() == [255, 255, 255]
        for channel in colours.T:
            assert chi_squared(np.bincount(channel, minlength=256)) < 330.6  # 255 degrees of freedom, p = 0.001
        correlation = np.corrcoef(colours, rowvar=False)
        assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(len(colours))


def test_unknown_variant() -> None:
    message = "variant: got 'colored', expected one of binarized, colored_on_grayscale, colored_on_colored"
    with pytest.raises(ValueError, match=message):
        sample_sprites(0, [0], "colored")


def test_negative_index() -> None:
    with pytest.raises(ValueError, match="expected none below 0"):
        sample_sprites(0, [1, -1], "binarized")
