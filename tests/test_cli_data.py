"""`slotattn data` from end to end, and every failure as one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clevr_writer import write_published
from PIL import Image
from test_clevr import SCENES
from test_multi_object import FILES
from test_prepare import contents, draw_objects, write

from slotattn_fast import cli
from slotattn_fast.data.catalogue import CATALOGUE, GENERATED
from slotattn_fast.data.prepared import open_prepared


def run(capfd, *arguments):
    """The exit code, what is printed, and the lines of the errors."""
    try:
        code = cli.main(["data", *map(str, arguments)])
    except SystemExit as end:  # --help
        code = end.code or 0
    out, errors = capfd.readouterr()
    return code, out, errors.splitlines()


def fails(capfd, code, *arguments):
    """The one line of an error."""
    got, out, lines = run(capfd, *arguments)
    assert (got, out, len(lines)) == (code, "", 1), lines
    assert lines[0].startswith("slotattn: ")
    return lines[0].removeprefix("slotattn: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source and a folder made of it; tests that change either work on a copy."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "source", "tetrominoes_train", [draw_objects("tetrominoes_train", seed, 3) for seed in range(4)])
    arguments = ["--source", str(folder / "source"), "--out", str(folder / "prepared"), "--train", "3", "--eval", "1"]
    assert cli.main(["data", "prepare", "tetrominoes", *arguments]) == 0
    return folder


@pytest.mark.parametrize("file", [file for file in FILES if "_test_" not in file and "clevr" not in file])
def test_prepare(file, tmp_path, capfd):
    name = FILES[file][0]
    write(tmp_path / "source", file, [draw_objects(file, seed, 2) for seed in range(3)])
    out = tmp_path / "out"
    arguments = ["prepare", name, "--source", tmp_path / "source", "--out", out, "--train", 2, "--eval", 1]
    assert run(capfd, *arguments) == (0, f"{out}: 2 scenes to train on, 1 to evaluate\n", [])
    assert open_prepared(out).name == name
    assert fails(capfd, 1, *arguments) == (
        f"{out}: exists already and is not overwritten; remove it, or choose another --out"
    )


def test_prepare_clevr(tmp_path, capfd):
    write_published(tmp_path / "CLEVR_v1.0", SCENES)
    arguments = ["--source", tmp_path / "CLEVR_v1.0", "--out", tmp_path / "out", "--train", 4, "--eval", 1]
    code, out, errors = run(capfd, "prepare", "clevr", *arguments)
    assert (code, errors) == (0, [])
    assert out == f"{tmp_path / 'out'}: 4 scenes to train on, 1 to evaluate\n"


@pytest.mark.parametrize("name", GENERATED)
def test_generate_check_show(name, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = run(capfd, "generate", name, "--out", "a folder", "--train", 2, "--eval", 1, "--seed", 7)
    assert (code, out, errors) == (0, "a folder: 2 scenes to train on, 1 to evaluate\n", [])
    about = open_prepared(Path("a folder")).manifest["source"]
    assert about == {"generator": {"seed": 7, "max_objects": None}}
    code, out, errors = run(capfd, "check", "a folder")
    assert (code, out, errors) == (0, f"a folder: {name}, 2 scenes to train on, 1 to evaluate: whole\n", [])
    assert run(capfd, "show", "a folder") == (0, "scenes.png\n", [])
    with Image.open("scenes.png") as sheet:
        assert min(sheet.size) > 100
    assert sorted(os.listdir()) == ["a folder", "scenes.png"]


def test_generate_fewer_objects(tmp_path, capfd):
    arguments = ["--out", tmp_path / "out", "--train", 8, "--eval", 1, "--max-objects", 4]
    assert run(capfd, "generate", "clevr-with-masks", *arguments)[0] == 0
    assert set(open_prepared(tmp_path / "out").splits["train"]["num_objects"]) == {3, 4}


def test_show_a_data_set_by_name(tmp_path, capfd):
    assert run(capfd, "show", "tetrominoes", "--out", tmp_path / "s.png") == (0, f"{tmp_path / 's.png'}\n", [])


@pytest.mark.parametrize("name", CATALOGUE)
def test_info(name, capfd):
    code, out, errors = run(capfd, "info", name)
    about = CATALOGUE[name]
    assert (code, errors) == (0, [])
    assert out.startswith(f"{name}: {about.what}\n")
    for what in (about.url, about.licence, str(about.scenes), f"slotattn data prepare {name} --source PATH --out DIR"):
        assert what in out
    assert (f"slotattn data generate {name} --out DIR" in out) == (name in GENERATED)


def test_sizes_are_those_of_the_arrays():
    assert CATALOGUE["tetrominoes"].megabytes == pytest.approx(60_320 * 35 * 35 * 4 / 1e6)
    assert CATALOGUE["clevr"].megabytes == pytest.approx(85_000 * 128 * 128 * 3 / 1e6)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], ["prepare", "generate", "check", "show", "info"]),
        (["prepare"], ["NAME", "--source PATH", "--out DIR", "--train N", "--eval N", *CATALOGUE]),
        (["generate"], ["NAME", "--out DIR", "--seed", "--train N", "--eval N", "--max-objects N", *GENERATED]),
        (["check"], ["DIR"]),
        (["show"], ["NAME|DIR", "--out FILE", "--max-objects N"]),
        (["info"], ["NAME", *CATALOGUE]),
    ],
)
def test_help(command, said, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, errors = run(capfd, *command, "--help")
    assert (code, errors) == (0, [])
    for words in said:
        assert words in out


def test_help_is_light():
    code = (
        "import sys\n"
        "from slotattn_fast import cli\n"
        "try: cli.main(['data', 'prepare', '--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'PIL', 'tensorflow_datasets'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


SOURCE = ["--source", "source", "--out", "new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "tetrominos", *SOURCE], "name: got 'tetrominos', expected one of clevr, clevr-with-masks, "),
        (["generate", "tetrominos", "--out", "new"], "name: got 'tetrominos', expected one of clevr, "),
        (["generate", "objects-room", "--out", "new"], "name: got 'objects-room', expected one of clevr, "),
        (["info", "tetrominos"], "name: got 'tetrominos', expected one of clevr, "),
        (["info", ""], "name: got '', expected one of clevr, "),
        (["prepare", "tetrominoes", *SOURCE, "--train", "0"], "train: got 0, expected at least 1"),
        (["prepare", "tetrominoes", *SOURCE, "--eval", "-1"], "eval: got -1, expected at least 1"),
        (["generate", "tetrominoes", "--out", "new", "--seed", "-1"], "seed: got -1, expected at least 0"),
        (["generate", "tetrominoes", "--out", "new", "--train", "0"], "train: got 0, expected at least 1"),
        (["prepare", "tetrominoes", *SOURCE, "--train", "many"], "train: got 'many', expected an integer; see"),
        (["prepare", "tetrominoes", *SOURCE, "--train", "1.5"], "train: got '1.5', expected an integer; see"),
        (["prepare", "tetrominoes", *SOURCE, "--max-objects", "6"], r".*--max-objects"),
        (["prepare", "tetrominoes", "--out", "new"], r".*--source"),
        (["prepare", "tetrominoes", "--source", "source"], r".*--out"),
        (["prepare", *SOURCE], r".*NAME"),
        (["prepare", "tetrominoes", "clevr", *SOURCE], r".*clevr"),
        (["check"], r".*DIR"),
        (["show"], r".*NAME"),
        (["info"], r".*NAME"),
        ([], r".*prepare"),
        (["delete"], r".*delete"),
    ],
)
def test_wrong_usage(made, tmp_path, capfd, monkeypatch, arguments, message):
    shutil.copy(made / "source", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert re.match(message, fails(capfd, 2, *arguments))
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "tetrominoes", "--source", "absent", "--out", "new"], "absent: no such file or folder; `slotattn"),
        (["prepare", "tetrominoes", "--source", "prepared", "--out", "new"], "prepared: not a file: give the path"),
        (["prepare", "clevr", *SOURCE], "source: neither CLEVR_v1.0 (with images/ and scenes/) nor a folder of"),
        (["prepare", "multi-dsprites-binarized", *SOURCE], "source: record 0: feature 'image' has 3675 values, expec"),
        (["prepare", "tetrominoes", *SOURCE], "source: 4 scenes for train, expected 60000; download it again if"),
        (["prepare", "tetrominoes", *SOURCE, "--train", "4"], "source: 0 scenes for eval, expected 320; download it"),
        (["prepare", "tetrominoes", "--source", "source", "--out", "source"], "source: exists already and is not ov"),
        (["prepare", "tetrominoes", "--source", "source", "--out", "."], ".: exists already and is not overwritten"),
        (["generate", "tetrominoes", "--out", "prepared"], "prepared: exists already and is not overwritten; remove"),
        (
            ["generate", "tetrominoes", "--out", "source/new"],
            "[Errno 20] Not a directory: 'source/new.partial'; choose another --out",
        ),
        (["generate", "tetrominoes", "--out", "x" * 255], "[Errno 36] File name too long: "),
        (["generate", "tetrominoes", "--out", "new", "--max-objects", "3"], "max_objects: got 3 for tetrominoes; only"),
        (["generate", "clevr", "--out", "new", "--max-objects", "0"], "max_objects: got 0, expected 3 to 10 for clevr"),
        (["check", "absent"], "absent: no such folder; `slotattn data prepare` or"),
        (["check", "source"], "source: not a folder; `slotattn data prepare` or"),
        (["check", "."], ".: has no manifest.json, so `slotattn data prepare` or `generate` did not make it, "),
        (["show", "absent"], "data: got 'absent', which is neither a prepared folder nor one of clevr, "),
        (["show", "objects-room"], "data: got 'objects-room', which is neither a prepared folder nor one of clevr"),
        (["show", "prepared", "--max-objects", "1"], "prepared: no scene of at most 1 objects in its train split"),
        (["show", "prepared", "--max-objects", "-1"], "prepared: no scene of at most -1 objects in its train split"),
        (["show", "prepared", "--out", "source/s.png"], "[Errno 17] File exists: 'source'; choose another --out"),
        (["show", "prepared", "--out", "prepared"], "[Errno 21] Is a directory: 'prepared'; choose another --out"),
    ],
)
def test_what_fails(made, tmp_path, capfd, monkeypatch, arguments, message):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert fails(capfd, 1, *arguments).startswith(message)
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["prepared", "source"]


def test_check_finds_damage(made, tmp_path, capfd):
    folder = shutil.copytree(made / "prepared", tmp_path / "prepared")
    path = folder / "train" / "labels.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert fails(capfd, 1, "check", folder) == (
        f"{path}: damaged (its SHA-256 is not that of the manifest); "
        "make it anew with `slotattn data prepare` or `generate`"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["scenes"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json: damaged" in fails(capfd, 1, "check", folder)


NOBODY = 65534


@pytest.mark.skipif(os.name != "posix", reason="needs rights of POSIX")
@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        (["generate", "tetrominoes", "--out", "shut/new", "--train", "1"], "shut"),
        (["prepare", "tetrominoes", "--source", "source", "--out", "open/new"], "source"),
        (["check", "prepared"], "prepared/manifest.json"),
        (["check", "prepared"], "prepared/eval/x.npy"),
        (["show", "tetrominoes", "--out", "shut/s.png"], "shut"),
    ],
)
def test_without_permission(made, tmp_path, arguments, closed, capfd, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
    os.chmod(tmp_path / closed, 0o555 if closed == "shut" else 0)
    monkeypatch.chdir(tmp_path)
    barred = [parent for parent in tmp_path.parents if not parent.stat().st_mode & 1]
    root = os.geteuid() == 0
    if root:  # to whom everything is permitted
        os.chown(tmp_path / "open", NOBODY, NOBODY)
        for folder in (tmp_path, *barred):
            os.chmod(folder, folder.stat().st_mode | 0o55)
        os.seteuid(NOBODY)
    try:
        message = fails(capfd, 1, *arguments)
    finally:
        if root:
            os.seteuid(0)
        for folder in barred:
            os.chmod(folder, 0o700)
        os.chmod(tmp_path / closed, 0o755)
    assert "Permission denied" in message
    assert "damaged" not in message
    assert message.endswith("; choose another --out") == (closed == "shut")
    assert closed in message
    assert os.listdir(tmp_path / "shut") == os.listdir(tmp_path / "open") == []
