"""A call for which something of the project is exchanged while it runs."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch


def patched(call: Callable[[], Any], owner: Any, name: str, value: Any) -> Callable[[], Any]:
    """`call` with `value` in place of the owner's attribute; in a CUDA graph from its capture on."""

    def run() -> Any:
        with patch.object(owner, name, value):
            return call()

    return run
