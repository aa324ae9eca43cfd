import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from tfrecord_writer import byte_strings, example, floats, frame, gzip_member, integers, scene, strings, tfrecords
from time_limit import time_limit

from slotattn_fast.data.errors import DataError
from slotattn_fast.data.multi_object import DATA_SETS, label_map, read_scenes

PUBLISHED = Path(__file__).parents[2] / "shared" / "data"

B, F = "u1", "<f4"
# One row a file: what its records hold, by the published descriptions; E first, also where it is last on the disk.
FILES = {
    "clevr_with_masks_train": ("clevr-with-masks", {
        "image": (B, 240, 320, 3), "mask": (B, 11, 240, 320), "x": (F, 11), "y": (F, 11), "z": (F, 11),
        "pixel_coords": (F, 11, 3), "rotation": (F, 11), "size": (B, 11), "material": (B, 11), "shape": (B, 11),
        "color": (B, 11), "visibility": (F, 11),
    }),
    "multi_dsprites_binarized": ("multi-dsprites-binarized", {
        "image": (B, 64, 64, 1), "mask": (B, 4, 64, 64), "x": (F, 4), "y": (F, 4), "shape": (F, 4), "color": (F, 4, 1),
        "visibility": (F, 4), "orientation": (F, 4), "scale": (F, 4),
    }),
    "multi_dsprites_colored_on_grayscale": ("multi-dsprites-colored-on-grayscale", {
        "image": (B, 64, 64, 3), "mask": (B, 6, 64, 64), "x": (F, 6), "y": (F, 6), "shape": (F, 6), "color": (F, 6, 3),
        "visibility": (F, 6), "orientation": (F, 6), "scale": (F, 6),
    }),
    "multi_dsprites_colored_on_colored": ("multi-dsprites-colored-on-colored", {
        "image": (B, 64, 64, 3), "mask": (B, 5, 64, 64), "x": (F, 5), "y": (F, 5), "shape": (F, 5), "color": (F, 5, 3),
        "visibility": (F, 5), "orientation": (F, 5), "scale": (F, 5),
    }),
    "tetrominoes_train": ("tetrominoes", {
        "image": (B, 35, 35, 3), "mask": (B, 4, 35, 35), "x": (F, 4), "y": (F, 4), "shape": (F, 4), "color": (F, 4, 3),
        "visibility": (F, 4),
    }),
    "objects_room_train": ("objects-room", {"image": (B, 64, 64, 3), "mask": (B, 7, 64, 64)}),
    "objects_room_test_empty_room": ("objects-room", {"image": (B, 64, 64, 3), "mask": (B, 4, 64, 64)}),
    "objects_room_test_six_objects": ("objects-room", {"image": (B, 64, 64, 3), "mask": (B, 10, 64, 64)}),
}  # fmt: skip
SMALL = [file for file in FILES if file != "clevr_with_masks_train"]
NAMES = list(dict.fromkeys(name for name, _ in FILES.values()))


@pytest.fixture(autouse=True)
def _in_time():
    with time_limit(60):
        yield


def draw(file, seed=0):
    """A scene with noise in its image, its factors and its masks."""
    rng = np.random.default_rng(seed)
    arrays = {
        feature: rng.integers(0, 256, shape, np.uint8) if kind == B else rng.normal(size=shape).astype(np.float32)
        for feature, (kind, *shape) in FILES[file][1].items()
    }
    owners = rng.integers(0, len(arrays["mask"]), arrays["mask"].shape[1:])
    arrays["mask"] = 255 * np.uint8(owners == np.arange(len(arrays["mask"]))[:, None, None])
    return arrays


def on_disk(file, arrays):
    """Its arrays as they lie in the file."""
    return arrays | {"mask": np.moveaxis(arrays["mask"], 0, 2)} if "dsprites" in file else arrays


def record(file, seed=0):
    return scene(on_disk(file, draw(file, seed)))


def assert_same(scenes, expected):
    assert len(scenes) == len(expected)
    for got, arrays in zip(scenes, expected, strict=True):
        assert got.keys() == arrays.keys()
        for feature, array in arrays.items():
            assert got[feature].dtype == array.dtype
            np.testing.assert_array_equal(got[feature], array, strict=True, err_msg=feature)


@pytest.fixture
def read(tmp_path):
    """Reads a file of these contents: the scenes, and the message of the error on which they ended, or None."""
    path = tmp_path / "file.tfrecords"

    def read(contents, name, skip=0):
        path.write_bytes(contents)
        scenes = []
        try:
            for arrays in read_scenes(path, name, skip):
                scenes.append(arrays)
        except DataError as error:
            message = str(error)
            assert message.startswith(f"{path}: record {skip + len(scenes)}: ")
            assert "\n" not in message
            return scenes, message
        return scenes, None

    return read


