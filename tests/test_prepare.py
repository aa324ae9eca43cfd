"""The arrays of prepared folders, against what the files were written from."""

import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tfrecord_writer
from clevr_writer import draw as draw_clevr
from clevr_writer import write_published, write_tfds
from test_clevr import SCENES, expected
from test_multi_object import FILES, WRITTEN_BY_TENSORFLOW, draw, on_disk, published
from test_resize import bilinear, nearest
from tfrecord_writer import frame, gzip_member, scene
from tqdm import tqdm

import slotattn_fast
from slotattn_fast.data import prepare as module
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import FIRST_HELD_OUT, HELD_OUT_SEED, sampler
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.prepared import check
from slotattn_fast.data.split import open_split

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _fast_checksums(monkeypatch):
    monkeypatch.setattr(tfrecord_writer, "crc32c", google_crc32c.value)


def draw_objects(file, seed, objects):
    """A scene of so many objects, if its records tell their number."""
    arrays = draw(file, seed)
    if "visibility" in arrays:
        exists = np.arange(len(arrays["visibility"])) <= objects
        arrays["visibility"] = exists.astype(np.float32)
        for hidden in np.flatnonzero(~exists):
            arrays["mask"][0] |= arrays["mask"][hidden]
            arrays["mask"][hidden] = 0
    return arrays


def write(path, file, scenes):
    """Without GZIP where that would take long."""
    contents = b"".join(frame(scene(on_disk(file, arrays))) for arrays in scenes)
    path.write_bytes(contents if file.startswith("clevr") else gzip_member(contents, level=1))


def prepared_scene(name, arrays):
    """The arrays that a published scene should become."""
    labels = arrays["mask"].argmax(0).astype(np.uint8)
    image = arrays["image"]
    if name == "clevr-with-masks":
        image = bilinear(image[29 : 220 + 1, 64 : 255 + 1], 128)
        labels = nearest(labels[29 : 220 + 1, 64 : 255 + 1], 128)
    if name == "objects-room":
        labels = np.where(labels < 4, 0, labels - 3).astype(np.uint8)
    rest = {factor: array for factor, array in arrays.items() if factor not in ("image", "mask")}
    if "visibility" in rest:
        rest["num_objects"] = np.array(rest["visibility"].sum() - 1, np.uint8)
    return {"images": image, "labels": labels, **rest}


def assert_split(got, name, scenes):
    wanted = [prepared_scene(name, arrays) for arrays in scenes]
    assert set(got) == set(wanted[0])
    for key, array in got.items():
        np.testing.assert_array_equal(array, np.stack([w[key] for w in wanted]), strict=True, err_msg=key)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file", WRITTEN_BY_TENSORFLOW)
def test_what_tensorflow_wrote(file, tmp_path):
    path, truth = published(file)
    name = FILES[file][0]
    # Of the four CLEVR scenes the first two have at most 6 objects: 3, 6, 8, 10.
    train = 1 if name == "clevr-with-masks" else 3
    made = prepare(name, path, tmp_path / "out", train=train, held_out=1)
    assert_split(made.splits["train"], name, truth[:train])
    assert_split(made.splits["eval"], name, truth[train : train + 1])


