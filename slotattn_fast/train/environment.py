"""Where a run took place: versions, device, threads and, from a checkout, the commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import slotattn_fast
from slotattn_fast.kernels.support import triton_version
from slotattn_fast.train.errors import RunError

_OUT_OF_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda". Raises `RunError` if CUDA is asked for and there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device: got 'cuda', but PyTorch {torch.__version__} finds no CUDA device; use --device cpu")
    return device


def environment(device: str) -> dict[str, Any]:
    """A description of this process on `device`, "cpu" or "cuda", in types that JSON knows."""
    packages = ("torch", "triton", "numpy", "lightning-fabric")
    return {
        "slotattn_fast": slotattn_fast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in packages},
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Also PyTorch's plain RuntimeErrors: of a CPU's memory, and of what CUDA's libraries and Triton could not have."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)
    )


def installed_version(package: str) -> str | None:
    """Of a package, None if it is not installed; of PyTorch with its build, which not every wheel's metadata tells."""
    if package == "torch":
        return str(torch.__version__)
    if package == "triton":
        return triton_version()
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout this package is imported from, with "-dirty" if a tracked file differs; or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