def published(file):
    """Path of a file that TensorFlow wrote, and the scenes in it."""
    path = PUBLISHED / f"{file}.tfrecords"
    if not path.exists():
        pytest.skip(f"no {path}")
    with np.load(path.with_suffix(".npz")) as arrays:
        truth = {feature: arrays[feature] for feature in arrays}
    truth["mask"] = truth["mask"][..., 0]
    return path, [{feature: array[i] for feature, array in truth.items()} for i in range(len(truth["image"]))]


WRITTEN_BY_TENSORFLOW = [file for file in FILES if "_test_" not in file]


@pytest.mark.parametrize("file", WRITTEN_BY_TENSORFLOW)
def test_the_tests_writer_writes_what_tensorflow_writes(file):
    path, truth = published(file)
    with gzip.open(path) as contents:
        start = contents.read(4_000_000)
    # Protobuf promises no order of the features.
    order = sorted(truth[0], key=lambda name: start.index(bytes([0x0A, len(name)]) + name.encode() + b"\x12"))
    arrays = on_disk(file, truth[0])
    framed = frame(scene({feature: arrays[feature] for feature in order}))
    assert framed == start[: len(framed)]


@pytest.mark.parametrize("file", WRITTEN_BY_TENSORFLOW)
@pytest.mark.parametrize("skip", [0, 3, 4])
def test_scenes_are_those_that_tensorflow_wrote(file, skip):
    path, truth = published(file)
    assert_same(list(read_scenes(path, FILES[file][0], skip)), truth[skip:])


def test_real_tetrominoes_are_three_pieces_in_the_colours_they_are_said_to_have():
    path = PUBLISHED / "tetrominoes_real_10.tfrecords"
    if not path.exists():
        pytest.skip(f"no {path}")
    scenes = list(read_scenes(path, "tetrominoes"))
    assert len(scenes) == 10
    for arrays in scenes:
        labels = label_map(arrays["mask"])
        assert np.bincount(labels.ravel()).tolist() == [35 * 35 - 300, 100, 100, 100]
        assert ((labels > 0) == arrays["image"].any(-1)).all()
        for entity in (1, 2, 3):
            pixels = arrays["image"][labels == entity]
            assert ((pixels > 0) == (arrays["color"][entity] > 0)).all()
            rows, columns = np.nonzero(labels == entity)
            assert (arrays["x"][entity], arrays["y"][entity]) == (rows.min(), columns.min())
        assert arrays["shape"][0] == 0
        assert set(arrays["shape"][1:]) <= set(range(1, 20))
        assert (arrays["visibility"] == 1).all()


@pytest.mark.parametrize("file", FILES)
def test_scenes_come_as_written(read, file):
    expected = [draw(file, seed) for seed in range(2)]
    scenes, problem = read(tfrecords(*(scene(on_disk(file, arrays)) for arrays in expected)), FILES[file][0])
    assert problem is None
    assert_same(scenes, expected)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in scenes[0].values())


def test_skipped_scenes_are_not_parsed_but_their_checksums_are_verified(read, tmp_path):
    good = record("tetrominoes_train")
    scenes, problem = read(tfrecords(b"no example", good, b"no example"), "tetrominoes", skip=1)
    assert_same(scenes, [draw("tetrominoes_train")])
    assert "record 2: not a tf.train.Example" in problem
    path = tmp_path / "damaged.tfrecords"
    path.write_bytes(gzip_member(b"".join([frame(good)[:-4], bytes(4), frame(good)])))
    with pytest.raises(DataError, match="record 0: the record's data do not match"):
        next(read_scenes(path, "tetrominoes", skip=1))


def test_bytes_may_be_one_string_and_other_features_are_passed_over(read):
    arrays = draw("tetrominoes_train")
    features = {name: floats(array) for name, array in arrays.items() if array.dtype == np.float32}
    features |= {name: strings(arrays[name].tobytes()) for name in ("image", "mask")}
    features["serial_number"] = integers(7)
    scenes, problem = read(tfrecords(example(features)), "tetrominoes")
    assert problem is None
    assert_same(scenes, [arrays])


@pytest.mark.parametrize("file", FILES)
def test_another_data_sets_file_is_recognised(read, file):
    own, _ = FILES[file]
    contents = tfrecords(record(file))
    for name in NAMES:
        scenes, problem = read(contents, name)
        if name == own:
            assert problem is None
        else:
            assert scenes == []
            assert "record 0: feature '" in problem
            assert problem.endswith(f"; this looks like {own}: check the file, and the name {name}")


def test_a_name_that_is_none_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=f"^name: got 'tetris', expected one of {', '.join(NAMES)}$"):
        read_scenes(tmp_path, "tetris")
    assert list(DATA_SETS) == NAMES


