import numpy as np
import pytest
import torch

from slotattn_fast.data.clevr_published import COLORS, MAX_OBJECTS
from slotattn_fast.data.synthetic import clevr_geometry, clevr_render, clevr_shadows
from slotattn_fast.data.synthetic.clevr import _view
from slotattn_fast.data.synthetic.clevr_geometry import (
    CUBE,
    CYLINDER,
    SPHERE,
    View,
    add,
    camera_rays,
    first_hits,
    frames,
    scale,
    take,
    to_vector,
)
from slotattn_fast.data.synthetic.clevr_render import render
from slotattn_fast.data.synthetic.clevr_scenes import CAMERA, LAMPS, Scenes, sample_scenes
from slotattn_fast.data.synthetic.clevr_surface import normals

CPU = torch.device("cpu")
GRAY, RED, YELLOW, CYAN = (COLORS.index(name) for name in ("gray", "red", "yellow", "cyan"))
RUBBER, METAL = 0, 1


def scene_of(*objects):
    """One scene with the middle camera and lamps; objects are (shape, material, color, x, y), all large, unturned."""
    shape, material, color = np.zeros((3, 1, MAX_OBJECTS), np.int64)
    centre, extent = np.zeros((1, MAX_OBJECTS, 3)), np.zeros((1, MAX_OBJECTS))
    for slot, (kind, stuff, hue, x, y) in enumerate(objects):
        shape[0, slot], material[0, slot], color[0, slot] = kind, stuff, hue
        extent[0, slot] = 0.7 / 2**0.5 if kind == CUBE else 0.7
        centre[0, slot] = x, y, extent[0, slot]
    size, turns = np.ones_like(shape), np.zeros_like(extent)
    count = np.array([len(objects)])
    return Scenes(CAMERA[None], LAMPS[None], count, centre, extent, turns, size, material, shape, color)


def picture(*objects, size=128):
    """Image [size, size, 3] as floats and labels, of the middle of the view."""
    images, labels = render(scene_of(*objects), _view(True, size), CPU)
    return images[0].numpy().astype(float), labels[0].numpy()


def trace(scenes, view):
    """Solids, frames, winner, hits, points of the hits, and the ground at the end of all rays."""
    solids = scenes.solids()
    table = frames(solids, CPU)
    rays = camera_rays(scenes.camera, view, CPU)
    winner, hits = first_hits(solids, table, rays, view)
    camera = to_vector(np.repeat(scenes.camera, view.width * view.height, axis=0), CPU)
    ground = add(camera, scale(rays, -camera[2] / rays[2]))
    ground = ground[0], ground[1], torch.zeros_like(ground[2])
    points = add(take(camera, hits.ray), scale(take(rays, hits.ray), hits.distance))
    return solids, table, winner, hits, points, ground


def inside(solids, index, points):
    """Whether points [..., 3] lie in the index-th solid, by what the shapes are."""
    x, y, z = np.moveaxis(points - solids.centre[index], -1, 0)
    half, shape = solids.extent[index], solids.shape[index]
    if shape == SPHERE:
        return x**2 + y**2 + z**2 < half**2
    if shape == CYLINDER:
        return (x**2 + y**2 < half**2) & (np.abs(z) < half)
    cosine, sine = solids.rotation[index]
    return (np.maximum(np.abs(x * cosine + y * sine), np.abs(y * cosine - x * sine)) < half) & (np.abs(z) < half)


