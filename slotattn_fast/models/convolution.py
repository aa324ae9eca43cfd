"""Convolutions with TensorFlow's SAME padding and initialisation, as the paper's code has them.

With stride 2 on an even size that padding is uneven, one pixel before and two after for a 5x5 kernel. PyTorch's
`padding=2` shifts the map by one pixel, and weights trained in TensorFlow then give other images.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Rows (or columns) of zeros before and after, so that a convolution makes ceil(size / stride) out of `size`.

    Source: TensorFlow's documentation of tf.nn, "Notes on padding".
    """
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution [B, C_in, H, W] -> [B, C_out, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        init_glorot(self)

    def forward(self, input: Tensor) -> Tensor:
        (top, bottom), (left, right) = (
            same_padding(size, kernel_size, stride)
            for size, kernel_size, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        if (top, left) != (bottom, right):
            input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
        return F.conv2d(input, self.weight, self.bias, self.stride, (top, left))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution [B, C_in, H, W] -> [B, C_out, stride * H, stride * W]; the stride is at most the kernel.

    It is the transpose of `SameConv2d` on the larger map, so what that pads, this crops. Computed as a convolution
    to stride^2 * C_out channels, C_out for each output pixel that falls on an input pixel, and one copy that puts these
    beside each other: the same sums, several times faster on a CPU than the strided kernels behind
    `torch.nn.functional.conv_transpose2d`. The result of a strided one is in channels-last order.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        init_glorot(self)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        (kernel_size, _), (stride, _) = self.kernel_size, self.stride
        # In one dimension, input i meets output o through tap o - stride * i + crop. With o = stride * j + phase that
        # is stride * (j - i) + phase + crop: the taps of a phase are every stride-th one, and |j - i| <= reach.
        crop, _ = same_padding(stride * input.shape[-1], kernel_size, stride)
        reach = (kernel_size - 1 - crop) // stride
        taps = 2 * reach + 1
        lead = stride * reach - crop  # zeros before the taps, so that the first is that of j - i = -reach and phase 0
        trail = stride * taps - kernel_size - lead
        weight = F.pad(self.weight, (lead, trail, lead, trail))
        weight = weight.unflatten(3, (taps, stride)).unflatten(2, (taps, stride)).flip(2, 4)
        weight = weight.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)  # [stride^2 * C_out, C_in, taps, taps]
        bias = None if self.bias is None else self.bias.repeat(stride * stride)
        out = F.conv2d(input, weight, bias, padding=reach)
        return out if stride == 1 else _shuffle(out, stride)


def _shuffle(maps: Tensor, stride: int) -> Tensor:
    """[B, stride^2 * C, H, W], phases of rows, of columns, then channels -> [B, C, stride * H, stride * W].

    Unlike `torch.nn.functional.pixel_shuffle` it moves all channels of a pixel together, and in channels-last order on
    every device.
    """
    phases = maps.permute(0, 2, 3, 1).unflatten(3, (stride, stride, -1))  # [B, H, W, stride, stride, C]
    return phases.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def init_glorot(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Glorot-uniform weight and zero bias, TensorFlow's defaults, in place."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
