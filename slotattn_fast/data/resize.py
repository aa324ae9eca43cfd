"""Images and label maps at the resolution that the models take, as TensorFlow resized them for the paper."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[H, W, C] -> [size, size, C], bilinear between the four nearest pixels, rounded to whole levels.

    As `tf.image.resize` in the authors' code: half-pixel centres and no antialiasing, also where the image shrinks.
    """
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    resized = interpolate(planes, (size, size), mode="bilinear", align_corners=False, antialias=False)
    return resized[0].permute(1, 2, 0).round().to(torch.uint8).contiguous().numpy()


def resize_labels(labels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[..., H, W] -> [..., size, size], the nearest pixel with half-pixel centres, so that labels stay whole."""
    height, width = labels.shape[-2:]
    rows = (2 * np.arange(size) + 1) * height // (2 * size)
    columns = (2 * np.arange(size) + 1) * width // (2 * size)
    return labels[..., rows[:, None], columns]
