import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from slotattn_fast.data.synthetic.clevr import sample_clevr
from slotattn_fast.data.synthetic.clevr_geometry import View
from slotattn_fast.data.synthetic.clevr_render import render
from slotattn_fast.data.synthetic.clevr_scenes import sample_scenes

CPU = torch.device("cpu")
BATCH = 12


@pytest.fixture(scope="module")
def full():
    return sample_clevr(3, range(BATCH), crop=False)


@pytest.fixture(scope="module")
def cropped():
    return sample_clevr(3, range(BATCH), crop=True)


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
GOLDEN = "614ccbe8a297d74cda27cb5e292309446af0196f2a023058d39ff862d8ca2e82"
# Pictures, labels and properties, and the light in float32 before it is made bytes: these would hide most last bits.
HASH = """
import hashlib
from slotattn_fast.data.synthetic import clevr_render
from slotattn_fast.data.synthetic.clevr import sample_clevr
develop, light = clevr_render._develop, []
clevr_render._develop = lambda picture, view: light.extend(picture) or develop(picture, view)
made = sample_clevr(1, [5, 2**40, 77], crop=True, size=64)
values = [made[name] for name in sorted(made)] + light
print(hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest())
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
