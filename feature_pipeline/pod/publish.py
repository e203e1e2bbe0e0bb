"""`python -m feature_pipeline.pod.publish`: store a hook's output at signed URLs.

Reads `FEATURE_PIPELINE_PUBLISH`: `{"files": {name: url}, "log": url, "result": url}`. The files and
the log go first. The result, with their digests and the hook's end, goes last: its presence means
that everything is stored.
"""

import errno
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final

from feature_pipeline.pod.signed_urls import MOST_FILE_BYTES, TransferError, upload, upload_bytes

ROOT: Final = Path("/osa")
GRANT_VARIABLE: Final = "FEATURE_PIPELINE_PUBLISH"
STATUS_BYTES: Final = 65_536
NODE_VARIABLE: Final = "FEATURE_PIPELINE_NODE"


def publish(grant: dict[str, Any], node: str, root: Path = ROOT) -> dict[str, Any]:
    """Store the hook's files and log, then the result; return the result.

    A name in the output that is not a regular file is not followed, and listed in `irregular`; a
    file beyond the size of one PUT is listed in `too_large` with its size. The hook can also write
    where the wrapper leaves its log and its status: neither is followed.

    Raises:
        TransferError: The store did not take all of it; the result is not stored then.
        FileNotFoundError: The wrapper left no status of the hook's end.
        IrregularFileError: Its log or its status is not a regular file.
    """
    with open_regular(root / "run" / "status.json") as file:
        result: dict[str, Any] = json.loads(file.read(STATUS_BYTES))
    files: dict[str, list[object]] = {}
    irregular: list[str] = []
    too_large: dict[str, int] = {}
    for name, url in grant["files"].items():
        try:
            with open_regular(root / "out" / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MOST_FILE_BYTES:
                    too_large[name] = size
                else:
                    files[name] = list(upload(url, file, name))
        except FileNotFoundError:
            continue
        except IrregularFileError:
            irregular.append(name)
    with open_regular(root / "run" / "log") as file:
        log = list(upload(grant["log"], file, "the log"))
    result |= {"spec_version": 1, "files": files, "irregular": irregular, "too_large": too_large}
    result |= {"log": log, "node": node}
    upload_bytes(grant["result"], json.dumps(result).encode(), "the result")
    return result


class IrregularFileError(OSError):
    """Something other than a regular file is in the place of one."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open the file without following a link or waiting for a pipe's other end.

    Raises:
        FileNotFoundError: There is none.
        IrregularFileError: It is a link, a folder, a pipe or a device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # a link (ELOOP), a socket (ENXIO)
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise IrregularFileError(f"{path.name}: not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IrregularFileError(f"{path.name}: not a regular file")
    return os.fdopen(handle, "rb")


def main() -> None:
    """Publish, and print what was published; exit status 1 with the reason on failure."""
    try:
        grant = json.loads(os.environ[GRANT_VARIABLE])
        result = publish(grant, os.environ.get(NODE_VARIABLE, ""))
    except (TransferError, OSError, KeyError, ValueError) as error:
        sys.exit(f"publish: {type(error).__name__}: {error}")
    sys.stdout.write(f"published {', '.join(result['files']) or 'no files'}\n")


if __name__ == "__main__":
    main()
