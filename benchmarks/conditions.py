"""Where and with what a benchmark ran, and how its table gets into README.md."""

import csv
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

RESULTS, README = Path("benchmarks/results"), Path("README.md")


def commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def today() -> str:
    return date.today().isoformat()


def write_results(name: str, rows: list[dict[str, Any]], table: str, folder: Path) -> None:
    """Writes the rows as folder/NAME.csv and the table as folder/NAME.md and, if that is RESULTS, into README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{name}.md").write_text(table)
    print(table)
    if folder == RESULTS:
        _put_into_readme(f"{name}.md", table)


def _put_into_readme(name: str, table: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = README.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{README}: has no lines {begin} and {end}")
    README.write_text(f"{before}{begin}\n{table}{end}{after}")
