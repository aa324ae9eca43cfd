"""Evaluations of property prediction as lines of text; those of object discovery are in test_cli_eval."""

from typing import Any

import pytest

from slotattn_fast.report.tables import ap_by_objects_lines, ap_table_lines, evaluation_line, seeds_lines

AP = {"inf": 0.943, "1": 0.8671, "0.5": 0.56, "0.25": 0.1, "0.125": 0.03}
NONE = dict.fromkeys(AP)


def _result(ap: dict[str, Any] = AP, ari: float | None = 0.78, **other: Any) -> dict[str, Any]:
    parts = {"3": {"scenes": 62, **ap}, "10": {"scenes": 7, **NONE}}
    result = {"ap": ap, "ap_by_objects": parts, "attention_ari": ari, "scenes": 500, "num_slots": 10, "iters": 3}
    return {**result, "train_loss": None, **other}


def _less(by: float) -> dict[str, float]:
    return {distance: value - by for distance, value in AP.items()}


def test_one_evaluation() -> None:
    assert evaluation_line("run", _result()) == (
        "run: AP 94.3 % (inf), 86.7 % (1), 56.0 % (0.5), 10.0 % (0.25), 3.0 % (0.125) on 500 held-out scenes, "
        "attention ARI 78.0 %; 10 slots, 3 iterations"
    )
    assert evaluation_line("run", _result(ari=None, scenes=1, num_slots=1, iters=None)) == (
        "run: AP 94.3 % (inf), 86.7 % (1), 56.0 % (0.5), 10.0 % (0.25), 3.0 % (0.125) on 1 held-out scene; 1 slot"
    )


def test_nothing_to_find() -> None:
    result = _result(NONE, None)
    assert evaluation_line("run", result) == (
        "run: AP - % (inf), - % (1), - % (0.5), - % (0.25), - % (0.125) on 500 held-out scenes; 10 slots, 3 iterations"
    )
    assert ap_table_lines({"run": result})[1].split() == ["run", "-", "-", "-", "-", "-"]
    assert seeds_lines({"a": result, "b": result}) == [
        "2 runs: AP - % (inf), - % (1), - % (0.5), - % (0.25), - % (0.125) (mean and standard deviation)"
    ]


def test_table_beside_the_published() -> None:
    assert ap_table_lines({"runs/a": _result(), "runs/b": _result(ari=None)}) == [
        "AP in %, by distance                 inf            1           0.5         0.25       0.125  attention ARI",
        "runs/a                              94.3         86.7          56.0         10.0         3.0           78.0",
        "runs/b                              94.3         86.7          56.0         10.0         3.0              -",
        "Slot Attention (unverified)  94.3 +- 1.1  86.7 +- 1.4   56.0 +- 3.6  10.8 +- 1.7  0.9 +- 0.2    78.0 +- 2.9",
        "DSPN, T = 30 (unverified)    85.2 +- 4.8  81.1 +- 5.2  47.4 +- 17.6  10.8 +- 9.0  0.6 +- 0.7              -",
        "Slot MLP (unverified)        19.8 +- 1.6   1.4 +- 0.3    0.3 +- 0.2          0.0         0.0              -",
        "unverified: the paper's AP on CLEVR10, mean +- standard deviation, quoted from memory; "
        "its attention ARI is from its text",
    ]


def test_table_without_attention() -> None:
    lines = ap_table_lines({"a name that is longer than all others": _result(ari=None)})
    assert lines[:3] == [
        "AP in %, by distance                           inf            1           0.5         0.25       0.125",
        "a name that is longer than all others         94.3         86.7          56.0         10.0         3.0",
        "Slot Attention (unverified)            94.3 +- 1.1  86.7 +- 1.4   56.0 +- 3.6  10.8 +- 1.7  0.9 +- 0.2",
    ]
    assert lines[-1].endswith("quoted from memory")


def test_by_number_of_objects() -> None:
    assert ap_by_objects_lines("run", _result()) == [
        "run: AP in %, by number of objects and distance",
        "objects  scenes   inf     1   0.5  0.25  0.125",
        "3            62  94.3  86.7  56.0  10.0    3.0",
        "10            7     -     -     -     -      -",
        "all         500  94.3  86.7  56.0  10.0    3.0",
    ]


def test_seeds() -> None:
    a, b = _result(train_loss=0.01), _result(_less(0.02), 0.74, train_loss=0.02)
    assert seeds_lines({"a": a, "b": b}) == [
        "2 runs: AP 93.3 +- 1.4 % (inf), 85.7 +- 1.4 % (1), 55.0 +- 1.4 % (0.5), 9.0 +- 1.4 % (0.25), "
        "2.0 +- 1.4 % (0.125), attention ARI 76.0 +- 2.8 % (mean and standard deviation)"
    ]


def test_failed_seeds() -> None:
    a, b = _result(train_loss=0.01), _result(_less(0.09), 0.1, train_loss=0.0201)
    assert seeds_lines({"a": a, "b": b})[::2] == [
        "b: failed: its training loss, 0.02010, is 2.0 times the lowest",
        "without the 1 that failed: AP 94.3 % (inf), 86.7 % (1), 56.0 % (0.5), 10.0 % (0.25), 3.0 % (0.125), "
        "attention ARI 78.0 %",
    ]


def test_without_properties() -> None:
    results = {name: _result(NONE, ari, ap_by_objects={}) for name, ari in (("a", 0.78), ("b", 0.74))}
    assert evaluation_line("a", results["a"]) == (
        "a: no AP without properties on 500 held-out scenes, attention ARI 78.0 %; 10 slots, 3 iterations"
    )
    assert seeds_lines(results) == ["2 runs: attention ARI 76.0 +- 2.8 % (mean and standard deviation)"]


@pytest.mark.parametrize("lacking", [0, 1])
def test_attention_ari_of_every_seed_or_none(lacking: int) -> None:
    results = {str(i): _result(ari=None if i == lacking else 0.78) for i in range(2)}
    assert "attention" not in seeds_lines(results)[0]
