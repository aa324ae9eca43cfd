"""The training loop on a toy task: exact resume, signals, damage, and losses that are no longer finite."""

import csv
import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from child import in_child
from lightning_fabric import Fabric
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from slotattn_fast.train import checkpoint, log, loop
from slotattn_fast.train.config import PRESETS, TrainConfig, from_json
from slotattn_fast.train.errors import RunError, Stopped
from slotattn_fast.train.loop import TRAIN_NOISE, fit, seed_of
from slotattn_fast.train.schedule import learning_rate
from slotattn_fast.train.signals import StopSignal

CONFIG = replace(
    PRESETS["discovery"]["quick"],
    steps=12,
    batch_size=3,
    lr=0.05,
    warmup_steps=4,
    decay="exponential",
    decay_steps=10,
    precision="32-true",
    log_every=2,
    image_every=4,
    checkpoint_every=5,
    seed=3,
)


class Toy:
    """Denoising of random vectors. `during` is called with the step in which the loss is computed."""

    def __init__(self, config: TrainConfig, during: Callable[[int], float | None] = lambda step: None) -> None:
        self.config = config
        self.during = during
        self.losses = 0
        self.first = 0

    def batch(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.config.seed, 0, step])
        return torch.from_numpy(rng.standard_normal((self.config.batch_size, 5), dtype=np.float32))

    def batches(self, start: int, fabric: Fabric) -> Generator[dict[str, Tensor]]:
        self.first = start
        for step in count(start):
            yield {"images": self.batch(step)}

    def noise_shape(self, model: nn.Module) -> tuple[int, ...]:
        return (self.config.batch_size, 5)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        images = batch["images"]
        factor = self.during(self.first + self.losses)
        self.losses += 1
        loss = (model(images + batch["noise"]) - images).square().mean()
        return loss if factor is None else loss * factor

    def draw(self, model: nn.Module, path: Path) -> None:
        Image.new("RGB", (6, 4), (200, 100, 0)).save(path)


def _fit(run: Path, task: Toy) -> nn.Module:
    for folder in ("checkpoints", "images"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(task.config.seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5))
    with StopSignal() as stop:
        fit(Fabric(accelerator="cpu", devices=1), model, task, task.config, run, stop)
    return model


def test_rows_are_on_the_disk_before_a_checkpoint_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, on_disk, saved = tmp_path / "metrics.csv", [""], []
    fsync, save = os.fsync, checkpoint.save

    def synced(file: int) -> None:
        fsync(file)
        if metrics.exists() and os.path.samestat(os.fstat(file), metrics.stat()):
            on_disk.append(metrics.read_text())

    def save_after(folder: Path, kept: checkpoint.Checkpoint) -> Path:
        saved.append(kept.step)
        counted = [int(row.split(",")[0]) for row in on_disk[-1].splitlines()[1:]]
        assert counted == list(range(2, kept.step - len(kept.losses) + 1, 2))
        return save(folder, kept)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoint, "save", save_after)
    _fit(tmp_path, Toy(CONFIG))
    assert saved == [5, 10, 12]


def test_a_compiler_that_fails_in_a_graphs_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    monkeypatch.setattr(loop, "graphed_step", lambda fabric, loss_of, optimizer, batch: loss_of(batch))
    with pytest.raises(RunError, match=r"compile: torch\.compile failed \(.*no compiler.*\); go on with"):
        _fit(tmp_path, Toy(replace(CONFIG, compile=True, cuda_graph=True)))


def _assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def _assert_same_rows(one: Path, other: Path) -> None:
    """Of metrics.csv, but for the images a second."""
    columns = ("step", "loss", "lr")
    rows = [[[row[c] for c in columns] for row in _metrics(run)] for run in (one, other)]
    assert rows[0] == rows[1]


