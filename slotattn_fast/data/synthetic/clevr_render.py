"""Pictures and instance masks of CLEVR scenes: approximately what Blender makes of Johnson et al.'s scenes (2017).

Three square lamps throw soft shadows on a grey ground and on solids of rubber (matt with a weak rough gloss) or metal
(two glossy lobes, of which the sharper one mirrors ground, sky and the other solids). What other paths of light would
bring is a constant ambient light, less of it on the ground near a solid.

Four rays a pixel, two by two. A pixel's colour is the mean of their linear light, made sRGB by a table of 4096 steps;
its label is that of most of its rays, of equals that of the upper left one, so that masks are as large as the solids.
Rules of exact arithmetic are those of `clevr_geometry`.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.clevr_published import MATERIALS
from slotattn_fast.data.synthetic.clevr_geometry import (
    Frames,
    Solids,
    Vector,
    View,
    add,
    camera_rays,
    dot,
    first_hits,
    frames,
    rays_within,
    rectangles_around,
    scale,
    square_root,
    take,
    to_camera,
    to_vector,
)
from slotattn_fast.data.synthetic.clevr_light import ground_radiance, lamp_beams
from slotattn_fast.data.synthetic.clevr_scenes import Scenes
from slotattn_fast.data.synthetic.clevr_shadows import CELLS_SEEN, make_lamps, shaded
from slotattn_fast.data.synthetic.clevr_surface import (
    OCCLUSION_REACH,
    Paint,
    Surface,
    ball_occlusion,
    normals,
    surface_radiance,
)

RGB = np.array(
    [
        [87, 87, 87], [42, 75, 215], [129, 74, 25], [255, 238, 51],
        [173, 35, 35], [29, 105, 20], [129, 38, 192], [41, 208, 208],
    ]
)  # fmt: skip
"""In the order of `clevr_published.COLORS`; divided by 255 they are linear reflectances."""

_OCCLUSION_STEPS = 1 << 16
_TONES = 4096


def render(scenes: Scenes, view: View, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draws B scenes: images uint8 [B, height / 2, width / 2, 3] and labels uint8 [B, height / 2, width / 2].

    Two by two rays of the view make a pixel. Label 0 is the ground, n the n-th object of the scene.
    """
    solids = scenes.solids()
    table = frames(solids, device)
    rays = camera_rays(scenes.camera, view, device)
    winner, hits = first_hits(solids, table, rays, view)
    scene_of_ray = torch.arange(len(scenes.count), device=device).repeat_interleave(view.width * view.height)
    scene_of_hit = scene_of_ray[hits.ray]
    camera = to_vector(scenes.camera, device)
    lamps = [to_vector(scenes.lamps[:, lamp], device) for lamp in range(scenes.lamps.shape[1])]

    # All rays [B, height * width] are followed to the ground.
    grid = _by_scene(rays, scenes)
    eye = _column(camera)
    down = -eye[2] / grid[2]
    ground = eye[0] + grid[0] * down, eye[1] + grid[1] * down, torch.zeros_like(down)
    flat = ground[0].view(-1), ground[1].view(-1), ground[2].view(-1)
    seen = take(rays, hits.ray)
    point = add(take(camera, scene_of_hit), scale(seen, hits.distance))
    blocked = shaded(solids, table, make_lamps(scenes.lamps), winner, hits, point, flat, view)

    beams = lamp_beams([_column(place) for place in lamps], ground)
    beams = [beam.behind(_lit(part).view_as(down)) for beam, part in zip(beams, blocked, strict=True)]
    inverse = 1.0 / square_root(dot(grid, grid))
    open_sky = _open_sky(solids, table, winner, flat, view).view_as(down)
    picture = ground_radiance(beams, open_sky, -grid[2] * inverse)

    to_eye = scale(seen, -inverse.view(-1)[hits.ray])
    normal = normals(solids, table, hits.solid, point)
    surface = Surface(hits.solid, point, normal, to_eye, [take(place, scene_of_hit) for place in lamps])
    lit = [_lit(part[:, hits.ray]) for part in blocked]
    radiance = surface_radiance(solids, table, _paint(scenes, solids, device), surface, lit)
    for channel, values in zip(picture, radiance, strict=True):
        channel.view(-1)[hits.ray] = values
    return _develop(picture, view), _labels(solids, winner, view)


