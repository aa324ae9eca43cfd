"""Compares this project with the plain reference, compiled or not, and the PyPI package slot-attention.

    python -m benchmarks                    everything below, in about 10 minutes on 2 CPU cores
    python -m benchmarks --quick            at small sizes, in about a minute, into build/benchmarks
    python -m benchmarks PART [PART ...]    some of it
    python -m benchmarks report             tables and plots of what is in module.csv, measuring nothing
    python -m benchmarks --against REV      the module now against that of a git revision; exits with 1 if it is slower
    python -m benchmarks.repeated A B       whether the runs of these two folders agree within the spread they state

Parts:
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .conditions import add_quick_out, chosen_out, command, read_rows, run_command, software, upsert

DURATION = ("device", "command", "parts")
BUSY = 0.7  # processes that compute, on average


class Part(NamedTuple):
    """A command, of its own process where not of `module`, so that one that fails or is killed leaves the others."""

    what: str
    command: tuple[str, ...]
    quick: tuple[str, ...]
    """What is added for --quick."""


_MODULE = ("--quick", "--sweeps", "1", "--rounds", "5")
PARTS = {
    "forward": Part("a call without gradients, all contenders", ("module", "forward"), _MODULE),
    "backward": Part("a call and its gradients, all contenders", ("module", "backward"), _MODULE),
    "memory": Part("peak memory of both", ("module", "memory"), _MODULE),
    "scaling": Part("time over N, K, B, D and T, memory over N and K", ("module", "scaling"), _MODULE),
    "discovery": Part("a training step of object discovery", ("discovery",), ("--quick",)),
    "property": Part("a training step of property prediction", ("property",), ("--quick",)),
    "matching": Part("matching predictions with targets, against SciPy", ("matching",), ("--rounds", "3")),
    "average-precision": Part("AP, against plain loops", ("average_precision",), ("--images", "500")),
    "data": Part("reading, drawing and feeding scenes", ("data",), ("--quick",)),
    "report": Part("the tables and plots of the module's rows", ("report",), ()),
}


def main() -> None:
    listed = "\n".join(f"    {name:19}{part.what}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}{listed}",
        epilog="Each part is a module with more to set: python -m benchmarks.module --help, .discovery, .data and so "
        "on. For a GPU alone: python -m benchmarks.gpu --help, whose stage `tune` proposes the table of "
        "kernels/launch.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="see above (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, nothing compiled")
    add_quick_out(parser)
    parser.add_argument("--against", metavar="REV", help="compare the module with that of this git revision")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"PART: got {', '.join(map(repr, unknown))}, expected some of {', '.join(PARTS)}")
    if given.against is not None:
        if others := [*given.parts, *["--quick"] * given.quick, *["--out"] * (given.out is not None)]:
            parser.error(f"--against: got it with {' '.join(others)}; it compares the module alone")
        sys.exit(run_command([sys.executable, "-m", "benchmarks.against", given.against]))
    out = chosen_out(given)
    names = given.parts or list(PARTS)
    if "report" not in names:
        names.append("report")
    sys.exit(run(names, given.quick, out))


def run(names: list[str], quick: bool, out: Path) -> int:
    """Runs the parts one after the other; 1 if one of them failed. How long each took goes into durations.csv."""
    from .measure import device_name  # with torch, which `--help` does without

    failed, durations = [], out / "durations.csv"
    read_rows(durations, DURATION)  # ends the program, where it is damaged, before anything is measured
    load = os.getloadavg()[0]
    where = {"device": device_name(), "load_before": round(load, 2), **software("torch")}
    if load > BUSY:
        print(f"the load of the last minute is {load:.1f}: what else runs here slows what is measured")
    for name, arguments in commands(names, quick).items():
        print(f"== {name}", flush=True)
        began = time.monotonic()
        code = run_command([sys.executable, "-m", *arguments, "--out", str(out)])
        outcome = "done" if code == 0 else f"failed with {code}"
        seconds = round(time.monotonic() - began)
        print(f"== {name}: {outcome}, {seconds} s", flush=True)
        upsert(durations, [where | {"parts": name, "seconds": seconds, "outcome": outcome}], DURATION)
        if code:
            failed.append(name)
    print(f"results in {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def commands(names: list[str], quick: bool) -> dict[str, list[str]]:
    """By what they measure. The parts of `module` share a process, which goes through the shapes of all in turns."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        module = PARTS[name].command[0]
        groups.setdefault(module if module == "module" else name, []).append(name)
    found = {}
    for group in groups.values():
        first = PARTS[group[0]]
        arguments = [argument for name in group for argument in PARTS[name].command[1:]]
        found[", ".join(group)] = [f"benchmarks.{first.command[0]}", *arguments, *(first.quick if quick else ())]
    return found


if __name__ == "__main__":
    command(main)
