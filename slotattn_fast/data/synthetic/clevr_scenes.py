"""What CLEVR scenes hold: the random law of Johnson et al. (2017), as their published generation code draws them.

A scene has a camera and three lamps, each moved a little at random, and N objects on the ground. Objects are placed one
after the other; a place is refused where it is too near to another object, or where "left of" or "behind" would be
unclear; after 50 refusals, or where an object of the finished scene is hardly visible, all objects are drawn anew
(camera, lamps and N stay). So, given N, the law does not depend on the range that N came from: scenes with N = 3..6 are
exactly CLEVR6, the part of CLEVR10 with at most six objects.

Attributes are uniform as drawn. Colour and material stay so; large objects find a place and small ones are seen a
little less often, so size and shape are not quite uniform in crowded scenes, as in the published ones.

Sampling is float64 arithmetic in NumPy on a scene's own random numbers (see `random`), with nothing but + - * / and
square roots where a comparison follows, so that every machine accepts the same places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from slotattn_fast.data.clevr_published import COLORS, MATERIALS, MAX_OBJECTS, SHAPES, SIZES
from slotattn_fast.data.synthetic.clevr_geometry import (
    CUBE,
    VIEW_HEIGHT,
    VIEW_WIDTH,
    Solids,
    View,
    camera_axes,
    camera_rays,
    first_hits,
    frames,
)
from slotattn_fast.data.synthetic.random import below, random_words, uniform

EXTENTS = np.array([0.35, 0.7])
"""Half of an object's height by size; a cube's is divided by sqrt 2 once it is placed."""

CAMERA = np.array([7.4811, -6.5076, 5.3437])
CAMERA_JITTER = 0.5
LAMPS = np.array([[6.4467, -2.9052, 4.2584], [-4.6711, -4.0136, 3.0112], [-1.1685, 2.6460, 5.8157]])
"""Key, fill and back lamp."""
LAMP_JITTER = 1.0

PLACE_LIMIT = 3.0
MIN_GAP = 0.25
MARGIN = 0.4
TRIES = 50
MIN_VISIBLE_PIXELS = 200

_SCENE_STREAM, _OBJECTS_STREAM = 0, 1
_SCENE_WORDS = 1 + 3 + 9
_ATTRIBUTES = 5
_OBJECT_WORDS = _ATTRIBUTES + 2 * TRIES
# The attempts of a scene lie side by side in the counter of the random numbers; about one in ten succeeds at N = 10.
_ATTEMPTS = 1 << 20
SCENE_LIMIT = 1 << 43
_MOST_ATTEMPTS_AT_ONCE = 16
_VISIBILITY_VIEW = View(VIEW_WIDTH, VIEW_HEIGHT, 0.0, 0.0, 1.0, 1.0)


Objects = dict[str, NDArray[Any]]
"""The fields of `Scenes` from `centre` on."""


@dataclass(frozen=True)
class Scenes:
    """B scenes; arrays [B, 10] and [B, 10, 3] are 0 in the rows beyond an object count.

    `camera` [B, 3], `lamps` [B, 3, 3] (key, fill, back), `count` [B], `centre` [B, 10, 3], `extent` [B, 10] (half of
    the height), `turns` [B, 10] (rotation about z in whole turns), codes `size`, `material`, `shape`, `color` [B, 10].
    """

    camera: NDArray[np.float64]
    lamps: NDArray[np.float64]
    count: NDArray[np.int64]
    centre: NDArray[np.float64]
    extent: NDArray[np.float64]
    turns: NDArray[np.float64]
    size: NDArray[np.int64]
    material: NDArray[np.int64]
    shape: NDArray[np.int64]
    color: NDArray[np.int64]

    def solids(self) -> Solids:
        scene, slot = np.nonzero(np.arange(MAX_OBJECTS) < self.count[:, None])
        order = np.argsort(self.shape[scene, slot], kind="stable")
        scene, slot = scene[order], slot[order]
        angle = 2 * np.pi * self.turns[scene, slot]
        # Rounded to a grid on which the last bits of cosine and sine, where libraries differ, vanish.
        rotation = np.round(np.stack([np.cos(angle), np.sin(angle)], axis=-1) * 2.0**20) * 2.0**-20
        shape, centre, extent = self.shape[scene, slot], self.centre[scene, slot], self.extent[scene, slot]
        return Solids(self.camera, scene, slot, shape, centre, extent, rotation)


def sample_scenes(seed: int, scenes: ArrayLike, num_objects: tuple[int, int], device: torch.device) -> Scenes:
    """Draws the scenes of these indices [B], object counts uniform on a range (both ends included).

    `device` computes what is visible. Arguments are taken as valid.
    """
    indices = np.asarray(scenes, np.int64)
    words = random_words(seed, _SCENE_STREAM, indices, _SCENE_WORDS)
    count = _counts(words, num_objects)
    jitter = 2 * uniform(words[:, 1:]) - 1
    camera = CAMERA + CAMERA_JITTER * jitter[:, :3]
    lamps = LAMPS + LAMP_JITTER * jitter[:, 3:].reshape(-1, 3, 3)

    objects: Objects = {}
    attempt = np.zeros(len(indices), np.int64)
    waiting, at_once = np.arange(len(indices)), 1
    while len(waiting) or not objects:
        rows = (indices[waiting, None] * _ATTEMPTS + attempt[waiting, None] + np.arange(at_once)).reshape(-1)
        scene = np.repeat(waiting, at_once)
        complete, found = _draw_objects(seed, rows, camera[scene], count[scene])
        success, first = _first(complete.reshape(-1, at_once))
        attempt[waiting] += np.where(success, first + 1, at_once)

        placed, rows = waiting[success], (np.arange(len(waiting)) * at_once + first)[success]
        found = {name: values[rows] for name, values in found.items()}
        areas = visible_pixels(Scenes(camera[placed], lamps[placed], count[placed], **found), device)
        visible = (areas >= MIN_VISIBLE_PIXELS).sum(axis=1) == count[placed]
        for name, values in found.items():
            objects.setdefault(name, np.zeros((len(indices), *values.shape[1:]), values.dtype))
            objects[name][placed[visible]] = values[visible]
        waiting = np.setdiff1d(waiting, placed[visible])
        at_once = min(2 * at_once, _MOST_ATTEMPTS_AT_ONCE)
    return Scenes(camera, lamps, count, **objects)


def object_counts(seed: int, scenes: ArrayLike, num_objects: tuple[int, int]) -> NDArray[np.int64]:
    """How many objects each of the scenes [B] holds, without drawing them. Arguments as of `sample_scenes`."""
    return _counts(random_words(seed, _SCENE_STREAM, scenes, _SCENE_WORDS), num_objects)


def _counts(words: NDArray[np.uint64], num_objects: tuple[int, int]) -> NDArray[np.int64]:
    fewest, most = num_objects
    return fewest + below(words[:, 0], most - fewest + 1)


def visible_pixels(scenes: Scenes, device: torch.device) -> NDArray[np.int64]:
    """How many pixels of the 320x240 view show each object [B, 10], by the ray through each pixel's centre."""
    solids = scenes.solids()
    rays = camera_rays(scenes.camera, _VISIBILITY_VIEW, device)
    _, hits = first_hits(solids, frames(solids, device), rays, _VISIBILITY_VIEW)
    areas = np.zeros((len(scenes.count), MAX_OBJECTS), np.int64)
    areas[solids.scene, solids.slot] = torch.bincount(hits.solid, minlength=len(solids.scene)).cpu().numpy()
    return areas


