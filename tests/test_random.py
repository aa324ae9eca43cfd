"""The random words of a scene: the same in any batch, and uniform."""

import numpy as np
import pytest

from slotattn_fast.data.synthetic.random import below, random_words, uniform

COUNT = 7  # not a whole number of Philox's values of four words


def test_a_row_is_the_same_in_any_batch_and_order() -> None:
    together = random_words(3, 1, np.arange(20), COUNT)
    assert together.shape == (20, COUNT)
    assert together.dtype == np.uint64
    for i in range(20):
        np.testing.assert_array_equal(random_words(3, 1, [i], COUNT)[0], together[i])
    order = [5, 19, 6, 7, 8, 0, 8, 8, 4, 3]  # runs, steps back and repeats
    np.testing.assert_array_equal(random_words(3, 1, order, COUNT), together[order])


def test_words_stay_the_same_from_version_to_version() -> None:
    assert random_words(3, 1, [2**40], 2).tolist() == [[14493959417816262048, 8715276907076808355]]


def test_no_two_scenes_share_a_word() -> None:
    # Neighbours whose words overlapped would have the last of one among the first of the next.
    words = np.concatenate(
        [random_words(0, 0, np.arange(5000), COUNT), random_words(0, 0, 2**40 + np.arange(5000), COUNT)]
    )
    assert len(np.unique(words)) == words.size


def test_seeds_and_streams_differ() -> None:
    # (0, 1) and (1, 0) too: seed and stream do not just add up.
    words = [random_words(seed, stream, np.arange(9), COUNT) for seed in range(3) for stream in range(3)]
    assert len(np.unique(words)) == 9 * 9 * COUNT


def test_words_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(random_words(1, 0, np.arange(20_000), COUNT))
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    expected = numbers.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 148.2  # chi-squared, 99 degrees of freedom, p = 0.001
    # Between the words of a scene, and between a scene and the next.
    correlation = np.corrcoef(np.concatenate([numbers[:-1], numbers[1:]], axis=1), rowvar=False)
    assert np.abs(correlation - np.eye(2 * COUNT)).max() < 5 / np.sqrt(20_000)


def test_uniform_never_reaches_1() -> None:
    top = np.array([0, 2**64 - 1], np.uint64)
    assert uniform(top).tolist() == [0.0, 1 - 2.0**-53]


def test_below_stays_below_and_is_uniform() -> None:
    assert below(np.array([0, 2**64 - 1], np.uint64), 6).tolist() == [0, 5]
    assert below(np.array([0, 2**64 - 1], np.uint64), 2**31 - 1).tolist() == [0, 2**31 - 2]
    words = random_words(2, 0, np.arange(30_000), 2)
    numbers = below(words, [6, 1])  # a bound for each column
    assert not numbers[:, 1].any()
    counts = np.bincount(numbers[:, 0], minlength=6)
    assert len(counts) == 6
    assert ((counts - 5000) ** 2 / 5000).sum() < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("seed", "stream", "scenes"), [(-1, 0, [0]), (0, -1, [0]), (0, 0, [3, -1])])
def test_negative(seed: int, stream: int, scenes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"seed, stream, scenes: got .*-1.*, expected none below 0"):
        random_words(seed, stream, scenes, COUNT)
