"""The Triton kernels compiled ahead of time, without a GPU, and what their machine code tells.

    python -m benchmarks.aot                  compile every row, check, write benchmarks/results/aot.csv and aot.md
    python -m benchmarks.aot --only REGEX     the rows whose id contains it, such as "set prediction/.*/sm_90"
    python -m benchmarks.aot --quick          a few rows, in which every assertion is made
    python -m benchmarks.aot --check          write nothing; compare with aot.csv too; exit 1 if an assertion fails
    python -m benchmarks.aot --list           the ids: case/kernel/dtype/target

It needs Triton and no torch. Rows of other Triton versions in aot.csv stay as they are. Asserted are: no stack, shared
memory within the target's limit, no fp64 arithmetic, no atomics, no operand of a wgmma that is read from elsewhere; of
kernels with dots, tensor cores for half types, and on sm_90 wgmma for bf16 and asynchronous copies of 16 bytes; with
--check also no more than 5 % more instructions in the main loop, and no fewer programs at once, than in aot.csv. What
KNOWN in benchmarks/aot_rows.py excuses, such as a small stack by one version of Triton, is printed as "known". On
sm_80 Triton copies asynchronously only where it pipelines, and a block that goes into one dot as it is and into another
transposed is none that it pipelines there: counted, not asserted.

Issue time is what a multiprocessor needs to issue the main loop's instructions, 4 warps' a clock: tiles / 132 * loop
instructions a warp * warps / 4 / 1.755 GHz; where there is no loop, the whole kernel's. Memory time is that of the
inputs (of the decoder's maps and the images), and of their gradient where it is written, at 4.3 TB/s.
"""

import argparse
import csv
import os
import re
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from .aot_rows import (
    BANDWIDTH,
    CLOCK,
    ISSUED,
    KNOWN,
    QUICK,
    TIMED_TARGET,
    VARIANTS,
    Known,
    Launch,
    Row,
    rows,
)
from .aot_table import table
from .machine_code import (
    TARGETS,
    Code,
    CompilationFailed,
    NoSuchArgument,
    compile_apart,
    grouped,
    programs_per_multiprocessor,
)

RESULTS = Path("benchmarks/results")
KEY = ("case", "kernel", "dtype", "target", "triton")
FIGURES = (
    *("registers", "stack_bytes", "shared_bytes", "programs_per_sm", "wgmma", "mma", "mfma", "async16", "fp64"),
    *("atomics", "wrong_descriptors", "instructions", "loop_instructions", "issue_us", "memory_us"),
    *("issue_over_memory", "loop_kinds"),
)
ALLOWED = 1.05  # times the instructions of the committed loop
Result = dict[str, str]  # a line of the CSV


def measure(row: Row, triton: str) -> Result:
    """Compiles one row; the result as it stands in the CSV."""
    variant, launch, target = VARIANTS[row.variant], row.launch(), TARGETS[row.target]
    result: dict[str, Any] = dict(zip(KEY, (row.case.id, row.variant, row.dtype, row.target, triton), strict=True))
    warps = launch.options["num_warps"]
    result |= {"block": launch.arguments.get("BLOCK_N") or launch.arguments.get("BN", ""), "warps": warps}
    result |= {"stages": launch.options.get("num_stages", ""), "error": ""}
    try:
        code = compile_apart(variant.module, variant.kernel, launch.arguments, launch.options, row.target)
    except CompilationFailed as error:
        return {name: str(value) for name, value in (result | dict.fromkeys(FIGURES, "") | {"error": error}).items()}
    result |= {
        "registers": code.registers,
        "stack_bytes": code.stack,
        "shared_bytes": code.shared,
        "programs_per_sm": programs_per_multiprocessor(code, warps, target),
        **{name: getattr(code, name) for name in ("wgmma", "mma", "mfma", "async16", "fp64", "atomics")},
        "wrong_descriptors": code.wrong_descriptors,
        "instructions": code.instructions,
        "loop_instructions": body(row, code),
        **times(row, code, launch),
        "loop_kinds": grouped(code.kinds) if row.target == TIMED_TARGET else "",
    }
    return {name: str(value) for name, value in result.items()}


