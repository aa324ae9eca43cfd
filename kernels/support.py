"""What the Triton kernels can serve. Triton is not imported here."""

import os
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, TypeVar

import torch

from . import device as devices
from .launch import MAX_QUERY_BYTES, next_power_of_2

MINIMUM_TRITON = (3, 6)
MINIMUM_CAPABILITY = (8, 0)  # of the kernels over the inputs: bfloat16 in tensor cores, and their shared memory
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_WIDTH = 512  # of an input
MAX_COLUMNS = 64  # slots times heads, both rounded up to powers of two
MAX_MIXTURE_SLOTS = 64
MAX_CHANNELS = 4  # of an image
MAX_MATCHED = 64  # rows, and columns

F = TypeVar("F", bound=Callable[..., Any])


def why_not(
    device: torch.device,
    dtype: torch.dtype,
    input_dim: int,
    num_slots: int,
    heads: int,
    softmax_over: str,
    aggregation: str,
) -> str | None:
    """Why the Triton kernels cannot serve a call on this device, as tensors have it; None if they can.

    On a CPU they can where TRITON_INTERPRET=1 was set before Triton was imported.
    """
    if reason := _why_not_device("inputs", device.type):
        return reason
    capability, query_bytes = _limits(device)
    if capability is not None and capability < MINIMUM_CAPABILITY:
        return "the inputs are on a GPU of compute capability {}.{}, and the kernels need {}.{} or newer".format(
            *capability, *MINIMUM_CAPABILITY
        )
    if softmax_over != "slots":
        return f"softmax_over={softmax_over!r}, and the kernels have the softmax over the slots alone"
    if aggregation not in ("mean", "sum"):
        return f"aggregation={aggregation!r}, and the kernels have the weighted mean and the weighted sum alone"
    if reason := _why_not_dtype("inputs", dtype):
        return reason
    if input_dim > MAX_WIDTH:
        return f"the inputs have width {input_dim}, and the kernels take {MAX_WIDTH} at most"
    columns = min(MAX_COLUMNS, query_bytes // (next_power_of_2(input_dim) * dtype.itemsize))
    most = columns // next_power_of_2(heads)
    if num_slots > most:
        return (
            f"num_slots={num_slots} with heads={heads} and inputs of width {input_dim} in {dtype}, "
            f"with which the kernels take {most} slots at most{' on this GPU' * (query_bytes < MAX_QUERY_BYTES)}"
        )
    return _why_no_triton()


def why_not_mixture(device_type: str, dtype: torch.dtype, num_slots: int, channels: int) -> str | None:
    """Why the kernels of mixture.py cannot serve maps of K slots for images of C channels; None if they can."""
    if reason := _why_not_device("maps", device_type) or _why_not_dtype("maps", dtype):
        return reason
    if num_slots > MAX_MIXTURE_SLOTS:
        return f"the maps are of {num_slots} slots, and the kernels take {MAX_MIXTURE_SLOTS} at most"
    if channels > MAX_CHANNELS:
        return f"the images have {channels} channels, and the kernels take {MAX_CHANNELS} at most"
    return _why_no_triton()


def why_not_matching(device_type: str, rows: int, columns: int) -> str | None:
    """Why the kernel of matching.py cannot serve costs of so many rows and columns; None if it can."""
    if reason := _why_not_device("costs", device_type):
        return reason
    if max(rows, columns) > MAX_MATCHED:
        return f"the costs are {rows} x {columns}, and the kernel takes {MAX_MATCHED} x {MAX_MATCHED} at most"
    return _why_no_triton()


def _why_not_device(name: str, device_type: str) -> str | None:
    interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type == "cuda" or interpreted:  # ROCm's devices are of type "cuda", too
        return None
    return f"the {name} are on {device_type!r}, and Triton kernels need a CUDA or ROCm device"


def _why_not_dtype(name: str, dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"the {name} are {dtype}, and the kernels compute in float32"


def triton_version() -> str | None:
    """The installed Triton's, which is not imported for it; None if there is none.

    PyTorch's builds for ROCm bring it under another name than "triton".
    """
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get("triton")
        return metadata.version(names[0]) if names else None


def _constant(function: F) -> F:
    """A constant for torch.compile, which does not look into the function.

    Like torch.compiler.assume_constant_result, which imports torch._dynamo: that takes longer than all the rest here.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _limits(device: torch.device) -> tuple[tuple[int, int] | None, int]:
    """Of `device.py`, which torch.compile cannot trace."""
    return devices.capability(device), devices.query_bytes(device)


@_constant
def _why_no_triton() -> str | None:
    """The same as below, which torch.compile would trace otherwise; that of PyTorch 2.11 cannot."""
    return _why_not_installed()


@cache
def _why_not_installed() -> str | None:
    wanted = ".".join(map(str, MINIMUM_TRITON))
    version = triton_version()
    if version is None:
        return f"Triton is not installed, and the kernels need {wanted} or newer"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TRITON:
        return f"Triton {version} is installed, and the kernels need {wanted} or newer"
    return None