def _draw_objects(
    seed: int, rows: NDArray[np.int64], camera: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], Objects]:
    """One attempt [A] each at the objects of a scene, by these rows of random numbers: whether all found a place."""
    words = random_words(seed, _OBJECTS_STREAM, rows, MAX_OBJECTS * _OBJECT_WORDS)
    words = words.reshape(len(rows), MAX_OBJECTS, _OBJECT_WORDS)
    exists = np.arange(MAX_OBJECTS) < count[:, None]
    size, material, shape, color = (
        np.where(exists, below(words[..., place], len(names)), 0)
        for place, names in enumerate((SIZES, MATERIALS, SHAPES, COLORS))
    )
    turns = np.where(exists, uniform(words[..., _ATTRIBUTES - 1]), 0)
    radius = EXTENTS[size]
    extent = np.where(exists, np.where(shape == CUBE, radius / np.sqrt(2.0), radius), 0)
    centre = np.zeros((len(rows), MAX_OBJECTS, 3))
    centre[..., 2] = extent

    right = camera_axes(camera)[:, 0, :2]
    complete = np.ones(len(rows), np.bool_)
    for slot in range(MAX_OBJECTS):
        active = np.flatnonzero(complete & exists[:, slot])
        places = PLACE_LIMIT * (2 * uniform(words[active, slot, _ATTRIBUTES:]).reshape(-1, 2, TRIES) - 1)
        # The gap is that to a sphere or cylinder of this size even where the object turns out a cube, as published.
        reach = radius[active, slot, None] + extent[active, :slot]
        fits = _fits(places, centre[active, :slot, :2], reach, right[active])
        success, first = _first(fits)
        complete[active] = success
        centre[active, slot, :2] = places[np.arange(len(active)), :, first]
    found = {"centre": centre, "extent": extent, "turns": turns}
    return complete, found | {"size": size, "material": material, "shape": shape, "color": color}


def _fits(
    places: NDArray[np.float64], others: NDArray[np.float64], reach: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether places [A, 2, T] keep away [A, T] from all others [A, K, 2]; `reach` [A, K] is both radii's sum."""
    x, y = (places[:, axis, None] - others[..., axis, None] for axis in (0, 1))  # [A, K, T]
    near: NDArray[np.bool_] = np.sqrt(x * x + y * y) - reach[..., None] < MIN_GAP
    right_x, right_y = right[:, 0, None, None], right[:, 1, None, None]
    for margin in (x * right_x + y * right_y, y * right_x - x * right_y):  # to the right, and behind
        away = np.abs(margin)
        near |= (away > 0) & (away < MARGIN)
    return np.logical_not(near.any(axis=1))


def _first(flags: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether any of each row's flags is set, and the first that is."""
    first = flags.argmax(axis=1)
    return flags[np.arange(len(flags)), first], first
