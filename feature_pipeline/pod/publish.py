"""`python -m feature_pipeline.pod.publish`: what a hook left, stored where signed URLs say.

Reads `FEATURE_PIPELINE_PUBLISH`: `{"files": {name: url}, "log": url, "result": url}`. The files
and the log go first; the result, which names them with their digests and tells how the hook ended,
goes last: once it is there, all of it is there.
"""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final

from feature_pipeline.pod.transfers import TransferError, upload, upload_bytes

ROOT: Final = Path("/osa")
GRANT_VARIABLE: Final = "FEATURE_PIPELINE_PUBLISH"
NODE_VARIABLE: Final = "FEATURE_PIPELINE_NODE"


def publish(grant: dict[str, Any], node: str, root: Path = ROOT) -> dict[str, Any]:
    """The hook's files, log and end are stored; the result as it was stored.

    A name in the output that is not a regular file is not followed, and named in `irregular`.

    Raises:
        TransferError: The store did not take all of it; the result is not stored then.
        FileNotFoundError: The wrapper left no word of the hook's end.
    """
    result: dict[str, Any] = json.loads((root / "run" / "status.json").read_text())
    files: dict[str, list[object]] = {}
    irregular: list[str] = []
    for name, url in grant["files"].items():
        path = root / "out" / name
        if not os.path.lexists(path):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            irregular.append(name)
            continue
        files[name] = list(upload(url, path))
    log = list(upload(grant["log"], root / "run" / "log"))
    result |= {"spec_version": 1, "files": files, "irregular": irregular, "log": log, "node": node}
    upload_bytes(grant["result"], json.dumps(result).encode(), "the result")
    return result


def main() -> None:
    """Publish, and say what was published; status 1 with the reason if it cannot be."""
    try:
        grant = json.loads(os.environ[GRANT_VARIABLE])
        result = publish(grant, os.environ.get(NODE_VARIABLE, ""))
    except (TransferError, OSError, KeyError, ValueError) as error:
        sys.exit(f"publish: {type(error).__name__}: {error}")
    sys.stdout.write(f"published {', '.join(result['files']) or 'no files'}\n")


if __name__ == "__main__":
    main()
