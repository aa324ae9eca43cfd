"""SIGTERM and Ctrl-C as a note that the training loop reads between two steps."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is kept in `received`; a second one acts as it did before."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Agreement:
    """Processes that train together stop after the same step, although a signal reaches each at another one, or one.

    What they know after a step is exchanged while the next one is computed, so they stop one step later than a process
    alone does.
    """

    def __init__(self) -> None:
        # On the CPU, whatever the processes compute on: it takes no time on a GPU, and waits for none.
        self._group = dist.new_group(backend="gloo")
        self._exchange: tuple[dist.Work, torch.Tensor] | None = None

    def after_step(self, received: signal.Signals | None) -> signal.Signals | None:
        """To be called once a step by every process: the signal that one of them had received a step ago, if any."""
        agreed = self._finish()
        number = torch.tensor(received or 0)
        self._exchange = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True), number
        return agreed

    def _finish(self) -> signal.Signals | None:
        if self._exchange is None:
            return None
        work, number = self._exchange
        work.wait()
        return signal.Signals(int(number)) if number else None
