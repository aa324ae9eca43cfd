"""Preparing a folder, killed at any moment, on a full disk, twice at once: going on ends in the same bytes."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from child import in_child
from clevr_writer import write_published
from test_clevr import SCENES
from test_prepare import contents, draw_objects, write
from time_limit import time_limit

from slotattn_fast import cli
from slotattn_fast.data import prepare as module
from slotattn_fast.data import row_file
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import sampler
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.prepared import check, open_prepared

SOURCE = "source (or that was changed or downloaded again since)"
SCENES_WRITTEN, TRAIN, HELD_OUT = 12, 7, 4


@pytest.fixture(autouse=True)
def _in_time():
    with time_limit(120):
        yield


@pytest.fixture(autouse=True)
def _notes_after_every_piece(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a killed process has written, the system still has
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_NOTES", -1)
    monkeypatch.setattr(module, "_GENERATED_AT_ONCE", 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    scenes = [draw_objects("tetrominoes_train", seed, 3) for seed in range(SCENES_WRITTEN)]
    write(folder / "tetrominoes", "tetrominoes_train", scenes)
    write_published(folder / "clevr", SCENES)
    described = folder / "clevr" / "scenes" / "CLEVR_train_scenes.json"
    scenes = json.loads(described.read_text())
    scenes["scenes"] = scenes["scenes"][::-1]  # rows are then written in another order than their own
    described.write_text(json.dumps(scenes))
    return folder


def from_file(source, out):
    return prepare("tetrominoes", source / "tetrominoes", out, train=TRAIN, held_out=HELD_OUT)


def from_clevr(source, out):
    return prepare("clevr", source / "clevr", out, train=3, held_out=1)


def drawn(source, out):
    return generate("multi-dsprites-colored-on-grayscale", out, seed=3, train=TRAIN, held_out=HELD_OUT)


MAKERS = [from_file, from_clevr, drawn]


def dies(owner, name, call, when):
    """Makes a function kill its process, in this process, "before" or "after" its call of a number."""
    original = getattr(owner, name)
    calls = 0

    @wraps(original)
    def replacement(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


MOMENTS = [
    *[(row_file.RowFile, "write", call, when) for call in (1, 2, 9, 14, 17) for when in ("before", "after")],
    *[(row_file.RowFile, "sync", call, "after") for call in (1, 10)],
    *[(module, "_note", call, when) for call in (1, 2, 4) for when in ("before", "after")],
    *[(os, "replace", call, when) for call in (1, 2, 5) for when in ("before", "after")],
    (module, "_finish", 1, "before"),
    *[(module, "finish", call, when) for call in (1, 3) for when in ("before", "after")],
    (module, "sha256", 2, "after"),
    (module, "_finish", 1, "after"),
    *[(Path, "rename", 1, when) for when in ("before", "after")],
    *[(Path, "unlink", call, when) for call in (1, 2) for when in ("before", "after")],
]


@pytest.mark.parametrize("make", MAKERS)
def test_killed_at_any_moment(make, source, tmp_path):
    make(source, tmp_path / "uncut")
    uncut = contents(tmp_path / "uncut")
    for number, moment in enumerate(MOMENTS):
        out = tmp_path / f"out{number}"

        def cut(out=out, moment=moment):
            dies(*moment)
            make(source, out)

        assert in_child(cut) == -signal.SIGKILL, moment
        if out.exists():
            check(out)
            assert moment[1] in ("rename", "unlink")
            left = contents(out)
            assert left.keys() - uncut.keys() <= {"progress.json", "lock"}
            assert {name: left[name] for name in uncut} == uncut
            continue
        if not (out.with_name(f"{out.name}.partial") / "manifest.json").exists():
            with pytest.raises(DataError, match=r"no manifest\.json"):
                open_prepared(out.with_name(f"{out.name}.partial"))
        make(source, out)
        assert contents(out) == uncut, moment
        assert not out.with_name(f"{out.name}.partial").exists()


@pytest.mark.parametrize("make", MAKERS)
def test_killed_again_and_again(make, source, tmp_path):
    make(source, tmp_path / "uncut")
    out, cuts = tmp_path / "out", 0

    def cut():
        dies(module, "_note", 3, "before")  # when one or two pieces more are noted
        make(source, out)

    while (code := in_child(cut)) == -signal.SIGKILL:
        cuts += 1
    assert code == 0
    assert cuts >= (3 if make is from_file else 1)
    assert contents(out) == contents(tmp_path / "uncut")


def test_what_was_noted_is_not_done_again(source, tmp_path, monkeypatch):
    done = []

    def counted(name, scene):
        done.append(scene["image"].sum())
        return _made(name, scene)

    _made = module._multi_object_arrays
    monkeypatch.setattr(module, "_multi_object_arrays", counted)
    from_file(source, tmp_path / "uncut")
    order = [np.load(tmp_path / "uncut" / split / "images.npy").sum((1, 2, 3)) for split in ("train", "eval")]
    uncut = np.concatenate(order).tolist()
    assert sorted(done) == sorted(uncut)
    done.clear()
    for cut_at in (3, 9):  # in the split to train on, and in the other
        out = tmp_path / f"out{cut_at}"
        in_child(lambda out=out, cut_at=cut_at: (dies(module, "_note", cut_at + 1, "after"), from_file(source, out)))
        noted = json.loads((out.with_name(f"{out.name}.partial") / "progress.json").read_bytes())
        assert (noted["done"], sum(noted["rows"].values())) == (cut_at, cut_at)
        from_file(source, out)
        assert sorted(done) == sorted(uncut[cut_at:])  # they are made in threads
        done.clear()


def test_batches_that_were_noted_are_not_drawn_again(source, tmp_path, monkeypatch):
    scenes = []

    def counted(name, max_objects):
        sample = sampler(name, max_objects)
        return lambda seed, indices: (scenes.extend(indices), sample(seed, indices))[1]

    in_child(lambda: (dies(module, "_note", 3, "after"), drawn(source, tmp_path / "out")))
    monkeypatch.setattr(module, "sampler", counted)
    drawn(source, tmp_path / "out")
    assert len(scenes) == TRAIN + HELD_OUT - 2 * 2


def test_what_was_never_noted_is_cleared_away(source, tmp_path):
    """A run that died before its first note, and then one of another data set, with fewer arrays, in its place."""
    out = tmp_path / "out"
    code = in_child(lambda: (dies(row_file.RowFile, "write", 6, "after"), from_clevr(source, out)))
    assert code == -signal.SIGKILL
    assert (tmp_path / "out.partial" / "train" / "num_objects.npy").exists()
    made = generate("tetrominoes", out, train=2, held_out=1)
    assert set(made.splits["train"]) == {"images", "labels", "num_objects"}
    assert not (out / "train" / "color.npy").exists()


@pytest.mark.parametrize(
    ("told", "other"),
    [
        (
            "number of scenes",
            lambda source, out: prepare("tetrominoes", source / "tetrominoes", out, train=TRAIN - 1, held_out=HELD_OUT),
        ),
        (
            "number of scenes",
            lambda source, out: prepare("tetrominoes", source / "tetrominoes", out, train=TRAIN, held_out=HELD_OUT + 1),
        ),
        (SOURCE, lambda source, out: prepare("tetrominoes", source / "copy", out, train=TRAIN, held_out=HELD_OUT)),
        (SOURCE, lambda source, out: generate("tetrominoes", out, train=TRAIN, held_out=HELD_OUT)),
        (SOURCE, lambda source, out: (os.utime(source / "tetrominoes", (1, 1)), from_file(source, out))),
        (f"data set and {SOURCE} and number of scenes", from_clevr),
    ],
    ids=["train", "eval", "path", "generate", "changed", "clevr"],
)
def test_going_on_otherwise_is_refused(source, tmp_path, told, other):
    write(source / "copy", "tetrominoes_train", [draw_objects("tetrominoes_train", 0, 3)])
    out = tmp_path / "out"
    stat = (source / "tetrominoes").stat()
    in_child(lambda: (dies(module, "_note", 4, "after"), from_file(source, out)))
    before = contents(tmp_path)
    with pytest.raises(DataError) as raised:
        other(source, out)
    assert str(raised.value) == (
        f"{out}.partial: begun with another {told}; go on with that, or remove {out}.partial and start anew"
    )
    assert contents(tmp_path) == before
    os.utime(source / "tetrominoes", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    from_file(source, out)


def test_going_on_with_another_version_is_refused(source, tmp_path, monkeypatch):
    in_child(lambda: (dies(module, "_note", 4, "after"), from_file(source, tmp_path / "out")))
    monkeypatch.setattr(module.slotattn_fast, "__version__", "0.0.0")
    with pytest.raises(DataError, match="begun with another version; go on with that, or remove"):
        from_file(source, tmp_path / "out")


def test_too_few_scenes_leave_nothing_to_go_on_with(source, tmp_path):
    with pytest.raises(DataError, match="12 scenes for train, expected 13"):
        prepare("tetrominoes", source / "tetrominoes", tmp_path / "out", train=SCENES_WRITTEN + 1, held_out=1)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("damage", ["missing", "cut off", "missing split"])
def test_arrays_that_were_lost_in_between(source, tmp_path, damage):
    in_child(lambda: (dies(module, "_note", 10, "after"), from_file(source, tmp_path / "out")))
    path = tmp_path / "out.partial" / "train" / "labels.npy"
    if damage == "cut off":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "missing":
        path.unlink()
    else:
        path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"out\.partial/train/.*\.npy: missing or cut off.*; remove .*\.partial and st"):
        from_file(source, tmp_path / "out")


@pytest.mark.parametrize(
    "note",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b'{"about": 1}', b'{"about": 1, "done": "x", "rows": {}, "bytes": 2}'),
        *(b"[" * 100_000, b'{"about": {}, "done": 1e999, "rows": {"train": 4, "eval": 0}, "bytes": {}}'),
        b'{"about": 1, "done": 4, "rows": {"train": 4, "eval": 0}, "bytes": {}}',
    ],
)
def test_a_damaged_note(source, tmp_path, note):
    in_child(lambda: (dies(module, "_note", 4, "after"), from_file(source, tmp_path / "out")))
    (tmp_path / "out.partial" / "progress.json").write_bytes(note)
    with pytest.raises(DataError, match=r"progress\.json: damaged .*; remove .*out\.partial and start anew") as raised:
        from_file(source, tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_a_second_process_is_refused(source, tmp_path):
    out = tmp_path / "out"
    going_on, go_on = os.pipe()
    started, start = os.pipe()

    def slow():
        write_row = row_file.RowFile.write

        def waits(self, first, rows):
            if first == 3:
                os.write(start, b"x")
                os.read(going_on, 1)
            write_row(self, first, rows)

        row_file.RowFile.write = waits
        from_file(source, out)

    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_on)
            slow()
        finally:
            os._exit(0)
    try:
        os.read(started, 1)
        before = contents(tmp_path)
        for make in (from_file, drawn):
            with pytest.raises(DataError, match=r"out\.partial: another process is writing to it; wait for that, or c"):
                make(source, out)
        assert contents(tmp_path) == before
    finally:
        os.close(go_on)  # at the end of the pipe the other process goes on
        os.waitpid(pid, 0)
    from_file(source, tmp_path / "uncut")
    assert contents(out) == contents(tmp_path / "uncut")


@pytest.mark.parametrize(
    ("number", "goes_on"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)]
)
def test_a_file_system_without_locks(source, tmp_path, monkeypatch, number, goes_on):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if goes_on:
        from_file(source, tmp_path / "out")
    else:
        with pytest.raises(OSError, match=r"out\.partial/lock"):
            from_file(source, tmp_path / "out")


@pytest.mark.parametrize("limit", [200, 3_000, 5_000, 20_000, 30_000])
def test_a_full_disk(source, tmp_path, limit):
    """Files can have so many bytes; the first note takes more than 200, and the images 128 + 7 x 3675."""
    out = tmp_path / "out"
    arguments = ["data", "prepare", "tetrominoes", "--source", str(source / "tetrominoes"), "--out", str(out)]
    arguments += ["--train", str(TRAIN), "--eval", str(HELD_OUT)]
    errors, stderr = os.pipe()

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.stdout = sys.stderr = os.fdopen(stderr, "w")  # what pytest puts in their place is a file
        code = cli.main(arguments)
        sys.stderr.flush()
        os._exit(code)

    code = in_child(full)
    os.close(stderr)
    with os.fdopen(errors) as file:
        lines = file.read().splitlines()
    if limit == 30_000:
        assert code == 0
    else:
        assert code == 1
        (line,) = lines
        where = "progress.json" if limit == 200 else "train/images.npy"
        kept = limit != 3_000  # where no scene was noted
        assert line == (
            f"slotattn: [Errno 27] File too large: '{tmp_path / 'out.partial' / where}'"
            + "; when that is mended the same command goes on" * kept
        )
        assert not out.exists()
        assert (tmp_path / "out.partial").exists() == kept
        assert cli.main(arguments) == 0
    from_file(source, tmp_path / "uncut")
    assert contents(out) == contents(tmp_path / "uncut")


@pytest.mark.parametrize("kept", [False, True])
def test_a_stop_says_what_is_kept_and_waits_for_few_scenes(tmp_path, monkeypatch, capsys, kept):
    drawn = []

    def stops(name, max_objects):
        def sample(seed, scenes):
            drawn.append(len(scenes))
            if scenes[0] == (100 * 8 if kept else 0):
                raise KeyboardInterrupt
            return {"images": np.zeros((len(scenes), 2, 2, 3), np.uint8)}

        return sample

    monkeypatch.setattr(module, "sampler", stops)
    assert cli.main(["data", "generate", "clevr", "--out", str(tmp_path / "out")]) == 130
    assert set(drawn) == {8}
    assert capsys.readouterr().err == f"slotattn: interrupted{'; the same command goes on' * kept}\n"
    assert (tmp_path / "out.partial").exists() == kept


RUNNER = """
import sys
from slotattn_fast import cli
from slotattn_fast.data import prepare, row_file
prepare._SECONDS_BETWEEN_NOTES, prepare._GENERATED_AT_ONCE = -1, 2
write, writes = row_file.RowFile.write, []
def waits(self, first, rows):
    writes.append(first)
    if len(writes) == 25:
        sys.stdin.read()
    write(self, first, rows)