@pytest.mark.parametrize("file", FILES)
def test_what_the_tests_write(file, tmp_path):
    name = FILES[file][0]
    scenes = [draw_objects(file, seed, 2) for seed in range(6)]
    write(tmp_path / "source", file, scenes)
    made = prepare(name, tmp_path / "source", tmp_path / "out", train=3, held_out=2)
    assert_split(made.splits["train"], name, scenes[:3])
    assert_split(made.splits["eval"], name, scenes[3:5])
    check(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert set(contents(tmp_path / "out")) == {"manifest.json"} | {
        f"{split}/{key}.npy" for split in ("train", "eval") for key in made.splits["train"]
    }


def test_the_rooms_walls_are_background(tmp_path):
    arrays = draw("objects_room_train")
    labels = np.arange(64 * 64).reshape(64, 64) % 7
    arrays["mask"] = 255 * np.uint8(labels == np.arange(7)[:, None, None])
    write(tmp_path / "source", "objects_room_train", [arrays, arrays])
    made = prepare("objects-room", tmp_path / "source", tmp_path / "out", train=1, held_out=1)
    got = made.splits["train"]["labels"][0]
    assert [np.unique(got[labels == entity]).tolist() for entity in range(7)] == [[0], [0], [0], [0], [1], [2], [3]]
    assert "num_objects" not in made.splits["train"]


@pytest.fixture
def bars(monkeypatch):
    """The progress that is shown, each with the total that it begins with."""
    shown = []

    def bar(total, **about):
        shown.append((tqdm(total=total, **{**about, "file": io.StringIO(), "delay": 0}), total))
        return shown[-1][0]

    monkeypatch.setattr(module, "tqdm", bar)
    return shown


def test_clevr6_has_as_many_evaluation_scenes_as_clevr10(tmp_path, bars):
    """The first two of at most 6 objects after the training split, and all that lie between them."""
    objects = [10, 3, 9, 7, 6, 10, 5, 4]
    scenes = [draw_objects("clevr_with_masks_train", seed, n) for seed, n in enumerate(objects)]
    write(tmp_path / "source", "clevr_with_masks_train", scenes)
    made = prepare("clevr-with-masks", tmp_path / "source", tmp_path / "out", train=3, held_out=2)
    assert made.manifest["scenes"] == {"train": 3, "eval": 4}
    ((bar, _),) = bars
    assert (bar.n, bar.total) == (7, 7)
    assert_split(made.splits["train"], "clevr-with-masks", scenes[:3])
    assert_split(made.splits["eval"], "clevr-with-masks", scenes[3:7])

    data = str(tmp_path / "out")
    clevr6 = open_split(data, "eval", ["visibility", "images"], max_objects=6)
    assert clevr6.count == 2
    read = clevr6.read(np.arange(2))
    assert (read["visibility"].sum(1) <= 7).all()  # the background counts
    np.testing.assert_array_equal(read["images"], made.splits["eval"]["images"][[1, 3]])
    assert open_split(data, "train", ["images"], max_objects=6).count == 1


def test_too_few_evaluation_scenes_of_clevr6(tmp_path):
    scenes = [draw_objects("clevr_with_masks_train", seed, n) for seed, n in enumerate([3, 6, 8, 9])]
    write(tmp_path / "source", "clevr_with_masks_train", scenes)
    with pytest.raises(DataError, match=r"source: 1 scenes of at most 6 objects for eval, expected 2; .*--eval$"):
        prepare("clevr-with-masks", tmp_path / "source", tmp_path / "out", train=1, held_out=2)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    "visibility",
    [
        *(np.zeros(4), np.full(4, np.nan), np.full(4, np.inf), np.full(4, -1), np.full(4, 2), np.full(4, 1e30)),
        *(np.array(visible) for visible in ([0, 1, 1, 1], [1, -1, 2, 1], [1, 0.5, 0.5, 1])),
    ],
)
def test_a_visibility_that_counts_no_objects(tmp_path, visibility):
    scenes = [draw_objects("tetrominoes_train", seed, 3) for seed in range(3)]
    scenes[1]["visibility"] = visibility.astype(np.float32)
    write(tmp_path / "source", "tetrominoes_train", scenes)
    with pytest.raises(DataError, match=r"source: record 1: visibility \[.*\], expected .*; check the file$"):
        prepare("tetrominoes", tmp_path / "source", tmp_path / "out", train=2, held_out=1)


def test_both_sources_of_clevr_give_the_same_folder(tmp_path):
    write_published(tmp_path / "a", SCENES)
    write_tfds(tmp_path / "b", SCENES, order=lambda scenes: scenes[::-1])
    made = prepare("clevr", tmp_path / "a", tmp_path / "from a", train=4, held_out=1)
    prepare("clevr", tmp_path / "b", tmp_path / "from b", train=4, held_out=1)
    a, b = contents(tmp_path / "from a"), contents(tmp_path / "from b")
    assert json.loads(a.pop("manifest.json"))["splits"] == json.loads(b.pop("manifest.json"))["splits"]
    assert a == b
    for split, scenes in (("train", SCENES["train"]), ("eval", SCENES["validation"])):
        for i, drawn in enumerate(scenes):
            wanted = expected(*drawn)
            wanted["images"] = bilinear(wanted.pop("image"), 128)
            assert set(made.splits[split]) == set(wanted)
            for key, array in made.splits[split].items():
                np.testing.assert_array_equal(array[i], wanted[key], err_msg=key)


@pytest.mark.parametrize("order", [list, lambda scenes: scenes[::-1]])
def test_fewer_scenes_of_clevr_are_those_of_the_lowest_numbers(tmp_path, order):
    write_tfds(tmp_path / "source", SCENES, order=order)
    made = prepare("clevr", tmp_path / "source", tmp_path / "out", train=2, held_out=1)
    assert made.splits["train"]["num_objects"].tolist() == [3, 10]
    assert made.splits["train"]["images"].shape == (2, 128, 128, 3)


def test_clevr_in_shared_gives_the_same_folder(tmp_path):
    if not SHARED.exists():
        pytest.skip(f"no {SHARED}")
    for source in ("CLEVR_v1.0", "tfds"):
        prepare("clevr", SHARED / source, tmp_path / source, train=5, held_out=5)
    a, b = contents(tmp_path / "CLEVR_v1.0"), contents(tmp_path / "tfds")
    assert a.keys() == b.keys()
    assert all(a[name] == b[name] for name in a.keys() - {"manifest.json"})


