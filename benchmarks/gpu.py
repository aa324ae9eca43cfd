"""All that needs a GPU: the kernels' tests on it, times against the targets, and training at the paper's scale.

    python -m benchmarks.gpu prove    kernel tests without the interpreter, every entry of the launch table against
                                      float64, CUDA graphs, torch.compile, autocast, 100 equal runs, 2^31 elements,
                                      compute-sanitizer
    python -m benchmarks.gpu time     the module against the reference, compiled or not, and the PyPI package; each
                                      target beside what was reached; a profile of the slowest shape
    python -m benchmarks.gpu steps    a training step of either task against the plain loop; each target beside what
                                      was reached; its parts; the decoder's convolutions in two ways
    python -m benchmarks.gpu tune     launch configurations of each pass over the inputs and of the kernels over the
                                      slots, and the best of them; orders of launches
    ... --out DIR                     where gpu-STAGE.json and gpu-STAGE.md go, instead of benchmarks/results
    ... --only PART                   one part of the stage, by its name
    ... --toy                         the same at toy size on a CPU, by Triton's interpreter: measures nothing
    python -m benchmarks.gpu train PRESET [--seed N] [--steps N] [--minutes 7] --out DIR [--start ARCHIVE]
                                      trains tetrominoes, multi-dsprites or clevr6, or the set predictor of clevr10, on
                                      generated scenes, see gpu_train.py

A stage takes at most about eight minutes and consists of parts. What a part finds is written when it ends; the next run
with the same DIR, commit, GPU and versions skips it, so run a stage again until it says that nothing is left. It exits
with 1 where a part failed or is left, and `train` with 1 until the run is complete.

On a fresh machine with Python 3.12, torch 2.11, Triton 3.6 and no network, in the root of a copy of the repository:

    pip install --no-deps --no-build-isolation -e .      # needs setuptools 77 or newer
    ln -s ../kernels ../reference slotattn_fast/         # instead, without it; only in a copy to be thrown away
    python -m benchmarks.gpu prove --out DIR             # then time, steps and tune; --commit HASH if there is no .git

The tests need pytest and SciPy, 35 MiB that are not counted below, and use pytest-xdist where it is installed;
compute-sanitizer and slot-attention are used where they are found. --toy with Triton 3.6 needs NumPy before 2.4, for
its interpreter. `steps` needs lightning-fabric for the step in a graph, and SciPy for the plain loop of property
prediction; `train` needs all that `slotattn train` does but for its command line. With a network, for Python 3.12 on
x86-64, into a folder of 32 MiB (24 of them matplotlib and what it needs, 6 tensorboard with protobuf, 2 the tests', the
last line slot-attention and what it imports):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -c constraints.txt -d build/wheels \\
        lightning-fabric lightning-utilities packaging tqdm safetensors tensorboard protobuf absl-py pillow \\
        matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six \\
        pytest pytest-xdist execnet pluggy iniconfig pygments \\
        slot-attention vector-quantize-pytorch torch-einops-utils loguru einx einops frozendict

and there, without one:

    pip install --no-index --no-deps build/wheels/*.whl
"""

import argparse
import os
import sys
from pathlib import Path

LIMIT = 450.0  # seconds of a stage
STAGES = ("prove", "time", "steps", "tune")
PRESETS = ("tetrominoes", "multi-dsprites", "clevr6", "clevr10")
RESULTS, TOY_RESULTS = Path("benchmarks/results"), Path("build/toy")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage in (*STAGES, "train"):
        options = stages.add_parser(stage)
        options.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS}, or {TOY_RESULTS})")
        options.add_argument("--toy", action="store_true", help="toy sizes on a CPU, without times")
        options.add_argument("--commit", help="of this copy of the repository; default: ask git")
        if stage != "train":
            options.add_argument("--only", metavar="PART", help="this part of the stage alone")
    options = stages.choices["train"]
    options.add_argument("preset", choices=PRESETS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, help="of the whole run (default: the archive's, or the paper's)")
    options.add_argument("--minutes", type=float, default=7.0, help="after which the run is stopped")
    options.add_argument("--start", type=Path, metavar="ARCHIVE", help="what the piece before this one left")
    given = parser.parse_args()
    if given.stage == "train":
        done = train(
            given.preset, given.seed, given.steps, given.minutes, given.out, given.start, given.toy, given.commit
        )
    else:
        done = run(given.stage, given.out, given.toy, given.commit, given.only)
    sys.exit(0 if done else 1)


def run(stage: str, out: Path | None, toy: bool, commit: str | None = None, only: str | None = None) -> bool:
    """Runs a stage, or one part of it, and writes its report; whether all of that is done and nothing failed.

    Raises SystemExit for a part that it has not.
    """
    here = ready(toy, commit)
    from . import gpu_prove, gpu_steps, gpu_table, gpu_time, gpu_tune
    from .gpu_record import load, run_parts

    module = {"prove": gpu_prove, "time": gpu_time, "steps": gpu_steps, "tune": gpu_tune}[stage]
    path = folder(out, toy) / f"{'toy-' if toy else ''}gpu-{stage}.json"
    parts = module.parts(toy)
    if only is not None and only not in parts:
        sys.exit(f"--only: got {only!r}, expected one of {', '.join(map(repr, parts))}")
    left = run_parts(path, parts if only is None else {only: parts[only]}, here, LIMIT)
    record = load(path)
    text = module.report(record)
    path.with_suffix(".md").write_text(("Toy sizes on a CPU: nothing here is a measurement.\n\n" if toy else "") + text)
    if stage == "time":
        gpu_table.show(record, path)
    print(text)
    print(f"left: {', '.join(left)}; run it again" if left else "nothing is left")
    return not left and module.passed(record)


def train(
    preset: str,
    seed: int,
    steps: int | None,
    minutes: float,
    out: Path | None,
    start: Path | None,
    toy: bool,
    commit: str | None = None,
) -> bool:
    """Trains a piece of a run; whether the run is complete."""
    here = ready(toy, commit)
    from tarfile import TarError

    from slotattn_fast.data.errors import DataError
    from slotattn_fast.train.errors import RunError

    from . import gpu_train

    try:
        return gpu_train.train(preset, seed, steps, minutes, folder(out, toy), start, toy, here)
    except (RunError, DataError, OSError, TarError, ValueError) as error:
        sys.exit(f"train: {error}")


def ready(toy: bool, commit: str | None) -> dict[str, str]:
    """The conditions of what is to run. Raises SystemExit if there is no GPU, or no commit is known."""
    os.environ["TRITON_INTERPRET"] = "1" if toy else "0"  # before anything imports Triton
    import torch

    from .gpu_record import UNKNOWN, conditions

    if not toy and not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False; --toy runs the same at toy size on a CPU")
    here = conditions(toy, commit)
    if here["commit"] == UNKNOWN:
        sys.exit("git does not know the commit of this copy: give it by --commit HASH")
    return here


def folder(out: Path | None, toy: bool) -> Path:
    """Of the results; those at toy size never lie among those measured unless told to."""
    return out or (TOY_RESULTS if toy else RESULTS)


if __name__ == "__main__":
    main()
