import hashlib
from pathlib import Path

import numpy as np
import pytest

from slotattn_fast.data.multi_object import read_scenes
from slotattn_fast.data.synthetic import tetrominoes
from slotattn_fast.data.synthetic.tetrominoes import (
    BEVEL,
    BLOCK_SIZE,
    COLOURS,
    IMAGE_SIZE,
    NUM_PIECES,
    PIECES,
    sample_tetrominoes,
)

SCENES = 2000
# Ten examples of the published data set; they are not part of this repository.
REAL = Path(__file__).parents[2] / "shared" / "data" / "tetrominoes_real_10.tfrecords"


@pytest.fixture(scope="module")
def scenes():
    made = sample_tetrominoes(0, np.arange(SCENES))
    return made["images"], made["labels"]


def shape_of(mask):
    """The blocks of a piece, cut to its bounding box, and the box's corner."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    blocks = box[::BLOCK_SIZE, ::BLOCK_SIZE]
    assert (box == np.kron(blocks, np.ones((BLOCK_SIZE, BLOCK_SIZE), bool))).all()
    return "/".join("".join("#" if x else "." for x in row) for row in blocks), (rows[0], columns[0])


def test_the_19_pieces_are_all_fixed_tetrominoes():
    # Grown block by block from one, without regard to the table.
    grown = {frozenset([(0, 0)])}
    for _ in range(3):
        grown = {
            cells | {(r + dr, c + dc)}
            for cells in grown
            for r, c in cells
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if (r + dr, c + dc) not in cells
        }
    fixed = {frozenset((r - min(r for r, _ in p), c - min(c for _, c in p)) for r, c in p) for p in grown}
    table = {
        frozenset((r, c) for r, row in enumerate(p.split("/")) for c, cell in enumerate(row) if cell == "#")
        for p in PIECES
    }
    assert len(fixed) == 19
    assert table == fixed


def test_a_batch_holds_three_whole_pieces_in_every_scene(scenes):
    images, labels = scenes
    assert images.shape == (SCENES, 35, 35, 3)
    assert labels.shape == (SCENES, 35, 35)
    assert images.dtype == labels.dtype == np.uint8
    assert ((labels > 0) == images.any(-1)).all()
    for label in (1, 2, 3):
        assert ((labels == label).sum((1, 2)) == 4 * BLOCK_SIZE**2).all()
    seen = {shape_of(scene == label)[0] for scene in labels for label in (1, 2, 3)}
    assert seen == set(PIECES)


def test_blocks_are_bevelled_in_one_of_six_colours(scenes):
    images, labels = scenes
    colours = {tuple(colour) for colour in COLOURS}
    repeats = 0
    for image, scene in zip(images[:300], labels[:300], strict=True):
        in_scene = []
        for label in (1, 2, 3):
            shape, (top, left) = shape_of(scene == label)
            colour = (image[scene == label].max(0) > 0).astype(np.uint8)
            in_scene.append(tuple(colour))
            for r, row in enumerate(shape.split("/")):
                for c, cell in enumerate(row):
                    if cell == "#":
                        y, x = top + r * BLOCK_SIZE, left + c * BLOCK_SIZE
                        block = image[y : y + BLOCK_SIZE, x : x + BLOCK_SIZE]
                        assert (block == BEVEL[..., None] * colour).all()
        assert set(in_scene) <= colours
        repeats += len(set(in_scene)) < 3
    assert 0.35 < repeats / 300 < 0.55  # of three independent draws from six, 1 - 5/6 * 4/6 = 0.44 repeat one


def test_pieces_colours_and_places_are_uniform(scenes):
    images, labels = scenes
    shapes, corners = zip(*(shape_of(scene == label) for scene in labels for label in (1, 2, 3)), strict=True)
    counts = np.array([shapes.count(piece) for piece in PIECES])
    expected = SCENES * 3 / len(PIECES)
    assert ((counts - expected) ** 2 / expected).sum() < 42.3  # chi-squared, 18 degrees of freedom, p = 0.001

    # Colours, and each together with each piece.
    lit = [image[scene == label].max(0) > 0 for image, scene in zip(images, labels, strict=True) for label in (1, 2, 3)]
    pairs = [((np.array(shapes) == p)[:, None] & (lit == colour)).all(1).sum() for p in PIECES for colour in COLOURS]
    expected = SCENES * 3 / len(pairs)
    assert ((np.array(pairs) - expected) ** 2 / expected).sum() < 164.7  # 113 degrees of freedom, p = 0.001

    # Any place that fits is reached, from edge to edge; pieces may touch.
    for shape, height in (("####", 1), ("#/#/#/#", 4)):
        tops = [corner[0] for s, corner in zip(shapes, corners, strict=True) if s == shape]
        assert min(tops) == 0
        assert max(tops) == IMAGE_SIZE - height * BLOCK_SIZE
    touching = [((s[:, 1:] != s[:, :-1]) & (s[:, 1:] > 0) & (s[:, :-1] > 0)).any() for s in labels]
    assert any(touching)


def test_the_order_of_the_pieces_says_nothing_about_their_places(scenes):
    # By rejection of the whole scene, not piece by piece: no piece has first choice.
    _, labels = scenes
    distance = [
        np.mean([np.abs(np.argwhere(scene == label).mean(0) - 17).sum() for scene in labels]) for label in (1, 2, 3)
    ]
    assert np.ptp(distance) < 0.6  # four standard errors


@pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL.name}")
def test_the_published_images_are_drawn_from_the_same_tables():
    scenes = list(read_scenes(REAL, "tetrominoes"))
    assert len(scenes) == 10
    piece_of = {}
    for scene in scenes:
        drawn = np.zeros_like(scene["image"])
        assert len(scene["mask"]) == 1 + NUM_PIECES
        for entity in range(1, 1 + NUM_PIECES):
            mask = scene["mask"][entity] > 0
            assert mask.sum() == 4 * BLOCK_SIZE**2
            shape, corner = shape_of(mask)
            assert shape in PIECES
            assert corner == (scene["x"][entity], scene["y"][entity])
            assert piece_of.setdefault(scene["shape"][entity], shape) == shape
            colour = scene["color"][entity]
            assert (colour == COLOURS).all(1).any()
            blocks = np.kron([[cell == "#" for cell in row] for row in shape.split("/")], BEVEL)
            height, width = blocks.shape
            drawn[corner[0] : corner[0] + height, corner[1] : corner[1] + width] += (
                blocks[..., None] * colour.astype(np.uint8)
            ).astype(np.uint8)
        np.testing.assert_array_equal(drawn, scene["image"])
    assert len(set(piece_of.values())) == len(piece_of)


def test_a_scene_is_the_same_in_any_batch_and_order():
    together = sample_tetrominoes(3, np.arange(1000))  # some take a second round of tries
    assert list(together) == ["images", "labels", "num_objects"]
    for first in range(0, 1000, 100):
        part = sample_tetrominoes(3, np.arange(first, first + 100))
        for name, value in together.items():
            np.testing.assert_array_equal(part[name], value[first : first + 100])
    order = [700, 5, 6, 7, 999, 5, 0, 0, 2]
    shuffled = sample_tetrominoes(3, order)
    for name, value in together.items():
        np.testing.assert_array_equal(shuffled[name], value[order])


def test_a_second_round_of_tries_is_no_repeat_of_the_first(monkeypatch):
    # With one try a round, half of the scenes take a second one; places stay uniform, and rounds come to an end.
    monkeypatch.setattr(tetrominoes, "_TRIES", 1)
    labels = sample_tetrominoes(0, np.arange(SCENES))["labels"]
    for label in (1, 2, 3):
        assert ((labels == label).sum((1, 2)) == 4 * BLOCK_SIZE**2).all()


def test_seeds_and_far_indices_differ():
    scenes = [sample_tetrominoes(seed, first + np.arange(50))["images"] for seed, first in ((0, 0), (1, 0), (0, 2**40))]
    assert len(np.unique(np.concatenate(scenes).reshape(150, -1), axis=0)) == 150


def test_scenes_stay_the_same_from_version_to_version():
    made = sample_tetrominoes(7, [*range(500), 2**40])
    digest = hashlib.sha256(made["images"].tobytes() + made["labels"].tobytes() + made["num_objects"].tobytes())
    assert digest.hexdigest() == "5e73ded57cae83bc0f9c81712711808396cf85cc666c3339ebb9606b3a28cd66"


def test_three_objects_of_bytes():
    made = sample_tetrominoes(0, np.arange(5))
    assert made["num_objects"].tolist() == [3] * 5
    assert all(value.dtype == np.uint8 for value in made.values())


@pytest.mark.parametrize(("seed", "scenes"), [(-1, [0]), (0, [1, -1])])
def test_negative_seed_or_index(seed, scenes):
    with pytest.raises(ValueError, match="expected none below 0"):
        sample_tetrominoes(seed, scenes)
