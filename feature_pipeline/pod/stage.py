"""`python -m feature_pipeline.pod.stage`: a hook's inputs in the pod's volumes, digests checked.

Reads the document at `FEATURE_PIPELINE_STAGE_URL`: files as `{"path", "url", "digest", "size"}`,
their paths below in/, files/ or work/. Copies the wrapper to bin/, for the hook's container.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final

from feature_pipeline.pod.signed_urls import TransferError, download, download_bytes

ROOT: Final = Path("/osa")
URL_VARIABLE: Final = "FEATURE_PIPELINE_STAGE_URL"
WRAPPER_VARIABLE: Final = "FEATURE_PIPELINE_WRAPPER"
WRAPPER: Final = "/usr/local/lib/feature-pipeline/wrapper"
_VOLUMES: Final = frozenset({"in", "files", "work"})
_THREADS: Final = 8


def stage(url: str, wrapper: Path, root: Path = ROOT) -> int:
    """Download every file of the document at `url` to below `root`; return their number.

    Raises:
        TransferError: One cannot be downloaded, does not match its digest, or is outside `root`.
    """
    document: dict[str, Any] = json.loads(download_bytes(url, "the list of inputs"))
    files = document["files"]
    for file in files:
        path = PurePosixPath(file["path"])
        if path.is_absolute() or ".." in path.parts or path.parts[0] not in _VOLUMES:
            raise TransferError(f"{file['path']!r} is outside of the hook's folders")

    def fetch(file: dict[str, Any]) -> None:
        target = root / file["path"]
        download(file["url"], target, file["digest"], file["size"])
        # another user runs the hook, and any file of its code may be the program
        target.chmod(0o755 if file["path"].startswith("work/") else 0o644)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(fetch, files))
    shutil.copyfile(wrapper, root / "bin" / "wrapper")
    (root / "bin" / "wrapper").chmod(0o755)
    return len(files)


def main() -> None:
    """Stage, and print what was staged; exit status 1 with the reason on failure."""
    try:
        count = stage(os.environ[URL_VARIABLE], Path(os.environ.get(WRAPPER_VARIABLE, WRAPPER)))
    except (TransferError, OSError, KeyError, ValueError) as error:
        sys.exit(f"stage: {type(error).__name__}: {error}")
    sys.stdout.write(f"files staged: {count}\n")


if __name__ == "__main__":
    main()
