"""How the server's ids, and the keys of its batches here, follow from one another."""

import re
import uuid
from collections.abc import Collection
from typing import Final

from feature_pipeline.errors import InvalidInputError

_HOOK_RUNS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "osa:hook_run")
_DEPOSITION: Final = ":dep:"
_HISTORY: Final = "history-"
_DEPOSITION_KEY: Final = re.compile(r"deposition-(.{20})(?:-(\d+))?")


def hook_run_id(ingest_run_id: str, batch_index: int, hook: str) -> str:
    """Return the id of the hook run over one batch of an ingest: it follows from these three."""
    return str(uuid.uuid5(_HOOK_RUNS, f"{ingest_run_id}:{batch_index}:{hook}"))


def local_id(deposition_srn: str) -> str:
    """Return the local part of a deposition's SRN, which is the id of its record in outcome files.

    Raises:
        InvalidInputError: It is not the SRN of a deposition.
    """
    return _parts(deposition_srn)[1]


def deposition_folder(deposition_srn: str) -> str:
    """Return the name of a deposition's folder in the storage.

    Raises:
        InvalidInputError: It is not the SRN of a deposition.
    """
    return "_".join(_parts(deposition_srn))


def deposition_key(local: str, number: int = 1) -> str:
    """Return the key of a deposition's batch: its first one, or that after some changes."""
    return f"deposition-{local}" + (f"-{number}" if number > 1 else "")


def next_deposition_key(key: str) -> str | None:
    """Return the key of the batch after the deposition's next change; None if it is another key."""
    match = _DEPOSITION_KEY.fullmatch(key)
    return None if match is None else deposition_key(match[1], int(match[2] or 1) + 1)


def is_deposition_key(key: str) -> bool:
    """Return whether a batch was made of a deposition."""
    return key.startswith("deposition-")


def ingest_key(run: str, index: int) -> str:
    """Return the key of a batch of an ingest."""
    return f"{_ingest_prefix(run)}{index}"


def is_of_ingest(key: str, run: str) -> bool:
    """Return whether a batch was made of this ingest run."""
    prefix = _ingest_prefix(run)
    return key.startswith(prefix) and key.removeprefix(prefix).isdecimal()


def run_key(run_id: str) -> str:
    """Return the name of the records of one hook run, which belong to no batch of the server."""
    return f"run-{run_id}"


def history_key(name: str, number: int = 1) -> str:
    """Return the key of a batch that was made of the server's records, without their files.

    It differs from every key of a batch that was made of the server's storage.

    Args:
        name: The key that the batch has if it is made of the storage; or `run_key`.
        number: Further batches are made if the server has published more records since.
    """
    return f"{_HISTORY}{name}" + (f"_{number}" if number > 1 else "")


def history_of(key: str) -> str | None:
    """Return the name in a key made by `history_key`; None if it is another key."""
    if not key.startswith(_HISTORY):
        return None
    return key.removeprefix(_HISTORY).partition("_")[0]


def history_number(key: str) -> int:
    """Return the number in a key made by `history_key`."""
    return int(key.partition("_")[2] or 1)


def is_run_key(name: str) -> bool:
    """Return whether a name was made by `run_key`."""
    return name.startswith("run-")


def has_successor(batch: str, current: Collection[str]) -> bool:
    """Return whether a later batch with an artifact has the records of this one.

    A deposition was changed since; or a batch that was made of the server's records alone is made
    of the storage now, or of more records.
    """
    if next_deposition_key(batch) in current:
        return True
    name = history_of(batch)
    if name is None or is_run_key(name):
        return False
    return name in current or history_key(name, history_number(batch) + 1) in current


def _ingest_prefix(run: str) -> str:
    return f"ingest-{run}-"


def _parts(srn: str) -> tuple[str, str]:
    """Return the domain and the local id of `urn:osa:<domain>:dep:<local id>`."""
    before, separator, local = srn.partition(_DEPOSITION)
    domain = before.removeprefix("urn:osa:")
    if not separator or domain == before or not domain or not local or "/" in domain + local:
        raise InvalidInputError(
            f"deposition {srn!r}: its SRN is not of the form urn:osa:<domain>:dep:<local id>"
        )
    return domain, local
