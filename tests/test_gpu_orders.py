"""The orders of launches that the stage `tune` holds against each other: which, in which order, and their table."""

import pytest

from benchmarks import gpu_orders, measure
from slotattn_fast import triton_backend

HERE = {"gpu": "none", "commit": "a", "date": "today", "command": "this"}


def milliseconds(calls: dict[str, measure.Call], rounds: int, failures: dict[str, str]) -> dict[str, list[float]]:
    """In place of measuring."""
    return {name: [1.0, 2.0, 3.0] if name == gpu_orders.ON_CHIP else [4.0, 8.0, 12.0] for name in calls}


def test_orders_are_those_that_differ_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = 50 * 2**20
    found = gpu_orders.orders(64, 16384, 7, cache, hopper=True)
    assert {name: config.group for name, config in found.items()} == {
        gpu_orders.PASS_BY_PASS: 64,
        "groups of 12": 12,
        "groups of 24": 24,
    }
    found = gpu_orders.orders(512, 1024, 10, cache, hopper=True)
    assert list(found) == [gpu_orders.PASS_BY_PASS, "groups of 200", "groups of 400", gpu_orders.ON_CHIP]
    assert [config.on_chip for config in found.values()] == [False, False, False, True]
    assert gpu_orders.ON_CHIP not in gpu_orders.orders(512, 1024, 10, cache, hopper=False)

    taken, forward = [], triton_backend._forward_group
    monkeypatch.setattr(
        triton_backend, "_forward_group", lambda w, s, x, *rest: taken.append(len(x)) or forward(w, s, x, *rest)
    )
    monkeypatch.setattr(measure, "milliseconds", milliseconds)
    (size,) = gpu_orders.TOY_SIZES
    found = gpu_orders.compare(size, "forward+backward", True, 60)
    assert taken == [3, 2, 1]
    faster = {row["contender"]: row["faster"] for row in found["rows"]}
    assert faster == {gpu_orders.PASS_BY_PASS: 1, "groups of 2": 1, gpu_orders.ON_CHIP: 4}
    report = gpu_orders.report({f"{gpu_orders.NAME}, 3 x 40 x 3 forward": {"found": found, "conditions": HERE}})
    assert "| 3 x 40 x 3 forward | groups of 2 | 8.0000 | 5.6000 | 10.4000 | 1.00 | " in report