def body(row: Row, code: Code) -> int:
    """The instructions of the main loop; of a timed kernel that has none, all."""
    return code.loop or (code.instructions if VARIANTS[row.variant].units else 0)


def times(row: Row, code: Code, launch: Launch) -> dict[str, str]:
    """Issue and memory time in microseconds, and their ratio; empty where they say nothing."""
    units = VARIANTS[row.variant].units
    if row.target != TIMED_TARGET or not units:
        return {"issue_us": "", "memory_us": "", "issue_over_memory": ""}
    multiprocessors, warps = TARGETS[row.target].multiprocessors, launch.options["num_warps"]
    issue = launch.tiles / multiprocessors * body(row, code) * warps / ISSUED / CLOCK
    memory = units * launch.unit / BANDWIDTH
    return {
        "issue_us": f"{1e6 * issue:.1f}",
        "memory_us": f"{1e6 * memory:.1f}",
        "issue_over_memory": f"{issue / memory:.2f}",
    }


def violations(result: Result, committed: Result | None) -> list[tuple[str, str]]:
    """The assertions that do not hold: the column, and a sentence."""
    if result["error"]:
        return [("error", f"it does not compile: {result['error']}")]
    r = {name: int(value) for name, value in result.items() if value.isdigit()}
    target, hopper = TARGETS[result["target"]], result["target"] == "sm_90"
    dots = VARIANTS[result["kernel"]].dots
    found = []

    def expect(holds: bool, column: str, sentence: str) -> None:
        if not holds:
            found.append((column, sentence))

    if target.backend == "cuda":
        expect(r["stack_bytes"] == 0, "stack_bytes", f"{r['stack_bytes']} stack bytes a thread")
    expect(
        r["shared_bytes"] <= target.shared_limit,
        "shared_bytes",
        f"{r['shared_bytes']} bytes of shared memory, and the target has {target.shared_limit}",
    )
    if dots and result["dtype"] != "fp32":
        expect(r["wgmma"] + r["mma"] + r["mfma"] > 0, "mma", "no tensor-core instruction")
    if dots and hopper and result["dtype"] == "bf16":
        expect(r["wgmma"] > 0, "wgmma", "no wgmma")
    if hopper and VARIANTS[result["kernel"]].looped:
        expect(r["async16"] > 0, "async16", "no asynchronous copy of 16 bytes")
    expect(r["fp64"] == 0, "fp64", f"{r['fp64']} instructions of fp64 arithmetic")
    expect(r["atomics"] == 0, "atomics", f"{r['atomics']} atomics")
    wrong = r["wrong_descriptors"]
    expect(wrong == 0, "wrong_descriptors", f"{wrong} descriptors of operands from another register")
    if committed is not None and not committed["error"]:
        before = int(committed["loop_instructions"])
        expect(
            r["loop_instructions"] <= ALLOWED * before,
            "loop_instructions",
            f"{r['loop_instructions']} instructions in the main loop, and {before} in aot.csv",
        )
        programs = int(committed["programs_per_sm"])
        expect(
            r["programs_per_sm"] >= programs,
            "programs_per_sm",
            f"{r['programs_per_sm']} programs at once by {r['registers']} registers and {r['shared_bytes']} bytes of "
            f"shared memory, and {programs} by {committed['registers']} and {committed['shared_bytes']} in aot.csv",
        )
    return found


def known(result: Result, column: str) -> Known | None:
    for entry in KNOWN:
        if (
            entry.what == column
            and re.fullmatch(entry.rows, row_id(result))
            and result["triton"].startswith(entry.triton)
        ):
            return entry
    return None


def row_id(result: Result) -> str:
    return "/".join(result[name] for name in KEY[:4])


def key(result: Result) -> tuple[str, ...]:
    return tuple(result[name] for name in KEY)


