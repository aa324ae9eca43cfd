"""CLEVR from the published folder and from TensorFlow Datasets: the same samples, or an error of one line."""

import json
import os
import random
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import clevr_writer
import numpy as np
import pytest
from clevr_writer import LABELS, draw, png, write_published, write_tfds
from PIL import Image
from time_limit import time_limit

from slotattn_fast.data.clevr import ClevrScene, decode, read_clevr
from slotattn_fast.data.clevr_published import PROPERTIES
from slotattn_fast.data.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"
SCENES = {
    "train": [draw(i, objects) for i, objects in enumerate((3, 10, 0, 7))],
    "validation": [draw(9, 5)],
}


@pytest.fixture(autouse=True)
def _in_time():
    with time_limit(60):
        yield


@pytest.fixture
def published(tmp_path):
    write_published(tmp_path / "CLEVR_v1.0", SCENES)
    return tmp_path / "CLEVR_v1.0"


@pytest.fixture
def tfds(tmp_path):
    write_tfds(tmp_path / "tfds", SCENES)
    return tmp_path / "tfds"


def expected(image, objects):
    """The arrays of a scene as it was drawn."""

    def padded(values, dtype, *shape):
        array = np.zeros((10, *shape), dtype)
        for i, value in enumerate(values):
            array[i] = value
        return array

    codes = {name: padded([labels.index(o[name]) for o in objects], np.uint8) for name, labels in LABELS.items()}
    return codes | {
        "image": image,
        "num_objects": np.array(len(objects), np.uint8),
        "coords": padded([o["3d_coords"] for o in objects], np.float32, 3),
        "pixel_coords": padded([o["pixel_coords"] for o in objects], np.float32, 3),
        "rotation": padded([o["rotation"] for o in objects], np.float32),
    }


def samples(source, split):
    """Scenes by their number."""
    scenes = list(read_clevr(source, split))
    assert len({scene.number for scene in scenes}) == len(scenes)
    return {scene.number: {"image": decode(scene), **scene.objects} for scene in scenes}


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for number in got:
        assert got[number].keys() == wanted[number].keys()
        for name, array in got[number].items():
            np.testing.assert_array_equal(array, wanted[number][name], strict=True, err_msg=f"{number} {name}")


def problem(source, split="train"):
    """The one line that reading and decoding all of a split end with."""
    with pytest.raises(DataError) as raised:
        samples(source, split)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def refusal(read):
    """What `read` returns, and the message if it is refused."""
    try:
        return read(), None
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    return None, message


def test_labels_are_those_of_tensorflow_datasets():
    assert {name: list(labels) for name, labels in PROPERTIES.items()} == LABELS


@pytest.mark.parametrize("split", SCENES)
def test_the_published_folder_is_read_as_written(published, split):
    wanted = {i: expected(*scene) for i, scene in enumerate(SCENES[split])}
    assert_same(samples(published, split), wanted)


def test_published_scenes_may_come_in_any_order(published):
    wanted = samples(published, "train")
    path = published / "scenes" / "CLEVR_train_scenes.json"
    scenes = json.loads(path.read_text())
    scenes["scenes"].reverse()
    path.write_text(json.dumps(scenes))
    assert_same(samples(published, "train"), wanted)


@pytest.mark.parametrize("split", SCENES)
@pytest.mark.parametrize("order", [list, lambda s: s[::-1], lambda s: random.Random(0).sample(s, len(s))])
def test_tensorflow_datasets_give_equal_samples(tmp_path, split, order):
    folder = write_tfds(tmp_path, SCENES, order=order)
    wanted = {i: expected(*scene) for i, scene in enumerate(SCENES[split])}
    for source in (tmp_path, folder):
        assert_same(samples(source, split), wanted)


@pytest.mark.parametrize("split", SCENES)
def test_real_writers_folders_give_equal_samples(split):
    if not SHARED.exists():
        pytest.skip(f"no {SHARED}")
    published = samples(SHARED / "CLEVR_v1.0", split)
    assert len(published) == 5
    assert_same(samples(SHARED / "tfds", split), published)
    assert_same(samples(SHARED / "tfds" / "clevr" / "3.1.0", split), published)


