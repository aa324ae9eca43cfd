"""Kernels compiled on all cores before they are tried: one after the other, that takes longer than to time them."""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from .measure import Call, on_gpu


def compile_ahead(calls: Iterable[Call], seconds: float) -> None:
    """Compiles what these calls launch, the first first, and launches none of it. Nothing without a GPU.

    What would begin after `seconds`, or fails, is left to its launch.
    """
    if on_gpu():
        _compile(calls, seconds, len(os.sched_getaffinity(0)))


def _compile(calls: Iterable[Call], seconds: float, threads: int) -> None:
    import triton
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def compiled(self: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:
        return run(self, *arguments, warmup=True, **options)

    # Threads will do: all but a small part of Triton's compiler lets others run.
    with (
        _Threads(threads, time.monotonic() + seconds) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
        patch.object(JITFunction, "run", compiled),
    ):
        for call in calls:
            with suppress(Exception):  # it will tell when it is launched
                call()


class _Threads(ThreadPoolExecutor):
    """Of which what has not begun by then fails. To cancel it would leave Triton waiting for it."""

    def __init__(self, threads: int, until: float) -> None:
        super().__init__(threads)
        self._until = until

    def submit(self, do: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        def in_time() -> Any:
            if time.monotonic() > self._until:
                raise TimeoutError
            return do()

        return super().submit(in_time)