def test_rays_meet_the_solids_that_lie_on_them():
    scenes, view = sample_scenes(2, range(3), (8, 10), CPU), View(64, 48, 0, 0, 5, 5)
    solids = scenes.solids()
    rays = camera_rays(scenes.camera, view, CPU)
    winner, hits = first_hits(solids, frames(solids, CPU), rays, view)
    assert set(solids.shape[winner[winner >= 0].numpy()]) == {CUBE, SPHERE, CYLINDER}
    # Small steps along each ray, until it is inside a solid.
    steps = np.arange(5.5, 17, 0.03)
    directions = torch.stack(rays, dim=-1).numpy().astype(float).reshape(3, -1, 3)
    expected = np.full(directions.shape[:2], -1)
    distance = np.full(directions.shape[:2], np.inf)
    for index in range(len(solids.scene)):
        scene = solids.scene[index]
        points = scenes.camera[scene] + directions[scene, :, None] * steps[:, None]
        within = inside(solids, index, points)
        entry = np.where(within.any(1), steps[within.argmax(1)], np.inf)
        nearer = entry < distance[scene]
        expected[scene][nearer] = index
        distance[scene] = np.minimum(distance[scene], entry)
    assert (expected.ravel() == winner.numpy()).mean() > 0.997
    entered = distance.ravel()[hits.ray.numpy()]
    agree = expected.ravel()[hits.ray.numpy()] == hits.solid.numpy()
    late = entered[agree] - hits.distance.numpy()[agree]
    assert (late > -1e-4).all()
    assert np.quantile(late, 0.99) < 0.031


def test_shadows_are_where_a_solid_is_between_a_point_and_a_lamp(monkeypatch):
    # Lamps without extent, so that all their cells are one.
    monkeypatch.setattr(clevr_shadows, "LAMP_SIDES", np.full(3, 1e-9))
    scenes, view = sample_scenes(2, range(3), (6, 10), CPU), View(64, 48, 0, 0, 5, 5)
    traced = trace(scenes, view)
    solids, _, winner, hits, points, ground = traced
    lamps = clevr_shadows.make_lamps(scenes.lamps)
    blocked = clevr_shadows.shaded(*traced[:2], lamps, *traced[2:], view).numpy()
    assert (blocked == blocked[:, :1]).all()

    ends = torch.stack(ground, dim=-1).numpy().astype(float)
    ends[hits.ray.numpy()] = torch.stack(points, dim=-1).numpy()
    ends = ends.reshape(3, -1, 1, 3)
    own = winner.numpy().reshape(3, -1)
    expected = np.zeros((3, 3, 64 * 48), bool)
    for lamp in range(3):
        for index in range(len(solids.scene)):
            scene = solids.scene[index]
            # Only the part of each way that is as low as the solids.
            way = scenes.lamps[scene, lamp] - ends[scene]
            steps = np.linspace(0, 1, 160) * np.minimum(1, (1.45 - ends[scene, ..., 2:]) / way[..., 2:])[..., 0]
            meets = inside(solids, index, ends[scene] + way * steps[..., None]).any(1)
            expected[lamp, scene] |= meets & (own[scene] != index)
    found = blocked[:, 0].reshape(3, 3, -1)
    for where in (own < 0, own >= 0):
        assert 0.01 < expected[:, where].mean() < 0.6
        assert (found[:, where] == expected[:, where]).mean() > 0.99


def test_the_ground_has_the_published_levels():
    image, labels = picture()
    assert (labels == 0).all()
    whole, _ = render(scene_of(), _view(False, 128), CPU)
    levels = whole[0].numpy().astype(float).mean(axis=(1, 2))
    assert abs(levels[0] - 104) < 6
    assert abs(levels[60:68].mean() - 125) < 10
    assert abs(levels[-1] - 150) < 16
    # Soft: no step from a pixel to the next, and nearly grey.
    assert np.abs(np.diff(image, axis=0)).max() <= 3
    assert np.abs(np.diff(image, axis=1)).max() <= 3
    assert (image.max(2) - image.min(2)).max() < 20


def test_lit_cyan_rubber_has_the_published_colour():
    image, labels = picture((SPHERE, RUBBER, CYAN, 0, 0))
    lit = np.quantile(image[labels == 1], 0.7, axis=0)
    np.testing.assert_allclose(lit, [71, 149, 143], atol=14)


def shade(*objects):
    """What objects make of each pixel [128, 128] of the ground, nan at solids and their edges; and the labels."""
    image, labels = picture(*objects)
    bare, _ = picture()
    ground = torch.nn.functional.max_pool2d(torch.tensor(labels)[None].float(), 3, stride=1, padding=1)[0] == 0
    return np.where(ground, (image / bare).mean(2), np.nan), labels


