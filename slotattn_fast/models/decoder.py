"""The paper's spatial broadcast decoder: every slot draws an image and says where it is."""

from collections.abc import Sequence

from torch import Tensor, nn

from slotattn_fast.models.convolution import SameConvTranspose2d
from slotattn_fast.models.position_embedding import PositionEmbedding


class SpatialBroadcastDecoder(nn.Module):
    """Slots [B, K, D] -> colours [B, K, C, H, W] and mask logits [B, K, 1, H, W], each slot by itself.

    A slot is copied to every place of a small map; position embedding, then 5x5 transposed convolutions with ReLU and
    a last 3x3 one to C + 1 channels. If they make more than `image_size`, the rest below and on the right is cut off.

    Args:
        image_size: H = W in pixels.
        out_channels: C.
        slot_dim: D.
        channels: of every layer between.
        strides: one for each 5x5 layer.
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
        broadcast_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.position_embedding = PositionEmbedding(slot_dim, broadcast_size, broadcast_size)
        layers: list[nn.Module] = []
        width = slot_dim
        for stride in strides:
            layers += [SameConvTranspose2d(width, channels, 5, stride), nn.ReLU(inplace=True)]
            width = channels
        layers.append(SameConvTranspose2d(width, out_channels + 1, 3))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        batch, num_slots, _ = slots.shape
        broadcast = self.position_embedding(slots.flatten(0, 1)[:, None, None, :])  # [B * K, h, w, D]
        maps = self.convolutions(broadcast.permute(0, 3, 1, 2))
        maps = maps[..., : self.image_size, : self.image_size].unflatten(0, (batch, num_slots))
        return maps[:, :, :-1], maps[:, :, -1:]
