"""The errors that users of a run meet."""

from signal import Signals


class RunError(Exception):
    """A run cannot start, go on or be read. The message is one line: what is wrong and what to do."""


class RunInUse(RunError):
    """Another process has it."""


class Stopped(Exception):
    """SIGTERM or Ctrl-C ended the loop after a checkpoint."""

    def __init__(self, signal: Signals, step: int) -> None:
        super().__init__(f"{signal.name}: checkpoint saved at step {step}")
        self.signal = signal
