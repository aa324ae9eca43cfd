"""The encoder of both of the paper's models in plain PyTorch, to be read beside its Tables 3 and 4 and Appendix E.

It imports nothing else of this project. Shapes: B images of C_in channels and H = W pixels, N tokens of width C.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """Images [B, C_in, H, W] -> tokens [B, N, C] (Tables 3 and 4; the LayerNorm and the MLP: Appendix E.1)."""

    def __init__(self, image_size: int, in_channels: int, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * len(strides)]
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=False):
            layers += [SameConv2d(width, channels, 5, stride), nn.ReLU()]
            image_size = -(-image_size // stride)
        self.convolutions = nn.Sequential(*layers)
        self.position_embedding = PositionEmbedding(channels, image_size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-3), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.position_embedding(self.convolutions(images))
        return self.mlp(features.flatten(2).mT)


class PositionEmbedding(nn.Module):
    """Adds a learned linear map of the four distances to the edges to features [B, C, h, w] (Appendix E.2)."""

    grid: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(4, channels)
        rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
        grid = torch.stack([rows, columns, 1 - rows, 1 - columns], dim=-1)
        self.register_buffer("grid", grid, persistent=False)  # [h, w, 4]

    def forward(self, features: Tensor) -> Tensor:
        return features + self.dense(self.grid).permute(2, 0, 1)


class SameConv2d(nn.Conv2d):
    """Convolution [B, C_in, n, n] -> [B, C_out, ceil(n / stride), ceil(n / stride)], padded as TensorFlow's SAME."""

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _), size = self.kernel_size, self.stride, input.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        if before != after:
            input, before = F.pad(input, (before, after, before, after)), 0
        return F.conv2d(input, self.weight, self.bias, stride, before)
