"""One process at a time in a folder."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slotattn_fast.atomic import naming


@contextmanager
def locked(lock: Path, in_use: Exception | None) -> Iterator[None]:
    """Holds a file's lock, which ends with the process however that ends.

    Where another process holds it, raises `in_use`, or waits if that is None.

    Where the system or the file system knows no locks, this does nothing. The file stays.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    # A file, open for writing: NFS locks neither folders nor what is open for reading.
    with lock.open("w") as file:
        try:
            with naming(lock):
                fcntl.flock(file, fcntl.LOCK_EX | (0 if in_use is None else fcntl.LOCK_NB))
        except BlockingIOError:
            assert in_use is not None
            raise in_use from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                raise
        yield
