"""Program: become another user, keep the right to pass through closed folders, run a command.

    python -I unprivileged.py UID GID PROGRAM [ARGUMENT ...]

PostgreSQL refuses to run as root. As another user it could not reach a data folder, or its own
binaries, below a folder that only root may enter, such as `/root`. Making that folder accessible
is not ours to do, so the process keeps one capability instead: to read and enter everything
(CAP_DAC_READ_SEARCH), or where root itself lacks that one, as in most containers, CAP_DAC_OVERRIDE.
Linux only. Started as root, by path, with nothing of the project imported.

Source: capabilities(7), "Ambient capability set" and "The securebits flags".
"""

import ctypes
import os
import re
import sys
from pathlib import Path

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 28, 47, 2
# access(2), with which PostgreSQL looks at its own program, heeds capabilities only with this.
SECBIT_NO_SETUID_FIXUP = 1 << 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def keepable_capability() -> int | None:
    """Return the weakest capability of this process that opens closed folders; None without any."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^CapPrm:\s*([0-9a-f]+)$", status, re.MULTILINE)
    permitted = int(match[1], 16) if match else 0
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if permitted >> capability & 1:
            return capability
    return None


def main(uid: int, gid: int, argv: list[str]) -> None:
    """Replace this process by `argv`, run as `uid` and `gid` with that one capability."""
    capability = keepable_capability()
    if capability is None:
        raise PermissionError("no capability to pass through closed folders")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}{arguments[:2]}: {os.strerror(number)}")

    call("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    bit = 1 << capability
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; then the same for capabilities above 31
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    call("capset", header, sets)
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    os.execv(argv[0], argv)  # noqa: S606 - replacing this process is the purpose


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
