"""Several processes that share a run: the same training as by one, stopped together, refused before any work."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from child import in_child
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from PIL import Image
from tiny import SIZES
from torch import Tensor

from slotattn_fast import cli
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.prepare import generate
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.train import checkpoint, processes
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.discovery import Discovery
from slotattn_fast.train.errors import RunError, Stopped
from slotattn_fast.train.loop import fit
from slotattn_fast.train.signals import StopSignal

PROCESSES = 2
MODEL = DiscoveryConfig(encoder_channels=4, encoder_strides=(2, 2), slot_dim=8, hidden_dim=8, decoder_channels=4)
CONFIG = replace(
    PRESETS["discovery"]["tetrominoes"],
    steps=4,
    batch_size=6,
    lr=0.01,
    warmup_steps=2,
    log_every=2,
    checkpoint_every=2,
    device="cpu",
)
SMALL = [*SIZES, "--iters", "1", "--batch-size", "4", "--warmup-steps", "1", "--device", "cpu"]
# A task of a job, which starts our processes itself: the task's rank is not that of any of them.
SLURM = {"SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"} | dict.fromkeys(
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"
)


class Double(Discovery):
    """In float64, where the order of sums does not show."""

    def batches(self, start: int, fabric: Fabric) -> Generator[dict[str, Tensor]]:
        torch.set_default_dtype(torch.float64)
        yield from super().batches(start, fabric)

    def loss(self, model: ObjectDiscovery, batch: dict[str, Tensor]) -> Tensor:
        images = batch["images"].permute(0, 3, 1, 2).double() / 127.5 - 1
        return model.loss(images, batch["noise"].double())

    def draw(self, model: ObjectDiscovery, path: Path) -> None:
        Image.new("RGB", (1, 1)).save(path)


def trained(folder: Path) -> None:
    """Trains the model of `folder`, in this process or as one of several, into a checkpoint there."""
    torch.manual_seed(0)
    model = ObjectDiscovery(MODEL).double()
    for name in ("checkpoints", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with StopSignal() as stop:
        fit(processes.connect(CONFIG), model, Double(CONFIG), CONFIG, folder, stop)


def process(rank: int, folder: Path, port: int) -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES)}
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank), **SLURM)
    if rank > 0:  # on another machine, which does not see what is new on a shared disk at once
        checkpoint.paths = lambda folder: []
    trained(folder)
    torch.distributed.barrier()
    os._exit(0)  # as in test_distributed.py


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one process trains; of its own, as the default dtype changes."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert in_child(lambda: trained(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate("tetrominoes", tmp_path_factory.mktemp("data") / "few", train=8, held_out=3).path


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "begun-by-one"])
def test_two_processes_train_as_one_does_with_the_whole_batch(by_one: Path, tmp_path: Path, begun: bool) -> None:
    """By gloo. Every weight and every moment of Adam, and the losses in metrics.csv."""
    by_two = tmp_path / "two"
    if begun:
        shutil.copytree(by_one, by_two)
        (by_two / "checkpoints" / "step-00000004.pt").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (by_two, port), PROCESSES)
    one, two = (checkpoint.load(folder / "checkpoints" / "step-00000004.pt") for folder in (by_one, by_two))
    assert one.model.keys() == two.model.keys()
    for name, value in one.model.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(two.model[name], value, rtol=1e-7, atol=1e-10)
    for index, state in one.optimizer["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(two.optimizer["state"][index][name], value, rtol=1e-7, atol=1e-14)
    columns = [(folder / "metrics.csv").read_text().splitlines() for folder in (by_one, by_two)]
    assert [row.split(",")[:3] for row in columns[0]] == [row.split(",")[:3] for row in columns[1]]


_SIGNALLED = """
import signal, sys
from slotattn_fast import cli
from slotattn_fast.train.discovery import Discovery
loss, steps = Discovery.loss, []
def signalled(*given):
    steps.append(1)
    if len(steps) == 3:
        signal.raise_signal(signal.SIGTERM)
    return loss(*given)
Discovery.loss = signalled
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_signal_to_one_process_stops_both_and_one_alone_goes_on(data: Path, tmp_path: Path) -> None:
    """In the third step of the first process, which does not pass it on to the one that it started."""
    run = tmp_path / "run"
    options = [*SMALL, "--steps", "20", "--data", str(data), "--out", str(tmp_path), "--name", "run", "--devices", "2"]
    command = [sys.executable, "-c", _SIGNALLED, "train", "discovery", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 143, done.stderr
    said = [line for line in done.stderr.splitlines() if "slotattn: SIGTERM" in line]
    assert len(said) == 1, done.stderr
    (saved,) = checkpoint.paths(run / "checkpoints")
    step = int(saved.stem[5:])
    assert 3 <= step < 20
    assert f"SIGTERM: checkpoint saved at step {step}" in said[0]
    assert json.loads((run / "config.json").read_text())["devices"] == 2
    # Alone: how many processes there were is not part of the configuration to keep.
    assert cli.main(["train", "resume", str(run), "--devices", "1"]) == 0
    assert (run / "model.safetensors").exists()


_HELPED = """
import os, sys, time
from slotattn_fast.train import processes
processes._SECONDS_TO_NOTICE = 1.0
if len(sys.argv) > 1:
    sys.executable = sys.argv[1]
with processes.other_processes(["no", "such", "command"], 2):
    print("entered", flush=True)
    time.sleep(60)
"""


def test_a_process_that_fails_ends_the_one_that_waits_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELPED], capture_output=True, text=True, check=False, timeout=50, env=_alone_env()
    )
    assert done.returncode == 1
    own, last = [line for line in done.stderr.splitlines() if line.startswith("slotattn: ")]
    assert own.startswith("slotattn: Unrecognized options: no, such, command")
    assert last == ("slotattn: another process of the run ended with code 2; `slotattn train resume` goes on with it")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    note, sleeper = tmp_path / "pid", tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {note}\nexec sleep 60\n")
    sleeper.chmod(0o755)
    command = [sys.executable, "-c", _HELPED, str(sleeper)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=_alone_env()) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"entered\n"
        deadline = time.monotonic() + 20
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        started.kill()
        started.wait()
    left = int(note.read_text())
    while _runs(left) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(left)


