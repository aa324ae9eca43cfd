"""Soft shadows of CLEVR scenes: which parts of which lamps each ray's end can see.

A lamp is a square of 4 x 4 cells; the end of a ray looks at four of them, one in each row and column, and the four rays
of a pixel look at all 16. A solid is tested only against what it may shade: the ground in the rectangle around its
shadow, and solids that have it between them and a lamp. The tests are exact intersections of line and solid, so shadows
meet the solids that cast them; none is tested against itself, as a convex solid shades of itself just what is turned
away from the lamp. Rules of exact arithmetic are those of `clevr_geometry`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.synthetic.clevr_geometry import (
    CUBE,
    CYLINDER,
    SPHERE,
    Frames,
    Hits,
    Rectangles,
    Solids,
    Vector,
    View,
    box_corners,
    camera_axes,
    rays_within,
    rectangles_around,
    same_scene,
    spread,
    subtract,
    take,
    to_camera,
    to_vector,
)

LAMP_SIDES = np.array([0.5, 0.5, 1.0])
"""Of key, fill and back lamp."""
CELLS_SEEN = 4

_NUM_LAMPS = len(LAMP_SIDES)
_CELLS_A_SIDE = 4
_NEAREST_DEPTH = 0.5
"""Shadows are followed towards the camera up to this distance; the ground that it sees is farther away."""


@dataclass(frozen=True)
class Lamps:
    """B scenes' lamps, aimed at the origin: places [B, 3, 3], middles of cells [B, 3, 16, 3], corners [B, 3, 4, 3]."""

    place: NDArray[np.float64]
    cells: NDArray[np.float64]
    corners: NDArray[np.float64]