row_file.RowFile.write = waits
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_from_outside(tmp_path, number):
    out = tmp_path / "out"
    arguments = ["data", "generate", "tetrominoes", "--out", str(out), "--train", "40", "--eval", "20"]
    command = [sys.executable, "-c", RUNNER, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    note = tmp_path / "out.partial" / "progress.json"

    def noted():
        return json.loads(note.read_bytes())["done"] if note.exists() else 0

    while noted() < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "slotattn: interrupted; the same command goes on"
        assert "Traceback" not in errors
    else:
        assert process.returncode == -number
    assert 5 <= noted() < 30
    with pytest.raises(DataError, match="no such folder"):
        open_prepared(out)
    assert cli.main(arguments) == 0
    generate("tetrominoes", tmp_path / "uncut", train=40, held_out=20)
    assert contents(out) == contents(tmp_path / "uncut")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_does_not_grow_with_the_number_of_scenes(tmp_path):
    """Ten times the scenes: 24 MB of arrays more, none of them in memory."""
    peaks = []
    for train in (1_000, 10_000):
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from slotattn_fast.data.prepare import generate\n"
            f"generate('tetrominoes', Path(sys.argv[1]), train={train}, held_out=1)\n"
            "lines = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())\n"
            "print(lines['VmHWM'].split()[0])\n"  # that of getrusage is at least this process's
        )
        command = [sys.executable, "-c", code, str(tmp_path / str(train))]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert np.load(tmp_path / "10000" / "train" / "images.npy", mmap_mode="r").nbytes > 36e6
    assert peaks[1] - peaks[0] < 12_000  # KiB
