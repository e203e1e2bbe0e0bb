"""Exit statuses in words."""

import signal
from contextlib import suppress


def exit_reason(status: int, process: str = "it") -> str:
    """Return how a process ended: `it ended with status 1`, `SIGTERM ended it (status 143)`.

    Args:
        status: For an end by signal n, 128 + n as in shells, or -n as in `subprocess`.
        process: Its name.
    """
    code = 128 - status if status < 0 else status
    if code == 128 + signal.SIGKILL:
        return f"SIGKILL ended {process}, from outside: perhaps the machine ran out of memory"
    with suppress(ValueError):
        if code > 128:
            return f"{signal.Signals(code - 128).name} ended {process} (status {code})"
    return f"{process} ended with status {code}"