T = "tetrominoes_train"


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (T, {"image": None}, "feature 'image' is missing"),
        (T, {"mask": None}, "feature 'mask' is missing"),
        (T, {"visibility": None}, "feature 'visibility' is missing"),
        (T, {"visibility": b""}, "feature 'visibility' is missing"),
        (T, {"image": byte_strings(np.zeros(3674, np.uint8))}, "'image' has 3674 values, expected 35 x 35 x 3;?"),
        (T, {"image": byte_strings(np.zeros(0, np.uint8))}, "'image' has 0 values, expected 35 x 35 x 3"),
        (T, {"mask": byte_strings(np.zeros(6125, np.uint8))}, "'mask' has 6125 values, expected 4 x 35 x 35"),
        (T, {"color": floats(np.zeros(4))}, "'color' has 4 values, expected 4 x 3"),
        (T, {"x": floats(np.zeros(5))}, "'x' has 5 values, expected 4:"),
        (T, {"x": byte_strings(np.zeros(4, np.uint8))}, "'x' has the type uint8, expected float32"),
        (T, {"image": floats(np.zeros(3675))}, "'image' has the type float32, expected uint8"),
        (T, {"x": integers(1, 2, 3, 4)}, "'x' is a list of integers"),
        (T, {"mask": byte_strings(np.full(4900, 254, np.uint8))}, "'mask' holds 254, expected 0 and 255 alone"),
        (T, {"mask": byte_strings(np.r_[np.zeros(4899, np.uint8), 1])}, "'mask' holds 1, expected 0 and 255 alone"),
        (T, {"mask": byte_strings(np.r_[128, np.zeros(4899, np.uint8)])}, "'mask' holds 128, expected 0 and 255"),
        (
            "objects_room_train",
            {"mask": byte_strings(np.zeros(6 * 64 * 64, np.uint8))},
            "'mask' has 24576 values, expected 4 x 64 x 64 or 7 x 64 x 64 or 10 x 64 x 64",
        ),
        (
            "clevr_with_masks_train",
            {"material": floats(np.zeros(11))},
            "'material' has the type float32, expected uint8",
        ),
    ],
)
def test_what_differs_from_the_schema_is_named(read, file, change, problem):
    arrays = on_disk(file, draw(file))
    features = {name: (byte_strings if array.dtype == np.uint8 else floats)(array) for name, array in arrays.items()}
    features = {name: feature for name, feature in (features | change).items() if feature is not None}
    scenes, message = read(tfrecords(record(file), example(features)), FILES[file][0])
    assert len(scenes) == 1
    assert problem.rstrip(";?") in message
    assert "looks like" not in message


@pytest.mark.parametrize("file", FILES)
def test_flipped_bits_give_no_other_scenes(read, file):
    # 8 x 150 flips, at every place alike; a tenth of them in the first hundred and the last ten bytes.
    name = FILES[file][0]
    expected = [draw(file, seed) for seed in range(2)] if file in SMALL else [draw(file)]
    contents = tfrecords(*(scene(on_disk(file, arrays)) for arrays in expected))
    rng = random.Random(file)
    passed = 0
    for i in range(150):
        at = rng.randrange(len(contents))
        if i % 10 == 0:
            at = rng.choice([rng.randrange(100), len(contents) - 1 - rng.randrange(10)])
        damaged = bytearray(contents)
        damaged[at] ^= 1 << rng.randrange(8)
        scenes, problem = read(bytes(damaged), name)
        assert_same(scenes, expected[: len(scenes)])
        if problem is None:
            assert len(scenes) == len(expected)
            # In the header "is text", time, effort and system; before the trailer what fills up a byte.
            assert 3 <= at < 10 or at == len(contents) - 9
            passed += 1
    assert passed < 15


@pytest.mark.parametrize("file", SMALL)
def test_flipped_bits_under_good_checksums_are_refused_or_keep_the_schema(read, file):
    name = FILES[file][0]
    expected = draw(file)
    good = record(file)
    # The bytes that are no pixels: the message's lengths and names, and the factors.
    structure = [i for i in range(len(good)) if good[i - 2 : i] != b"\n\1" and good[i - 1 : i + 2] != b"\n\1"]
    rng = random.Random(file)
    refused = 0
    for _ in range(40):
        damaged = bytearray(good)
        damaged[rng.choice(structure)] ^= 1 << rng.randrange(8)
        scenes, problem = read(gzip_member(frame(bytes(damaged)), level=1), name)
        refused += problem is not None
        for arrays in scenes:
            assert {k: (a.shape, a.dtype) for k, a in arrays.items()} == {
                k: (a.shape, a.dtype) for k, a in expected.items()
            }
    assert refused > 5


def test_a_label_is_the_last_owner_or_background():
    owners = [[{0}, {1}, {2}], [set(), {1, 2}, {0, 1}]]
    mask = np.array([[[255 * (entity in pixel) for pixel in row] for row in owners] for entity in range(3)], np.uint8)
    labels = label_map(mask)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1, 2], [0, 2, 1]]
