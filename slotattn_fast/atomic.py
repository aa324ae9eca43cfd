"""Files that are either the old one or the new one, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_TEMPORARY = ".{}.{}.tmp"
"""Of a file's name, and of who writes it: containers that share a disk may have processes of one number."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` and, if the block succeeds, puts it in the place of `path`.

    The file and then its folder are flushed to the disk, so that a crash, a full disk or a power cut leaves the old
    file whole. An exception in the block removes the temporary file and leaves `path` alone. Of processes that write
    the same file at once the last one has it. An OSError of the temporary file names `path`.
    """
    temporary = path.with_name(_TEMPORARY.format(path.name, f"{os.getpid()}-{uuid4().hex[:8]}"))
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # of a folder in which nothing can be written, hence nothing was
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a file of text as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(text.encode())


def remove_half_written(folder: Path, name: str) -> None:
    """Those of files of this name, a pattern, that processes were killed while they wrote; none may be writing now."""
    for temporary in folder.glob(_TEMPORARY.format(name, "*")):
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives `path` to an OSError of the block that names no file, as when a write finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
