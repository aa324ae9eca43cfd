"""Resizing against TensorFlow's kernels, written down pixel by pixel."""

import math

import numpy as np
import pytest

from slotattn_fast.data.resize import resize_image, resize_labels


def bilinear(image, size):
    """tf.image.resize(image, [size, size]), then rounded: resize_bilinear_op.cc with half_pixel_centers."""
    height, width, _ = image.shape

    def interpolation(out, length):
        """The two source positions, and the weight of the upper one."""
        source = (out + 0.5) * (length / size) - 0.5
        lower = math.floor(source)
        return max(lower, 0), min(lower + 1, length - 1), source - lower

    levels = image.astype(np.float64)
    result = np.empty((size, size, image.shape[2]))
    for r in range(size):
        top, bottom, down = interpolation(r, height)
        for c in range(size):
            left, right, along = interpolation(c, width)
            above = levels[top, left] + (levels[top, right] - levels[top, left]) * along
            below = levels[bottom, left] + (levels[bottom, right] - levels[bottom, left]) * along
            result[r, c] = above + (below - above) * down
    return np.round(result).astype(np.uint8)


def nearest(labels, size):
    """tf.image.resize(labels, [size, size], "nearest"): resize_nearest_neighbor_op.cc with half_pixel_centers."""
    height, width = labels.shape
    result = np.empty((size, size), np.uint8)
    for r in range(size):
        for c in range(size):
            row, column = math.floor((r + 0.5) * height / size), math.floor((c + 0.5) * width / size)
            result[r, c] = labels[min(row, height - 1), min(column, width - 1)]
    return result


# CLEVR with masks; CLEVR; as it is; magnified.
SHAPES = [(192, 192, 128), (320, 480, 128), (128, 128, 128), (5, 7, 11), (1, 1, 3)]


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_as_tensorflow_resizes_them(height, width, size, channels):
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    resized = resize_image(image, size)
    assert (resized.shape, resized.dtype, resized.flags.c_contiguous) == ((size, size, channels), np.uint8, True)
    if size == 11:  # weights that float32 does not hold exactly
        assert np.abs(resized.astype(int) - bilinear(image, size)).max() <= 1
        assert (resized != bilinear(image, size)).mean() < 0.01
    else:
        np.testing.assert_array_equal(resized, bilinear(image, size))


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_labels_as_tensorflow_resizes_them(height, width, size):
    labels = np.random.default_rng(0).integers(0, 11, (height, width), np.uint8)
    resized = resize_labels(labels, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, nearest(labels, size))
    np.testing.assert_array_equal(resize_labels(np.stack([labels, labels + 1]), size), [resized, resized + 1])


def test_by_hand():
    # 6 -> 4: centres at 0.25, 1.75, 3.25, 4.75; nearest floor(0.75, 2.25, 3.75, 5.25).
    row = np.array([0, 4, 8, 12, 16, 20], np.uint8)
    assert resize_image(np.tile(row[None, :, None], (6, 1, 1)), 4)[0, :, 0].tolist() == [1, 7, 13, 19]
    assert resize_labels(np.tile(row, (6, 1)), 4)[0].tolist() == [0, 8, 12, 20]
    # No antialiasing: of nine pixels only the middle one is seen.
    assert resize_image(np.array([[0, 0, 0], [0, 200, 0], [0, 0, 0]], np.uint8)[..., None], 1).item() == 200


def test_the_extremes_stay_and_inputs_are_left_alone():
    for level in (0, 255):
        assert (resize_image(np.full((192, 192, 3), level, np.uint8), 128) == level).all()
    image = np.arange(320 * 480 * 3, dtype=np.uint32).astype(np.uint8).reshape(320, 480, 3)
    crop = image[10:202, 20:212]
    before = image.copy()
    image.flags.writeable = False
    np.testing.assert_array_equal(resize_image(crop, 128), resize_image(crop.copy(), 128))
    np.testing.assert_array_equal(image, before)
