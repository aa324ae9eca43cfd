"""Evaluations as lines of text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

FAILED = 2.0
"""A seed whose training loss ends at more than so many times the lowest of the seeds' has failed. In rare seeds the
model cuts scenes into stripes, and a much higher loss gives it away (the paper, section 4.1); the factor is ours."""


def evaluation_line(name: str, result: Mapping[str, Any]) -> str:
    """One evaluation (`train.discovery_eval.evaluate`)."""
    counted = result["scenes"] - result["left_out"]
    left_out = f" ({result['left_out']} without an object left out)" if result["left_out"] else ""
    iters = "" if result["iters"] is None else f", {_count(result['iters'], 'iteration')}"
    return (
        f"{name}: FG-ARI {result['fg_ari']:.4f} on {_count(counted, 'held-out scene')}{left_out}, "
        f"MSE {result['mse']:.5f}; {_count(result['num_slots'], 'slot')}{iters}"
    )


def seeds_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Mean and standard deviation of FG-ARI over two runs or more, and where some failed, also without those."""
    losses = {name: result["train_loss"] for name, result in results.items() if result["train_loss"] is not None}
    failed = {name: loss / min(losses.values()) for name, loss in losses.items()}
    failed = {name: times for name, times in failed.items() if times > FAILED}
    lines = [
        f"{name}: failed: its training loss, {losses[name]:.5f}, is {times:.1f} times the lowest; stripes?"
        for name, times in failed.items()
    ]
    lines.append(f"{_count(len(results), 'run')}: {_mean([result['fg_ari'] for result in results.values()])}")
    kept = [result["fg_ari"] for name, result in results.items() if name not in failed]
    if failed:
        lines.append(f"without the {len(failed)} that failed: {_mean(kept)}")
    return lines


def _mean(scores: Sequence[float]) -> str:
    mean = math.fsum(scores) / len(scores)
    if len(scores) == 1:
        return f"FG-ARI {mean:.4f}"
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    return f"FG-ARI {mean:.4f} +- {deviation:.4f} (mean and standard deviation)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
