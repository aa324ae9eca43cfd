"""The numbers of a run: metrics.csv, TensorBoard, and what the progress bar says."""

import csv
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from slotattn_fast.atomic import write_text

COLUMNS = ("step", "loss", "lr", "images_per_second")


def _rows(file: Iterable[str]) -> Iterator[list[str]]:
    return csv.reader(line.replace("\0", "") for line in file)


class Log:
    """Appends rows to metrics.csv and TensorBoard, after dropping those past `start` that a cut run left."""

    def __init__(self, run: Path, start: int) -> None:
        path = run / "metrics.csv"
        rows: list[list[str]] = []
        if start and path.exists():
            with path.open(newline="", errors="replace") as old:
                # A cut while the last row was written may have left half of it, a power cut zeros.
                rows = [row for row in _rows(old) if len(row) == len(COLUMNS) and row[0].isdecimal()]
            rows = [row for row in rows if int(row[0]) <= start]
        write_text(path, "".join(",".join(row) + "\n" for row in [COLUMNS, *rows]))
        self._file = path.open("a", newline="", buffering=1)
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._tensorboard = SummaryWriter(str(run / "tb"), purge_step=start + 1 if start else None)
        self._since = time.perf_counter()

    def write(self, step: int, loss: float, lr: float, images: int) -> float:
        """One row after `step` steps. `images` counts those trained on since the last row; returns images a second."""
        now = time.perf_counter()
        speed, self._since = images / (now - self._since), now
        self._csv.writerow((step, f"{loss:.8g}", f"{lr:.8g}", f"{speed:.1f}"))
        for name, value in zip(COLUMNS[1:], (loss, lr, speed), strict=True):
            self._tensorboard.add_scalar(name, value, step)
        return speed

    def sync(self) -> None:
        """Returns when the rows are on the disk."""
        os.fsync(self._file.fileno())  # which has no buffer of its own beyond a line

    def picture(self, path: Path, step: int) -> None:
        """A PNG of the run folder, for TensorBoard."""
        with Image.open(path) as image:
            self._tensorboard.add_image(path.parent.name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()
