"""Program: own LocalServices on FOLDER until told to stop, as `feature-pipeline dev` does.

    python own_services.py FOLDER [UID GID WARM_UP_FOLDER]

Prints one line of JSON when the servers answer, and ends them on Ctrl-C (SIGINT) or when its
standard input closes. With UID and GID it becomes that user first.
"""

import json
import os
import signal
import sys
from pathlib import Path

from feature_pipeline.local.services import LocalServices


def become(uid: int, gid: int, warm_up_folder: Path) -> None:
    # The interpreter may lie where the other user may not read: import everything beforehand, what
    # is imported late included.
    with LocalServices(warm_up_folder):
        pass
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    # Ignored signals are inherited, and a background job gets SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        become(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    with LocalServices(folder) as services:
        facts = {
            "uid": os.geteuid(),
            "endpoint_url": services.s3.endpoint_url,
            "database_url": services.database_url,
            "pids": [
                json.loads((folder / name / "server.json").read_text())["pid"]
                for name in ("seaweedfs", "postgres")
            ],
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
