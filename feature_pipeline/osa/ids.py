"""How the server's ids follow from one another."""

import uuid
from typing import Final

from feature_pipeline.errors import InvalidInputError

_HOOK_RUNS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "osa:hook_run")
_DEPOSITION: Final = ":dep:"


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


def _parts(srn: str) -> tuple[str, str]:
    """Return the domain and the local id of `urn:osa:<domain>:dep:<local id>`."""
    before, found, local = srn.partition(_DEPOSITION)
    domain = before.removeprefix("urn:osa:")
    if not found or domain == before or not domain or not local or "/" in domain + local:
        raise InvalidInputError(
            f"deposition {srn!r}: its SRN is not of the form urn:osa:<domain>:dep:<local id>"
        )
    return domain, local
