"""Opening and checking prepared folders, whole and damaged."""

import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from test_prepare import draw_objects, write
from time_limit import time_limit

from slotattn_fast.data.errors import DataError
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.prepared import check, open_prepared

REMEDY = "; make it anew with `slotattn data prepare` or `generate`"


@pytest.fixture(autouse=True)
def _in_time():
    with time_limit(60):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tetrominoes with all their factors; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("prepared")
    write(folder / "source", "tetrominoes_train", [draw_objects("tetrominoes_train", seed, 3) for seed in range(5)])
    prepare("tetrominoes", folder / "source", folder / "whole", train=3, held_out=2)
    return folder / "whole"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "folder")


def problem(do, path):
    """The one line of the error."""
    with pytest.raises(DataError) as raised:
        do(path)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def same(opened, wanted):
    assert opened.splits.keys() == wanted.splits.keys()
    for split, arrays in wanted.splits.items():
        assert opened.splits[split].keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.splits[split][name], array, strict=True)


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_arrays_are_mapped_and_writing_to_them_changes_no_file(folder):
    opened = open_prepared(folder)
    assert (opened.path, opened.name) == (folder, "tetrominoes")
    assert set(opened.splits["train"]) == {"images", "labels", "num_objects", "x", "y", "shape", "color", "visibility"}
    before = {path: path.read_bytes() for path in folder.rglob("*.npy")}
    for arrays in opened.splits.values():
        for array in arrays.values():
            assert isinstance(array, np.memmap)
            array[:] = 0
    assert all(path.read_bytes() == contents for path, contents in before.items())
    check(folder)


@pytest.mark.parametrize("do", [open_prepared, check])
def test_no_folder(tmp_path, do):
    (tmp_path / "file").write_text("x")
    for name, what in (("absent", "no such folder"), ("file", "not a folder"), ("file/deeper", "no such folder")):
        assert problem(do, tmp_path / name).startswith(f"{tmp_path / name}: {what}; `slotattn data prepare` or ")


@pytest.mark.parametrize("do", [open_prepared, check])
def test_no_manifest(folder, do):
    (folder / "manifest.json").unlink()
    assert problem(do, folder) == (
        f"{folder}: has no manifest.json, so `slotattn data prepare` or `generate` did not make it, or not finish it; "
        "give that command again"
    )


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"format": 1', b"9" * 5000])
def test_a_manifest_that_is_no_json(folder, text):
    (folder / "manifest.json").write_bytes(text)
    message = problem(open_prepared, folder)
    assert message.startswith(f"{folder / 'manifest.json'}: damaged (")
    assert message.endswith(REMEDY)


@pytest.mark.parametrize(
    ("text", "found"),
    [("[]", "[]"), ("null", "None"), ("{}", "None"), ('{"format": 2}', "2"), ('{"format": "1"}', "'1'")],
)
def test_a_manifest_of_another_format(folder, text, found):
    (folder / "manifest.json").write_text(text)
    assert problem(open_prepared, folder) == f"{folder}: prepared in format {found}, expected 1{REMEDY}"


def _set(*path, to):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return change


def _without(*path):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without("name"),
        _without("scenes"),
        _without("scenes", "eval"),
        _without("splits"),
        _without("splits", "eval"),
        _without("splits", "eval", "x"),
        _without("splits", "train", "images", "shape"),
        _without("splits", "train", "images", "dtype"),
        _set("name", to="tetris"),
        _set("name", to=["tetrominoes"]),
        _set("scenes", to=None),
        _set("scenes", to=[3, 2]),
        _set("scenes", "train", to=4),
        _set("splits", to=[]),
        _set("splits", to="train"),
        _set("splits", "train", to=3),
        _set("splits", "train", to={}),
        _set("splits", to={"train": {}, "eval": {}}),
        _set("splits", "train", "x", to=3),
        _set("splits", "train", "x", to="x"),
        _set("splits", "train", "new", to={"shape": [3], "dtype": "uint8", "sha256": ""}),
        _set("splits", "train", "\0", to={"shape": [3], "dtype": "uint8", "sha256": ""}),
        _set("splits", "train", "x", "shape", to=[3]),
        _set("splits", "train", "x", "shape", to=None),
        _set("splits", "train", "x", "dtype", to="uint8"),
    ],
)
def test_a_manifest_that_does_not_fit_the_arrays(folder, change):
    edit(folder, change)
    message = problem(open_prepared, folder)
    assert message.startswith(f"{folder}{os.sep}")
    assert message.endswith(REMEDY)


