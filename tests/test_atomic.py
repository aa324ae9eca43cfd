"""Files that are whole or as they were."""

import errno
import os
import signal
from pathlib import Path

import pytest
from child import in_child

from slotattn_fast.atomic import atomic_write


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
