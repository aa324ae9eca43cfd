import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from slotattn_fast.data.synthetic import clevr_render, clevr_shadows
from slotattn_fast.data.synthetic.clevr import _view, sample_clevr
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
from slotattn_fast.data.synthetic.clevr_scenes import CAMERA, COLORS, LAMPS, MAX_OBJECTS, Scenes, sample_scenes

CPU = torch.device("cpu")
BATCH = 12
GRAY, RED, YELLOW, CYAN = (COLORS.index(name) for name in ("gray", "red", "yellow", "cyan"))
RUBBER, METAL = 0, 1


@pytest.fixture(scope="module")
def full():
    return sample_clevr(3, range(BATCH), crop=False)


@pytest.fixture(scope="module")
def cropped():
    return sample_clevr(3, range(BATCH), crop=True)


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


def test_a_scene_does_not_depend_on_its_batch_or_the_number_of_threads(full):
    for indices in ([7], [11, 2, 7, 0, 2, 5]):
        again = sample_clevr(3, indices, crop=False)
        for name, values in full.items():
            assert torch.equal(again[name], values[indices]), name
    torch.set_num_threads(3)
    try:
        again = sample_clevr(3, [11, 2], crop=False)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(again["images"], full["images"][[11, 2]])
    assert not torch.equal(sample_clevr(4, [11, 2], crop=False)["images"], again["images"])


# Of everything that HASH makes. A change of looks or law changes it; then look at the pictures and record the new one.
GOLDEN = "fb4bf33878651a672a7015c536ca150546026c3c2b2d1e3efdb5a6fa3637b9d5"
HASH = """
import hashlib
from slotattn_fast.data.synthetic.clevr import sample_clevr
made = sample_clevr(1, [5, 2**40], crop=True, size=64)
print(hashlib.sha256(b"".join(values.numpy().tobytes() for _, values in sorted(made.items()))).hexdigest())
"""


