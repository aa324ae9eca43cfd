"""The plain PyTorch reference, the oracle of every test: the paper's Algorithm 1, and its auto-encoder."""

from .auto_encoder import AutoEncoder
from .slot_attention import CHOICES, MultiHeadSlotAttention, SlotAttention

__all__ = ["CHOICES", "AutoEncoder", "MultiHeadSlotAttention", "SlotAttention"]
