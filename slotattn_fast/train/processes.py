"""The processes that share a training run: one for each device, started here or by torchrun."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.environment import resolve_device
from slotattn_fast.train.errors import RunError

T = TypeVar("T")

_SECONDS_TO_END = 20.0


def launched() -> bool:
    """Whether torchrun, or `helpers`, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that writes the run folder and speaks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


def check_devices(config: TrainConfig) -> tuple[str, int]:
    """The kind of device, "cpu" or "cuda", and how many of this machine's the run takes.

    torchrun's number of processes takes the place of the configuration's `devices`. Raises `RunError` if the machine
    has not so many, and ValueError if the batch cannot be shared or a CUDA graph be had.
    """
    device, devices, everywhere = resolve_device(config.device), config.devices, config.devices
    if launched():
        everywhere = int(os.environ["WORLD_SIZE"])
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere))
    there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    if devices > there:
        raise RunError(f"devices: got {devices}, expected at most the {there} of this machine ({device})")
    if config.batch_size % everywhere:
        raise ValueError(f"batch_size: got {config.batch_size}, expected a multiple of the {everywhere} processes")
    if config.cuda_graph and (device == "cpu" or everywhere > 1):
        which = f"{everywhere} processes" if everywhere > 1 else "a CPU"
        raise ValueError(f"cuda_graph: got True on {which}, expected one CUDA device; leave it out")
    return device, devices


@contextmanager
def helpers(command: list[str], devices: int) -> Iterator[None]:
    """While entered, processes of rank 1 to `devices` - 1 run `slotattn` with `command`, and this one has rank 0.

    Does nothing for one device, or where the processes are there already.
    """
    if devices == 1 or launched():
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    before = dict(os.environ)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, devices):
            environment = {**before, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen([sys.executable, "-m", "slotattn_fast.cli", *command], env=environment))
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        yield
    finally:
        if dist.is_initialized():  # those that wait for this process then see that it is gone
            dist.destroy_process_group()
        for process in started:
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.clear()
        os.environ.update(before)


def connect(config: TrainConfig) -> Fabric:
    """Lightning Fabric for a configuration, connected with the other processes if there are any."""
    device, devices = check_devices(config)
    everywhere = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=everywhere // devices if launched() else 1,
        strategy="ddp" if everywhere > 1 else "auto",
        precision=config.precision,
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
