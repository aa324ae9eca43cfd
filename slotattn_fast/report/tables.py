"""Evaluations as lines of text."""

import math
from collections.abc import Mapping
from typing import Any

FAILED = 2.0
"""A seed whose training loss ends at more than so many times that of the best has failed: in rare seeds the model cuts
scenes into stripes, and a much higher loss gives it away (the paper, section 4.1)."""


def evaluation_line(name: str, result: Mapping[str, Any]) -> str:
    """One evaluation (`train.discovery_eval.evaluate`)."""
    counted = result["scenes"] - result["left_out"]
    left_out = f" ({result['left_out']} without an object left out)" if result["left_out"] else ""
    return (
        f"{name}: FG-ARI {result['fg_ari']:.4f} on {counted} held-out scenes{left_out}, MSE {result['mse']:.5f}; "
        f"{result['num_slots']} slots, {result['iters']} iterations"
    )


def seeds_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Mean and standard deviation of FG-ARI over runs, every one counted, and a line for each that failed."""
    scores = [result["fg_ari"] for result in results.values()]
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    lines = [f"{len(scores)} runs: FG-ARI {mean:.4f} +- {deviation:.4f} (mean, standard deviation; all counted)"]
    losses = {name: result["train_loss"] for name, result in results.items() if result["train_loss"] is not None}
    for name, loss in losses.items():
        times = loss / min(losses.values())
        if times > FAILED:
            lines.append(f"{name}: failed: its training loss, {loss:.5f}, is {times:.1f} times the lowest; stripes?")
    return lines
