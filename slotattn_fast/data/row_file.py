"""A .npy file that is written row by row, in any order, and can be left and taken up again."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.atomic import naming


class RowFile:
    """Rows of one shape and type, written to `path`, which may hold rows already; `finish` sets their number.

    Plain writes and not a memory map: on a full disk a write raises OSError naming the file, a map kills the process.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, dtype, shape
        self._row_bytes = dtype.itemsize * int(np.prod(shape, dtype=int))
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._start = self._file.write(_header(dtype, shape, 0))

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Writes consecutive rows [n, ...]. Raises ValueError for rows of another shape or type."""
        if rows.shape[1:] != self.shape or rows.dtype != self.dtype:
            raise ValueError(f"got rows {rows.dtype} {rows.shape[1:]}, expected {self.dtype} {self.shape}")
        with naming(self.path):
            self._file.seek(self._start + first * self._row_bytes)
            self._file.write(rows.tobytes())

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with naming(self.path):
            self._file.close()


def finish(path: Path, rows: int) -> None:
    """Makes the file of a closed `RowFile` a .npy file of this many rows."""
    with naming(path), path.open("r+b") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        header = _header(dtype, shape[1:], rows)
        file.truncate(len(header) + rows * dtype.itemsize * int(np.prod(shape[1:], dtype=int)))
        file.seek(0)
        file.write(header)
        file.flush()
        os.fsync(file.fileno())


def _header(dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> bytes:
    # NumPy leaves room in it for the first axis to grow, so its length does not depend on the number of rows.
    header = BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
