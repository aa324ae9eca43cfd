import numpy as np
import pytest
import torch

from slotattn_fast.data.clevr_published import COLORS, MATERIALS, MAX_OBJECTS, SHAPES, SIZES
from slotattn_fast.data.synthetic import clevr_scenes
from slotattn_fast.data.synthetic.clevr_geometry import VIEW_HEIGHT, VIEW_WIDTH, View
from slotattn_fast.data.synthetic.clevr_render import render
from slotattn_fast.data.synthetic.clevr_scenes import (
    CAMERA,
    LAMPS,
    object_counts,
    sample_scenes,
    visible_pixels,
)
from slotattn_fast.data.synthetic.random import below, random_words, uniform

CPU = torch.device("cpu")
SCENES = 400
FIELDS = ("camera", "lamps", "count", "centre", "extent", "turns", "size", "material", "shape", "color")


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(0, np.arange(SCENES), (3, 10), CPU)


def test_objects_are_counted_without_drawing_them(scenes):
    order = np.arange(SCENES)[::-1]
    np.testing.assert_array_equal(object_counts(0, order, (3, 10)), scenes.count[order])


def present(scenes):
    return np.arange(MAX_OBJECTS) < scenes.count[:, None]


def is_uniform(values, kinds, limit=0.001):
    """Chi-squared over all values 0 .. kinds - 1, by Wilson and Hilferty's approximation of its distribution."""
    seen = np.bincount(values, minlength=kinds)
    expected = len(values) / kinds
    freedom = kinds - 1
    chi = ((seen - expected) ** 2 / expected).sum() / freedom
    z = (chi ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return len(seen) == kinds and z < {0.001: 3.09, 1e-9: 6.0}[limit]


def test_counts_and_attributes_are_uniform(scenes):
    here = present(scenes)
    assert is_uniform(scenes.count - 3, 8)
    assert is_uniform(scenes.color[here], len(COLORS))
    assert is_uniform(scenes.material[here], len(MATERIALS))
    # Refused scenes favour some sizes and shapes over others, a little.
    few = here & (scenes.count <= 6)[:, None]
    assert is_uniform(scenes.shape[few], len(SHAPES))
    assert is_uniform(scenes.size[few], len(SIZES), limit=1e-9)
    # No attribute tells of another.
    pair = scenes.color * 2 + scenes.material
    assert is_uniform(pair[here], len(COLORS) * len(MATERIALS))
    assert is_uniform((scenes.turns[here] * 20).astype(int), 20)


def test_camera_and_lamps_are_moved_evenly_within_their_range(scenes):
    for moved, limit in ((scenes.camera - CAMERA, 0.5), ((scenes.lamps - LAMPS).reshape(SCENES, 9), 1.0)):
        assert (np.abs(moved) <= limit).all()
        np.testing.assert_allclose(moved.mean(0), 0, atol=5 * limit / (3 * SCENES) ** 0.5)
        np.testing.assert_allclose(moved.var(0), limit**2 / 3, rtol=0.2)


def test_objects_rest_on_the_ground_all_over_the_square(scenes):
    here = present(scenes)
    half = np.where(scenes.size == 1, 0.7, 0.35) / np.where(scenes.shape == 0, 2**0.5, 1)
    np.testing.assert_allclose(scenes.extent[here], half[here])
    np.testing.assert_array_equal(scenes.centre[here, 2], scenes.extent[here])
    places = scenes.centre[here, :2]
    assert (np.abs(places) <= 3).all()
    assert (places.max(0) > 2.9).all()
    assert (places.min(0) < -2.9).all()


def test_objects_keep_their_distance_and_their_margins(scenes):
    radius = np.where(scenes.size == 1, 0.7, 0.35)
    gaps, margins = [], []
    for i in range(SCENES):
        forward = -scenes.camera[i] / np.linalg.norm(scenes.camera[i])
        right = np.cross(forward, [0, 0, 1])
        axes = [a[:2] / np.linalg.norm(a[:2]) for a in (right, forward)]
        for later in range(scenes.count[i]):
            for earlier in range(later):
                away = scenes.centre[i, later, :2] - scenes.centre[i, earlier, :2]
                gaps.append(np.linalg.norm(away) - radius[i, later] - scenes.extent[i, earlier])
                margins += [abs(away @ axis) for axis in axes]
    assert 0.25 <= min(gaps) < 0.27
    assert 0.4 - 1e-12 <= min(margins) < 0.401


def test_every_object_shows_200_pixels(scenes):
    areas = visible_pixels(scenes, CPU)
    assert areas[present(scenes)].min() >= 200
    assert (areas[~present(scenes)] == 0).all()
    # Not by luck: among first attempts some show less. And the areas are those of the instance masks.
    assert areas[present(scenes)].min() < 220
    few = sample_scenes(0, np.arange(4), (3, 10), CPU)
    _, labels = render(few, View(2 * VIEW_WIDTH, 2 * VIEW_HEIGHT, 0, 0, 0.5, 0.5), CPU)
    masks = [np.bincount(label.numpy().ravel(), minlength=MAX_OBJECTS + 1)[1:] for label in labels]
    np.testing.assert_allclose(areas[:4], masks, rtol=0.06)


def published_attempt(words, axes, count):
    """The published code's loop over objects, with these random numbers: places, or None where one object has none."""
    positions, places = [], []
    for slot in range(count):
        attributes, tries = words[slot, :5], words[slot, 5:].reshape(2, 50)
        r = [0.35, 0.7][int(below(attributes[0:1], 2)[0])]
        cube = below(attributes[2:3], 3)[0] == 0
        for x, y in 6 * uniform(tries.T) - 3:
            good = True
            for xx, yy, rr in positions:
                dx, dy = x - xx, y - yy
                good &= np.sqrt(dx * dx + dy * dy) - r - rr >= 0.25
                good &= not any(0 < dx * axis[0] + dy * axis[1] < 0.4 for axis in axes)
            if good:
                break
        else:
            return None
        positions.append((x, y, r / 2**0.5 if cube else r))
        places.append((x, y))
    return places


def test_attempts_are_those_of_the_published_loop(scenes):
    attempts = 60
    camera = scenes.camera[:attempts]
    count = np.full(attempts, 10)
    complete, found = clevr_scenes._draw_objects(5, np.arange(attempts), camera, count)
    words = random_words(5, 1, np.arange(attempts), 1050).reshape(attempts, 10, 105)
    kept = 0
    for i in range(attempts):
        ground = np.hypot(camera[i, 0], camera[i, 1])
        behind, right = -camera[i, :2] / ground, np.array([-camera[i, 1], camera[i, 0]]) / ground
        places = published_attempt(words[i], (-right, right, -behind, behind), 10)
        assert complete[i] == (places is not None)
        if places is not None:
            kept += 1
            np.testing.assert_allclose(found["centre"][i, :, :2], places, atol=1e-12)
    assert 0 < kept < attempts


def test_a_scene_does_not_depend_on_the_range_that_its_count_came_from(scenes):
    alone = np.flatnonzero(scenes.count == 5)[:5]
    only = sample_scenes(0, alone, (5, 5), CPU)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(only, field), getattr(scenes, field)[alone], err_msg=field)


def test_a_scene_does_not_depend_on_its_batch(scenes):
    for indices in ([399, 17, 3, 17], [42]):
        again = sample_scenes(0, indices, (3, 10), CPU)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(again, field), getattr(scenes, field)[indices], err_msg=field)
    other = sample_scenes(1, np.arange(4), (3, 10), CPU)
    assert (other.camera != scenes.camera[:4]).all()


def test_rows_beyond_the_count_are_zero(scenes):
    for field in FIELDS[3:]:
        assert (getattr(scenes, field)[~present(scenes)] == 0).all(), field
