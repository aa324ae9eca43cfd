"""Where and with what a benchmark ran, its files of results, and how its table gets into the pages that show it."""

import csv
import io
import os
import platform
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from slotattn_fast.atomic import write_text
from slotattn_fast.lock import locked

RESULTS = Path("benchmarks/results")
PAGES = (Path("README.md"), Path("benchmarks/README.md"))  # which show tables of RESULTS
QUICK_RESULTS = Path("build/benchmarks")
LOCK = ".lock"  # in a folder of results
INSTALL = '`pip install -c constraints.txt -e ".[dev]"` installs what benchmarks need'
_DEFAULT = f"default {RESULTS}, whose tables also go into {' and '.join(map(str, PAGES))} where these have a place"

Table = Callable[[list[dict[str, Any]], Path], str]
"""Markdown of rows and the path of their file."""


def commit() -> str:
    """Of the checkout, with "-dirty" if a tracked file differs, other than those that benchmarks write."""
    head = _git("rev-parse", "--short", "HEAD")
    written = (f":!{path}" for path in (RESULTS, *PAGES))
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return f"{head or 'unknown'}{'-dirty' * bool(changed)}"


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no such program
        return ""


def today() -> str:
    return date.today().isoformat()


def made(text: str) -> Path:
    """The folder of --out, which is made if it is not there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"got {text}, expected a folder that can be made ({error.strerror})") from error
    if not text or not os.access(path, os.W_OK):
        raise ArgumentTypeError(f"got {text!r}, expected a folder that can be written to")
    return path


def add_out(parser: ArgumentParser) -> None:
    """The option --out."""
    parser.add_argument("--out", type=made, default=RESULTS, help=f"folder of the results ({_DEFAULT})")


def add_quick_out(parser: ArgumentParser) -> None:
    """The option --out of a command that has --quick; see `chosen_out`."""
    parser.add_argument("--out", type=made, help=f"folder of the results ({_DEFAULT}; --quick: {QUICK_RESULTS})")


def chosen_out(given: Namespace) -> Path:
    """The folder of the results: small sizes do not take the place of those that the repository shows."""
    return given.out or (QUICK_RESULTS if given.quick else RESULTS)


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a number of this size."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise ArgumentTypeError(
                f"got {text}, expected an integer, at least {least}" + (f" and at most {most}" if most else "")
            )
        return int(text)

    return number


def add_threads(parser: ArgumentParser, what: str = "PyTorch's threads") -> None:
    """The option --threads, by default as many as PyTorch takes by itself, which OMP_NUM_THREADS decides."""
    from torch import get_num_threads

    threads = at_least(1, os.cpu_count())
    parser.add_argument("--threads", type=threads, default=get_num_threads(), help=f"{what} (default %(default)s)")


def command(main: Callable[[], None]) -> None:
    """Runs `main`; stopped by SIGINT or SIGTERM, it ends with 130 and a line, and what is in the files stays."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not PAGES[0].exists():
        sys.exit(f"{PAGES[0]}: not here; benchmarks run in the root of the repository")
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1: Triton's kernels would be interpreted, which is not to be measured; unset it")
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; what was measured is in the files of results, or in NAME-unfinished.csv", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing}; {INSTALL}")


def run_command(arguments: Sequence[str]) -> int:
    """Runs another command and returns its exit status; where this one is stopped, that is too, and waited for."""
    with subprocess.Popen(arguments) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(1)  # a terminal's Ctrl-C has reached it too
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            raise


def ran() -> str:
    """The command that runs, as one would type it."""
    module = sys.modules["__main__"].__spec__
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__") if module else sys.argv[0], *sys.argv[1:]])


def software(*packages: str) -> dict[str, str]:
    """Day, command, commit, and versions of Python and of these packages."""
    from slotattn_fast.train.environment import installed_version  # with torch, which `--help` does without

    versions = {package: installed_version(package) or "none" for package in packages}
    return {"date": today(), "commit": commit(), "command": ran(), "python": platform.python_version(), **versions}


def write_results(
    name: str, found: Iterable[list[dict[str, Any]]], conditions: Mapping[str, Any], table: Table, folder: Path
) -> list[dict[str, Any]]:
    """Writes the rows as folder/NAME.csv and their table as folder/NAME.md and, if that is RESULTS, into PAGES.

    `found` gives all rows so far, again and again, which are in folder/NAME-unfinished.csv until the last are there:
    what a run leaves that is stopped does not take the place of what an earlier one finished. Every row is told the
    conditions. Returns the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / f"{name}.csv", folder / f"{name}-unfinished.csv"
    for so_far in found:
        rows = [row | conditions for row in so_far]
        write_rows(unfinished, rows)
    text = table(rows, path)
    write_rows(path, rows)
    write_text(path.with_suffix(".md"), text)
    unfinished.unlink()
    print(text)
    if is_shown(folder):
        put_into_pages(f"{name}.md", text)
    return rows


def is_shown(folder: Path) -> bool:
    """Whether PAGES have its tables."""
    return folder.resolve() == RESULTS.resolve()


def upsert(path: Path, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    """Puts rows at the end of a CSV file, each for the one with the same values of `key`, in one step.

    Several processes may write to the file. Ends the program where the file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    with locked(path.with_name(LOCK), None):
        before = read_rows(path, key)
        new = {tuple(str(row[name]) for name in key): {name: _short(row[name]) for name in row} for row in rows}
        old = {tuple(row[k] for k in key): {name: row.get(name, "") for name in columns} for row in before}
        kept = [row for which, row in old.items() if which not in new]
        write_rows(path, [*kept, *new.values()])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, str]]:
    """Of a CSV file; none if it is not there.

    Ends the program where it is damaged, lacks a column that is needed, or has text in one of numbers.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, found = list(reader), reader.fieldnames or ()
        for row in rows:
            for name in numbers:
                float(row.get(name) or 0)
    except (ValueError, csv.Error) as error:
        sys.exit(f"{path}: damaged ({error}); move it away, and the next run writes a new one")
    if missing := [name for name in needed if name not in found]:
        sys.exit(f"{path}: has no column {', '.join(missing)}; move it away, and the next run writes a new one")
    if any(None in row or None in row.values() for row in rows):
        sys.exit(f"{path}: damaged (a row of another length); move it away, and the next run writes a new one")
    return rows


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def put_into_pages(name: str, table: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end of name -->`.

    A page without the two stays as it is: they show the tables of one machine, not those of every kind.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    with locked(RESULTS / LOCK, None):
        for page in filter(Path.exists, PAGES):
            before, _, rest = page.read_text().partition(begin)
            _, found, after = rest.partition(end)
            if found:
                write_text(page, f"{before}{begin}\n{table}{end}{after}")
