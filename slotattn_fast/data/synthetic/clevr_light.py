"""Light and materials of CLEVR scenes: what a point of the ground or of a solid sends to the eye.

Lamps' strengths and colours are the published ones. Exposure, ambient light and reflectance of the ground are ours, set
so that the published levels come out as nearly as they do (ground from 104 of 255 far away over 125 to 150 near, lit
cyan rubber 71, 149, 143). Radiances are linear; a white surface that faces a light of strength 1 has radiance 1. Rules
of exact arithmetic are those of `clevr_geometry`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slotattn_fast.data.synthetic.clevr_geometry import Vector, add, dot, scale, square_root, subtract, unit

LAMP_STRENGTHS = (100.0, 30.0, 50.0)
LAMP_COLORS = ((1.0, 0.932, 0.817), (0.762, 0.818, 1.0), (1.0, 1.0, 1.0))
"""Key, fill and back lamp."""

EXPOSURE = 0.16
AMBIENT = 0.09
GROUND = 0.57
SHEEN = 0.115
"""What the ground sends besides at grazing angles, which the level of the far background needs."""
BOUNCE = 0.16
"""Light that the ground sends back to surfaces that look down on it."""
SOFTENING = 6.0
"""Added to a lamp's squared distance, so that it leaves no bright spot on the ground where it hangs low."""

HORIZON, ZENITH = 0.11, 0.45
"""What a mirror sees at the horizon, and what more towards the zenith."""

ROUGH, SHARP = 0.45, 0.1
"""Roughness of the two glossy lobes of metal; the rough one is rubber's too."""
SHARP_SHARE = 0.55
RUBBER_REFLECTANCE = 0.04


@dataclass(frozen=True)
class Beam:
    """Light of a lamp at points [n]: unit direction to the lamp, and strength on a surface that faces it."""

    direction: Vector
    strength: Tensor

    def behind(self, lit: Tensor) -> "Beam":
        """The same where only these fractions of the lamp are not hidden."""
        return Beam(self.direction, self.strength * lit)


def lamp_beams(places: list[Vector], points: Vector) -> list[Beam]:
    """Of the three lamps at these places, aimed at the origin, with nothing in the way."""
    beams = []
    for place, power in zip(places, LAMP_STRENGTHS, strict=True):
        to = subtract(place, points)
        square = dot(to, to)
        direction = scale(to, 1.0 / square_root(square))
        aimed = torch.clamp(dot(direction, unit(place)), min=0.0)
        beams.append(Beam(direction, aimed * (EXPOSURE * power) / (square + SOFTENING)))
    return beams


def ground_radiance(beams: list[Beam], open_sky: Tensor | float, rise: Tensor) -> Vector:
    """Of ground points; `open_sky` is the part of ambient light that arrives, `rise` the sine of the ray's slope."""
    light = _in_color([beam.strength * beam.direction[2] for beam in beams])
    grazing = 1.0 - rise
    rest = grazing * grazing * SHEEN + open_sky * (AMBIENT * GROUND)
    return light[0] * GROUND + rest, light[1] * GROUND + rest, light[2] * GROUND + rest


def matt_radiance(beams: list[Beam], albedo: Vector, normal: Vector, around: Tensor) -> Vector:
    """Of solids that send light everywhere alike; `around` is their `ambient` light."""
    light = _in_color([beam.strength * torch.clamp(dot(beam.direction, normal), min=0.0) for beam in beams])
    return albedo[0] * (light[0] + around), albedo[1] * (light[1] + around), albedo[2] * (light[2] + around)


def rubber_radiance(beams: list[Beam], albedo: Vector, normal: Vector, to_eye: Vector, around: Tensor) -> Vector:
    """Matt under a rough gloss that strengthens towards grazing angles (half of Schlick's Fresnel)."""
    grazing = 1.0 - torch.clamp(dot(normal, to_eye), min=0.0)
    square = grazing * grazing
    reflectance = square * square * grazing * ((1.0 - RUBBER_REFLECTANCE) / 2) + RUBBER_REFLECTANCE
    gloss = add(_glossy(beams, normal, to_eye, ROUGH), (around, around, around))
    return add(matt_radiance(beams, albedo, normal, around), scale(gloss, reflectance))


def metal_radiance(
    beams: list[Beam], albedo: Vector, normal: Vector, to_eye: Vector, mirrored: Vector, blurred: Tensor
) -> Vector:
    """Two glossy lobes; besides the lamps the sharp one sees `mirrored`, and the rough one `blurred`."""
    sharp = add(_glossy(beams, normal, to_eye, SHARP), mirrored)
    rough = add(_glossy(beams, normal, to_eye, ROUGH), (blurred, blurred, blurred))
    both = add(scale(sharp, SHARP_SHARE), scale(rough, 1.0 - SHARP_SHARE))
    return albedo[0] * both[0], albedo[1] * both[1], albedo[2] * both[2]


def ambient(normal: Vector, height: Tensor) -> Tensor:
    """Light from all around on surfaces at this height above the ground, as a part of their solid's height."""
    up = normal[2] * 0.5 + 0.5
    return up * AMBIENT + (1.0 - up) * ((height * 0.6 + 0.4) * BOUNCE)


def sky_radiance(rise: Tensor) -> Tensor:
    """What mirrors see above the ground, at these sines of elevation."""
    return torch.clamp(rise, min=0.0) * ZENITH + HORIZON


def blurred_radiance(rise: Tensor, height: Tensor) -> Tensor:
    """What rough metal sees around directions of this rise, from this part of its height: sky, or shaded ground."""
    up = rise * 0.5 + 0.5
    return up * 0.25 + (1.0 - up) * (height * 0.12 + 0.08)


def _glossy(beams: list[Beam], normal: Vector, to_eye: Vector, roughness: float) -> Vector:
    """The lamps in a GGX lobe of reflectance 1 (Walter et al., 2007; Smith's shadowing as Schlick approximates it)."""
    square, k = roughness * roughness, roughness / 2
    facing = torch.clamp(dot(normal, to_eye), min=0.0) * (1 - k) + k
    lights = []
    for beam in beams:
        cosine = torch.clamp(dot(normal, beam.direction), min=0.0)
        half = dot(normal, unit(add(beam.direction, to_eye)))
        lobe = half * half * (square - 1) + 1.0
        lights.append(beam.strength * cosine * (square / 4) / (lobe * lobe * ((cosine * (1 - k) + k) * facing)))
    return _in_color(lights)


def _in_color(lights: list[Tensor]) -> Vector:
    """The sum of the three lamps' lights, in their colours."""
    key, fill, back = lights
    red, green, blue = (key * k + fill * f + back * b for k, f, b in zip(*LAMP_COLORS, strict=True))
    return red, green, blue
