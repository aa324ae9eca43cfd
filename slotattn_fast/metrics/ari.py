"""Foreground adjusted Rand index: how well predicted segments agree with the true objects."""

import torch
from torch import Tensor


def fg_ari(pred_labels: Tensor, true_labels: Tensor, *, background: int = 0) -> Tensor:
    """FG-ARI of every image: the adjusted Rand index over the pixels that are not background.

    1 is perfect whatever the segments are called; 0 is what chance gives; below 0 is worse than chance.

    Args:
        pred_labels: [B, ...], integers of at least 0, which segment (slot) a pixel was given to.
        true_labels: [B, ...] of the same shape, integers of at least 0, which object a pixel belongs to.
        background: the value in `true_labels` whose pixels do not count.

    Labels are to be small: the table of their pairs has B x (largest predicted + 1) x (largest true + 1) entries.

    Returns:
        float64 [B], on the labels' device. NaN for an image without any foreground pixel: leave those out of a mean,
        and say how many. An image whose foreground is one object, predicted as one segment, scores 1, where
        DeepMind's multi_object_datasets code gives NaN; one pixel of foreground scores 1 too.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels of unlike shapes, without a batch dimension, on unlike devices, or negative.

    Source: Hubert and Arabie (1985), equation 5; the paper, section 4.1, for leaving out the background.
    """
    _check(pred_labels, true_labels)
    batch = len(true_labels)
    if true_labels.numel() == 0:
        return torch.full((batch,), torch.nan, dtype=torch.float64, device=true_labels.device)
    pred, true = pred_labels.flatten(1).long(), true_labels.flatten(1).long()
    num_pred, num_true = int(pred.max()) + 1, int(true.max()) + 1

    # table[b, t, p]: pixels of object t that were given to segment p. In float64 pair counts stay exact up to 2^53.
    image = torch.arange(batch, device=true.device)[:, None]
    cell = (image * num_true + true) * num_pred + pred
    table = cell[true != background].bincount(minlength=batch * num_true * num_pred)
    table = table.view(batch, num_true, num_pred).double()

    together = _pairs(table).sum((1, 2))  # pairs of pixels in one object and one segment
    in_object = _pairs(table.sum(2)).sum(1)
    in_segment = _pairs(table.sum(1)).sum(1)
    pixels = table.sum((1, 2))
    expected = in_object * (in_segment / _pairs(pixels).clamp(min=1))
    score = (together - expected) / ((in_object + in_segment) / 2 - expected)
    # Also where both are a single group, or single pixels throughout, and the quotient is 0 / 0.
    score = score.masked_fill((together == in_object) & (together == in_segment), 1.0)
    return score.masked_fill(pixels == 0, torch.nan)


def _pairs(count: Tensor) -> Tensor:
    return count * (count - 1) / 2


def _check(pred_labels: Tensor, true_labels: Tensor) -> None:
    for name, labels in (("pred_labels", pred_labels), ("true_labels", true_labels)):
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise TypeError(
                f"{name}: got {labels.dtype}, expected integers; for masks, take their argmax over the slots"
            )
    if pred_labels.shape != true_labels.shape or true_labels.ndim < 2:
        raise ValueError(
            "pred_labels and true_labels: expected the same shape [B, ...], with at least one dimension of pixels; "
            f"got {tuple(pred_labels.shape)} and {tuple(true_labels.shape)}"
        )
    if pred_labels.device != true_labels.device:
        raise ValueError(
            f"pred_labels and true_labels: expected one device, got {pred_labels.device} and {true_labels.device}"
        )
    for name, labels in (("pred_labels", pred_labels), ("true_labels", true_labels)):
        # As int64, since PyTorch has no minimum of wider unsigned integers than uint8.
        if labels.numel() and (least := int(labels.long().min())) < 0:
            raise ValueError(f"{name}: got {least}, expected labels of at least 0")
