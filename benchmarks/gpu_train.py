"""The stage `train`: the paper's configuration of either task on generated scenes, in pieces of a few minutes.

    python -m benchmarks.gpu train tetrominoes --out DIR                                       the first piece
    python -m benchmarks.gpu train tetrominoes --out DIR --start DIR/train-tetrominoes-0.tar   every other

clevr10 is property prediction; the others are object discovery. In bfloat16 autocast, each step replayed as a CUDA
graph; the rest is the preset's, through the functions that `slotattn train` calls. A piece ends by SIGTERM after so
many minutes, which saves a checkpoint, and leaves one file: the run folder with its newest checkpoint, from which the
next piece goes on exactly, on this machine or another with such a GPU. It is written anew every minute too, so that a
piece that is killed is not lost. That of a complete run holds weights, evaluation and pictures in place of the
checkpoint. Its conditions.json has an entry for each piece: machine, versions, commit, steps, and images a second.

Scenes are as many as the paper trains on. Every piece draws them once and keeps them, CLEVR's in 3.5 GB of the GPU: to
draw a batch of CLEVR anew takes many times as long as to learn from it.
"""

import json
import os
import signal
import statistics
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.archive import extract
from slotattn_fast.train import checkpoint
from slotattn_fast.train.config import PRESETS, TrainConfig
from slotattn_fast.train.errors import Stopped
from slotattn_fast.train.evaluation import readings
from slotattn_fast.train.run import configuration as read_configuration
from slotattn_fast.train.run import create as create_run
from slotattn_fast.train.run import train as train_run
from slotattn_fast.train.run_folder import is_complete

LIMIT = 16 * 2**20  # bytes of an archive
SCENES = {"tetrominoes": 60_000, "multi-dsprites": 60_000, "clevr6": 70_000, "clevr10": 70_000}
IMAGE_EVERY = 100_000  # steps; rarer than in the presets: a picture of CLEVR6 has 0.8 MB, a checkpoint 11 MB
AGAIN = 0.1  # seconds from one SIGTERM to the next
KEEP_EVERY = 60.0  # seconds from one archive to the next
CONDITIONS = "conditions.json"
PAPER = {**PRESETS["property"], **PRESETS["discovery"]}  # clevr6 is of both tasks
TOY_MODEL = {"encoder_channels": 8, "encoder_strides": (4, 4), "slot_dim": 8, "hidden_dim": 8}
TOY_DECODER = {"decoder_channels": 8, "decoder_strides": (4, 4)}
TOY_SIZE = 32  # of the images of property prediction, which are drawn in any