def _by_scene(values: Vector, scenes: Scenes) -> Vector:
    """Of all rays [B * n] as [B, n]."""
    count = len(scenes.count)
    x, y, z = (part.view(count, len(part) // max(count, 1)) for part in values)
    return x, y, z


def _column(values: Vector) -> Vector:
    return values[0][:, None], values[1][:, None], values[2][:, None]


def _lit(blocked: Tensor) -> Tensor:
    """Fraction of the cells [4, ...] that are not blocked [...]."""
    count = torch.zeros_like(blocked[0], dtype=torch.uint8)
    for cell in blocked:
        count += cell
    return 1.0 - count.to(torch.float32) * (1.0 / CELLS_SEEN)


def _paint(scenes: Scenes, solids: Solids, device: torch.device) -> Paint:
    color, material = (values[solids.scene, solids.slot] for values in (scenes.color, scenes.material))
    metallic = torch.from_numpy(material == MATERIALS.index("metal")).to(device)
    return Paint(to_vector(RGB[color] / 255.0, device), metallic)


def _open_sky(solids: Solids, table: Frames, winner: Tensor, ground: Vector, view: View) -> Tensor:
    """The part of the ambient light that solids, taken for balls, leave to the end of each ray on the ground [rays].

    Summed in integers, whose order does not matter.
    """
    reach = solids.extent[:, None, None] * OCCLUSION_REACH
    corners = np.array([[-1, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]])
    around = solids.centre[:, None] * [1, 1, 0] + reach * corners
    rectangles = rectangles_around(to_camera(solids.camera[solids.scene], around), view)
    solid, ray = rays_within(rectangles, solids.scene, view, winner.device)
    free = torch.nonzero(winner.index_select(0, ray) < 0).squeeze(1)
    solid, ray = solid.index_select(0, free), ray.index_select(0, free)
    taken = ball_occlusion(take(ground, ray), take(table.centre, solid), table.extent[solid])
    steps = torch.zeros(len(winner), dtype=torch.int32, device=winner.device)
    steps.index_add_(0, ray, (taken * _OCCLUSION_STEPS).to(torch.int32))
    return torch.clamp(1.0 - steps.to(torch.float32) * (1.0 / _OCCLUSION_STEPS), min=0.0)


def _develop(picture: Vector, view: View) -> Tensor:
    """Linear light of all rays as sRGB bytes [B, height / 2, width / 2, 3]."""
    table = torch.from_numpy(_srgb_bytes()).to(picture[0].device)
    channels = []
    for channel in picture:
        a, b, c, d = _quarters(channel, view)
        mean = torch.clamp((a + b + (c + d)) * 0.25, 0.0, 1.0)
        channels.append(table[(mean * (_TONES - 1) + 0.5).to(torch.int64)])
    return torch.stack(channels, dim=-1)


def _labels(solids: Solids, winner: Tensor, view: View) -> Tensor:
    """Label of most of each pixel's rays [B, height / 2, width / 2]."""
    label = torch.from_numpy(np.append(solids.slot + 1, 0).astype(np.uint8)).to(winner.device)
    four = _quarters(label[winner], view)  # Nothing is -1, the last.
    best, most = four[0], torch.zeros_like(four[0])
    for one in four:
        votes = torch.zeros_like(one)
        for other in four:
            votes += one == other
        best = torch.where(votes > most, one, best)
        most = torch.maximum(most, votes)
    return best


def _quarters(values: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four rays of each pixel [B, height / 2, width / 2]."""
    grid = values.view(-1, view.height // 2, 2, view.width // 2, 2)
    return grid[:, :, 0, :, 0], grid[:, :, 0, :, 1], grid[:, :, 1, :, 0], grid[:, :, 1, :, 1]


def _srgb_bytes() -> NDArray[np.uint8]:
    """sRGB bytes of the steps of linear light (IEC 61966-2-1)."""
    light = np.arange(_TONES) / (_TONES - 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    # Rounded first to a grid on which the last bits of the power, where libraries differ, vanish.
    return np.floor(np.round(encoded * 255 * 2.0**20) * 2.0**-20 + 0.5).astype(np.uint8)
