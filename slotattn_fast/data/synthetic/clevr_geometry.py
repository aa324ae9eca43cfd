"""Rays, the camera and the three solids of CLEVR scenes: which solid each ray of a view meets first, and where.

Why only + - * / and square roots: IEEE 754 prescribes every bit of their results, so they are the same on all machines
and at any vector width. Everything per ray is one of them, a comparison, a selection, an integer operation or a gather;
there is no sum whose order a library may choose, and none of matmul, exp, pow, sin, rsqrt and addcmul. No tensor is
divided by a Python number, as CUDA would multiply by its rounded reciprocal. The few numbers per scene are computed in
float64 by the same rules, and the cosines and sines of rotations are rounded to a grid where they are made. Bounds that
only save work, as the rectangles below, are wide enough for no rounding to matter.

Why lists: a solid meets only the rays in its own bounding rectangle. The rectangles of all solids of all scenes are
laid end to end in one list of (solid, ray), so that nothing is looped over but the three shapes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CUBE, SPHERE, CYLINDER = range(3)

VIEW_WIDTH, VIEW_HEIGHT = 320, 240
FOCAL_LENGTH = 350.0
"""In pixels of the 320x240 view."""

Vector = tuple[Tensor, Tensor, Tensor]
Rectangles = NDArray[np.int64]
"""Left, top, right, bottom [..., 4] in samples of a view; right and bottom are the first that lie outside."""

NOTHING = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Solids:
    """The solids [M] of B scenes, ordered by shape; they rest on the ground z = 0.

    `scene` [M], and `slot` [M], the place in the scene from 0; `centre` [M, 3]; `extent` [M], half of the height: the
    radius, and half of a cube's edge; `rotation` [M, 2], cosine and sine. `camera` [B, 3] looks at the origin.
    """

    camera: NDArray[np.float64]
    scene: NDArray[np.int64]
    slot: NDArray[np.int64]
    shape: NDArray[np.int64]
    centre: NDArray[np.float64]
    extent: NDArray[np.float64]
    rotation: NDArray[np.float64]

    def of_shape(self, shape: int) -> slice:
        """Where the solids of a shape lie."""
        first, last = np.searchsorted(self.shape, [shape, shape + 1])
        return slice(int(first), int(last))

    def radius(self) -> NDArray[np.float64]:
        """Of the upright cylinder around each solid [M]."""
        return self.extent * np.where(self.shape == CUBE, np.sqrt(2.0), 1.0)


@dataclass(frozen=True)
class View:
    """A grid of width x height rays over a part of the 320x240 view, whose pixel (left, top) is its corner."""

    width: int
    height: int
    left: float
    top: float
    step_x: float
    step_y: float


@dataclass(frozen=True)
class Hits:
    """The rays that meet a solid, ordered by solid: index of the ray among all of the batch, of the solid, distance."""

    ray: Tensor
    solid: Tensor
    distance: Tensor


def same_scene(solids: Solids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs [P] of two solids of one scene."""
    index = np.full((len(solids.camera), int(solids.slot.max(initial=0)) + 1), -1)
    index[solids.scene, solids.slot] = np.arange(len(solids.scene))
    one, other = np.broadcast_arrays(index[:, :, None], index[:, None])
    both = (one >= 0) & (other >= 0) & (one != other)
    return one[both], other[both]


def square_root(x: Tensor) -> Tensor:
    """As IEEE 754 prescribes it; torch.sqrt is not on every CPU: by MKL, on AMD's, last bits differ."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else torch.sqrt(x)


def dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def subtract(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def scale(a: Vector, factor: Tensor | float) -> Vector:
    return a[0] * factor, a[1] * factor, a[2] * factor


def unit(a: Vector) -> Vector:
    length = square_root(dot(a, a))
    return a[0] / length, a[1] / length, a[2] / length


def take(a: Vector, index: Tensor) -> Vector:
    return a[0].index_select(0, index), a[1].index_select(0, index), a[2].index_select(0, index)


def turn(a: Vector, cosine: Tensor, sine: Tensor) -> Vector:
    """Rotates about the z axis."""
    return a[0] * cosine - a[1] * sine, a[0] * sine + a[1] * cosine, a[2]


def to_vector(points: NDArray[np.float64], device: torch.device) -> Vector:
    """Points [..., 3] as three float32 tensors [...]."""
    x, y, z = (torch.from_numpy(points[..., axis].astype(np.float32)).to(device) for axis in range(3))
    return x, y, z


def camera_axes(camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right, up and forward [B, 3, 3] of cameras [B, 3] that look at the origin with z up."""
    x, y, z = camera[:, 0], camera[:, 1], camera[:, 2]
    ground = np.sqrt(x * x + y * y)
    full = np.sqrt(x * x + y * y + z * z)
    right = [-y / ground, x / ground, np.zeros_like(x)]
    up = [-x / ground * (z / full), -y / ground * (z / full), ground / full]
    forward = [-x / full, -y / full, -z / full]
    return np.moveaxis(np.array([right, up, forward]), 2, 0)


