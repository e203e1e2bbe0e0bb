"""Exit statuses in words."""

import signal
from contextlib import suppress


def exit_reason(code: int) -> str:
    """Return the meaning of an exit status: as in shells, 128 + n for an end by signal n."""
    if code == 128 + signal.SIGKILL:
        return "SIGKILL ended it, from outside: perhaps the machine ran out of memory"
    with suppress(ValueError):
        if code > 128:
            return f"{signal.Signals(code - 128).name} ended it (status {code})"
    return f"it ended with status {code}"
