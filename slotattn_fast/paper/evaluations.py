"""Evaluations read back from the folders of runs, and refused if they are damaged."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slotattn_fast.report.tables import DISTANCES
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import TaskName
from slotattn_fast.train.errors import RunError

Result = Mapping[str, Any]
"""An evaluation, as `train.evaluation.evaluate` returns it."""


def read_evaluation(path: Path, task: TaskName) -> Result:
    """Raises `RunError` for a file that is missing, or has not what the report reads."""
    result = run_folder.read_json(path)
    try:
        numbers = [result["train_loss"]]
        if task == "discovery":
            numbers.append(result["fg_ari"])
        else:
            parts = [result["ap"], *result["ap_by_objects"].values()]
            numbers += [result["attention_ari"], *(part[distance] for part in parts for distance in DISTANCES)]
        whole = isinstance(result["data"], str) and all(map(_is_score, numbers))
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{path}: damaged; the same command measures it again")
    return result


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
