"""Where and with what a benchmark ran, and how its table gets into README.md."""

import csv
import io
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from slotattn_fast.atomic import atomic_write

RESULTS, README = Path("benchmarks/results"), Path("README.md")


def commit() -> str:
    """Of the checkout, with "-dirty" if a tracked file differs, other than those that benchmarks write."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}", f":!{README}")
    return f"{head or 'unknown'}{'-dirty' * bool(changed)}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def today() -> str:
    return date.today().isoformat()


def write_results(name: str, rows: list[dict[str, Any]], table: str, folder: Path) -> None:
    """Writes the rows as folder/NAME.csv and the table as folder/NAME.md and, if that is RESULTS, into README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / f"{name}.csv", rows)
    (folder / f"{name}.md").write_text(table)
    print(table)
    if folder == RESULTS:
        put_into_readme(f"{name}.md", table)


def upsert(path: Path, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    """Puts rows into a CSV file, each in place of the one with the same values of `key`, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    kept = {tuple(row[k] for k in key): {name: row.get(name, "") for name in columns} for row in read_rows(path)}
    kept |= {tuple(str(row[name]) for name in key): {name: _short(row[name]) for name in row} for row in rows}
    write_rows(path, list(kept.values()))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def put_into_readme(name: str, table: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = README.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{README}: has no lines {begin} and {end}")
    README.write_text(f"{before}{begin}\n{table}{end}{after}")