def test_images_that_are_not_needed_are_not_opened(tmp_path):
    write_published(tmp_path / "source", {"train": [draw_clevr(0, 3)] * 3, "validation": [draw_clevr(1, 3)]})
    (tmp_path / "source" / "images" / "train" / "CLEVR_train_000002.png").unlink()
    made = prepare("clevr", tmp_path / "source", tmp_path / "out", train=2, held_out=1)
    assert made.manifest["scenes"] == {"train": 2, "eval": 1}


@pytest.mark.parametrize(
    ("name", "max_objects"),
    [("tetrominoes", None), ("multi-dsprites-binarized", None), ("clevr-with-masks", 6), ("clevr", None)],
)
def test_generated_folders_hold_what_training_would_draw(tmp_path, name, max_objects):
    few = name.startswith("clevr")
    train, held_out = (3, 2) if few else (70, 65)  # 64 are drawn at once
    made = generate(name, tmp_path / "out", seed=5, train=train, held_out=held_out, max_objects=max_objects)
    sample = sampler(name, max_objects)
    for split, wanted in {
        "train": sample(5, np.arange(train)),
        "eval": sample(HELD_OUT_SEED, FIRST_HELD_OUT + np.arange(held_out)),
    }.items():
        assert set(made.splits[split]) == set(wanted)
        for key, array in made.splits[split].items():
            np.testing.assert_array_equal(array, np.asarray(wanted[key]), strict=True, err_msg=key)
    assert made.manifest["source"] == {"generator": {"seed": 5, "max_objects": max_objects}}


@pytest.mark.parametrize("max_objects", [None, 6])
def test_generated_clevr6_has_as_many_evaluation_scenes_as_clevr10(tmp_path, max_objects, bars):
    made = generate("clevr-with-masks", tmp_path / "out", train=1, held_out=3, max_objects=max_objects)
    count = made.splits["eval"]["num_objects"]
    drawn = sampler("clevr-with-masks", max_objects, size=1)(HELD_OUT_SEED, FIRST_HELD_OUT + np.arange(len(count)))
    np.testing.assert_array_equal(count, drawn["num_objects"])
    assert (count <= 6).sum() == 3
    assert count[-1] <= 6
    assert (len(count) > 3) == (max_objects is None)
    assert open_split(str(tmp_path / "out"), "eval", ["images"], max_objects=6).count == 3
    assert made.manifest["asked"] == {"train": 1, "eval": 3}
    ((bar, total),) = bars
    assert bar.n == bar.total == total == 1 + len(count)
    assert " scenes/s]" in str(bar)


def test_the_manifest(tmp_path):
    source = tmp_path / "source"
    write(source, "tetrominoes_train", [draw_objects("tetrominoes_train", seed, 3) for seed in range(3)])
    manifest = prepare("tetrominoes", source, tmp_path / "out", train=2, held_out=1).manifest
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["format"], manifest["name"]) == (1, "tetrominoes")
    assert manifest["slotattn_fast"] == slotattn_fast.__version__
    stat = source.stat()
    assert manifest["source"]["file"] == {"path": str(source), "bytes": stat.st_size, "changed": stat.st_mtime}
    assert manifest["asked"] == manifest["scenes"] == {"train": 2, "eval": 1}
    assert manifest["splits"]["eval"]["images"]["shape"] == [1, 35, 35, 3]
    assert manifest["splits"]["train"]["color"]["dtype"] == "float32"


def test_where_the_folder_may_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = "två ord, \u200b\N{CRAB} %s {x} 'q'"
    for out in (odd, "missing/folder/out", str(tmp_path / "absolute"), "out.partial", "with.dots.npy"):
        made = generate("tetrominoes", Path(out), train=1, held_out=1)
        assert check(Path(out)).path == made.path == Path(out)
    source = tmp_path / odd / "source file"
    write(source, "tetrominoes_train", [draw_objects("tetrominoes_train", seed, 3) for seed in range(3)])
    prepare("tetrominoes", Path(odd, "source file"), Path("from odd"), train=1, held_out=1)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_what_exists_is_not_touched(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "train").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(DataError, match="out: exists already and is not overwritten; remove it, or choose another"):
        generate("tetrominoes", out, train=1, held_out=1)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


def test_what_another_process_made_in_between_is_not_touched(tmp_path, monkeypatch):
    out = tmp_path / "out"

    @contextmanager
    def locked(*_):
        out.mkdir()
        yield

    monkeypatch.setattr(module, "locked", locked)
    with pytest.raises(DataError, match="out: exists already and is not overwritten; remove it, or choose another"):
        generate("tetrominoes", out, train=1, held_out=1)
    assert os.listdir(out) == []


