"""The stage `prove`: the tests that need a GPU, and compute-sanitizer over one small call."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .gpu_record import UNFINISHED, Found, Part, Record, described
from .reasons import NOT_MEASURED, cell

TESTS = {
    "kernels over the inputs, whole calls": "tests/test_triton_backend.py",
    "errors in each precision": "tests/test_backends.py",
    "kernels over the slots": "tests/test_kernels_update.py",
    "absorbed projections": "tests/test_kernels_absorb.py",
    "the decoder's end": "tests/test_mixture.py",
    "matching": "tests/test_matching.py",
    "launch table against float64": "tests/test_launch_table.py",
    "graphs, compiler, autocast, 100 runs, 2^31 elements": "tests/test_gpu.py",
    "the training step as a graph": "tests/test_step.py",
    "scenes drawn and fed": "tests/test_feed.py",
}
# What pytest -k takes.
TOY_TESTS = " or ".join(
    (
        "plain",
        "(bfloat16-query-16-wide-8-slots and not aligned)",
        "graph",
        "one-pixel",
        "float32-offset-0-None",
        "drawn_on",
    )
)
SANITIZERS = ("memcheck", "racecheck")
WORKERS = 16  # processes of pytest-xdist: most of the time goes into compiling kernels
# Every test by name, whatever pyproject.toml says.
OPTIONS = ("-o", "addopts=", "-v", "-m", "not slow")
# One at a time, as some take milliseconds and some half a minute; and a new process for each that ends at a CUDA error
# (tests/conftest.py), however many do.
PARALLEL = ("-n", str(WORKERS), "--dist", "load", "--maxschedchunk", "1", "--max-worker-restart", "1000")
COUNTS = ("passed", "failed", "skipped")


def parts(toy: bool) -> dict[str, Part]:
    tests = {name: partial(run_tests, file, toy) for name, file in TESTS.items()}
    return tests | {tool: partial(sanitize, tool, toy) for tool in SANITIZERS}


def run_tests(file: str, toy: bool, seconds: float) -> Found:
    """What pytest finds in one file, without the interpreter. A test that ends its process has failed."""
    some = ["-k", TOY_TESTS] if toy else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        workers = PARALLEL if find_spec("xdist") and not toy else ()
        command = [sys.executable, "-m", "pytest", file, *OPTIONS, f"--junitxml={report}", *workers, *some]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as cut:
            said = (cut.stdout or b"").decode(errors="replace")[-500:]
            kept = "what is compiled by now stays in Triton's cache"
            return {UNFINISHED: f"{file} took more than {seconds:.0f} s; {kept}. It came as far as: {said}"}
        if done.returncode not in (0, 1) or not report.exists():  # as where a file cannot be imported
            return {UNFINISHED: f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"}
        found = outcomes(ET.parse(report).getroot())
        return found | {"stderr": done.stderr[-6000:]} if found.get("failed") else found


def outcomes(report: ET.Element) -> Found:
    """Counts of a JUnit report, what each failure says, and the reasons of what was skipped."""
    cases = list(report.iter("testcase"))
    if not cases:
        return {UNFINISHED: "no test was found"}
    failed = {
        case.get("name") or "": (problem.get("message") or problem.text or "")[:500]
        for case in cases
        for problem in [*case.findall("failure"), *case.findall("error")]
    }
    skipped = [skip.get("message") or "" for case in cases for skip in case.findall("skipped")]
    found: Found = {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}
    if len(skipped) == len(cases):
        found[NOT_MEASURED] = skipped[0]
    return found


def sanitize(tool: str, toy: bool, seconds: float) -> Found:
    """One tool of compute-sanitizer over `benchmarks.gpu_once`."""
    if toy:
        return {NOT_MEASURED: "no GPU"}
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None:
        return {NOT_MEASURED: "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_once"]
    # Each tensor in memory of its own, so that an access beyond it is one beyond what is allocated.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the program that it watches, which would go on
            output, _ = process.communicate()
            return {UNFINISHED: f"{tool} took more than {seconds:.0f} s. It came as far as: {output[-500:]}"}
    summary = [line for line in output.splitlines() if "SUMMARY" in line]
    failed = {} if process.returncode == 0 else {tool: output[-6000:]}
    return {"passed": int(process.returncode == 0), "failed": failed, "skipped": [], "summary": summary}


def passed(record: Record) -> bool:
    return not any(entry["found"].get("failed") for entry in record.values())


def report(record: Record) -> str:
    """Markdown: a line a part, then the failures."""
    lines = ["| part | passed | failed | skipped | | conditions |", "|---|---|---|---|---|---|"]
    failures = []
    for name, entry in record.items():
        found, where = entry["found"], entry["conditions"]
        counts = [str(len(x) if isinstance(x := found.get(key, ""), list | dict) else x) for key in COUNTS]
        remark = found.get(NOT_MEASURED) or found.get(UNFINISHED) or "; ".join(found.get("summary", []))
        if NOT_MEASURED in found:
            remark = f"not measured: {remark}"
        lines.append(f"| {name} | {' | '.join(counts)} | {_one_line(remark)} | {described(where)} |")
        failures += [f"- {name}: {test}: {_one_line(why)}" for test, why in found.get("failed", {}).items()]
    return "\n".join([*lines, "", *(failures or ["No failure."]), ""])


def _one_line(text: str) -> str:
    return cell(text)[:600]