@pytest.mark.parametrize("shape", [CUBE, SPHERE, CYLINDER])
def test_shadows_touch_their_objects_and_fall_away_from_the_lamps(shape):
    ratio, labels = shade((shape, RUBBER, GRAY, 0, 0))
    rows, columns = np.nonzero(labels)
    bottom = rows.max()
    foot = int(columns[rows == bottom].mean())
    # Below the foot is the shadow of the back lamp, to the left that of the key lamp; to the right before it is none.
    assert np.nanmax(ratio[bottom + 2 : bottom + 5, foot]) < 0.9
    left = columns.min()
    low = int(rows[columns == left].mean()) if shape == SPHERE else bottom - 8
    assert np.nanmin(ratio[low - 4 : low + 8, left - 12 : left]) < 0.91
    assert np.nanmean(ratio[bottom + 5 :, columns.max() + 15 :]) > 0.97
    # Far away nothing changes, and nothing is lighter than bare ground.
    assert np.nanmin(ratio[:10]) > 0.97
    assert np.nanmax(ratio) <= 1.02


def test_shadows_have_soft_edges():
    scenes, view = scene_of((SPHERE, RUBBER, GRAY, 0, 0)), _view(True, 64)
    traced = trace(scenes, view)
    blocked = clevr_shadows.shaded(*traced[:2], clevr_shadows.make_lamps(scenes.lamps), *traced[2:], view)
    winner, ground = traced[2], torch.stack(traced[-1], dim=-1).numpy().astype(float)[:, None]
    for lamp, side in enumerate((0.5, 0.5, 1.0)):
        # How much of the lamp, cut into 8 x 8 cells, the ball hides from each ray's end on the ground.
        place = LAMPS[lamp]
        right = np.cross(place, [0, 0, 1.0])
        up = np.cross(right, place)
        ticks = (np.arange(8) + 0.5) / 8 - 0.5
        cells = np.stack([right / np.linalg.norm(right), up / np.linalg.norm(up)])
        cells = place + side * (np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2) @ cells)
        way = cells - ground
        origin = ground - [0, 0, 0.7]
        nearest = origin - way * ((origin * way).sum(-1) / (way * way).sum(-1))[..., None]
        ahead = (origin * way).sum(-1) < 0
        expected = ((nearest * nearest).sum(-1) < 0.7**2) & ahead
        expected, found = expected.mean(1).reshape(64, 2, 64, 2), blocked[lamp].float().numpy().mean(0)
        expected, found = expected.mean(axis=(1, 3)), found.reshape(64, 2, 64, 2).mean(axis=(1, 3))
        bare = (winner.view(64, 2, 64, 2) < 0).numpy().all(axis=(1, 3))
        edge = bare & (expected > 0) & (expected < 1)
        assert edge.sum() > 30
        assert np.abs(found - expected)[edge].mean() < 0.04
        assert np.abs((found - expected)[edge].mean()) < 0.02
        assert ((found == expected) | edge)[bare].mean() > 0.999
    four = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    assert clevr_render._lit(four.T).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_nothing_lies_outside_the_bounds_that_save_work(monkeypatch):
    for first in (0, 4, 8):
        scenes = sample_scenes(6, range(first, first + 4), (3, 10), CPU)
        for view in (View(64, 48, 0, 0, 5, 5), View(48, 48, 64, 29, 4, 4)):
            lamps = clevr_shadows.make_lamps(scenes.lamps)

            def results(scenes=scenes, view=view, lamps=lamps):
                traced = trace(scenes, view)
                return traced[2], clevr_shadows.shaded(*traced[:2], lamps, *traced[2:], view)

            bounded = results()
            with monkeypatch.context() as patch:
                for module in (clevr_geometry, clevr_shadows):
                    patch.setattr(
                        module,
                        "rectangles_around",
                        lambda seen, view: np.broadcast_to([0, 0, view.width, view.height], (*seen.shape[:-2], 4)),
                    )

                def all_pairs(solids, lamps):
                    one, other = clevr_geometry.same_scene(solids)
                    return np.repeat(one, 3), np.repeat(other, 3), np.tile(np.arange(3), len(one))

                patch.setattr(clevr_shadows, "_pairs", all_pairs)
                for found, expected in zip(bounded, results(), strict=True):
                    assert torch.equal(found, expected)