def make_lamps(place: NDArray[np.float64]) -> Lamps:
    right, up, _ = np.moveaxis(camera_axes(place.reshape(-1, 3)).reshape(-1, _NUM_LAMPS, 3, 3), 2, 0)

    def over(ticks: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = (offset.reshape(-1, 1) for offset in np.meshgrid(ticks, ticks, indexing="ij"))
        return place[:, :, None] + (right[:, :, None] * a + up[:, :, None] * b) * LAMP_SIDES[:, None, None]

    return Lamps(place, over((np.arange(_CELLS_A_SIDE) + 0.5) / _CELLS_A_SIDE - 0.5), over(np.array([-0.5, 0.5])))


def shaded(
    solids: Solids, table: Frames, lamps: Lamps, winner: Tensor, hits: Hits, points: Vector, ground: Vector, view: View
) -> Tensor:
    """Whether something stands between each ray's end and the cells that it looks at, bool [3 lamps, 4 cells, rays].

    `winner` [rays] and `hits` are of `first_hits`; `points` is where the hits are, `ground` where all rays meet the
    ground.
    """
    device = winner.device
    cells = to_vector(lamps.cells.reshape(-1, 3), device)
    blocked = torch.zeros((_NUM_LAMPS, CELLS_SEEN, len(winner)), dtype=torch.bool, device=device)
    rectangles = _shadow_rectangles(solids, lamps, view)
    receiver, blocker, pair_lamp = _pairs(solids, lamps)
    count = torch.bincount(hits.solid, minlength=len(solids.scene))
    first = count.cumsum(0) - count
    for shape in (CUBE, SPHERE, CYLINDER):
        part = solids.of_shape(shape)

        scene = np.repeat(solids.scene[part], _NUM_LAMPS)
        owner, ray = rays_within(rectangles[part].reshape(-1, 4), scene, view, device)
        free = torch.nonzero(winner.index_select(0, ray) < 0).squeeze(1)
        owner, ray = owner.index_select(0, free), ray.index_select(0, free)
        solid = torch.div(owner, _NUM_LAMPS, rounding_mode="trunc")
        lamp = owner - solid * _NUM_LAMPS
        _block(blocked, table, shape, solid + part.start, lamp, ray, take(ground, ray), cells, view)

        of_shape = (blocker >= part.start) & (blocker < part.stop)
        to, by, at = (torch.from_numpy(values[of_shape]).to(device) for values in (receiver, blocker, pair_lamp))
        owner, place = spread(count[to])
        hit = first[to][owner] + place
        _block(blocked, table, shape, by[owner], at[owner], hits.ray[hit], take(points, hit), cells, view)
    return blocked


def _block(
    blocked: Tensor,
    table: Frames,
    shape: int,
    solid: Tensor,
    lamp: Tensor,
    ray: Tensor,
    point: Vector,
    cells: Vector,
    view: View,
) -> None:
    """Marks in `blocked` what these solids, of one shape, keep from these points; a mark stays whatever comes later."""
    count = len(blocked[0, 0])
    x = torch.remainder(ray, view.width)
    y = torch.div(ray, view.width, rounding_mode="trunc")
    scene = torch.div(y, view.height, rounding_mode="trunc")
    quarter = (y & 1) * 2 + (x & 1)
    first = (scene * _NUM_LAMPS + lamp) * _CELLS_A_SIDE**2
    seen_cells = [first + seen * _CELLS_A_SIDE + ((quarter + seen) & 3) for seen in range(CELLS_SEEN)]
    to_lamp = [subtract(take(cells, cell), point) for cell in seen_cells]
    for seen, (near, far) in enumerate(table.meet(shape, solid, point, *to_lamp)):
        hit = torch.nonzero((near < far) & (far > 0)).squeeze(1)
        blocked.view(-1)[(lamp[hit] * CELLS_SEEN + seen) * count + ray[hit]] = True


def _shadow_rectangles(solids: Solids, lamps: Lamps, view: View) -> Rectangles:
    """Rectangles [M, 3 lamps, 4] around the shadow of each solid on the ground, and its base."""
    box = box_corners(solids)
    lamp = lamps.corners[solids.scene][:, :, :, None]  # [M, 3, 4, 1, 3]
    top = box[:, None, None, :4]
    tips = lamp + (top - lamp) * (lamp[..., 2:] / (lamp[..., 2:] - top[..., 2:]))
    camera = solids.camera[solids.scene]
    tips, base = to_camera(camera, tips.reshape(len(box), _NUM_LAMPS, 16, 3)), to_camera(camera, box[:, 4:])
    # What lies too near or behind the camera is cut off: on each line from a tip to the base it is left out.
    tips, base = tips[:, :, :, None], base[:, None, None]
    depth, base_depth = tips[..., 2:], base[..., 2:]
    kept = np.where(depth < _NEAREST_DEPTH, (base_depth - _NEAREST_DEPTH) / (base_depth - depth), 1.0)
    points = base + (tips - base) * kept
    outline = np.concatenate([points, np.broadcast_to(base, points.shape)], axis=2)
    count = outline.shape[2] * outline.shape[3]
    return rectangles_around(outline.reshape(len(box), _NUM_LAMPS, count, 3), view)


def _pairs(solids: Solids, lamps: Lamps) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Solids and lamps [P] (receiver, blocker, lamp) where the blocker may shade the receiver.

    It may where the ball around it meets the ball around the receiver as that is moved to the lamp.
    """
    receiver, blocker = same_scene(solids)
    radius = solids.radius()
    ball = np.sqrt(radius * radius + solids.extent * solids.extent)
    centre = solids.centre
    lamp = lamps.place[solids.scene[receiver]]  # [P, 3, 3]
    path = lamp - centre[receiver, None]
    away = (centre[blocker] - centre[receiver])[:, None]
    along = np.clip((path * away).sum(axis=-1) / (path * path).sum(axis=-1), 0, 1)[..., None]
    gap = away - path * along
    reach = np.maximum(ball[receiver, None], LAMP_SIDES) + ball[blocker, None]
    pair, which = np.nonzero((gap * gap).sum(axis=-1) < reach * reach)
    return receiver[pair], blocker[pair], which
