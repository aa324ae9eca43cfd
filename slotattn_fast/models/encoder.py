"""The paper's encoder: an image becomes a set of feature vectors."""

from collections.abc import Sequence

from torch import Tensor, nn

from slotattn_fast.models.convolution import SameConv2d, init_glorot
from slotattn_fast.models.position_embedding import PositionEmbedding


class Encoder(nn.Module):
    """Images [B, C_in, H, W] -> tokens [B, N, C]: 5x5 convolutions, position embedding, LayerNorm, MLP.

    Args:
        image_size: H = W in pixels.
        in_channels: C_in.
        channels: C, of every convolution and of the tokens.
        strides: one for each convolution.
        position_embedding: False leaves it out (the paper's Figure 8).

    Attributes:
        size: side of the map that the tokens are the rows of; N = size^2. That is H / product of strides, each
            quotient rounded up.

    Source: the paper, Tables 3 and 4, Appendix E.1; LayerNorm epsilon 1e-3 from its released code.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        channels: int,
        strides: Sequence[int],
        position_embedding: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size, width = image_size, in_channels
        for stride in strides:
            layers += [SameConv2d(width, channels, 5, stride), nn.ReLU(inplace=True)]
            size, width = -(-size // stride), channels
        self.convolutions = nn.Sequential(*layers)
        self.size = size
        self.position_embedding = PositionEmbedding(channels, size, size) if position_embedding else nn.Identity()
        hidden, out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        init_glorot(hidden)
        init_glorot(out)
        self.mlp = nn.Sequential(nn.LayerNorm(channels, eps=1e-3), hidden, nn.ReLU(inplace=True), out)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolutions(images).permute(0, 2, 3, 1)  # [B, H', W', C]
        return self.mlp(self.position_embedding(features).flatten(1, 2))
