"""Evaluations as lines of text: object discovery by FG-ARI, property prediction by AP."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from slotattn_fast.metrics.average_precision import THRESHOLDS
from slotattn_fast.report import published
from slotattn_fast.report.published import Score

FAILED = 2.0
"""A seed whose training loss ends at more than so many times the lowest of the seeds' has failed. In rare seeds the
model cuts scenes into stripes, and a much higher loss gives it away (the paper, section 4.1); the factor is ours."""

DISTANCES = tuple(f"{threshold:g}" for threshold in THRESHOLDS)
"""The keys of an evaluation's AP."""

Name = TypeVar("Name")
Result = Mapping[str, Any]
"""What the `measure` of a task returns, with train_loss: of property prediction if it has ap."""


def evaluation_line(name: str, result: Result) -> str:
    """One evaluation."""
    iters = "" if result["iters"] is None else f", {_count(result['iters'], 'iteration')}"
    used = f"{_count(result['num_slots'], 'slot')}{iters}"
    if "ap" in result:
        ap = ", ".join(f"{_percent(result['ap'][distance])} % ({distance})" for distance in DISTANCES)
        ap = f"AP {ap}" if result["ap_by_objects"] else "no AP without properties"
        ari = "" if result["attention_ari"] is None else f", attention ARI {_percent(result['attention_ari'])} %"
        return f"{name}: {ap} on {_count(result['scenes'], 'held-out scene')}{ari}; {used}"
    counted = result["scenes"] - result["left_out"]
    left_out = f" ({result['left_out']} without an object left out)" if result["left_out"] else ""
    return (
        f"{name}: FG-ARI {_fg_ari(result['fg_ari'])} on {_count(counted, 'held-out scene')}{left_out}, "
        f"MSE {result['mse']:.5f}; {used}"
    )


def seeds_lines(results: Mapping[str, Result]) -> list[str]:
    """Mean and standard deviation over two runs or more of one task, and where some failed, also without those."""
    failed = failed_runs({name: result["train_loss"] for name, result in results.items()})
    lines = [
        f"{name}: failed: its training loss, {results[name]['train_loss']:.5f}, is {times:.1f} times the lowest"
        + ("" if "ap" in results[name] else "; stripes?")
        for name, times in failed.items()
    ]
    lines.append(f"{_count(len(results), 'run')}: {_mean(list(results.values()))}")
    if failed:
        kept = [result for name, result in results.items() if name not in failed]
        lines.append(f"without the {len(failed)} that failed: {_mean(kept)}")
    return lines


def failed_runs(losses: Mapping[Name, float | None]) -> dict[Name, float]:
    """Those of the runs that failed, by their losses at the end, and how many times the lowest theirs is."""
    known = {name: loss for name, loss in losses.items() if loss is not None}
    least = min(known.values(), default=0.0)
    return {name: loss / least for name, loss in known.items() if loss > FAILED * least > 0}


def ap_table_lines(results: Mapping[str, Result]) -> list[str]:
    """AP of runs beside the published (the paper, Figure 5, left), and the attention ARI if it is known of one."""
    with_ari = any(result["attention_ari"] is not None for result in results.values())
    rows = [["AP in %, by distance", *DISTANCES, "attention ARI"]]
    for name, result in results.items():
        rows.append([name, *(_percent(result["ap"][distance]) for distance in DISTANCES)])
        rows[-1].append(_percent(result["attention_ari"]))
    for name, scores in published.AP.items():
        ari = score_text(published.ATTENTION_ARI) if name == "Slot Attention" else "-"
        rows.append([f"{name} (unverified)", *map(score_text, scores), ari])
    return [
        *_aligned(rows if with_ari else [row[:-1] for row in rows]),
        "unverified: the paper's AP on CLEVR10, mean +- standard deviation, quoted from memory"
        + with_ari * "; its attention ARI is from its text",
    ]


def ap_by_objects_lines(name: str, result: Result) -> list[str]:
    """AP of a run over the scenes with each number of objects (the paper, Appendix C.2), and over all."""
    rows = [["objects", "scenes", *DISTANCES]]
    every = {**result["ap_by_objects"], "all": {"scenes": result["scenes"], **result["ap"]}}
    for number, part in every.items():
        rows.append([number, str(part["scenes"]), *(_percent(part[distance]) for distance in DISTANCES)])
    return [f"{name}: AP in %, by number of objects and distance", *_aligned(rows)]


def _mean(results: Sequence[Result]) -> str:
    if "ap" in results[0]:
        ap = [_over([result["ap"][distance] for result in results]) for distance in DISTANCES]
        parts = [f"{score} % ({distance})" for score, distance in zip(ap, DISTANCES, strict=True)]
        ari = _over([result["attention_ari"] for result in results])
        said = [f"AP {', '.join(parts)}"] if results[0]["ap_by_objects"] else []
        scores = ", ".join(said if ari == "-" else [*said, f"attention ARI {ari} %"])
    else:
        known = [result["fg_ari"] for result in results if result["fg_ari"] is not None]
        mean, deviation = mean_and_deviation(known) if len(known) == len(results) else (None, None)
        scores = f"FG-ARI {_fg_ari(mean)}" + ("" if deviation is None else f" +- {deviation:.4f}")
    return scores + " (mean and standard deviation)" * (len(results) > 1)


def mean_and_deviation(scores: Sequence[float]) -> Score:
    """The deviation is of the sample, and None of one."""
    mean = math.fsum(scores) / len(scores)
    if len(scores) == 1:
        return Score(mean)
    return Score(mean, math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)))


def _over(scores: Sequence[float | None]) -> str:
    """In percent; a score that one run lacks has no mean."""
    return mean_text([None if score is None else 100 * score for score in scores])


def mean_text(percents: Sequence[float | None]) -> str:
    """Mean and standard deviation; "-" of nothing, or where one is missing."""
    known = [percent for percent in percents if percent is not None]
    return score_text(mean_and_deviation(known)) if known and len(known) == len(percents) else "-"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:z.1f}"


def _fg_ari(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def score_text(percent: Score) -> str:
    """Mean and standard deviation, if there is one."""
    return f"{percent.mean:z.1f}" + ("" if percent.deviation is None else f" +- {percent.deviation:.1f}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
