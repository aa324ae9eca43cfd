"""CLEVR scenes with their instance masks and properties, drawn from a seed in the looks of Johnson et al. (2017).

What a scene holds is drawn in `clevr_scenes`, its pictures in `clevr_render`. Scene i of a seed is the same, bit for
bit, in every batch, process and machine; `clevr_geometry` says why.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from slotattn_fast.data.clevr_published import (
    CROP_LEFT,
    CROP_SIZE,
    CROP_TOP,
    HEIGHT,
    MAX_OBJECTS,
    MIN_OBJECTS,
    WIDTH,
)
from slotattn_fast.data.synthetic.clevr_geometry import FOCAL_LENGTH, VIEW_HEIGHT, VIEW_WIDTH, View, to_camera
from slotattn_fast.data.synthetic.clevr_render import render
from slotattn_fast.data.synthetic.clevr_scenes import SCENE_LIMIT, Scenes, sample_scenes

_AT_ONCE, _AT_ONCE_ON_CPU = 64, 4 * 128**2
"""Scenes computed at once; on a CPU so few that they have no more pixels than that, whose rays stay in its caches."""


def sample_clevr(
    seed: int,
    scenes: ArrayLike,
    *,
    num_objects: tuple[int, int] = (MIN_OBJECTS, MAX_OBJECTS),
    crop: bool,
    size: int = 128,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Draws the scenes of these indices [B], which may come in any order.

    Object counts are uniform on `num_objects`, both ends included; (3, 6) is CLEVR6. With `crop` the images show the
    middle of the view, as for object discovery; without, all of the 320x240 view, squeezed to a square. The scenes are
    the same.

    Returns, on `device`, with the rows of objects beyond a scene's count all 0:
        images uint8 [B, size, size, 3], sRGB;
        labels uint8 [B, size, size]: 0 background, n where the n-th object is seen;
        num_objects uint8 [B];
        coords float32 [B, 10, 3]: centres in the world, the ground at z = 0;
        pixel_coords float32 [B, 10, 3]: column and row (rounded) of the centres in a published image of 480x320, and
            their distance along the camera's axis. (column, row) there is (column * 2/3, 120 + (row - 160) * 2/3) in
            the 320x240 view, which has the same width but shows more above and below;
        rotation float32 [B, 10]: degrees about the vertical, from 0 to 360;
        size, material, shape, color uint8 [B, 10]: codes in the order of `clevr_published.SIZES`, `MATERIALS`,
            `SHAPES` and `COLORS`, which is that of TensorFlow Datasets.
    Raises ValueError for a negative seed, indices that are not integers [B] from 0 to 2^43 - 1, a range of objects
    outside 1..10 or upside down, and a size below 1.
    """
    indices = _checked(seed, scenes, num_objects, size)
    place = torch.device(device)
    at_once = max(1, min(_AT_ONCE, _AT_ONCE_ON_CPU // size**2)) if place.type == "cpu" else _AT_ONCE
    view = _view(crop, size)
    batches = []
    for start in range(0, max(len(indices), 1), at_once):
        drawn = sample_scenes(seed, indices[start : start + at_once], num_objects, place)
        images, labels = render(drawn, view, place)
        batches.append({"images": images, "labels": labels} | _properties(drawn, place))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _checked(seed: int, scenes: ArrayLike, num_objects: tuple[int, int], size: int) -> NDArray[np.int64]:
    indices = np.asarray(scenes)
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected at least 0")
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise ValueError(f"scenes: got {indices.dtype} of shape {indices.shape}, expected integers [B]")
    if indices.size and not 0 <= indices.min() <= indices.max() < SCENE_LIMIT:
        raise ValueError(f"scenes: got {indices.min()} .. {indices.max()}, expected 0 .. {SCENE_LIMIT - 1}")
    if len(num_objects) != 2 or not 1 <= num_objects[0] <= num_objects[1] <= MAX_OBJECTS:
        raise ValueError(f"num_objects: got {num_objects}, expected (fewest, most) within 1 .. {MAX_OBJECTS}")
    if size < 1:
        raise ValueError(f"size: got {size}, expected at least 1")
    return indices.astype(np.int64)


def _view(crop: bool, size: int) -> View:
    """Two by two rays for each of size x size pixels."""
    rays = 2 * size
    if crop:
        return View(rays, rays, CROP_LEFT, CROP_TOP, CROP_SIZE / rays, CROP_SIZE / rays)
    return View(rays, rays, 0.0, 0.0, VIEW_WIDTH / rays, VIEW_HEIGHT / rays)


def _properties(scenes: Scenes, device: torch.device) -> dict[str, Tensor]:
    exists = np.arange(MAX_OBJECTS) < scenes.count[:, None]
    seen = to_camera(scenes.camera, scenes.centre)
    focal_length = FOCAL_LENGTH * WIDTH / VIEW_WIDTH
    column = np.round(WIDTH / 2 + seen[..., 0] / seen[..., 2] * focal_length)
    row = np.round(HEIGHT / 2 - seen[..., 1] / seen[..., 2] * focal_length)
    pixel_coords = np.where(exists[..., None], np.stack([column, row, seen[..., 2]], axis=-1), 0)
    numbers = {"coords": scenes.centre, "pixel_coords": pixel_coords, "rotation": scenes.turns * 360}
    codes = {
        "num_objects": scenes.count,
        "size": scenes.size,
        "material": scenes.material,
        "shape": scenes.shape,
        "color": scenes.color,
    }
    arrays = {name: values.astype(np.float32) for name, values in numbers.items()}
    arrays |= {name: values.astype(np.uint8) for name, values in codes.items()}
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