def _runs(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _alone_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def test_torchrun(data: Path, tmp_path: Path) -> None:
    """Its processes agree on one new run folder, named by the first of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["slotattn_fast.cli", "train", "discovery", *SMALL, "--steps", "2"]
    command += ["--data", str(data), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "eval.json").read_text())["scenes"] == 3
    assert done.stdout.splitlines()[0] == f"{run}: 2 steps on cpu"
    assert done.stdout.splitlines()[2:] == [str(run / name) for name in ("iterations.png", "slots.png")]


@pytest.mark.parametrize("first", [True, False])
def test_processes_agree_on_why_there_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    """What the first one finds is handed to the others, which look for nothing themselves."""
    handed: list[object] = []

    class Connected:
        is_global_zero = first

        def broadcast(self, outcome: object) -> object:
            handed.append(outcome)
            return outcome if first else DataError("as the first one says")

    monkeypatch.setattr(processes, "connect", lambda config: Connected())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    wrong = ["--data", "nowhere", "--out", str(tmp_path / "none")]
    assert cli.main(["train", "discovery", *SMALL, *wrong]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    own = "data: got 'nowhere', which is neither a prepared folder nor one of"
    assert line.startswith(f"slotattn: {own if first else 'as the first one says'}")
    assert [type(outcome) for outcome in handed] == [DataError if first else type(None)]
    assert not (tmp_path / "none").exists()


def test_a_connection_that_breaks_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:36811"
    with pytest.raises(RuntimeError, match="Connection closed"), processes.one_line_if_another_ends():
        raise RuntimeError(message)  # of what, where there is no other process?
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = "another process of the run ended; `slotattn train resume` goes on with it"
    with pytest.raises(RunError, match=ended), processes.one_line_if_another_ends():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="no memory") as other, processes.one_line_if_another_ends():
        raise RuntimeError("no memory")
    assert type(other.value) is RuntimeError


def test_a_slurm_job_of_other_tasks_does_not_concern_a_run_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SLURM | {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}).items():
        monkeypatch.setenv(name, value)
    fabric = processes.connect(CONFIG)
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


def test_processes_of_several_machines_are_shared_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}

    class Made:
        def __init__(self, **given: object) -> None:
            made.update(given)

        def launch(self) -> None:
            made["launched"] = True

    monkeypatch.setattr(processes, "Fabric", Made)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    processes.connect(replace(CONFIG, batch_size=8))
    assert (made["devices"], made["num_nodes"], made["launched"]) == (2, 2, True)
    assert isinstance(made["strategy"], DDPStrategy)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--devices", "1000", "--batch-size", "1000"], 1, "devices: got 1000, expected at most the"),
        (["--devices", "0"], 2, "devices: got 0, expected an integer of at least 1"),
        (["--devices", "3", "--batch-size", "4"], 2, "batch_size: got 4, expected a multiple of devices=3"),
        (["--device", "cpu", "--cuda-graph"], 2, "cuda_graph: got True on a CPU, expected one CUDA device"),
    ],
)
def test_devices_that_cannot_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert cli.main(["train", "discovery", "--out", str(tmp_path / "runs"), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"slotattn: {message}")
    assert list(tmp_path.iterdir()) == []


def test_torchruns_processes_take_the_place_of_the_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # on each of four machines
    with pytest.raises(ValueError, match="batch_size: got 6, expected a multiple of the 4 processes"):
        processes.check_devices(CONFIG)
    assert processes.check_devices(replace(CONFIG, batch_size=8)) == ("cpu", 1)
    monkeypatch.setenv("WORLD_SIZE", "2000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    with pytest.raises(RunError, match="devices: got 1000"):
        processes.check_devices(CONFIG)


@pytest.mark.parametrize(
    ("backend", "error", "leaves"),
    [
        ("gloo", None, True),
        ("gloo", RunError("a full disk"), True),
        ("nccl", None, True),
        ("nccl", Stopped(signal.SIGTERM, 3), True),
        ("nccl", RunError("a full disk"), False),
        ("nccl", KeyboardInterrupt(), False),
    ],
    ids=str,
)
def test_a_process_of_nccl_that_failed_alone_does_not_wait_for_the_others(
    backend: str, error: BaseException | None, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(processes, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(processes, "_SECONDS_TO_NOTICE", 0.0)
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (done.append(f"ended with {code}"), ended.set()))
    with contextlib.ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(type(error)))
        stack.enter_context(processes.other_processes([], 1))
        if error is not None:
            raise error
    if not leaves:
        assert ended.wait(10)
    assert done == (["left"] if leaves else ["ended with 1"])
