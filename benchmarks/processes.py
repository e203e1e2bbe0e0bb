"""What a benchmark needs in a process of its own; imports little, because memory is measured."""

import contextlib
import resource
import threading
from pathlib import Path

from feature_pipeline.archive.store.s3 import S3Store, make_client, open_store


def peak_memory() -> int:
    """Bytes. Not `getrusage`, whose peak a child takes over from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_s3(address: dict[str, str], prefix: str) -> S3Store:
    client = make_client(
        endpoint_url=address["endpoint_url"],
        region=address["region"],
        access_key_id=address["access_key_id"],
        secret_access_key=address["secret_access_key"],
    )
    return open_store(client, address["bucket"], prefix)


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, ended = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


class ChildrenPeak:
    """Peak memory of the child process with the most, looked for twenty times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._has_ended.wait(0.05):
            for tasks in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError):
                    for pid in (tasks / "children").read_text().split():
                        with contextlib.suppress(OSError, IndexError):
                            status = Path(f"/proc/{pid}/status").read_text()
                            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
                            self.bytes = max(self.bytes, peak)
