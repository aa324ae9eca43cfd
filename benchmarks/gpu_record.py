"""What a stage on the GPU found, part by part, with its conditions: written at once, and continued by the next run."""

import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from slotattn_fast.atomic import write_text

from .conditions import commit as checkout

Found = dict[str, Any]  # plain data, for JSON
Part = Callable[[float], Found]  # of the seconds that are left
Record = dict[str, dict[str, Any]]  # by the part's name
UNFINISHED = "unfinished"  # the key of a part's result that says why it is to be run again
UNKNOWN = "unknown"  # what a command that is missing or fails would have told
BEFORE = "before"  # the key of the entry that an unfinished one stands before
FRESH = ("date", "command")  # conditions in which a result that is kept may differ


def conditions(toy: bool, commit: str | None) -> dict[str, str]:
    """Of everything that this process measures. `commit` is for copies of the repository without its history."""
    return {
        "gpu": "none: toy sizes on a CPU" if toy else torch.cuda.get_device_name(),
        "driver": "none" if toy else _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "python": platform.python_version(),
        "commit": commit or checkout(),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "date": date.today().isoformat(),
    }


def described(where: Mapping[str, str]) -> str:
    """The conditions in one line."""
    return f"{where['gpu']}, {', '.join(f'{name} {value}' for name, value in where.items() if name != 'gpu')}"


def _output(*command: str) -> str:
    """The first line that a command prints; UNKNOWN where it is missing or prints none."""
    if shutil.which(command[0]) is None:
        return UNKNOWN
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() or UNKNOWN


def why_unfinished(found: Found) -> str:
    """In a line: the last of a traceback."""
    return str(found[UNFINISHED]).strip().splitlines()[-1]


def load(path: Path) -> Record:
    return json.loads(path.read_text()) if path.exists() else {}


def save(path: Path, record: Record) -> None:
    """In one step, so that a run that is cut off leaves the record of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def is_done(entry: dict[str, Any] | None, here: Mapping[str, str]) -> bool:
    """Whether a part was finished, by this code on such a machine."""
    if entry is None or UNFINISHED in entry["found"]:
        return False
    return all(entry["conditions"].get(name) == value for name, value in here.items() if name not in FRESH)


def last_finished(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """The entry, or the one that it stands before; None without either."""
    if entry is not None and UNFINISHED in entry["found"]:
        return entry.get(BEFORE)
    return entry


def run_parts(path: Path, parts: Mapping[str, Part], here: Mapping[str, str], limit: float) -> list[str]:
    """Runs the parts that the record at `path` has not; returns the names of those that are still to be run.

    Within about `limit` seconds: none begins when there is less time left than the longest took. A part that raises is
    recorded with its traceback, beside what an earlier run found, and does not keep the others from running.
    """
    start, longest, left = time.monotonic(), 0.0, []
    for name, part in parts.items():
        record = load(path)
        if is_done(record.get(name), here):
            print(f"{name}: done before", flush=True)
            continue
        began = time.monotonic()
        remaining = limit - (began - start)
        if remaining < max(longest, 1):
            left.append(name)
            continue
        try:
            found = part(remaining)
        except Exception:
            found = {UNFINISHED: traceback.format_exc(limit=-4)}
        seconds = time.monotonic() - began
        longest = max(longest, seconds)
        entry = {"found": found, "seconds": round(seconds, 1), "conditions": dict(here)}
        if UNFINISHED in found and (finished := last_finished(record.get(name))):
            entry[BEFORE] = finished
        record[name] = entry
        save(path, record)
        if UNFINISHED in found:
            left.append(name)
        print(f"{name}: {found.get(UNFINISHED, 'done')} ({seconds:.0f} s)", flush=True)
    return left
