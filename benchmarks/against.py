"""Whether the module is slower now than at a git revision.

    python -m benchmarks --against REV          or python -m benchmarks.against REV [--rounds 15] [--threads N]

The package of the revision and that of the working tree are laid out side by side and timed in turns, a call of one and
a call of the other, in a process each: benchmarks/against_worker.py. As two processes of the same code already differ
by some percent, for as long as they live, there are several pairs of them. The module is called slower where in every
pair the median of the rounds' ratios, as far down as 95 % or more of such medians would be, is above 1.03: a busy
machine can hide a change but does not make one. Where it could hide one, as some pair's medians may be above 1.03, that
is said. Exits with 1 if the module is slower, and with 2 if that could not be found out.
"""

import argparse
import io
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from .archive import extract
from .conditions import add_threads, at_least, command
from .contenders import PASSES
from .measure import WARM_UP, on_gpu

FOLDERS = ("slotattn_fast", "kernels", "reference")
SHAPES = ((8, 4096, 7), (16, 1024, 10))  # B, N, K
GPU_SHAPES = ((64, 16384, 7), (512, 1024, 10))
THRESHOLD = 1.03
Case = tuple[int, int, int, str]


class Interval(NamedTuple):
    """A median of ratios, and where at least 95 % of such medians lie, of 15 96.5 %."""

    low: float
    middle: float
    high: float


def refuse(why: str) -> NoReturn:
    """Ends the program as the parser does: nothing was compared."""
    print(why, file=sys.stderr)
    sys.exit(2)


class Side:
    """A process that times the package in a folder."""

    def __init__(self, package: Path, case: Case, threads: int) -> None:
        self.package = package
        worker = Path(__file__).with_name("against_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(worker), json.dumps([*case, threads])],
            # Threads that wait by spinning would take the cores from the other side's call.
            env={**os.environ, "PYTHONPATH": str(package), "OMP_WAIT_POLICY": "passive"},
            cwd=package,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        where, self.sums = json.loads(self._answer())
        assert Path(where).is_relative_to(package), f"{where} was imported, not what is in {package}"

    def milliseconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            refuse(f"the process of {self.package.name} ended with {self.process.wait()}; what it said is above")
        return line

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()  # which ends it
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def packages(revision: str) -> Iterator[tuple[Path, Path]]:
    """Folders with the package of the revision and with that of the working tree, as they would be installed."""
    try:
        named = subprocess.run(
            ["git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"],
            capture_output=True,
            check=False,
        )
    except OSError as error:
        refuse(f"--against: git cannot be run ({error.strerror})")
    found = named
    if not named.returncode:
        commit = named.stdout.decode().strip()
        found = subprocess.run(["git", "archive", commit, *FOLDERS], capture_output=True, check=False)
    if found.returncode:
        refuse(
            f"--against: got {revision!r}, expected a git revision that has {', '.join(FOLDERS)}: "
            f"{found.stderr.decode().strip()}"
        )
    with tempfile.TemporaryDirectory() as folder:
        then, now = Path(folder) / "then", Path(folder) / "now"
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            extract(archive, then)
        for name in FOLDERS:
            shutil.copytree(name, now / name, ignore=shutil.ignore_patterns("__pycache__", *FOLDERS[1:]))
        for package in (then, now):
            for name in FOLDERS[1:]:
                (package / name).rename(package / FOLDERS[0] / name)
        yield then, now


def ratios(then: Path, now: Path, case: Case, rounds: int, threads: int) -> list[float]:
    """Of a new pair of processes: times now over times then, by round. Either is first in every other round."""
    with ExitStack() as stack:
        sides = []
        for package in (then, now):
            sides.append(Side(package, case, threads))
            stack.callback(sides[-1].close)
        if not all(map(_alike, sides[0].sums, sides[1].sums)):
            print(f"the results differ: then {sides[0].sums}, now {sides[1].sums}", file=sys.stderr)
        found = []
        for number in range(WARM_UP + rounds):
            order = sides if number % 2 else sides[::-1]
            ms = {id(side): side.milliseconds() for side in order}
            if number >= WARM_UP:
                found.append(ms[id(sides[1])] / ms[id(sides[0])])
        return found


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3)


def interval(values: Sequence[float]) -> Interval:
    """By order statistics: no assumption on how the values are distributed."""
    ordered, n = sorted(values), len(values)
    steps = math.floor(2.576 * math.sqrt(n) / 2)
    return Interval(ordered[max(0, n // 2 - steps)], statistics.median(ordered), ordered[min(n - 1, n // 2 + steps)])


def verdict(pairs: Sequence[Interval]) -> str:
    if all(pair.low > THRESHOLD for pair in pairs):
        return "SLOWER"
    if all(pair.high < 1 / THRESHOLD for pair in pairs):
        return "faster"
    most = max(pair.high for pair in pairs)
    if most > THRESHOLD:
        return f"not clear: up to {most - 1:.0%} slower would be within the noise"
    return "not slower"


def compare(revision: str, rounds: int, pairs: int, threads: int) -> bool:
    """Prints a line for each case; whether any is slower."""
    slower = False
    with packages(revision) as (then, now):
        for size, which in itertools.product(GPU_SHAPES if on_gpu() else SHAPES, PASSES):
            found = [interval(ratios(then, now, (*size, which), rounds, threads)) for _ in range(pairs)]
            outcome = verdict(found)
            slower |= outcome == "SLOWER"
            shown = ", ".join(f"{pair.middle:.3f} ({pair.low:.3f} to {pair.high:.3f})" for pair in found)
            print(f"{' x '.join(map(str, size)):15}{which:17} now / {revision}: {shown}: {outcome}", flush=True)
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REV", help="a git revision, such as HEAD or a tag")
    parser.add_argument("--rounds", type=at_least(6), default=15, help="timed rounds of each pair of processes")
    parser.add_argument("--pairs", type=at_least(1), default=3, help="pairs of processes")
    add_threads(parser)
    given = parser.parse_args()
    try:
        slower = compare(given.revision, given.rounds, given.pairs, given.threads)
    except OSError as error:
        refuse(f"--against: {error}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    command(main)