def configuration(preset: str, seed: int, steps: int | None, toy: bool) -> TrainConfig:
    """The preset's, as a GPU trains it fastest; or with a small model, on a CPU."""
    paper = PAPER[preset]
    config = replace(paper, seed=seed, steps=steps or paper.steps, precision="bf16-mixed", image_every=IMAGE_EVERY)
    if not toy:
        return replace(config, device="cuda", cuda_graph=True, scenes=SCENES[preset])
    model = {**config.model, **TOY_MODEL}
    if config.task == "property":
        model["image_size"] = TOY_SIZE
    else:
        model |= {**TOY_DECODER, "broadcast_size": -(-config.model.get("image_size", 35) // 16)}
    return replace(config, device="cpu", batch_size=2, warmup_steps=10, log_every=1, model=model)


def train(
    preset: str,
    seed: int,
    steps: int | None,
    minutes: float,
    out: Path,
    start: Path | None,
    toy: bool,
    here: Mapping[str, str],
) -> bool:
    """Trains a piece and packs it into `out`; whether the run is complete.

    `steps` None: those of the archive `start`, or the preset's. `here`: the conditions. Raises SystemExit for an
    archive of another run, and for one that has grown too large, which is kept; and what the training raises.
    """
    began = time.monotonic()
    archive = out / f"train-{preset}-{seed}.tar"
    with TemporaryDirectory() as folder:
        run = Path(folder) / archive.stem
        if start is None:
            create_run(configuration(preset, seed, steps, toy), run)
        else:
            unpack(start, run)
            if is_complete(run):
                print(f"{start}: complete")
                return True
        config = read_configuration(run)
        asked = {"preset": preset, "seed": seed, "steps": steps or config.steps}
        if other := {name: getattr(config, name) for name in asked if getattr(config, name) != asked[name]}:
            sys.exit(f"{start}: got the archive of {other}, expected one of {asked}; ask for what it is of")
        first, before = newest_step(run), pieces(run)

        def keep() -> tuple[int, float | None]:
            last, images = newest_step(run), images_per_second(run, first)
            steps = {"from_step": first, "to_step": last}
            speed = {"images_per_second": images, "seconds": round(time.monotonic() - began, 1)}
            (run / CONDITIONS).write_text(json.dumps([*before, {**here, **steps, **speed}], indent=1) + "\n")
            pack(run, archive, last)
            return last, images

        try:
            with terminated_after(60 * minutes - (time.monotonic() - began)), repeated(keep, KEEP_EVERY, KEEP_EVERY):
                train_run(run, config)
        except Stopped:
            pass
        finally:  # whatever ended it, the newest checkpoint is worth keeping
            last, images = keep()
        complete = is_complete(run)
    print(f"{archive}: step {last} of {config.steps}, {images} images/s; {'complete' if complete else 'not complete'}")
    if (size := archive.stat().st_size) > LIMIT:
        sys.exit(f"{archive}: {size / 2**20:.1f} MiB, expected at most {LIMIT / 2**20:.0f}; draw fewer pictures")
    return complete


@contextmanager
def terminated_after(seconds: float) -> Iterator[None]:
    """SIGTERM to this process when so many seconds are over, and again until the block ends.

    It stops the training at its next step. Where none is under way, before and after its loop, it does nothing.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with repeated(partial(os.kill, os.getpid(), signal.SIGTERM), AGAIN, max(seconds, 0.0)):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def repeated(act: Callable[[], object], every: float, first: float) -> Iterator[None]:
    """Calls `act` in a thread after `first` seconds, and again every so many, until the block ends.

    A file that the block removes or writes meanwhile is left to the next time.
    """
    over = threading.Event()

    def work() -> None:
        wait = first
        while not over.wait(wait):
            wait = every
            with suppress(OSError, ValueError, TypeError):  # also half a line of metrics.csv
                act()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


def newest_step(run: Path) -> int:
    """Of the newest checkpoint; 0 without any."""
    saved = checkpoint.paths(run / "checkpoints")
    return int(saved[-1].stem.removeprefix("step-")) if saved else 0


def images_per_second(run: Path, first: int) -> float | None:
    """The median of what metrics.csv says of the steps after `first`; None if it says nothing."""
    speeds = [reading.images_per_second for reading in readings(run) or () if reading.step > first]
    return round(statistics.median(speeds), 1) if speeds else None


def pieces(run: Path) -> list[dict[str, Any]]:
    """What conditions.json says of the pieces so far."""
    path = run / CONDITIONS
    return list(json.loads(path.read_text())) if path.exists() else []


def pack(run: Path, archive: Path, step: int) -> None:
    """The run folder as one file, in one step: without TensorBoard's copy of the numbers and other checkpoints.

    Of a complete run without any checkpoint.
    """
    kept = None if is_complete(run) else f"step-{step:08d}.pt"
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_suffix(".new")
    with tarfile.open(fresh, "w") as file:
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run)
            wanted = path.name == kept if name.parts[0] == "checkpoints" else name.parts[0] not in ("tb", "lock")
            if path.is_file() and wanted:
                file.add(path, arcname=str(name))
    fresh.replace(archive)


def unpack(archive: Path, run: Path) -> None:
    """The reverse of `pack`, ready to go on."""
    with tarfile.open(archive) as file:
        extract(file, run)
