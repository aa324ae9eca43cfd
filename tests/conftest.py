"""One thread for the tests and the processes they start: their tensors are tiny, and on a busy machine OpenMP threads
that wait for each other turn seconds into minutes. And Triton's interpreter, which runs the kernels on a CPU, by NumPy:
with the same kind of products on every x86 machine, so that what is compared to rounding does not depend on it. All are
set before anything imports NumPy, torch or Triton."""

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # 0: the kernels' tests on a GPU, see DEVICE in compare.py
cpu = Path("/proc/cpuinfo")
if cpu.exists() and " avx2 " in cpu.read_text():
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A CUDA error stays with its process, in which every later test would fail too: pytest-xdist starts another."""
    report = yield
    error = str(call.excinfo.value) if report.failed and call.excinfo else ""
    if "PYTEST_XDIST_WORKER" in os.environ and "CUDA error" in error:
        print(report.longreprtext, file=sys.stderr, flush=True)
        os._exit(1)
    return report


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody tests: the Triton backend says that there is no GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