@pytest.mark.parametrize("sha256", [None, 3, "", "00" * 32])
def test_a_manifest_with_other_checksums(folder, sha256):
    edit(folder, _set("splits", "eval", "labels", "sha256", to=sha256))
    open_prepared(folder)
    assert problem(check, folder).startswith(f"{folder / 'eval' / 'labels.npy'}: damaged (its SHA-256")
    edit(folder, _without("splits", "eval", "labels", "sha256"))
    assert problem(check, folder).startswith(f"{folder / 'eval' / 'labels.npy'}: damaged (its SHA-256")


def test_flipped_bits_of_the_manifest_are_found_or_change_no_array(folder, whole):
    wanted = open_prepared(whole)
    data = (folder / "manifest.json").read_bytes()
    # What the source was called is free to change.
    free = [m.span() for m in re.finditer(rb'"(source|slotattn_fast|asked)": (\{.*?\}|".*?")', data, re.DOTALL)]
    places = [i for i in range(len(data)) if not any(start <= i < end for start, end in free)]
    found = 0
    rng = random.Random(0)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[rng.choice(places)] ^= 1 << rng.randrange(8)
        (folder / "manifest.json").write_bytes(flipped)
        try:
            same(check(folder), wanted)
        except DataError as error:
            message = str(error)
            found += 1
            assert "\n" not in message
    assert found > 300


