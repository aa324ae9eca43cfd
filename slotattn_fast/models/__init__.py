"""The paper's architectures around Slot Attention."""
