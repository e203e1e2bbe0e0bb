"""Notes in artifacts with what the server knows of a release and a hook run beyond their documents.

They are written with every artifact of the server, and read when the server has lost these rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from feature_pipeline.model.digest import document_bytes
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.server.database import PASSED, HookRun, Release

_NOTE: Final = re.compile(
    r"release (?P<version>\d+) of the server: id (?P<id>[0-9a-f-]{36}),"
    r" source reference (?P<source>.*), limits (?P<limits>\{.*\})"
)
_RUN_NOTE: Final = re.compile(r"the server recorded hook run (?P<id>\S+) as '(?P<status>\w+)'")
_NO_SOURCE: Final = "none"


@dataclass(frozen=True, slots=True)
class NotedRelease:
    """What the note says."""

    id: str
    source_ref: str
    limits: Mapping[str, Any]


def release_note(release: Release) -> str:
    """Return the note on a release."""
    limits = document_bytes(dict(release.limits)).decode()
    source = quoted(" ".join(release.source_ref.split())) or _NO_SOURCE
    return (
        f"release {release.version} of the server: id {release.id}, source reference {source},"
        f" limits {limits}"
    )


def read_release_note(notes: Iterable[str]) -> NotedRelease | None:
    """Return what an artifact's notes say of its release; None if they say nothing."""
    for note in notes:
        if (match := _NOTE.fullmatch(note)) is not None:
            limits = read_json(match["limits"].encode(), "the note on the release")
            source = match["source"]
            return NotedRelease(
                match["id"],
                "" if source == _NO_SOURCE else source,
                limits if isinstance(limits, dict) else {},
            )
    return None


def run_note(run: HookRun) -> str:
    """Return the note on a hook run; it is written unless the hook run passed."""
    return f"the server recorded hook run {run.id} as {run.status!r}"


def read_run_status(notes: Iterable[str]) -> str:
    """Return the status of the hook run that an artifact's notes state."""
    for note in notes:
        if (match := _RUN_NOTE.fullmatch(note)) is not None:
            return match["status"]
    return PASSED
