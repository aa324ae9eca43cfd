"""The position embedding of the paper's encoder and decoder."""

import torch
from torch import Tensor, nn

from slotattn_fast.models.convolution import init_glorot


class PositionEmbedding(nn.Module):
    """Adds a learned linear map of (row, column, 1 - row, 1 - column), each from 0 to 1 over the grid.

    Args:
        channels: C, the width of the features.
        height: rows of the grid.
        width: columns of the grid.

    Source: the paper, Appendix E.2.
    """

    grid: Tensor

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(4, channels)
        init_glorot(self.dense)
        rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        grid = torch.stack([rows, columns, 1 - rows, 1 - columns], dim=-1)
        self.register_buffer("grid", grid, persistent=False)  # [H, W, 4]

    def forward(self, features: Tensor) -> Tensor:
        """features [..., H, W, C], or what broadcasts to that -> [..., H, W, C]."""
        return features + self.dense(self.grid)
