"""What a launch has to know of the device and of PyTorch's settings for it."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import launch

P = ParamSpec("P")
R = TypeVar("R")

WARP_SIZE = 32 if torch.version.hip is None else 64


def on_its_device(operator: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """The operator, run with its first tensor's GPU as the current one, to which Triton launches.

    PyTorch does so for its own operators, but not for those of Python.
    """

    @wraps(operator)
    def on_device(first: Tensor, /, *arguments: P.args, **options: P.kwargs) -> R:
        with torch.cuda.device_of(first):
            return operator(first, *arguments, **options)

    return on_device


def precision(dtype: torch.dtype) -> str:
    """Of products over the slots, for a call in `dtype`, as `update_config` takes it.

    TF32 has 3 bits more than bfloat16. float32 has it where PyTorch's own products on this device use it.
    """
    tf32 = dtype == torch.bfloat16 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "tf32x3"


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 for the interpreter, which runs on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Of a GPU of NVIDIA, such as (9, 0) of an H200; else None, also of a tensor's device that is not there."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


@cache
def query_bytes(device: torch.device) -> int:
    """Of the queries of one image and iteration, how much the kernels over the inputs take."""
    if capability(device) is None:
        return launch.MAX_QUERY_BYTES
    properties = torch.cuda.get_device_properties(device)
    return launch.query_bytes(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


@cache
def hopper(device: torch.device) -> bool:
    """Whether it has Hopper's tensor cores, which take operands from shared memory; so does the interpreter."""
    return device.type != "cuda" or (capability(device) or (0, 0))[0] == 9
