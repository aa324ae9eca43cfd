"""Checkpoints: model, optimiser and step, written atomically, the newest two kept, never unpickled on loading."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slotattn_fast.atomic import atomic_write, remove_half_written
from slotattn_fast.train.errors import RunError

FORMAT = 2
KEEP = 2


class CheckpointError(RunError):
    """A checkpoint that cannot be used. The message names the file and says why."""


class Checkpoint(NamedTuple):
    """What a run needs to go on after `step` finished steps."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    config: dict[str, Any]
    """`dataclasses.asdict` of the run's configuration."""
    losses: list[float]
    """Of the steps since the last row of metrics.csv."""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `folder/step-XXXXXXXX.pt`, then removes all but the newest two checkpoints up to that step.

    Checkpoints of later steps go too: they are there only if they were damaged and the run went back before them.
    An error while writing (a full disk, say) leaves the older checkpoints as they were.
    """
    path = folder / f"step-{checkpoint.step:08d}.pt"
    # In memory first: torch.save hides that a disk is full behind an error of its own.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint._asdict()}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    saved = paths(folder)
    newest = [old for old in saved if old <= path][-KEEP:]
    for old in saved:
        if old not in newest:
            old.unlink()
    remove_half_written(folder, "step-*.pt")
    return path


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint on to the CPU. Raises `CheckpointError` if it is damaged or of another format."""
    try:
        # torch.load does not compare the checksums that torch.save wrote; the zip reader does.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged (wrong checksum in {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        raise CheckpointError(f"{path}: damaged or unreadable ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT or set(state) != set(Checkpoint._fields):
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    kinds = {"step": int, "losses": list, **dict.fromkeys(("model", "optimizer", "config"), dict)}
    if not all(isinstance(state[name], kind) for name, kind in kinds.items()) or state["step"] < 1:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    return Checkpoint(**state)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and one line for each newer one that had to be passed over.

    Returns None for the checkpoint if the folder holds none at all. Raises `CheckpointError` if it holds some and all
    are damaged.
    """
    passed_over: list[str] = []
    for path in reversed(paths(folder)):
        try:
            return load(path), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError(f"no usable checkpoint: {'; '.join(passed_over)}; restore one of them, or train anew")
    return None, passed_over


def paths(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest step first."""
    return sorted(folder.glob("step-*.pt"))