def _metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_uncut_run(tmp_path: Path) -> None:
    model = _fit(tmp_path, Toy(CONFIG))
    assert [path.name for path in checkpoint.paths(tmp_path / "checkpoints")] == [
        "step-00000010.pt",
        "step-00000012.pt",
    ]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "step-00000004.png",
        "step-00000008.png",
        "step-00000012.png",
    ]
    rows = _metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        # The row after n steps holds the rate of the last of them, whose number, counted from 0, is n - 1.
        expected = learning_rate(int(row["step"]) - 1, CONFIG)
        assert float(row["lr"]) == pytest.approx(expected, rel=1e-6)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events.Images("images")] == [4, 8, 12]
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000012.pt")
    assert torch.equal(saved.model["0.weight"], model.state_dict()["0.weight"])


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    trained = _fit(tmp_path, Toy(CONFIG))

    task = Toy(CONFIG)
    torch.manual_seed(CONFIG.seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5))
    optimizer = torch.optim.Adam(model.parameters())
    losses = []
    for step in range(CONFIG.steps):
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, step / 4) * 0.5 ** (step / 10)
        generator = torch.Generator().manual_seed(seed_of(CONFIG.seed, TRAIN_NOISE, step))
        noise = torch.randn(3, 5, generator=generator)
        loss = task.loss(model, {"images": task.batch(step), "noise": noise})
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value)
    means = np.reshape(losses, (-1, CONFIG.log_every)).mean(1)
    assert [float(row["loss"]) for row in _metrics(tmp_path)] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_resume_is_bit_identical(tmp_path: Path, number: signal.Signals) -> None:
    uncut = _fit(tmp_path / "uncut", Toy(CONFIG))

    def send(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        _fit(tmp_path / "cut", Toy(CONFIG, send))
    assert signal.getsignal(number) == before
    assert stopped.value.signal == number
    # The step in which the signal came is finished, and saved.
    assert checkpoint.paths(tmp_path / "cut" / "checkpoints")[-1].name == "step-00000007.pt"
    _assert_same_weights(uncut, _fit(tmp_path / "cut", Toy(CONFIG)))
    _assert_same_rows(tmp_path / "cut", tmp_path / "uncut")


def test_killed_run_resumes_bit_identical_and_with_whole_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purged = []

    def writer(folder: str, purge_step: int | None) -> SummaryWriter:
        purged.append(purge_step)
        return SummaryWriter(folder, purge_step=purge_step)

    monkeypatch.setattr(log, "SummaryWriter", writer)
    uncut = _fit(tmp_path / "uncut", Toy(CONFIG))

    def die(step: int) -> None:
        if step == 9:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        _fit(tmp_path / "cut", Toy(CONFIG, die))
    # The rows 6 and 8 came after the checkpoint of step 5; a half-written one may follow them.
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("1")
    _assert_same_weights(uncut, _fit(tmp_path / "cut", Toy(CONFIG)))
    _assert_same_rows(tmp_path / "cut", tmp_path / "uncut")
    assert purged == [None, None, 6]  # of the steps in TensorBoard, which are written anew from there


@pytest.mark.parametrize("damage", [b"abc,1,2,3\n", b"\0\0\0\0", b"\xff\xfe,1,2,3\n", b"1.0,1,2,3\n", b'"4,1'])
def test_rows_that_cannot_be_read_are_dropped(tmp_path: Path, damage: bytes) -> None:
    _fit(tmp_path / "uncut", Toy(CONFIG))
    with pytest.raises(Stopped):
        _fit(tmp_path / "cut", Toy(CONFIG, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None))
    with (tmp_path / "cut" / "metrics.csv").open("ab") as file:
        file.write(damage)
    _fit(tmp_path / "cut", Toy(CONFIG))
    _assert_same_rows(tmp_path / "cut", tmp_path / "uncut")


@pytest.mark.parametrize("step", [8, 12])
def test_kill_between_checkpoint_and_picture_loses_no_picture(tmp_path: Path, step: int) -> None:
    config = replace(CONFIG, checkpoint_every=4)

    class Dies(Toy):
        def draw(self, model: nn.Module, path: Path) -> None:
            if path.stem == f"step-{step:08d}":
                os.kill(os.getpid(), signal.SIGKILL)
            super().draw(model, path)

    assert in_child(lambda: _fit(tmp_path, Dies(config))) == -signal.SIGKILL
    assert checkpoint.paths(tmp_path / "checkpoints")[-1].stem == f"step-{step:08d}"
    _fit(tmp_path, Toy(config))
    assert sorted(path.stem for path in (tmp_path / "images").iterdir()) == [f"step-{n:08d}" for n in (4, 8, 12)]


@pytest.mark.parametrize("written", ["nothing", "half", "all"])
def test_kill_during_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """kill -9 while the second checkpoint is written: before, in the midst of, and after its bytes."""
    uncut = _fit(tmp_path / "uncut", Toy(CONFIG))
    save, calls = torch.save, []

    class DiesWhenWritten(io.BytesIO):
        def getbuffer(self) -> NoReturn:
            (temporary,) = (tmp_path / "cut" / "checkpoints").glob(".*.tmp")
            content = self.getvalue()
            temporary.write_bytes(content[: {"nothing": 0, "half": len(content) // 2, "all": None}[written]])
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(state: object, buffer: io.BytesIO) -> None:
        save(state, buffer)
        calls.append(buffer)
        if len(calls) == 2:
            buffer.__class__ = DiesWhenWritten

    class Buffer(io.BytesIO):
        """Whose class can be changed."""

    monkeypatch.setattr(checkpoint.io, "BytesIO", Buffer)
    monkeypatch.setattr(checkpoint.torch, "save", counted)
    assert in_child(lambda: _fit(tmp_path / "cut", Toy(CONFIG))) == -signal.SIGKILL
    monkeypatch.undo()
    (saved,) = checkpoint.paths(tmp_path / "cut" / "checkpoints")
    assert saved.name == "step-00000005.pt"
    task = Toy(CONFIG)
    _assert_same_weights(uncut, _fit(tmp_path / "cut", task))
    assert task.first == 5
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_rows_are_in_the_file_when_the_process_is_killed(tmp_path: Path) -> None:
    def dies(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: _fit(tmp_path, Toy(CONFIG, dies))) == -signal.SIGKILL
    assert [int(row["step"]) for row in _metrics(tmp_path)] == [2, 4, 6, 8]


def test_a_full_disk_keeps_the_checkpoints_and_is_named(tmp_path: Path) -> None:
    uncut = _fit(tmp_path / "uncut", Toy(CONFIG))

    def fills(step: int) -> None:
        if step == 7:
            (saved,) = checkpoint.paths(tmp_path / "cut" / "checkpoints")
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (saved.stat().st_size - 500,))

    def until_full() -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (what pytest puts in its place is a file)
        with pytest.raises(OSError, match="File too large") as error:
            _fit(tmp_path / "cut", Toy(CONFIG, fills))
        assert error.value.filename == str(tmp_path / "cut" / "checkpoints" / "step-00000010.pt")

    assert in_child(until_full) == 0
    (left,) = (tmp_path / "cut" / "checkpoints").iterdir()
    assert left.name == "step-00000005.pt"
    _assert_same_weights(uncut, _fit(tmp_path / "cut", Toy(CONFIG)))


def test_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uncut = _fit(tmp_path, Toy(CONFIG))
    newest = tmp_path / "checkpoints" / "step-00000012.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    task = Toy(CONFIG)
    resumed = _fit(tmp_path, task)
    assert task.first == 10
    assert "step-00000012.pt: damaged" in capsys.readouterr().err
    _assert_same_weights(uncut, resumed)


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(
        tmp_path / "checkpoints", checkpoint.Checkpoint(1, {"other": torch.zeros(1)}, {}, asdict(CONFIG), [])
    )
    with pytest.raises(RunError, match="of another model"):
        _fit(tmp_path, Toy(CONFIG))


@pytest.mark.parametrize("key", ["log_every", "image_every", "checkpoint_every"])
def test_what_does_not_change_the_result_may_change(tmp_path: Path, key: str) -> None:
    _fit(tmp_path, Toy(replace(CONFIG, **{key: 3})))
    _fit(tmp_path, Toy(replace(CONFIG, **{key: 4})))


def test_images_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("slotattn_fast.train.log.time.perf_counter", lambda: 4.0 * next(clock))
    _fit(tmp_path, Toy(CONFIG))
    assert {row["images_per_second"] for row in _metrics(tmp_path)} == {"1.5"}  # 2 steps of 3 images in 4 seconds


def test_another_seed_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path, Toy(CONFIG))
    with pytest.raises(RunError, match="seed was 3 and is 4; put that back"):
        _fit(tmp_path, Toy(replace(CONFIG, seed=4)))


def test_a_second_signal_acts_as_it_did_before() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which it is not where CI runs in the background
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_changed_configuration_is_refused_and_named(tmp_path: Path) -> None:
    _fit(tmp_path, Toy(CONFIG))
    model = {**CONFIG.model, "iters": 2}
    with pytest.raises(RunError) as error:
        _fit(tmp_path, Toy(replace(CONFIG, lr=0.1, steps=20, model=model)))
    assert str(error.value) == (
        f"{tmp_path / 'config.json'}: not the configuration that the checkpoints were made with: iters was 10 and is "
        "2; lr was 0.05 and is 0.1; steps was 12 and is 20; put that back, or train anew"
    )


def test_non_finite_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = Toy(CONFIG, lambda step: float("nan") if step == 6 else None)
    with pytest.raises(RunError, match="the loss is nan in step 7"):
        _fit(tmp_path, task)
    (saved,) = checkpoint.paths(tmp_path / "checkpoints")
    assert saved.name == "step-00000005.pt"
    assert all(value.isfinite().all() for value in checkpoint.load(saved).model.values())


def test_infinite_weights_are_not_saved(tmp_path: Path) -> None:
    """Loss and moments are finite still when they are set, in the step before a checkpoint."""

    class Spoils(Toy):
        def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            def spoil(_: Tensor) -> None:
                model[2].bias.data.fill_(torch.inf)

            loss = super().loss(model, batch)
            if self.losses == 5:
                loss.register_hook(spoil)
            return loss

    with pytest.raises(RunError, match="weights or Adam's moments are no longer finite after step 5"):
        _fit(tmp_path, Spoils(CONFIG))
    assert checkpoint.paths(tmp_path / "checkpoints") == []


def test_infinite_moments_are_not_saved(tmp_path: Path) -> None:
    # The loss is finite, and so is the gradient; its square is not.
    task = Toy(replace(CONFIG, steps=1, warmup_steps=0), lambda step: 1e35)
    with pytest.raises(RunError, match="moments are no longer finite after step 1"):
        _fit(tmp_path, task)
    assert checkpoint.paths(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected an integer of at least 1"),
        ({"steps": 2.5}, "steps: got 2.5"),
        ({"batch_size": -1}, "batch_size: got -1"),
        ({"decay_steps": 0}, "decay_steps: got 0, expected an integer of at least 1"),
        ({"decay": "cosine"}, "decay_steps: got 10, expected None with decay='cosine'"),
        ({"decay": "linear"}, "decay: got 'linear', expected one of exponential, cosine, none"),
        ({"devices": 2}, "batch_size: got 3, expected a multiple of devices=2"),
        ({"compile": "yes"}, "compile: got 'yes', expected True or False"),
        ({"lr": -1e-3}, "lr: got -0.001"),
        ({"lr": float("nan")}, "lr: got nan"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63}, "seed: got 9223372036854775808, expected less than 2\\^63"),
        ({"device": "tpu"}, "device: got 'tpu', expected one of auto, cpu, cuda"),
        ({"data": ""}, "data: got '', expected a data set's name or a folder"),
        ({"max_objects": 0}, "max_objects: got 0, expected an integer of at least 1, or None"),
        ({"scenes": 0}, "scenes: got 0, expected an integer of at least 1, or None"),
        ({"scenes": 10**12}, "scenes: got 1000000000000, expected at most 100,000,000, which are kept in memory"),
        ({"scenes": 2.0}, "scenes: got 2.0, expected an integer of at least 1, or None"),
        ({"greyscale": 1}, "greyscale: got 1, expected True or False"),
    ],
)
def test_bad_configuration(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_unknown_or_missing_fields_of_a_saved_configuration() -> None:
    with pytest.raises(ValueError, match=r"unknown: \['momentum'\]"):
        from_json({"momentum": 0.9})


def test_paper_preset() -> None:
    paper = PRESETS["discovery"]["tetrominoes"]
    assert (paper.steps, paper.batch_size, paper.lr) == (500_000, 64, 4e-4)
    assert (paper.warmup_steps, paper.decay_steps) == (10_000, 100_000)
