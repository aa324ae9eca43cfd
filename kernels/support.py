"""What the Triton kernels can serve. Neither Triton nor a device is touched here."""

from functools import cache
from importlib import metadata

MINIMUM_TRITON = (3, 6)


def why_not(device_type: str) -> str:
    """Why the Triton kernels cannot serve a call with inputs on a device of this type ("cpu", "cuda", ...)."""
    if device_type != "cuda":  # ROCm's devices are of type "cuda", too
        return f"the inputs are on {device_type!r}, and Triton kernels need a CUDA or ROCm device"
    return _why_not_installed() or "this version of slotattn_fast has no Triton kernels yet"


@cache
def _why_not_installed() -> str | None:
    wanted = ".".join(map(str, MINIMUM_TRITON))
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return f"Triton is not installed, and the kernels need {wanted} or newer"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TRITON:
        return f"Triton {version} is installed, and the kernels need {wanted} or newer"
    return None