@pytest.mark.parametrize("vectors", ["default", "avx2", None])
def test_the_bits_are_those_recorded_whatever_the_vector_width(vectors):
    # "default" is the code for machines without vector instructions beyond the basic ones.
    environment = dict(os.environ) | ({"ATEN_CPU_CAPABILITY": vectors} if vectors else {})
    ran = subprocess.run([sys.executable, "-c", HASH], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == GOLDEN


def test_both_views_show_the_same_scene(full, cropped):
    for name in full.keys() - {"images", "labels"}:
        assert torch.equal(full[name], cropped[name]), name
    # At the resolution of the whole view the crop is a part of it, bit for bit.
    scenes = sample_scenes(3, [0, 1], (3, 10), CPU)
    whole, labels = render(scenes, View(640, 480, 0, 0, 0.5, 0.5), CPU)
    part = sample_clevr(3, [0, 1], crop=True, size=192)
    assert torch.equal(whole[:, 29:221, 64:256], part["images"])
    assert torch.equal(labels[:, 29:221, 64:256], part["labels"])


def test_objects_are_seen_where_their_properties_say(full, cropped):
    depth = full["pixel_coords"][..., 2].numpy()
    seen = 0
    for made, left, top, width, height in ((full, 0, 0, 320, 240), (cropped, 64, 29, 192, 192)):
        for i in range(BATCH):
            for k in range(made["num_objects"][i]):
                column, row, _ = made["pixel_coords"][i, k].tolist()
                x = (column * 2 / 3 - left) * 128 / width
                y = (120 + (row - 160) * 2 / 3 - top) * 128 / height
                if 0 <= x < 128 and 0 <= y < 128:
                    label = int(made["labels"][i, int(y), int(x)])
                    assert label > 0
                    assert depth[i, label - 1] <= depth[i, k]
                    seen += label == k + 1
    assert seen > BATCH * 6
    assert full["labels"].amax(dim=(1, 2)).tolist() == full["num_objects"].tolist()


def test_coordinates_are_those_of_a_pinhole_camera_at_480x320(full):
    scenes = sample_scenes(3, range(BATCH), (3, 10), CPU)
    for i in range(BATCH):
        forward = -scenes.camera[i] / np.linalg.norm(scenes.camera[i])
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        up = np.cross(right, forward)
        for k in range(scenes.count[i]):
            away = scenes.centre[i, k] - scenes.camera[i]
            place = 240 + 525 * (away @ right) / (away @ forward), 160 - 525 * (away @ up) / (away @ forward)
            np.testing.assert_allclose(full["pixel_coords"][i, k, :2], place, atol=0.5 + 1e-4)
            np.testing.assert_allclose(full["pixel_coords"][i, k, 2], away @ forward, rtol=1e-6)
        rest = full["pixel_coords"][i, scenes.count[i] :], full["rotation"][i, scenes.count[i] :]
        assert all((values == 0).all() for values in rest)


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
    solids = scenes.solids()
    table = frames(solids, CPU)
    rays = camera_rays(scenes.camera, view, CPU)
    winner, hits = first_hits(solids, table, rays, view)
    camera = to_vector(np.repeat(scenes.camera, 64 * 48, axis=0), CPU)
    ground = add(camera, scale(rays, -camera[2] / rays[2]))
    points = add(take(camera, hits.ray), scale(take(rays, hits.ray), hits.distance))
    lamps = clevr_shadows.make_lamps(scenes.lamps)
    blocked = clevr_shadows.shaded(solids, table, lamps, winner, hits, points, ground, view).numpy()
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
    scenes, view = scene_of((CYLINDER, RUBBER, GRAY, 0, 0)), _view(True, 128)
    solids = scenes.solids()
    table = frames(solids, CPU)
    rays = camera_rays(scenes.camera, view, CPU)
    winner, hits = first_hits(solids, table, rays, view)
    camera = to_vector(scenes.camera, CPU)
    ground = add(camera, scale(rays, -camera[2] / rays[2]))
    points = take(ground, hits.ray)
    lamps = clevr_shadows.make_lamps(scenes.lamps)
    blocked = clevr_shadows.shaded(solids, table, lamps, winner, hits, points, ground, view)
    for part in blocked:  # [4, rays]
        hidden = part.view(4, 128, 2, 128, 2).float().mean(dim=(0, 2, 4))
        assert len(hidden.unique()) > 8
        core, edge = (hidden == 1).sum(), ((hidden > 0) & (hidden < 1)).sum()
        assert 0.2 * core < edge < 3 * core


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
    edge = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] + labels[:, :-1] == 1)
    jumps = np.abs(np.diff(redness, axis=1))[edge]
    whole = np.median(redness[labels == 1])
    assert np.median(jumps) < 0.85 * whole


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


def test_no_scenes():
    made = sample_clevr(0, [], crop=True, size=16)
    assert made["images"].shape == (0, 16, 16, 3)
    assert made["coords"].shape == (0, 10, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"scenes": [1, -2]}, r"scenes: got -2 \.\. 1, expected 0 \.\. 8796093022207"),
        ({"scenes": [2**43]}, r"scenes: got 8796093022208 \.\. 8796093022208, expected 0"),
        ({"scenes": [0.5]}, r"scenes: got float64 of shape \(1,\), expected integers \[B\]"),
        ({"scenes": 3}, r"scenes: got int64 of shape \(\), expected integers \[B\]"),
        ({"num_objects": (0, 3)}, r"num_objects: got \(0, 3\), expected \(fewest, most\) within 1 \.\. 10"),
        ({"num_objects": (3, 11)}, r"num_objects: got \(3, 11\)"),
        ({"num_objects": (6, 3)}, r"num_objects: got \(6, 3\)"),
        ({"size": 0}, "size: got 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    arguments = {"seed": 0, "scenes": [0], "num_objects": (3, 10), "crop": True, "size": 128} | changed
    with pytest.raises(ValueError, match=message):
        sample_clevr(arguments.pop("seed"), arguments.pop("scenes"), **arguments)