def load(path: Path) -> list[Result]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(name for result in results for name in result)  # of which older rows may lack some
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)


def merged(old: list[Result], new: list[Result], complete: bool) -> list[Result]:
    """The old rows with the new ones in their place, in the order of the list; by version, the oldest first.

    Where the new ones are complete, rows of their version that are no longer in the list go.
    """
    version = new[0]["triton"]
    kept = [result for result in old if not (complete and result["triton"] == version)]
    by_key = {key(result): result for result in [*kept, *new]}
    order = {row.id: i for i, row in enumerate(rows())}
    return sorted(by_key.values(), key=lambda r: (numbers(r["triton"]), order.get(row_id(r), len(order))))


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def chosen(only: str | None, quick: bool) -> list[Row]:
    found = list(rows())
    if quick:
        found = [row for row in found if any(re.fullmatch(pattern, row.id) for pattern in QUICK)]
    return [row for row in found if only is None or re.search(only, row.id)]


def run(selected: list[Row], committed: dict[tuple[str, ...], Result]) -> tuple[list[Result], bool]:
    """Compiles and prints; also whether all assertions hold, but for what is known."""
    results, good, excused = [], True, set()
    version = metadata.version("triton")
    print(f"Triton {version}, {len(selected)} rows")
    for row in selected:
        start = time.perf_counter()
        result = measure(row, version)
        results.append(result)
        print(f"{row.id:50}{figures(result)}{time.perf_counter() - start:6.1f} s", flush=True)
        for column, sentence in violations(result, committed.get(key(result))):
            entry = known(result, column)
            print(f"    FAILED: {sentence}" if entry is None else f"    known: {sentence} ({entry.why})")
            good = good and entry is not None
            excused.add(entry)
    if len(selected) == len(list(rows())):
        for entry in KNOWN:
            if entry not in excused and version.startswith(entry.triton):
                print(f"KNOWN in benchmarks/aot_rows.py has an entry that excuses nothing any more: {entry}")
    return results, good


def figures(result: Result) -> str:
    if result["error"]:
        return f"{'does not compile':72}"
    return (
        f"{result['registers']:>4} registers {result['stack_bytes']:>5} stack {result['shared_bytes']:>7} shared "
        f"{result['loop_instructions']:>5} in loop  issue/memory {result['issue_over_memory'] or '-':5}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=pattern, metavar="REGEX", help="rows whose id contains it")
    parser.add_argument("--quick", action="store_true", help="a few rows")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if an assertion fails")
    parser.add_argument("--list", action="store_true", help="print the ids of the rows and end")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of aot.csv and aot.md")
    arguments = parser.parse_args()
    selected = chosen(arguments.only, arguments.quick)
    if not selected:
        parser.error(f"no row's id contains {arguments.only!r}; --list prints them")
    if arguments.list:
        print("\n".join(row.id for row in selected))
        return
    check_triton()
    start = time.perf_counter()
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: the interpreter compiles nothing
    old = load(arguments.out / "aot.csv")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # what is there already would not be compiled
        try:
            results, good = run(selected, {key(result): result for result in old} if arguments.check else {})
        except NoSuchArgument as error:
            sys.exit(str(error))
    print(f"{len(results)} rows in {time.perf_counter() - start:.0f} s")
    if not arguments.check:
        results = merged(old, results, complete=not (arguments.only or arguments.quick))
        save(arguments.out / "aot.csv", results)
        (arguments.out / "aot.md").write_text(table(results, [dict(violations(r, None)) for r in results]))
    elif not good:
        sys.exit("an assertion failed")


def pattern(text: str) -> str:
    """The type of --only."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a regular expression ({error})") from error
    return text


def check_triton() -> None:
    try:
        metadata.version("triton")
    except metadata.PackageNotFoundError:
        sys.exit("Triton is not installed: `pip install triton` on Linux; no GPU and no torch are needed")
    if "triton" in sys.modules:
        sys.exit("Triton is imported already: run `python -m benchmarks.aot` in a process of its own")


if __name__ == "__main__":
    main()