@pytest.mark.parametrize("of", ["a file", "a folder with files"])
def test_a_partial_folder_of_something_else_is_not_touched(tmp_path, of):
    partial = tmp_path / "out.partial"
    if of == "a file":
        partial.write_text("mine")
    else:
        (partial / "train").mkdir(parents=True)
        (partial / "train" / "images.npy").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises((DataError, FileExistsError), match=r"out\.partial"):
        generate("tetrominoes", tmp_path / "out", train=1, held_out=1)
    after = contents(tmp_path)
    after.pop("out.partial/lock", None)
    assert after == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tetris"}, "name: got 'tetris', expected one of clevr, "),
        ({"name": ""}, "name: got '', expected one of clevr, "),
        ({"train": 0}, "train: got 0, expected at least 1"),
        ({"train": -3}, "train: got -3, expected at least 1"),
        ({"held_out": 0}, "eval: got 0, expected at least 1"),
    ],
)
@pytest.mark.parametrize("do", [prepare, generate])
def test_values_that_cannot_be(tmp_path, do, change, message):
    values = {"name": "tetrominoes", "train": 1, "held_out": 1} | change
    where = {"out": tmp_path / "folder" / "out"} | ({"source": tmp_path} if do is prepare else {})
    with pytest.raises(ValueError, match=f"^{message}"):
        do(**values, **where)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"name": "objects-room"}, ValueError, "name: got 'objects-room', expected one of clevr, "),
        ({"name": "tetrominoes", "seed": -1}, ValueError, "seed: got -1, expected at least 0"),
        ({"name": "clevr", "max_objects": 2}, DataError, "max_objects: got 2, expected 3 to 10 for clevr"),
        ({"name": "clevr", "max_objects": 11}, DataError, "max_objects: got 11, expected 3 to 10 for clevr"),
        ({"name": "tetrominoes", "max_objects": 3}, DataError, "max_objects: got 3 for tetrominoes; only CLEVR"),
    ],
)
def test_values_that_cannot_be_drawn(tmp_path, values, error, message):
    with pytest.raises(error, match=f"^{message}"):
        generate(**values, out=tmp_path / "folder" / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("tetrominoes", "absent", "absent: no such file or folder; `slotattn data info tetrominoes` says where"),
        ("tetrominoes", "folder", "folder: not a file: give the path of a .tfrecords file"),
        ("tetrominoes", "empty", "empty: record 0: the file holds no record: download the file again"),
        ("tetrominoes", "text", "text: record 0: the file is no TFRecord file"),
        ("multi-dsprites-binarized", "tetrominoes", "this looks like tetrominoes"),
        ("clevr", "tetrominoes", "tetrominoes: neither CLEVR_v1.0"),
        ("clevr", "folder", "folder: neither CLEVR_v1.0"),
        ("clevr", "clevr", "clevr: 1 scenes for train, expected 2; download it again if it should hold them, or ask"),
        ("tetrominoes", "tetrominoes", "tetrominoes: 1 scenes for train, expected 2; download it again"),
    ],
)
def test_sources_that_cannot_be(tmp_path, name, source, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("not at all what was meant")
    write(tmp_path / "tetrominoes", "tetrominoes_train", [draw_objects("tetrominoes_train", 0, 3)])
    write_published(tmp_path / "clevr", {"train": [draw_clevr(0, 3)], "validation": [draw_clevr(1, 3)]})
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError) as raised:
        prepare(name, tmp_path / source, tmp_path / "out", train=2, held_out=1)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / source))
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_damage_late_in_the_source_names_the_record(tmp_path):
    scenes = [draw_objects("tetrominoes_train", seed, 3) for seed in range(5)]
    frames = [frame(scene(arrays)) for arrays in scenes]
    (tmp_path / "source").write_bytes(b"".join([*frames[:3], frames[3][:-1] + b"\0", frames[4]]))
    with pytest.raises(DataError, match="source: record 3: the record's data do not match"):
        prepare("tetrominoes", tmp_path / "source", tmp_path / "out", train=4, held_out=1)
    # What is damaged behind the scenes that were asked for is not looked at.
    assert prepare("tetrominoes", tmp_path / "source", tmp_path / "out", train=2, held_out=1).path.exists()


def test_a_damaged_image_names_its_file(tmp_path):
    write_published(tmp_path / "source", SCENES)
    path = tmp_path / "source" / "images" / "train" / "CLEVR_train_000002.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"CLEVR_train_000002\.png: damaged image.*; download it again$"):
        prepare("clevr", tmp_path / "source", tmp_path / "out", train=4, held_out=1)
