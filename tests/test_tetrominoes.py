import numpy as np
import pytest

from slotattn_fast.data.synthetic.tetrominoes import BEVEL, BLOCK_SIZE, COLOURS, IMAGE_SIZE, PIECES, sample_tetrominoes

SCENES = 2000


@pytest.fixture(scope="module")
def scenes():
    return sample_tetrominoes(np.random.default_rng(0), SCENES)


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

    first = np.array([image[scene == 1].max(0) > 0 for image, scene in zip(images, labels, strict=True)])
    colours = np.array([(first == colour).all(1).sum() for colour in COLOURS])
    assert ((colours - SCENES / 6) ** 2 / (SCENES / 6)).sum() < 20.5  # 5 degrees of freedom, p = 0.001

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


def test_a_seed_fixes_the_batch():
    for one, other in zip(*(sample_tetrominoes(np.random.default_rng([3, 7]), 8) for _ in range(2)), strict=True):
        assert (one == other).all()
    assert (sample_tetrominoes(np.random.default_rng([3, 8]), 8)[0] != one[..., None]).any()


def test_bad_batch_size():
    with pytest.raises(ValueError, match="batch_size: got 0, expected at least 1"):
        sample_tetrominoes(np.random.default_rng(0), 0)
