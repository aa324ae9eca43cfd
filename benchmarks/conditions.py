"""Where and with what a benchmark ran, and how its table gets into README.md."""

import platform
import subprocess
from datetime import date
from pathlib import Path

RESULTS, README = Path("benchmarks/results"), Path("README.md")


def commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def today() -> str:
    return date.today().isoformat()


def put_into_readme(name: str, table: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = README.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{README}: has no lines {begin} and {end}")
    README.write_text(f"{before}{begin}\n{table}{end}{after}")