def test_a_letter_that_makes_two_arrays_one(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"x": {', '"y": {', 1))
    assert "not the same arrays in both splits" in problem(open_prepared, folder)


def test_a_name_that_is_of_no_data_set(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"name": "', '"name": "my-', 1))
    assert "name 'my-" in (said := problem(open_prepared, folder))
    assert "expected one of clevr, " in said


def arrays_of(folder):
    return sorted(folder.rglob("*.npy"))


def test_missing_arrays(folder):
    assert len(arrays_of(folder)) == 16
    for path in arrays_of(folder):
        contents = path.read_bytes()
        path.unlink()
        assert problem(open_prepared, folder) == f"{path}: missing{REMEDY}"
        path.write_bytes(contents)
    shutil.rmtree(folder / "eval")
    assert problem(open_prepared, folder).endswith(f".npy: missing{REMEDY}")


def test_truncated_arrays(folder):
    for path in arrays_of(folder):
        contents = path.read_bytes()
        for length in (0, 5, 60, 127, 128, len(contents) - 1):
            path.write_bytes(contents[:length])
            message = problem(open_prepared, folder)
            assert message.startswith(f"{path}: ")
            assert message.endswith(REMEDY)
        path.write_bytes(contents + b"\0")
        assert problem(check, folder).startswith(f"{path}: damaged")
        path.write_bytes(contents)
    check(folder)


def test_flipped_bytes_of_every_array_are_found(folder):
    rng = random.Random(0)
    for path in arrays_of(folder):
        contents = path.read_bytes()
        for at in (0, 7, rng.randrange(128), rng.randrange(128, len(contents)), len(contents) - 1):
            flipped = bytearray(contents)
            flipped[at] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            message = problem(check, folder)
            assert message.startswith(f"{path}: ")
            assert message.endswith(REMEDY)
        path.write_bytes(contents)
    check(folder)


class _Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_what_is_not_an_array_of_numbers(folder):
    path = folder / "train" / "x.npy"
    array = np.load(path)

    def write_pickled():
        np.save(path, np.array([_Bomb()] * 3, object), allow_pickle=True)

    def write_archive():
        with path.open("wb") as file:
            np.savez(file, x=array)

    def write_fields():
        np.save(path, np.zeros(3, [("x", "<f4", 4)]))

    def write_text():
        path.write_text("x\n1\n2\n")

    def write_long_header():
        path.write_bytes(b"\x93NUMPY\x02\0" + (200_000).to_bytes(4, "little") + b" " * 200_000)

    for damage in (write_pickled, write_archive, write_fields, write_text, write_long_header):
        damage()
        message = problem(open_prepared, folder)
        assert message.startswith(f"{path}: "), damage
        assert message.endswith(REMEDY)


def test_arrays_of_another_length_shape_or_type(folder):
    for path in arrays_of(folder):
        array = np.load(path)
        for other in (array[:1], array.astype(np.int32), array[..., None], np.concatenate([array, array])):
            np.save(path, other)
            assert re.search(rf"^{re.escape(str(path))}: \w+ \[.*\], expected \w+ \[", problem(open_prepared, folder))
        np.save(path, array)
    check(folder)


def test_arrays_of_another_length_that_the_manifest_knows(folder):
    np.save(folder / "train" / "x.npy", np.zeros((2, 4), np.float32))
    edit(folder, _set("splits", "train", "x", "shape", to=[2, 4]))
    assert problem(open_prepared, folder) == (
        f"{folder / 'train' / 'x.npy'}: float32 [2, 4], expected float32 [2, 4] for 3 scenes{REMEDY}"
    )
    np.save(folder / "train" / "x.npy", np.zeros((), np.float32))
    edit(folder, _set("splits", "train", "x", "shape", to=[]))
    assert problem(open_prepared, folder).startswith(f"{folder / 'train' / 'x.npy'}: float32 [], expected")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("images", lambda a: a.astype(np.float32), "expected uint8 [N, H, W, C]"),
        ("images", lambda a: a[..., 0], "expected uint8 [N, H, W, C]"),
        ("labels", lambda a: a.astype(np.int32), "expected uint8 [3, 35, 35]"),
        ("labels", lambda a: a[:, :-1], "expected uint8 [3, 35, 35]"),
    ],
)
def test_pictures_that_the_manifest_knows_and_nothing_can_read(folder, name, change, expected):
    path = folder / "train" / f"{name}.npy"
    array = change(np.load(path))
    np.save(path, array)
    edit(folder, _set("splits", "train", name, "shape", to=list(array.shape)))
    edit(folder, _set("splits", "train", name, "dtype", to=array.dtype.name))
    message = problem(open_prepared, folder)
    assert message == f"{path}: {array.dtype.name} {list(array.shape)}, {expected}{REMEDY}"


@pytest.mark.parametrize("source", [None, 3, [], {}, {"generator": None}, {"generator": 3}])
def test_a_source_that_tells_of_no_generator(folder, source):
    assert open_prepared(folder).generator is None  # a file
    edit(folder, _set("source", to=source))
    assert open_prepared(folder).generator is None
    edit(folder, _without("source"))
    assert open_prepared(folder).generator is None


def test_extra_files_are_passed_over(folder, whole):
    for name in ("train/notes.txt", "train/other.npy", "progress.json", "lock", ".DS_Store"):
        (folder / name).write_text("x")
    (folder / "test").mkdir()
    same(check(folder), open_prepared(whole))


def test_a_moved_folder_and_a_link_open(folder, tmp_path, whole):
    folder.rename(tmp_path / "möved here")
    (tmp_path / "link").symlink_to(tmp_path / "möved here")
    for path in (tmp_path / "möved here", tmp_path / "link"):
        same(check(path), open_prepared(whole))


@pytest.mark.parametrize("name", ["multi-dsprites-colored-on-colored", "multi-dsprites-binarized"])
def test_generated_folders_open(tmp_path, name):
    made = generate(name, tmp_path / "out", train=2, held_out=1)
    same(check(tmp_path / "out"), made)
    assert made.generator == {"seed": 0, "max_objects": None}
