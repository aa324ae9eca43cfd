"""Slot Attention (Locatello et al., 2020): a fast, exact, drop-in PyTorch module and the paper's training pipelines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MultiHeadSlotAttention", "SlotAttention", "__version__", "explain_backend", "slot_attention"]
_MODULES = ("matching", "metrics", "reference")

if TYPE_CHECKING:
    from .functional import explain_backend, slot_attention
    from .modules import MultiHeadSlotAttention, SlotAttention


def __getattr__(name: str) -> Any:
    # On demand: the command line answers --help without waiting for torch.
    if name in ("MultiHeadSlotAttention", "SlotAttention"):
        from . import modules

        return getattr(modules, name)
    if name in ("explain_backend", "slot_attention"):
        from . import functional

        return getattr(functional, name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