def to_camera(camera: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [B, ..., 3] seen from cameras [B, 3]: right, up and forward of it [B, ..., 3]."""
    between = (1,) * (points.ndim - 2)
    axes = camera_axes(camera).reshape(len(camera), *between, 3, 3)
    away = (points - camera.reshape(len(camera), *between, 3))[..., None, :]
    return axes[..., 0] * away[..., 0] + axes[..., 1] * away[..., 1] + axes[..., 2] * away[..., 2]


def camera_rays(camera: NDArray[np.float64], view: View, device: torch.device) -> Vector:
    """Directions [B * height * width] of all rays of a view, one unit forward each."""
    right, up, forward = (to_vector(axis[:, None, None], device) for axis in np.moveaxis(camera_axes(camera), 1, 0))
    x = (view.left + (np.arange(view.width) + 0.5) * view.step_x - VIEW_WIDTH / 2) / FOCAL_LENGTH
    y = (VIEW_HEIGHT / 2 - view.top - (np.arange(view.height) + 0.5) * view.step_y) / FOCAL_LENGTH
    across = torch.from_numpy(x.astype(np.float32)).to(device)
    upward = torch.from_numpy(y.astype(np.float32)).to(device)[:, None]
    rays = [right[axis] * across + (up[axis] * upward + forward[axis]) for axis in range(3)]
    return rays[0].reshape(-1), rays[1].reshape(-1), rays[2].reshape(-1)


def box_corners(solids: Solids) -> NDArray[np.float64]:
    """Corners [M, 8, 3] of a box around each solid that faces the camera; the last four on the ground."""
    right = camera_axes(solids.camera)[solids.scene, 0, :2]
    behind = np.stack([-right[:, 1], right[:, 0]], axis=-1)
    radius = solids.radius()[:, None]
    sides = np.stack([a * right + b * behind for a in (-1, 1) for b in (-1, 1)], axis=1) * radius[..., None]
    base = np.concatenate([solids.centre[:, None, :2] + sides, np.zeros((len(radius), 4, 1))], axis=-1)
    return np.concatenate([base + solids.extent[:, None, None] * [0, 0, 2], base], axis=1)


def rectangles_around(seen: NDArray[np.float64], view: View) -> Rectangles:
    """Rectangles [...] around the hulls of points [..., P, 3] given as right, up and forward of the camera.

    A sample wider than needed on each side, so that no rounding here decides whether a ray meets a solid.
    """
    x = (seen[..., 0] / seen[..., 2] * FOCAL_LENGTH + (VIEW_WIDTH / 2 - view.left)) / view.step_x
    y = (seen[..., 1] / seen[..., 2] * -FOCAL_LENGTH + (VIEW_HEIGHT / 2 - view.top)) / view.step_y
    low = np.floor(np.stack([x.min(axis=-1), y.min(axis=-1)], axis=-1)) - 1
    high = np.ceil(np.stack([x.max(axis=-1), y.max(axis=-1)], axis=-1)) + 1
    size = [view.width, view.height]
    return np.concatenate([np.clip(low, 0, size), np.clip(high, 0, size)], axis=-1).astype(np.int64)


def spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """A list of counts[0] items of owner 0, counts[1] of owner 1 ...: each item's owner, and place among its own."""
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first.index_select(0, owner)


def rays_within(
    rectangles: Rectangles, scene: NDArray[np.int64], view: View, device: torch.device
) -> tuple[Tensor, Tensor]:
    """All (rectangle, ray) of rectangles [R] in these scenes [R]."""
    left, top, right, bottom = np.moveaxis(rectangles, -1, 0)
    corner = (scene * view.height + top) * view.width + left
    numbers = torch.from_numpy(np.stack([(right - left) * (bottom - top), right - left, corner])).to(device)
    owner, place = spread(numbers[0])
    width = numbers[1].to(torch.int32).index_select(0, owner)
    row = torch.div(place.to(torch.int32), width, rounding_mode="trunc")
    return owner, numbers[2].index_select(0, owner) + place + row * (view.width - width)


def crossing(shape: int, origin: Vector, direction: Vector, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave solids centred at 0, as multiples of `direction`; a miss has entry >= exit.

    Rays of cubes are in the cube's own frame. A cube is where three slabs overlap, a cylinder where a slab cuts a tube.
    """
    if shape == CUBE:
        slabs = [_slab(o, d, extent) for o, d in zip(origin, direction, strict=True)]
        return _overlap(_overlap(slabs[0], slabs[1]), slabs[2])
    # The point of the ray that is nearest to the centre or the axis, then half a chord to either side.
    x, y, z = direction
    square = x * x + y * y
    along = origin[0] * x + origin[1] * y
    if shape == SPHERE:
        square, along = square + z * z, along + origin[2] * z
    middle = -along / square
    px, py = origin[0] + x * middle, origin[1] + y * middle
    rest = extent * extent - px * px - py * py
    if shape == SPHERE:
        pz = origin[2] + z * middle
        rest = rest - pz * pz
    half = square_root(torch.clamp(rest, min=0.0) / square)
    chord = middle - half, middle + half
    return chord if shape == SPHERE else _overlap(chord, _slab(origin[2], z, extent))


def _slab(origin: Tensor, direction: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    one, other = (-extent - origin) / direction, (extent - origin) / direction
    return torch.minimum(one, other), torch.maximum(one, other)


def _overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


@dataclass(frozen=True)
class Frames:
    """What a ray needs of the solids, as float32 tensors [M] on the device."""

    centre: Vector
    extent: Tensor
    cosine: Tensor
    sine: Tensor

    def meet(self, shape: int, solid: Tensor, origin: Vector, *directions: Vector) -> list[tuple[Tensor, Tensor]]:
        """`crossing` of rays in the world's frame with these solids, all of one shape, for each of the directions."""
        origin = subtract(origin, take(self.centre, solid))
        extent = self.extent.index_select(0, solid)
        if shape == CUBE:
            cosine, sine = self.cosine.index_select(0, solid), -self.sine.index_select(0, solid)
            origin = turn(origin, cosine, sine)
            return [crossing(shape, origin, turn(direction, cosine, sine), extent) for direction in directions]
        return [crossing(shape, origin, direction, extent) for direction in directions]


def frames(solids: Solids, device: torch.device) -> Frames:
    cosine, sine, extent = (
        torch.from_numpy(values.astype(np.float32)).to(device)
        for values in (solids.rotation[:, 0], solids.rotation[:, 1], solids.extent)
    )
    return Frames(to_vector(solids.centre, device), extent, cosine, sine)


def nearest(keys: list[tuple[Tensor, Tensor, Tensor]], count: int, device: torch.device) -> tuple[Tensor, Hits]:
    """Of hits (ray, solid, distance > 0), lists of any order, the first of each of `count` rays.

    Returns the solid of each ray [count], -1 for none, and the hits. The smallest of integers made of a distance's bits
    above a solid's index is the same in whatever order they come.
    """
    ray, solid, distance = (torch.cat(parts) for parts in zip(*keys, strict=True))
    key = (distance.view(torch.int32).to(torch.int64) << 32) | solid
    first = torch.full((count,), NOTHING, dtype=torch.int64, device=device).scatter_reduce_(0, ray, key, "amin")
    won = torch.nonzero(first[ray] == key).squeeze(1)
    winner = torch.where(first == NOTHING, -1, first & 0xFFFFFFFF)
    return winner, Hits(ray[won], solid[won], distance[won])


def first_hits(solids: Solids, table: Frames, rays: Vector, view: View) -> tuple[Tensor, Hits]:
    """What the camera sees: solid of each of `camera_rays` [B * height * width], -1 for the ground, and the hits."""
    device = table.extent.device
    rectangles = rectangles_around(to_camera(solids.camera[solids.scene], box_corners(solids)), view)
    camera = to_vector(solids.camera[solids.scene], device)
    keys = []
    for shape in (CUBE, SPHERE, CYLINDER):
        part = solids.of_shape(shape)
        owner, ray = rays_within(rectangles[part], solids.scene[part], view, device)
        solid = owner + part.start
        ((near, far),) = table.meet(shape, solid, take(camera, solid), take(rays, ray))
        hit = torch.nonzero(near < far).squeeze(1)
        keys.append((ray[hit], solid[hit], near[hit]))
    return nearest(keys, len(rays[0]), device)
