"""The paper's object-discovery auto-encoder in plain PyTorch, to be read beside its Tables 3 to 6 and Appendix E.

Every layer is what its row of the table says, every slot is copied to every place of the decoder's map, and every
tensor is kept. The oracle of the fast model, and what it is timed against. It imports nothing else of this project but
the plain Slot Attention and encoder. Shapes: B images of C channels and H = W pixels, K slots of width D.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder, PositionEmbedding
from .slot_attention import SlotAttention


class AutoEncoder(nn.Module):
    """Encoder, Slot Attention and spatial broadcast decoder, with the parameter names of the fast model.

    The arguments are fields of `slotattn_fast.models.discovery.DiscoveryConfig`, which describes them; the defaults are
    the paper's for Tetrominoes. Weights are Glorot-uniform and biases zero, as in the paper's code.
    """

    def __init__(
        self,
        image_size: int = 35,
        image_channels: int = 3,
        encoder_channels: int = 32,
        encoder_strides: Sequence[int] = (1, 1, 1, 1),
        num_slots: int = 4,
        slot_dim: int = 64,
        iters: int = 3,
        hidden_dim: int = 128,
        decoder_channels: int = 32,
        decoder_strides: Sequence[int] = (1, 1, 1),
        output_kernel: int = 3,
        output_stride: int = 1,
        broadcast_size: int = 35,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(image_size, image_channels, encoder_channels, encoder_strides)
        self.decoder = Decoder(
            image_size,
            image_channels,
            slot_dim,
            decoder_channels,
            decoder_strides,
            output_kernel,
            output_stride,
            broadcast_size,
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.slot_attention = SlotAttention.paper(
            num_slots, slot_dim, iters=iters, hidden_dim=hidden_dim, input_dim=encoder_channels
        )

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes images [B, C, H, W] apart, from slots drawn with `noise` [B, K, D] of the standard normal distribution.

        Returns the reconstruction [B, C, H, W], the slots' colours [B, K, C, H, W], their masks [B, K, 1, H, W] and the
        slots [B, K, D].
        """
        tokens = self.encoder(images)
        slots = self.slot_attention.initial_slots(tokens, noise.shape[1], noise=noise)
        slots = self.slot_attention(tokens, slots_init=slots)
        rgb, logits = self.decoder(slots)
        masks = logits.softmax(dim=1)  # over the slots
        return (masks * rgb).sum(dim=1), rgb, masks, slots

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the reconstruction, over all elements."""
        return F.mse_loss(self(images, noise)[0], images)


class Decoder(nn.Module):
    """Slots [B, K, D] -> colours [B, K, C, H, W] and mask logits [B, K, 1, H, W] (Tables 5 and 6)."""

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
        self.broadcast = SpatialBroadcast(slot_dim, channels, strides[0], broadcast_size)
        layers: list[nn.Module] = [nn.ReLU()]
        for stride in strides[1:]:
            layers += [SameConvTranspose2d(channels, channels, 5, stride), nn.ReLU()]
        layers.append(SameConvTranspose2d(channels, out_channels + 1, output_kernel, output_stride))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.convolutions(self.broadcast(slots.flatten(0, 1)))  # each slot by itself
        maps = maps[..., : self.image_size, : self.image_size].unflatten(0, slots.shape[:2])
        return maps[:, :, :-1], maps[:, :, -1:]


class SpatialBroadcast(nn.Module):
    """Vectors [M, D] -> [M, C, stride * size, stride * size]: the first rows of Tables 5 and 6, without the ReLU."""

    def __init__(self, dim: int, channels: int, stride: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.position_embedding = PositionEmbedding(dim, size)
        self.convolution = SameConvTranspose2d(dim, channels, 5, stride)

    def forward(self, vectors: Tensor) -> Tensor:
        maps = vectors[:, :, None, None].repeat(1, 1, self.size, self.size)
        return self.convolution(self.position_embedding(maps))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution [B, C_in, h, w] -> [B, C_out, stride * h, stride * w], cropped as TensorFlow's SAME."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        (kernel, _), (stride, _), (height, width) = self.kernel_size, self.stride, input.shape[-2:]
        before = (kernel - stride) // 2  # what is cropped; `padding` crops as much behind, and the rest is cut off here
        out = F.conv_transpose2d(input, self.weight, self.bias, stride, before)
        return out[..., : stride * height, : stride * width]
