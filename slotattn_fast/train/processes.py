"""The processes that share a training run: one for each device, started here or by torchrun."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.environment import resolve_device
from slotattn_fast.train.errors import RunError, Stopped

T = TypeVar("T")

_SECONDS_TO_END = 20.0
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_NOTICE = 10.0
"""Enough for this process to save its last checkpoint, after which the others have stopped before it."""
_PR_SET_PDEATHSIG = 1
_GO_ON = "`slotattn train resume` goes on with it"


def world_size() -> int:
    """Processes of the run on all machines, as torchrun or `other_processes` say; 1 where neither started this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether torchrun, or `other_processes`, started this process as one of several."""
    return world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes the run folder and speaks to the user."""
    return not launched() or int(os.environ["RANK"]) == 0


def check_devices(config: TrainConfig) -> tuple[str, int]:
    """The kind of device, "cpu" or "cuda", and how many of this machine's the run takes.

    torchrun's number of processes takes the place of the configuration's `devices`. Raises `RunError` if the machine
    has not so many, and ValueError if the batch cannot be shared or a CUDA graph be had.
    """
    device, devices, everywhere = resolve_device(config.device), config.devices, config.devices
    if launched():
        everywhere = world_size()
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere))
    there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    if devices > there:
        raise RunError(f"devices: got {devices}, expected at most the {there} of this machine ({device})")
    if config.batch_size % everywhere:
        raise ValueError(f"batch_size: got {config.batch_size}, expected a multiple of the {everywhere} processes")
    if config.cuda_graph and (device == "cpu" or everywhere > 1):
        which = f"{everywhere} processes" if everywhere > 1 else "a CPU"
        remedy = "leave out --cuda-graph, or resume with --no-cuda-graph"
        raise ValueError(f"cuda_graph: got True on {which}, expected one CUDA device; {remedy}")
    return device, devices


@contextmanager
def other_processes(command: list[str], devices: int) -> Iterator[None]:
    """While entered, processes of rank 1 to `devices` - 1 run `slotattn` with `command`, and this one has rank 0.

    They end with this one, however that ends. Where one of them fails while this one waits for it, this process ends
    with a line and code 1. Does nothing for one device, or where the processes are there already.
    """
    if devices == 1 or launched():
        with _leaving():
            yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    before, end_with_parent = dict(os.environ), _end_with_parent()
    started: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()
    try:
        for rank in range(1, devices):
            environment = {**before, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = [sys.executable, "-m", "slotattn_fast.cli", *command]
            started.append(subprocess.Popen(arguments, env=environment, preexec_fn=end_with_parent))
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        threading.Thread(target=_watch, args=(started, ended), daemon=True).start()
        with _leaving():
            yield
    finally:
        ended.set()
        until = time.monotonic() + _SECONDS_TO_END
        for process in started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _leaving() -> Iterator[None]:
    """Leaves the group of processes at the end.

    Those that wait for this one then see that it is gone; and no thread of the group outlives the interpreter, which
    would abort. But NCCL's processes leave together: where this one alone has failed it would wait for what the others
    do not come to, here and again at the interpreter's exit. So then it stays, and ends in any case after a while.
    """
    try:
        yield
    except BaseException as error:
        if dist.is_initialized() and dist.get_backend() == "nccl" and not isinstance(error, Stopped):
            end = threading.Timer(_SECONDS_TO_END + _SECONDS_TO_NOTICE, os._exit, (1,))
            end.daemon = True
            end.start()
        else:
            _leave()
        raise
    _leave()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with_parent() -> Callable[[], int] | None:
    """What a process calls that is being started, to be ended by the system when its parent is; Linux alone does it.

    Looked up before, as little may be done in a process that is being started.
    """
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _watch(started: list[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """Ends this process where another has failed and this one, blocked in waiting for it, does not end by itself."""
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        codes = [code for process in started if (code := process.poll())]
        if codes and not ended.wait(_SECONDS_TO_NOTICE):
            print(f"slotattn: another process of the run ended with code {codes[0]}; {_GO_ON}", file=sys.stderr)
            for process in started:
                process.kill()
            os._exit(1)


@contextmanager
def one_line_if_another_ends() -> Iterator[None]:
    """Raises `RunError` for what PyTorch raises where the connection to another process breaks."""
    try:
        yield
    except RuntimeError as error:
        if not launched() or "onnection" not in str(error):
            raise
        raise RunError(f"another process of the run ended; {_GO_ON}") from error


def connect(config: TrainConfig) -> Fabric:
    """Lightning Fabric for a configuration, connected with the other processes if there are any."""
    device, devices = check_devices(config)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces precision and ranks
    if launched() and device == "cuda":
        # Fabric wraps the model in a stream of its own; the gradients are right, but every process would warn of that.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    # Said, as Fabric would take the ranks of a job of SLURM or MPI for those of the processes started here.
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=world_size() // devices if launched() else 1,
        # No buffer changes in training: none has to be sent anew before each step.
        strategy=DDPStrategy(broadcast_buffers=False) if launched() else "auto",
        precision=config.precision,
        plugins=environment,
    )
    fabric.launch()
    return fabric


def by_the_first(fabric: Fabric, function: Callable[[], T]) -> T:
    """Calls `function` in the first process; what it returned or raised is returned or raised in every one."""
    outcome: T | Exception | None = None
    if fabric.is_global_zero:
        try:
            outcome = function()
        except Exception as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return cast(T, outcome)
