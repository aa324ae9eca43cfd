"""Triton kernels of Slot Attention."""

from .support import why_not

__all__ = ["why_not"]
