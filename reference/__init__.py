"""The plain PyTorch reference of Slot Attention: the paper's Algorithm 1, the oracle of the tests."""

from .slot_attention import CHOICES, MultiHeadSlotAttention, SlotAttention

__all__ = ["CHOICES", "MultiHeadSlotAttention", "SlotAttention"]
