"""Exit statuses as people read them."""

import signal
from contextlib import suppress


def exit_reason(code: int) -> str:
    """How a program ended, by its status: 128 + n for one that signal n ended, as shells say it."""
    if code == 128 + signal.SIGKILL:
        return "SIGKILL ended it, from outside: perhaps the machine ran out of memory"
    with suppress(ValueError):
        if code > 128:
            return f"{signal.Signals(code - 128).name} ended it (status {code})"
    return f"it ended with status {code}"
