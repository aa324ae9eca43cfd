"""All that needs a GPU: the kernels' tests on it, times against the targets, and a proposal for the launch table.

    python -m benchmarks.gpu prove    kernel tests without the interpreter, every entry of the launch table against
                                      float64, CUDA graphs, torch.compile, autocast, 100 equal runs, 2^31 elements,
                                      compute-sanitizer
    python -m benchmarks.gpu time     the module against the reference, compiled or not, and the PyPI package; each
                                      target beside what was reached; a profile of the slowest shape
    python -m benchmarks.gpu tune     launch configurations of each pass over the inputs, and the best of them
    ... --out DIR                     where gpu-STAGE.json and gpu-STAGE.md go, instead of benchmarks/results
    ... --toy                         the same at toy size on a CPU, by Triton's interpreter: measures nothing

A stage takes at most about eight minutes and consists of parts. What a part finds is written when it ends; the next run
with the same DIR, commit, GPU and versions skips it, so run a stage again until it says that nothing is left. It exits
with 1 where a part failed or is left.

On a fresh machine with Python 3.12, torch 2.11, Triton 3.6 and no network, in the root of a copy of the repository:

    pip install --no-deps --no-build-isolation -e .      # needs setuptools 77 or newer
    ln -s ../kernels ../reference slotattn_fast/         # instead, without it; only in a copy to be thrown away
    python -m benchmarks.gpu prove --out DIR             # then time and tune; --commit HASH if the copy has no .git

The tests need pytest, and use pytest-xdist where it is installed; compute-sanitizer and slot-attention are used where
they are found.
"""

import argparse
import os
import sys
from pathlib import Path

LIMIT = 450.0  # seconds of a stage
RESULTS, TOY_RESULTS = Path("benchmarks/results"), Path("build/toy")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("prove", "time", "tune"))
    parser.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS}, or {TOY_RESULTS} if toy)")
    parser.add_argument("--toy", action="store_true", help="toy sizes on a CPU, without times")
    parser.add_argument("--commit", help="of this copy of the repository; default: ask git")
    arguments = parser.parse_args()
    sys.exit(0 if run(arguments.stage, arguments.out, arguments.toy, arguments.commit) else 1)


def run(stage: str, out: Path | None, toy: bool, commit: str | None = None) -> bool:
    """Runs a stage and writes its report; whether all of it is done and nothing failed."""
    os.environ["TRITON_INTERPRET"] = "1" if toy else "0"  # before anything imports Triton
    import torch

    from . import gpu_prove, gpu_time, gpu_tune
    from .gpu_record import UNKNOWN, conditions, load, run_parts

    if not toy and not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False; --toy runs the same at toy size on a CPU")
    here = conditions(toy, commit)
    if here["commit"] == UNKNOWN:
        sys.exit("git does not know the commit of this copy: give it by --commit HASH")
    module = {"prove": gpu_prove, "time": gpu_time, "tune": gpu_tune}[stage]
    path = folder(out, toy) / f"{'toy-' if toy else ''}gpu-{stage}.json"
    left = run_parts(path, module.parts(toy), here, LIMIT)
    record = load(path)
    text = module.report(record)
    path.with_suffix(".md").write_text(("Toy sizes on a CPU: nothing here is a measurement.\n\n" if toy else "") + text)
    print(text)
    print(f"left: {', '.join(left)}; run it again" if left else "nothing is left")
    return not left and module.passed(record)


def folder(out: Path | None, toy: bool) -> Path:
    """Of the results; those at toy size never lie among those measured unless told to."""
    return out or (TOY_RESULTS if toy else RESULTS)


if __name__ == "__main__":
    main()