def test_tensorflow_is_not_imported(tfds, published, tmp_path):
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("import os\nos._exit(77)\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from slotattn_fast.data.clevr import decode, read_clevr\n"
        "for source in sys.argv[1:]:\n"
        "    print(*(decode(scene).sum() for scene in read_clevr(Path(source), 'train')))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tfds), str(published)]
    environment = {**os.environ, "PYTHONPATH": str(trap.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len({tuple(line.split()) for line in done.stdout.splitlines()}) == 1


def png_path(published, number=0):
    return published / "images" / "train" / f"CLEVR_train_{number:06d}.png"


def test_a_missing_image(published):
    png_path(published, 3).unlink()
    assert problem(published).startswith(f"{png_path(published, 3)}: missing, although CLEVR_train_scenes.json")


def test_a_missing_json(published):
    (published / "scenes" / "CLEVR_val_scenes.json").unlink()
    assert problem(published, "validation") == (
        f"{published / 'scenes' / 'CLEVR_val_scenes.json'}: missing; download it again"
    )
    assert len(samples(published, "train")) == 4


def test_every_truncation_of_an_image(published):
    small = clevr_writer.png(SCENES["train"][0][0] // 255 * 255, level=9)
    image = ClevrScene(0, "scene 0", small, {})
    assert decode(image).shape == (320, 480, 3)
    for length in [*range(len(small) - 200, len(small)), *range(0, len(small), 23), *range(100)]:
        with pytest.raises(DataError, match=r"^scene 0: damaged image.*; download it again$") as raised:
            decode(image._replace(png=small[:length]))
        assert "\n" not in str(raised.value)


def test_flipped_bits_of_an_image_are_refused_or_change_nothing():
    image, _ = SCENES["train"][1]
    data = png(image, level=6)
    rng = random.Random(0)
    refused = 0
    for i in range(300):
        flipped = bytearray(data)
        # A third of them where the chunks are described.
        at = rng.choice([rng.randrange(60), len(data) - 1 - rng.randrange(30)]) if i % 3 == 0 else None
        flipped[rng.randrange(len(data)) if at is None else at] ^= 1 << rng.randrange(8)
        pixels, message = refusal(lambda data=bytes(flipped): decode(ClevrScene(0, "scene 0", data, {})))
        if message is None:
            np.testing.assert_array_equal(pixels, image)
        refused += message is not None
    assert refused > 290


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_how_an_image_is_stored_does_not_matter(mode):
    levels = np.random.default_rng(0).integers(0, 256, (320, 480), np.uint8)
    image = Image.fromarray(levels).convert(mode)
    file = BytesIO()
    image.save(file, "PNG")
    pixels = decode(ClevrScene(0, "scene 0", file.getvalue(), {}))
    np.testing.assert_array_equal(pixels, np.repeat(levels[..., None], 3, -1))


@pytest.mark.parametrize("shape", [(240, 320), (480, 320), (1, 1), (9000, 9000)])
def test_an_image_of_another_size(shape):
    file = BytesIO()
    Image.new("1", shape[::-1]).save(file, "PNG")
    with pytest.raises(DataError, match="480"):
        decode(ClevrScene(0, "scene 0", file.getvalue(), {}))


def test_an_image_that_is_no_png():
    file = BytesIO()
    Image.new("RGB", (480, 320)).save(file, "BMP")
    for data in (file.getvalue(), file.getvalue() + b"\0\0\0\0IEND\xaeB`\x82", b""):
        with pytest.raises(DataError, match=r"^scene 0: damaged image"):
            decode(ClevrScene(0, "scene 0", data, {}))


def _object(scenes, **changes):
    scenes[1]["objects"][4].update(changes)


NO_NUMBERS = "coords not numbers of its shape"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _object(s, color="pink"), "scene 1: objects without a known 'pink'"),
        (lambda s: _object(s, shape=3), "scene 1: objects without a known 3"),
        (lambda s: _object(s, size=None), "scene 1: objects without a known"),
        (lambda s: _object(s, material=["rubber"]), "scene 1: objects without a known"),
        (lambda s: s[1]["objects"][4].pop("rotation"), "scene 1: objects without a known 'rotation'"),
        (lambda s: s[1].pop("objects"), "scene 1: objects without a known 'objects'"),
        (lambda s: s[1].update(objects=7), "scene 1: objects without a known"),
        (lambda s: s[1].update(objects=["cube"]), "scene 1: objects without a known"),
        (lambda s: s[1]["objects"].append(s[1]["objects"][0]), "scene 1: [11] objects, expected one number up to 10"),
        (lambda s: _object(s, pixel_coords=[1, 2]), f"scene 1: pixel_{NO_NUMBERS}"),
        (lambda s: _object(s, pixel_coords=1), f"scene 1: pixel_{NO_NUMBERS}"),
        (lambda s: _object(s, **{"3d_coords": [1, 2, "x"]}), f"scene 1: 3d_{NO_NUMBERS}"),
        (lambda s: _object(s, **{"3d_coords": [1, 2, 10**400]}), f"scene 1: 3d_{NO_NUMBERS}"),
        (lambda s: _object(s, rotation={"x": 1}), "scene 1: rotation not numbers of its shape"),
        (lambda s: _object(s, rotation=[1]), "scene 1: rotation not numbers of its shape"),
        (lambda s: _object(s, rotation=float("nan")), "scene 1: rotation not finite"),
        (lambda s: _object(s, rotation=1e300), "scene 1: rotation not finite"),
        (lambda s: s[1].update(image_index=0), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].update(image_index=4), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].update(image_index=-1), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].update(image_index="1"), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].update(image_index=1.0), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].update(image_index=True), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s[1].pop("image_index"), "4 scenes, but not each of the images 0 to 3 once"),
        (lambda s: s.pop(1), "3 scenes, but not each of the images 0 to 2 once"),
        (lambda s: s.append(s[0]), "5 scenes, but not each of the images 0 to 4 once"),
        (lambda s: s.append("scene"), "no list of scenes"),
    ],
)
def test_descriptions_that_cannot_be(published, change, message):
    path = published / "scenes" / "CLEVR_train_scenes.json"
    scenes = json.loads(path.read_text())
    change(scenes["scenes"])
    path.write_text(json.dumps(scenes))
    found = problem(published)
    assert found.startswith(f"{path}: {message}")
    assert "; " in found  # what to do


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b"null", b"3", b'{"scenes": 3}', b'{"scenes": {"a": {}}}', b"\xff\xfe{}", b'"\xe9"',
     b"[" * 100_000, b'{"scenes": [{"image_index": ' + b"9" * 5000 + b"}]}"],
)  # fmt: skip
def test_a_json_that_is_no_list_of_scenes(published, text):
    path = published / "scenes" / "CLEVR_train_scenes.json"
    path.write_bytes(text)
    assert problem(published).startswith(f"{path}: ")


