"""Points on the solids of CLEVR scenes: normals, what they mirror, and the light that they send to the eye.

Rules of exact arithmetic are those of `clevr_geometry`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slotattn_fast.data.synthetic.clevr_geometry import (
    CUBE,
    CYLINDER,
    SPHERE,
    Frames,
    Solids,
    Vector,
    add,
    dot,
    nearest,
    same_scene,
    scale,
    spread,
    square_root,
    subtract,
    take,
    turn,
    unit,
)
from slotattn_fast.data.synthetic.clevr_light import (
    Beam,
    ambient,
    blurred_radiance,
    ground_radiance,
    lamp_beams,
    matt_radiance,
    metal_radiance,
    rubber_radiance,
    sky_radiance,
)

BEVEL = 0.12
"""Radius of the rounded edges of cubes and cylinders, of half the height."""
OCCLUSION_REACH = 3.0
"""A solid keeps ambient light from the ground within this many times half its height."""


@dataclass(frozen=True)
class Surface:
    """Points [n] on solids, ordered by solid: index of the solid, unit vectors, places of the scene's three lamps."""

    solid: Tensor
    point: Vector
    normal: Vector
    to_eye: Vector
    lamps: list[Vector]

    def part(self, index: Tensor) -> "Surface":
        point, normal, to_eye = (take(values, index) for values in (self.point, self.normal, self.to_eye))
        return Surface(self.solid[index], point, normal, to_eye, [take(place, index) for place in self.lamps])


@dataclass(frozen=True)
class Paint:
    """Linear colour and kind of each solid [M]."""

    albedo: Vector
    metallic: Tensor


def surface_radiance(solids: Solids, table: Frames, paint: Paint, surface: Surface, lit: list[Tensor]) -> Vector:
    """What the points send to the eye, where `lit` [3] of [n] are the fractions of each lamp that are not hidden."""
    radiance = tuple(torch.empty_like(surface.point[0]) for _ in range(3))
    metallic = paint.metallic[surface.solid]
    for metal in (False, True):
        index = torch.nonzero(metallic == metal).squeeze(1)
        part = surface.part(index)
        beams = [beam.behind(free[index]) for beam, free in zip(lamp_beams(part.lamps, part.point), lit, strict=True)]
        color, height = take(paint.albedo, part.solid), _height(table, part.solid, part.point)
        if metal:
            values = _metal(solids, table, paint, part, beams, color, height)
        else:
            around = ambient(part.normal, height)
            values = rubber_radiance(beams, color, part.normal, part.to_eye, around)
        for channel, value in zip(radiance, values, strict=True):
            channel[index] = value
    red, green, blue = radiance
    return red, green, blue


def normals(solids: Solids, table: Frames, solid: Tensor, point: Vector) -> Vector:
    """Unit normals of points on these solids; cubes and cylinders are lit as if their edges were rounded."""
    out = tuple(torch.empty_like(point[0]) for _ in range(3))
    for shape in (CUBE, SPHERE, CYLINDER):
        part = solids.of_shape(shape)
        index = torch.nonzero((solid >= part.start) & (solid < part.stop)).squeeze(1)
        for axis, values in zip(out, _normals(table, shape, solid[index], take(point, index)), strict=True):
            axis[index] = values
    x, y, z = out
    return x, y, z


def _normals(table: Frames, shape: int, solid: Tensor, point: Vector) -> Vector:
    x, y, z = subtract(point, take(table.centre, solid))
    extent = table.extent[solid]
    if shape == SPHERE:
        return x / extent, y / extent, z / extent
    # The direction from the nearest point of a smaller solid, of which the rounded one is everything within the bevel.
    inner = extent * (1.0 - BEVEL)
    if shape == CUBE:
        cosine, sine = table.cosine[solid], table.sine[solid]
        x, y, z = turn((x, y, z), cosine, -sine)
        return unit(turn((_beyond(x, inner), _beyond(y, inner), _beyond(z, inner)), cosine, sine))
    radius = torch.clamp(square_root(x * x + y * y), min=1e-6)
    outward = torch.clamp(radius - inner, min=0.0) / radius
    return unit((x * outward, y * outward, _beyond(z, inner)))


def _beyond(value: Tensor, limit: Tensor) -> Tensor:
    return value - torch.minimum(torch.maximum(value, -limit), limit)


def _height(table: Frames, solid: Tensor, point: Vector) -> Tensor:
    """Above the ground, as a part of the solid's height."""
    return point[2] / (table.extent[solid] * 2.0)


def ball_occlusion(ground: Vector, centre: Vector, radius: Tensor) -> Tensor:
    """The part of the sky that a ball on the ground hides from points of it: (radius / distance)^3, 0 out of reach."""
    x, y = ground[0] - centre[0], ground[1] - centre[1]
    square = radius * radius
    ratio = square / (x * x + y * y + square)
    return torch.clamp(ratio * square_root(ratio) - (1.0 + OCCLUSION_REACH**2) ** -1.5, min=0.0)


def _metal(
    solids: Solids, table: Frames, paint: Paint, surface: Surface, beams: list[Beam], color: Vector, height: Tensor
) -> Vector:
    normal, to_eye = surface.normal, surface.to_eye
    away = subtract(scale(normal, dot(normal, to_eye) * 2.0), to_eye)
    mirrored = _mirrored(solids, table, paint, surface, away)
    return metal_radiance(beams, color, normal, to_eye, mirrored, blurred_radiance(away[2], height))


def _mirrored(solids: Solids, table: Frames, paint: Paint, surface: Surface, away: Vector) -> Vector:
    """What lies in these directions of the points: sky, ground under the solid's own darkness, other solids, all matt.

    Without shadows: they would need a second set of shadow rays, and no one misses them at this size.
    """
    point, solid = surface.point, surface.solid
    falling = torch.clamp(-away[2], min=1e-3)
    spot = add(point, scale(away, point[2] / falling))
    floor = ground_radiance(lamp_beams(surface.lamps, spot), 1.0, falling)
    floor = scale(floor, 1.0 - ball_occlusion(spot, take(table.centre, solid), table.extent[solid]))
    sky = sky_radiance(away[2])
    seen = tuple(torch.where(away[2] < 0, channel, sky) for channel in floor)

    receiver, other = same_scene(solids)
    count = torch.bincount(solid, minlength=len(solids.scene))
    first = count.cumsum(0) - count
    met = []
    for shape in (CUBE, SPHERE, CYLINDER):
        part = solids.of_shape(shape)
        chosen = (other >= part.start) & (other < part.stop)
        of, by = (torch.from_numpy(values[chosen]).to(solid.device) for values in (receiver, other))
        pair, place = spread(count[of])
        index, target = first[of][pair] + place, by[pair]
        ((near, far),) = table.meet(shape, target, take(point, index), take(away, index))
        hit = torch.nonzero((near < far) & (near > 0)).squeeze(1)
        met.append((index[hit], target[hit], near[hit]))
    _, hits = nearest(met, len(solid), solid.device)
    end = add(take(point, hits.ray), scale(take(away, hits.ray), hits.distance))
    normal = normals(solids, table, hits.solid, end)
    beams = lamp_beams([take(place, hits.ray) for place in surface.lamps], end)
    around = ambient(normal, _height(table, hits.solid, end))
    # Roughness blurs what is farther away into what lies behind it.
    clear = 1.0 / (hits.distance + 1.0)
    for channel, value in zip(seen, matt_radiance(beams, take(paint.albedo, hits.solid), normal, around), strict=True):
        behind = channel[hits.ray]
        channel[hits.ray] = behind + (value - behind) * clear
    red, green, blue = seen
    return red, green, blue