def test_edges_are_rounded_and_faces_flat():
    solids = scene_of((CUBE, RUBBER, RED, 1, 0), (CYLINDER, RUBBER, RED, -1, 0)).solids()
    half = solids.extent[0]
    diagonal = 0.5**0.5
    cases = [
        (0, (0, 0, 1), (0, 0, 1)),
        (0, (0.8, -0.8, 1), (0, 0, 1)),
        (0, (1, 0.8, 0.8), (1, 0, 0)),
        (0, (1, 0.3, 1), (diagonal, 0, diagonal)),
        (0, (-1, -1, -1), (-(3**-0.5),) * 3),
        (1, (0.8, 0, 1), (0, 0, 1)),
        (1, (0.6, 0.8, 0.8), (0.6, 0.8, 0)),
        (1, (0, -1, 1), (0, -diagonal, diagonal)),
    ]
    which = np.array([index for index, *_ in cases])
    offsets = np.array([offset for _, offset, _ in cases]) * np.where(which == 0, half, 0.7)[:, None]
    points = to_vector(solids.centre[which] + offsets, CPU)
    found = normals(solids, frames(solids, CPU), torch.tensor(which), points)
    np.testing.assert_allclose(torch.stack(found, dim=-1), [normal for *_, normal in cases], atol=1e-5)


@pytest.mark.parametrize("shape", [SPHERE, CYLINDER, CUBE])
def test_metal_shines_and_rubber_does_not(shape):
    rubber, labels = picture((shape, RUBBER, CYAN, 0.5, -0.5))
    metal, _ = picture((shape, METAL, CYAN, 0.5, -0.5))
    rubber, metal = (np.sort(image.max(2)[labels == 1]) for image in (rubber, metal))
    assert metal[-6:].mean() > rubber[-6:].mean() + 25
    if shape == SPHERE:
        assert metal[-1] == 255
        assert rubber[-1] < 200
        assert metal.std() > 1.5 * rubber.std()


def test_metal_mirrors_its_neighbours_and_rubber_does_not():
    neighbour = SPHERE, RUBBER, RED, 1.7, 0.7
    redder = {}
    for material in (RUBBER, METAL):
        ball = (SPHERE, material, YELLOW, 0.6, -0.6)
        alone, _ = picture(ball)
        beside, labels = picture(ball, neighbour)
        redness = [image[..., 0] - image[..., 1] for image in (alone, beside)]
        redder[material] = ((redness[1] - redness[0])[labels == 1] > 5).sum()
    assert redder[METAL] > 20
    assert redder[RUBBER] == 0


def test_edges_are_antialiased():
    image, labels = picture((SPHERE, RUBBER, RED, 0, 0))
    redness = image[..., 0] - image[..., 1]
    full = np.median(redness[labels == 1])
    partly = (redness > 0.2 * full) & (redness < 0.6 * full)
    around = np.abs(np.diff(labels.astype(int), axis=0)).sum() + np.abs(np.diff(labels.astype(int), axis=1)).sum()
    assert 0.25 * around < partly.sum() < around


def test_a_label_is_that_of_most_rays_then_of_the_upper_left():
    solids = scene_of((SPHERE, RUBBER, RED, 0, 0), (SPHERE, RUBBER, RED, 2, 0)).solids()
    pixels = [[0, 1, 1, 1], [-1, -1, 0, 0], [0, 0, -1, -1], [-1, 0, 1, 1], [1, 0, -1, 1], [0, -1, 0, -1]]
    four = torch.tensor(pixels).view(-1, 2, 2).permute(1, 0, 2).reshape(-1)
    labels = clevr_render._labels(solids, four, View(2 * len(pixels), 2, 0, 0, 1, 1))
    assert labels.flatten().tolist() == [2, 0, 1, 2, 2, 1]


def test_srgb_table():
    table = clevr_render._srgb_bytes().astype(int)
    assert (np.diff(table) >= 0).all()
    assert (np.diff(table) <= 1).sum() > 4080
    # Middle grey of linear light 0.2140 is 127.5 in sRGB.
    assert [table[0], table[round(0.2140 * 4095)], table[-1]] == [0, 127, 255]
