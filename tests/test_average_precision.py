"""Average precision: as plain loops compute it from the text, and by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import average_precision as benchmark
from benchmarks.average_precision import plain_average_precision
from slotattn_fast.data.properties import LAYOUT, NUM_FEATURES, properties_of
from slotattn_fast.metrics.average_precision import THRESHOLDS, ap_by_count, average_precision

SIXTEENTHS = (math.inf, 1.125, 0.75, 0.375)
"""Distances that objects on a grid of sixteenths of the scene often have exactly."""


def random_vectors(seed: int, images: int, slots: int, most: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """On so coarse a grid and of so few kinds that all ties occur: of distances, confidences and whole objects."""
    rng = np.random.default_rng(seed)
    drawn = []
    for rows in (slots, most):
        vectors = np.zeros((images, rows, NUM_FEATURES), np.float32)
        vectors[..., LAYOUT["coords"]] = rng.integers(0, 4, (images, rows, 3)) / 16
        for attribute in (LAYOUT["size"], LAYOUT["material"], LAYOUT["shape"], LAYOUT["color"]):
            width = attribute.stop - attribute.start
            vectors[..., attribute] = np.eye(width)[rng.choice([0, width - 1], (images, rows), p=[0.8, 0.2])]
        drawn.append(vectors)
    predictions, targets = drawn
    # Half of the predictions are beside an object, or where one is.
    chosen = np.take_along_axis(targets, rng.integers(0, most, (images, slots, 1)), 1)
    chosen[..., LAYOUT["coords"]] += rng.choice([-1, 0, 1], (images, slots, 3), p=[0.1, 0.8, 0.1]) / 16
    predictions = np.where(rng.random((images, slots, 1)) < 0.5, chosen, predictions)
    predictions[..., 18] = rng.integers(0, levels, (images, slots)) / levels
    targets[..., 18] = rng.random((images, most)) < 0.5
    return torch.from_numpy(predictions), torch.from_numpy(targets)


def of_vectors(predictions: torch.Tensor, targets: torch.Tensor, thresholds=THRESHOLDS) -> list[float]:
    return average_precision(properties_of(predictions), properties_of(targets), thresholds=thresholds).tolist()


def sets(*images):
    """Images of objects on a line, as (place, kind, confidence or whether real)."""
    coords = np.array([[(place, 0.0, 0.0) for place, _, _ in image] for image in images])
    attributes = np.array([[(1, kind) for _, kind, _ in image] for image in images])
    return coords, attributes, np.array([[last for _, _, last in image] for image in images])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    slots=st.integers(1, 7),
    most=st.integers(1, 6),
    levels=st.sampled_from([1, 3, 1024]),
)
def test_equals_plain_loops(seed, images, slots, most, levels):
    predictions, targets = random_vectors(seed, images, slots, most, levels)
    scores = average_precision(properties_of(predictions), properties_of(targets), thresholds=SIXTEENTHS)
    assert scores.dtype == np.float64
    if not targets[..., 18].any():
        assert np.isnan(scores).all()
        return
    plain = [plain_average_precision(predictions, targets, threshold) for threshold in SIXTEENTHS]
    np.testing.assert_allclose(scores, plain, rtol=0, atol=1e-12)
    assert (np.diff(scores) <= 1e-12).all()  # nearer is harder

    by_count = ap_by_count(properties_of(predictions), properties_of(targets), thresholds=SIXTEENTHS)
    counts = targets[..., 18].sum(1)
    assert list(by_count) == sorted({int(n) for n in counts if n})
    for n, scores in by_count.items():
        plain = [
            plain_average_precision(predictions[counts == n], targets[counts == n], threshold)
            for threshold in SIXTEENTHS
        ]
        np.testing.assert_allclose(scores, plain, rtol=0, atol=1e-12)


def test_the_random_cases_are_neither_all_right_nor_all_wrong():
    scores = np.array([of_vectors(*random_vectors(seed, 4, 5, 6, 3), SIXTEENTHS) for seed in range(20)])
    assert (scores > 0).mean() > 0.9
    assert (scores < 1).all()
    assert (scores[:, :-1] > scores[:, 1:]).mean(0).min() > 0.5  # each threshold tells


@pytest.mark.parametrize(
    ("pred", "true", "score"),
    [
        pytest.param([[(0.5, 7, 0.9)]], [[(0, 7, 1)]], 1, id="found"),
        pytest.param([[(0.5, 7, 0.9)]], [[(0, 8, 1)]], 0, id="another kind"),
        pytest.param([[(1.0, 7, 0.9)]], [[(0, 7, 1)]], 0, id="at the threshold"),
        pytest.param([[(0.5, 7, 0.9)]], [[(0.5, 7, 0), (0, 8, 1)]], 0, id="padding is no object"),
        pytest.param([[(0.5, 7, 0.9), (2, 7, 0.1)]], [[(0, 7, 1)]], 1, id="a wrong one, less sure"),
        pytest.param([[(0.5, 7, 0.1), (2, 7, 0.9)]], [[(0, 7, 1)]], 1 / 2, id="a wrong one, surer, claims nothing"),
        pytest.param([[(0.5, 7, 0.5), (2, 7, 0.5)]], [[(0, 7, 1)]], 1, id="a wrong one, as sure, behind"),
        pytest.param([[(2, 7, 0.5), (0.5, 7, 0.5)]], [[(0, 7, 1)]], 1 / 2, id="a wrong one, as sure, before"),
        pytest.param([[(0.5, 7, 0.9)]], [[(0, 7, 1), (5, 7, 1)]], 1 / 2, id="one not found"),
        pytest.param([[(0, 7, 0.9), (0.1, 7, 0.8)]], [[(0, 7, 1), (0.4, 7, 1)]], 1 / 2, id="no second choice"),
        pytest.param(
            [[(0, 7, 0.9), (0.5, 7, 0.8)]], [[(0.25, 7, 1), (0.75, 7, 1)]], 1 / 2, id="equally near: the first"
        ),
        pytest.param(
            [[(9, 9, 0.9), (0, 7, 0.8), (3, 8, 0.7)]], [[(0, 7, 1), (3, 8, 1)]], 2 / 3, id="precision falls with recall"
        ),
        pytest.param([[(0, 7, 0.9)], [(0, 7, 0.8)]], [[(0, 7, 1)], [(0, 7, 1)]], 1, id="each image has its own"),
        pytest.param([[(0, 7, 0.9)], [(5, 7, 0.8)]], [[(5, 7, 1)], [(0, 7, 1)]], 0, id="those of other images"),
        pytest.param([[(0, 8, 0.5)], [(0, 7, 0.5)]], [[(0, 7, 1)], [(0, 7, 1)]], 1 / 4, id="as sure: image by image"),
    ],
)
def test_by_hand(pred, true, score):
    assert average_precision(sets(*pred), sets(*true), thresholds=[1]).tolist() == [pytest.approx(score, abs=1e-15)]


def test_every_threshold_claims_for_itself():
    pred, true = sets([(2, 7, 0.9), (0.3, 7, 0.8), (0, 7, 0.7)]), sets([(0, 7, 1)])
    scores = average_precision(pred, true, thresholds=[0.25, 10, 0.5, math.inf])
    np.testing.assert_allclose(scores, [1 / 3, 1, 1 / 2, 1], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("offset", "expected"), [(0.16, [1, 1, 0, 0, 0]), (0.17, [1, 0, 0, 0, 0]), (0.02, [1] * 5)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_are_those_of_the_scene(offset, expected, axis):
    """Coordinates from 0 to 1 in a vector are 6 units of the scene."""
    _, targets = random_vectors(0, 1, 1, 1, 1)
    targets[..., 18] = 1
    predictions = targets.clone()
    predictions[..., axis] += offset
    assert of_vectors(predictions, targets) == expected


@pytest.mark.parametrize("slots", [10, 14])
def test_what_is_right_scores_1(slots):
    _, targets = benchmark.draw(20)
    predictions = torch.zeros(20, slots, NUM_FEATURES)
    predictions[:, slots - 10 :] = targets
    assert of_vectors(predictions, targets) == [1] * 5


def test_no_object_and_no_prediction():
    one = sets([(0, 7, 1)])
    assert np.isnan(average_precision(one, sets([(0, 7, 0)]))).all()
    assert ap_by_count(one, sets([(0, 7, 0)])) == {}
    none = np.zeros((1, 0, 3)), np.zeros((1, 0, 2), int), np.zeros((1, 0))
    assert np.isnan(average_precision(one, none)).tolist() == [True] * 5
    assert average_precision(none, one).tolist() == [0] * 5
    assert average_precision(tuple(array[:0] for array in one), tuple(array[:0] for array in one)).shape == (5,)


@pytest.mark.parametrize(
    "thresholds", [[], [1, math.nan], [0], [-1.0], 0.5, "1", ["1"], [None], None, [[1, 2]], [1, [2]], [[1], [2]]]
)
@pytest.mark.parametrize("call", [average_precision, ap_by_count])
def test_thresholds_that_make_no_sense(call, thresholds):
    with pytest.raises(ValueError, match=r"thresholds: got .*, expected one or more numbers above 0, or infinity"):
        call(sets([(0, 7, 1)]), sets([(0, 7, 1)]), thresholds=thresholds)


@pytest.mark.parametrize("thresholds", [(1,), np.array([1.0]), np.array([1], np.float32), [np.float32(1)]])
def test_thresholds_of_any_kind(thresholds):
    assert average_precision(sets([(0, 7, 1)]), sets([(0, 7, 1)]), thresholds=thresholds).tolist() == [1]


@pytest.mark.parametrize(
    ("which", "part", "change", "error", "says"),
    [
        ("pred", 0, lambda a: a * [1, 1, np.nan], ValueError, r"predicted coordinates: got nan at \[0, 0, 2\], exp"),
        ("pred", 0, lambda a: a + np.inf, ValueError, r"predicted coordinates: got inf at \[0, 0, 0\]"),
        ("pred", 2, lambda a: a * np.nan, ValueError, r"confidence: got nan at \[0, 0\], expected finite numbers"),
        ("true", 0, lambda a: a * np.nan, ValueError, r"true coordinates: got nan at \[0, 0, 0\], expected finite"),
        ("true", 2, lambda a: a * 0.5, ValueError, r"real: got 0.5 at \[0, 0\], expected 0 or 1"),
        ("true", 2, lambda a: a * np.nan, ValueError, r"real: got nan at \[0, 0\], expected 0 or 1"),
        ("pred", 1, lambda a: a * 1.0, TypeError, r"predicted attributes: got float64, expected integers"),
        ("true", 1, lambda a: a * 1.0, TypeError, r"true attributes: got float64, expected integers"),
        ("pred", 0, lambda a: a[:, :1], ValueError, r"predicted coordinates: got shape \(1, 1, 3\), .* \[1, 2, 3\]"),
        ("pred", 0, lambda a: a[..., :2], ValueError, r"predicted coordinates: got shape \(1, 2, 2\), .*\[B, K, 3\]"),
        ("pred", 1, lambda a: a[..., 0], ValueError, r"predicted attributes: got shape \(1, 2\), .*\[B, K, A\]"),
        ("pred", 2, lambda a: a[0], ValueError, r"confidence: got shape \(2,\), expected \[B, K\]$"),
        ("true", 0, lambda a: a[0], ValueError, r"true coordinates: got shape \(2, 3\), expected \[B, M, 3\]"),
        ("true", 1, lambda a: a[..., :1], ValueError, r"true attributes: got shape \(1, 2, 1\), .*= \[1, 2, 2\]"),
        ("true", 2, lambda a: a[:0], ValueError, r"real: got shape \(0, 2\), expected \[B, M\] = \[1, 2\]"),
    ],
)
def test_bad_sets(which, part, change, error, says):
    arguments = {"pred": sets([(1, 7, 1), (2, 7, 1)]), "true": sets([(1, 7, 1), (2, 7, 1)])}
    arrays = list(arguments[which])
    arrays[part] = change(arrays[part])
    with pytest.raises(error, match=says):
        average_precision(**{**arguments, which: tuple(arrays)})


def test_coordinates_of_padding_may_be_anything():
    coords, attributes, real = sets([(1, 7, 1), (np.nan, 7, 0)])
    assert average_precision(sets([(1, 7, 1)]), (coords, attributes, real)).tolist() == [1] * 5


def test_benchmark_measures_what_its_table_says():
    rows = benchmark.measure(images=30, plain_images=5, rounds=2)
    assert [row["images"] for row in rows] == [5, 30]
    conditions = dict.fromkeys(("cpu", "threads", "torch", "numpy", "rounds", "commit", "date", "command"), "x")
    few, many = benchmark._row(500, [9.0, 10.0, 20.0], [360.0, 410.0, 820.0]), benchmark._row(15_000, [250.0, 250.0])
    lines = benchmark.table([{**few, **conditions}, {**many, **conditions}], Path("some.csv")).splitlines()
    assert lines[-2:] == [
        "| 500 | 10.0 (9.4 to 16.0) | 410 (380 to 656) | **41x** (40 to 41) |",
        "| 15,000 | 250.0 (250.0 to 250.0) |  |  |",
    ]
    assert lines[0].startswith(
        "AP of 10 predictions an image within 5 distances, 3 to 10 objects an image. x, x threads"
    )


def test_benchmark_gives_medians_of_each_and_of_the_ratios(monkeypatch):
    ms = {"fast": [1.0, 2.0, 9.0], "plain": [30.0, 40.0, 90.0], "many": [5.0, 6.0, 8.0]}
    images = {}

    def wall_times(calls, rounds, warm_up):
        images.update({name: len(call.args[0]) for name, call in calls.items()})
        return {name: ms[name] for name in calls}

    monkeypatch.setattr(benchmark, "wall_times", wall_times)
    few, many = benchmark.measure(images=30, plain_images=5, rounds=3)
    assert (few["ms_median"], few["plain_ms_median"], few["times_plain_median"]) == (2, 40, 20)
    assert images == {"fast": 5, "plain": 5, "many": 30}
    assert (many["ms_median"], many["plain_ms_median"], many["times_plain_median"]) == (6, "", "")


def test_benchmark_refuses_to_time_what_is_wrong(monkeypatch):
    right = benchmark.fast
    monkeypatch.setattr(benchmark, "fast", lambda *vectors: [each + 1e-9 for each in right(*vectors)])
    with pytest.raises(AssertionError):
        benchmark.measure(images=30, plain_images=5, rounds=2)
