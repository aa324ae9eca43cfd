"""The plain PyTorch reference, the oracle of every test: the paper's Algorithm 1, and its two models."""

from .auto_encoder import AutoEncoder
from .set_prediction import SetPredictor
from .slot_attention import CHOICES, MultiHeadSlotAttention, SlotAttention

__all__ = ["CHOICES", "AutoEncoder", "MultiHeadSlotAttention", "SetPredictor", "SlotAttention"]
