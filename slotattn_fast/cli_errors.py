"""What the command line raises for wrong usage, and how the parser's message for it becomes one line."""

import re
from collections.abc import Container, Iterable
from itertools import takewhile

_HELP = 10
"""Columns by which the parser indents the help of an option, which is told by its name alone."""


class UsageError(Exception):
    """Arguments that cannot be used."""


def one_line(box: str, arguments: Iterable[str], commands: Container[str]) -> str:
    """The words of an error message of tyro, which draws a box round it, or only rules on a plain terminal.

    Without the help of options, which it repeats, and with the command whose help to read: the `commands` that the
    arguments begin with.
    """
    lines = [re.sub("[│╭╮╰╯]", " ", line).rstrip() for line in box.splitlines()]
    title = next(number for number, line in enumerate(lines) if line.strip("─- "))
    told = takewhile(lambda line: not line.strip().startswith(("Argument help", "For full help")), lines[title + 1 :])
    words = [line.strip() if line.strip("─- ") else ";" for line in told if len(line) - len(line.lstrip()) < _HELP]
    message = re.sub(r"\.?( ;)+", ";", " ".join(words)).strip("; ").rstrip(".")
    message = re.sub(r"'None', |, 'None'", "", message)  # what an option is that was not given
    command = " ".join(["slotattn", *takewhile(lambda argument: argument in commands, arguments)])
    return f"{message}; see `{command} --help`"
