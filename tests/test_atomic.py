"""Files that are whole or as they were."""

import errno
import os
import signal
from pathlib import Path

import pytest
from child import in_child

from slotattn_fast.atomic import atomic_write, remove_half_written, write_text


def test_an_exception_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="file") as raised, atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "file")


def test_a_kill_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def killed() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_processes_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def other() -> None:
        with atomic_write(path) as file:
            file.write(b"other")

    with atomic_write(path) as file:
        file.write(b"new, and")
        file.flush()
        assert in_child(other) == 0
        assert path.read_bytes() == b"other"
        file.write(b" longer")
    assert path.read_bytes() == b"new, and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_so_may_containers_whose_processes_have_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_write(path) as file:
        file.write(b"new")
        with atomic_write(path) as other:
            other.write(b"longer")
            assert len(list(tmp_path.glob(".file.7-*.tmp"))) == 2
        assert path.read_bytes() == b"longer"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_half_written_is_removed(tmp_path: Path) -> None:
    def killed() -> None:
        with atomic_write(tmp_path / "file"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    remove_half_written(tmp_path, "other")
    assert left.exists()
    remove_half_written(tmp_path, "f*e")
    assert not left.exists()


@pytest.mark.parametrize(("name", "error"), [("folder", IsADirectoryError), ("file/new", NotADirectoryError)])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str, error: type[OSError]) -> None:
    """And not the temporary file beside it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(error) as raised:
        write_text(tmp_path / name, "new")
    assert str(raised.value).endswith(f": '{tmp_path / name}'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_all_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before it has its name, so that a power cut leaves one of the two."""
    done: list[object] = []
    fsync, put = os.fsync, os.replace

    def synced(number: int) -> None:
        fsync(number)
        stat = os.fstat(number)
        done.append("folder" if os.path.samestat(stat, tmp_path.stat()) else stat.st_size)

    def renamed(source: Path, path: Path) -> None:
        put(source, path)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert done == [3, "renamed", "folder"]
