"""What the command line raises for wrong usage, and how the parser's message for it becomes one line."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile

_HELP = 10
"""Columns by which the parser indents the help of an option, which is told by its name alone."""
_EXPECTED = {"tuple[int": "integers", "<class 'int'>": "an integer", "<class 'float'>": "a number"}
"""By what the parser names of the type that it could not make."""


class UsageError(Exception):
    """Arguments that cannot be used."""


def one_line(box: str) -> str:
    """The words of an error message of tyro, which draws a box round it, or only rules on a plain terminal.

    Without the help of options, which it repeats, and without the options of other commands, which it suggests.
    """
    lines = [re.sub("[│╭╮╰╯]", " ", line).rstrip() for line in box.splitlines()]
    title = next(number for number, line in enumerate(lines) if line.strip("─- "))
    told = takewhile(lambda line: not line.strip().startswith(("Argument help", "For full help")), lines[title + 1 :])
    words = [line.strip() if line.strip("─- ") else ";" for line in told if len(line) - len(line.lstrip()) < _HELP]
    message = re.sub(r"\.?( ;)+", ";", " ".join(words)).strip("; ").rstrip(".")
    return _value(re.sub("; Perhaps you meant: [^;]*", "", message))


def unknown_options(arguments: Iterable[str], known: Sequence[str]) -> str:
    """The options among the arguments that are none of the `known`, each with those that are near; "" if there is none.

    As tyro does, this takes underscores for hyphens.
    """
    given = [argument.partition("=")[0] for argument in arguments if re.match("--[A-Za-z]", argument)]
    told = []
    for option in dict.fromkeys(given):
        if option.replace("_", "-") not in known:
            near = get_close_matches(option[2:], [name.lstrip("-") for name in known])
            told.append(f"no option {option}" + f", near: --{', --'.join(near)}" * bool(near))
    return "; ".join(told)


def options(help_text: str) -> list[str]:
    """Those that a command's help lists."""
    lists = re.findall("^[│ ] ((?:--?[a-z-]+(?:, )?)+)", help_text, re.MULTILINE)
    return [option for names in lists for option in names.split(", ")]


def _value(message: str) -> str:
    """The parser's words for a value that it cannot take, as every other value's error reads."""
    if found := re.match(r"Error parsing (\S+): no type .* from \[(.*)\]; Got errors: (.*)", message):
        name, got, why = found.groups()
        expected = next((said for kind, said in _EXPECTED.items() if kind in why), None)
    elif found := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", message):
        got, name, choices = found.groups()
        expected = "one of " + ", ".join(sorted({*choices.replace("'", "").split(", ")} - {"None"}))
    elif found := re.match(r"Missing value for argument '(\S+)'", message):
        name, got, expected = found[1], "nothing", "a value"
    else:
        return message
    return message if expected is None else f"{name.lstrip('-').replace('-', '_')}: got {got}, expected {expected}"
