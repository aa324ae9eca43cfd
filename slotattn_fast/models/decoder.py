"""The paper's spatial broadcast decoder: every slot draws an image and says where it is."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slotattn_fast.models.convolution import SameConvTranspose2d
from slotattn_fast.models.position_embedding import PositionEmbedding


class SpatialBroadcastDecoder(nn.Module):
    """Slots [B, K, D] -> colours [B, K, C, H, W] and mask logits [B, K, 1, H, W], each slot by itself.

    A slot is copied to every place of a small map; position embedding, then 5x5 transposed convolutions with ReLU and
    a last one to C + 1 channels. If they make more than `image_size`, the rest below and on the right is cut off.

    Args:
        image_size: H = W in pixels.
        out_channels: C.
        slot_dim: D.
        channels: of every layer between.
        strides: one for each 5x5 layer.
        output_kernel: kernel size of the last layer (the paper: 3).
        output_stride: its stride (the paper: 1).
        broadcast_size: side of the map that a slot is copied to.

    Source: the paper, Tables 5 and 6, Appendix E.3.
    """

    def __init__(
        self,
        image_size: int,
        out_channels: int,
        slot_dim: int,
        channels: int,
        strides: Sequence[int],
        output_kernel: int,
        output_stride: int,
        broadcast_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.broadcast = SpatialBroadcast(slot_dim, channels, 5, strides[0], broadcast_size)
        layers: list[nn.Module] = [nn.Identity()]  # the first layer's ReLU is in `broadcast`
        for stride in strides[1:]:
            layers += [SameConvTranspose2d(channels, channels, 5, stride), nn.ReLU(inplace=True)]
        layers.append(SameConvTranspose2d(channels, out_channels + 1, output_kernel, output_stride))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(slots)
        return maps[:, :, :-1], maps[:, :, -1:]

    def maps(self, slots: Tensor) -> Tensor:
        """Slots [B, K, D] -> [B, K, C + 1, H, W]: colours, then the mask logit."""
        maps = self.convolutions(self.broadcast(slots.flatten(0, 1)))
        return maps[..., : self.image_size, : self.image_size].unflatten(0, slots.shape[:2])


class SpatialBroadcast(nn.Module):
    """Vectors [M, D] -> [M, C, H, W]: copied to every place, position embedding, first transposed convolution, ReLU.

    Computed without the copies. The convolution is linear, so that of the position embedding, which all vectors share,
    is done once. That of a vector which is the same everywhere is, at each output, the sum of those taps that fall on
    the map: `taps` times the 0/1 matrix `covered`. At 35x35 with D = 64 this takes a sixtieth of the multiplications.
    """

    covered: Tensor

    def __init__(self, dim: int, channels: int, kernel_size: int, stride: int, size: int) -> None:
        super().__init__()
        self.out_size = size * stride
        self.position_embedding = PositionEmbedding(dim, size, size)
        self.convolution = SameConvTranspose2d(dim, channels, kernel_size, stride)

        each_tap = SameConvTranspose2d(1, kernel_size**2, kernel_size, stride)
        with torch.no_grad():
            each_tap.weight.copy_(torch.eye(kernel_size**2).view_as(each_tap.weight))
            covered = each_tap(torch.ones(1, 1, size, size)).flatten(2)[0].T
        self.register_buffer("covered", covered.contiguous(), persistent=False)  # [H * W, kernel_size^2]

    def forward(self, vectors: Tensor) -> Tensor:
        taps = (vectors @ self.convolution.weight.flatten(1)).unflatten(1, (-1, self.covered.shape[1]))
        embedding = self.position_embedding(vectors.new_zeros(())).permute(2, 0, 1)[None]
        shared = self.convolution(embedding).flatten(2).mT  # [1, H * W, C]
        maps = self.covered @ taps.mT  # [M, H * W, C]
        # In place, and before these are seen as maps: autograd copies what is changed through a view, and PyTorch's sum
        # over M, the gradient to `shared`, is 20 times slower on a CPU in the order of the maps.
        maps += shared
        return maps.relu_().unflatten(1, (self.out_size, self.out_size)).permute(0, 3, 1, 2)
