"""The paper's baseline in place of Slot Attention: an MLP from the whole feature map to ordered slots."""

import torch.nn.functional as F
from torch import Tensor, nn

from slotattn_fast.models.convolution import init_glorot

SIZE = 16
"""Side of the map that is flattened, whatever the encoder's."""
HIDDEN = 512


class SlotMLP(nn.Module):
    """Tokens [B, N, C] -> slots [B, K, D]: their map resized to 16x16, flattened, an MLP with two hidden layers.

    Nothing is drawn, nothing iterates, and slot k has weights of its own, so K is fixed.

    Args:
        size: side of the tokens' map; N = size^2.
        channels: C.
        num_slots: K.
        slot_dim: D.

    Source: the paper, Appendix E.5: resized to 16x16 and flattened. The sizes of its Tables 8 and 9 were not to be had,
    so these are choices: two hidden layers of 512 with ReLU; bilinear resizing without a filter, TensorFlow's default;
    and as input what Slot Attention gets, the encoder's tokens.
    """

    def __init__(self, size: int, channels: int, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.size = size
        self.num_slots = num_slots
        first, second = nn.Linear(SIZE * SIZE * channels, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        out = nn.Linear(HIDDEN, num_slots * slot_dim)
        for layer in (first, second, out):
            init_glorot(layer)
        self.mlp = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), out)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.mT.unflatten(2, (self.size, self.size))  # [B, C, size, size]
        maps = F.interpolate(maps, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return self.mlp(maps.flatten(1)).unflatten(1, (self.num_slots, -1))