def test_a_damaged_json_is_refused_or_read(published):
    path = published / "scenes" / "CLEVR_train_scenes.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    for i in range(200):
        data = bytearray(whole)
        if i % 4 == 0:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        scenes, message = refusal(lambda: list(read_clevr(published, "train")))
        if message is None:
            # Numbers and labels may be others, which no check could tell.
            assert i % 4
            assert sorted(scene.number for scene in scenes) == [0, 1, 2, 3]
        else:
            assert message.startswith(str(published))


@pytest.mark.parametrize("folder", ["", "images", "scenes"])
def test_a_folder_that_is_neither(published, folder):
    if folder:
        shutil.rmtree(published / folder)
    else:
        published = published.parent
    assert problem(published).startswith(f"{published}: neither CLEVR_v1.0 (with images/ and scenes/) nor a folder of")
    assert "slotattn data info clevr" in problem(published)


@pytest.mark.parametrize("file_format", ["tfrecord", "riegeli"])
def test_records_in_another_format_say_how_to_prepare_them(tmp_path, file_format):
    folder = write_tfds(tmp_path, SCENES, file_format=file_format)
    message = problem(tmp_path)
    assert message.startswith(f"{folder}: not in a format that can be read without TensorFlow; prepare it anew with ")
    assert "file_format='array_record'" in message


def test_labels_of_another_version(tmp_path):
    folder = write_tfds(tmp_path, SCENES, labels=LABELS | {"size": ["large", "small"]})
    assert problem(tmp_path).startswith(f"{folder}: labels ")


def _duplicate(record):
    return record | {"file_name": "CLEVR_train_000000.png"}


def _foreign(record):
    return record | {"file_name": "cat.png"}


@pytest.mark.parametrize("change", [_duplicate, _foreign])
def test_records_that_are_not_each_image_once(tmp_path, change):
    folder = write_tfds(tmp_path, SCENES, change=change)
    assert problem(tmp_path) == f"{folder}: 4 scenes, but not each of the images 0 to 3 once; download it again"


def _eleven(record):
    return record | {"objects": {name: (list(values) * 11)[:11] for name, values in record["objects"].items()}}


def _unknown_code(record):
    return record | {"objects": record["objects"] | {"size": [-1 for _ in record["objects"]["size"]]}}


def _no_image(record):
    return record | {"image": b""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_eleven, "train, record 0: [11] objects"),
        (_unknown_code, "train, record 0: size [-1, -1, -1]"),
        (_no_image, "train, record 0: damaged image"),
    ],
)
def test_records_that_cannot_be(tmp_path, change, message):
    folder = write_tfds(tmp_path, {"train": SCENES["train"][:1]}, change=change)
    assert problem(tmp_path).startswith(f"{folder}: {message}")


def test_damaged_records(tfds):
    (path,) = (tfds / "clevr" / "3.1.0").glob("clevr-train*")
    whole = path.read_bytes()
    wanted = samples(tfds, "train")
    rng = random.Random(0)
    used = len(whole.rstrip(b"\0"))
    refused = 0
    for i in range(60):
        data = bytearray(whole)
        if i % 3 == 0:
            data = data[: rng.randrange(used)]
        else:
            data[rng.randrange(used)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        got, message = refusal(lambda: samples(tfds, "train"))
        if message is None:
            assert_same(got, wanted)
        else:
            assert message.startswith(f"{path.parent}: ")
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "clevr-train.array_record-00000-of-00001"])
@pytest.mark.parametrize("contents", [None, b"", b"{", b"null"])
def test_a_damaged_folder_of_tensorflow_datasets(tfds, name, contents):
    path = tfds / "clevr" / "3.1.0" / name
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    assert problem(tfds).startswith(str(tfds))
