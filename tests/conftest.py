"""One thread for the tests and the processes they start: their tensors are tiny, and on a busy machine OpenMP threads
that wait for each other turn seconds into minutes. And Triton's interpreter, which runs the kernels on a CPU, by NumPy:
with the same kind of products on every x86 machine, so that what is compared to rounding does not depend on it. All are
set before anything imports NumPy, torch or Triton."""

import inspect
import os
import sys
from collections.abc import Callable, Generator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # 0: the kernels' tests on a GPU, see DEVICE in compare.py
cpu = Path("/proc/cpuinfo")
if cpu.exists() and " avx2 " in cpu.read_text():
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"


def pytest_runtest_setup() -> None:
    """Wherever a kernel calls a function, Triton's interpreter looks through all of its language for what it has yet to
    replace, which is about 40 % of the time of the kernels' tests. Here it takes one look, at the first of each part.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    patch = getattr(interpreter, "_patch_builtin", None)
    if patch is not None and not hasattr(patch, "__wrapped__"):
        interpreter._patch_builtin = where_needed(patch, interpreter.tl.core.is_builtin)


def where_needed(patch: Callable[..., None], is_builtin: Callable[[object], bool]) -> Callable[..., None]:
    first: dict[object, str | None] = {}

    @wraps(patch)
    def run(part: object, *others: Any) -> None:
        if part not in first:
            first[part] = next((name for name, member in inspect.getmembers(part) if is_builtin(member)), None)
        name = first[part]
        if name is not None and is_builtin(getattr(part, name)):  # all of a part are replaced, or none
            patch(part, *others)

    return run


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
