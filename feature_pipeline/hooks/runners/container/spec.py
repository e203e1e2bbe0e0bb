"""Translate a request into the Docker API's parameters for a confined container. No calls."""

import os
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from feature_pipeline.hooks.runner import RunRequest
from feature_pipeline.hooks.runners.shared.log_file import LOG_HEAD_BYTES
from feature_pipeline.model.digest import Digest, document_bytes

INPUTS: Final = "/osa/in"
FILES: Final = "/osa/files"
OUTPUT: Final = "/osa/out"
WORK: Final = "/osa/work"
SCRATCH: Final = "/tmp"  # noqa: S108  (inside the container)
NOBODY: Final = 65534
IDENTITY_LABEL: Final = "feature-pipeline.identity"
RUN_LABEL: Final = "feature-pipeline.run"
ARCHIVE_LABEL: Final = "feature-pipeline.archive"

_MOST: Final = 32768
"""Processes that Linux numbers by default, and files enough."""
_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")


def identity(request: RunRequest, image: str) -> Digest:
    """Return the properties that a container must share with `request` to be its attempt."""
    limits = request.limits
    return Digest.of(
        document_bytes(
            {
                "run": request.question,
                "attempt": request.attempt,
                "release": str(request.release.digest),
                "image": image,
                "limits": limits.model_dump(mode="json"),
            }
        )
    )


def labels(request: RunRequest, wanted: Digest, archive: str) -> dict[str, str]:
    """Return the labels by which the container is found again among others."""
    return {
        IDENTITY_LABEL: str(wanted),
        RUN_LABEL: request.run_id,
        ARCHIVE_LABEL: archive_label(archive),
    }


def archive_label(archive: str) -> str:
    """Return a store's identity as a label's value."""
    return Digest.of(archive.encode()).hex[:16]


def container_name(request: RunRequest, wanted: Digest) -> str:
    """Return the container's name, which is the same for equal attempts."""
    run = re.sub(r"[^a-zA-Z0-9_.-]+", "-", request.question)[:60]
    return f"feature-pipeline-{run}-{request.attempt}-{wanted.hex[:12]}"


@dataclass(frozen=True, slots=True)
class HookUser:
    """The user that the hook runs as: never root in the container, never one with important files.

    `uid` and `gid` are those of our own process unless that is root's, so that what the hook writes
    can be read and removed here.
    """

    uid: int
    gid: int
    userns_mode: str | None = None

    @classmethod
    def here(cls, engine_info: Callable[[], dict[str, Any]]) -> "HookUser":
        """Return the user for an engine on this machine.

        Args:
            engine_info: The engine's own description. Some engines take a second to return it.
        """
        if os.geteuid() == 0:
            return cls(NOBODY, NOBODY)
        options = engine_info()["SecurityOptions"] or ()
        is_rootless = any("rootless" in option for option in options)
        # without it, a rootless engine maps us to root in the container, and uid to another user
        return cls(os.geteuid(), os.getegid(), "keep-id" if is_rootless else None)


def environment(request: RunRequest) -> dict[str, str]:
    """Return the hook's environment, apart from what its image sets."""
    return {
        # Podman hands its own proxies on to every container, and their addresses hold passwords
        **{name: "" for lower in _PROXIES for name in (lower, lower.upper())},
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "LANG": "C.UTF-8",
        # what a killed program had printed would otherwise be lost with its buffer
        "PYTHONUNBUFFERED": "1",
        "OSA_IN": INPUTS,
        "OSA_FILES": FILES,
        "OSA_OUT": OUTPUT,
        "OSA_HOOK_NAME": request.release.document.hook,
    }


def command(request: RunRequest) -> list[str]:
    """Return the release's command, with the path of a code file as its first word."""
    first, *rest = request.release.document.command
    if first in {file.name for file in request.release.document.code}:
        first = f"./{first}"
    return [first, *rest]


def host_config(
    request: RunRequest, user: HookUser, *, work: Path | None, pids: int
) -> dict[str, Any]:
    """Return keyword arguments of docker-py's `create_host_config`: mounts, limits, confinement.

    Args:
        request: Its workspace is mounted, and its limits hold.
        user: The container's user.
        work: Bound as the working directory; None leaves the image's own.
        pids: Maximum number of processes and threads.
    """
    from docker.types import LogConfig, Ulimit

    limits, workspace = request.limits, request.workspace
    binds = [
        f"{workspace.inputs.resolve()}:{INPUTS}:ro",
        f"{workspace.files.resolve()}:{FILES}:ro",
        f"{workspace.output.resolve()}:{OUTPUT}:rw",
    ]
    if work is not None:
        binds.append(f"{work.resolve()}:{WORK}:rw")
    scratch = f"rw,exec,nosuid,nodev,mode=1777,size={limits.scratch_bytes}"
    ulimits = {"core": 0}
    for name, most in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        # not above our own: Podman asks for more than an engine without CAP_SYS_RESOURCE may give.
        # nproc counts a user's processes over all containers, so that it is no limit of this run
        hard = resource.getrlimit(most)[1]
        ulimits[name] = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    config: dict[str, Any] = {
        "binds": binds,
        "tmpfs": {SCRATCH: scratch},
        "read_only": True,
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": limits.memory_bytes,
        # equal to the memory: no swap beyond it
        "memswap_limit": limits.memory_bytes,
        "shm_size": limits.memory_bytes // 2,
        "nano_cpus": int(limits.cpu_cores * 1_000_000_000),
        "pids_limit": pids,
        "ulimits": [Ulimit(name=name, soft=most, hard=most) for name, most in ulimits.items()],
        # process 1 gets no signal it does not ask for, and reaps nothing unless it is an init
        "init": True,
        # what the engine keeps for a later attach
        "log_config": LogConfig(type="json-file", config={"max-size": str(LOG_HEAD_BYTES)}),
    }
    if user.userns_mode is not None:
        config["userns_mode"] = user.userns_mode
    return config
