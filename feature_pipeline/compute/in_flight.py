"""Hook runs that continue without their worker, and what recovering their results requires.

The document has no credential and no signed address, and pods can neither read nor write its key.
It is a working object outside the archive: every digest it names is in a log as well.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import DigestField, Document, InstantField, utc_now
from feature_pipeline.archive.store.base import BlobStore, create_or_read, get_small
from feature_pipeline.compute.plan import ComputePlan
from feature_pipeline.errors import (
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.parallel import map_threads

RETENTION: Final = timedelta(days=14)
"""How long a result is awaited; files left by pods are deleted after this time as well."""
_NO_WORKER: Final = "none"


class InFlightRun(Document):
    """An in-flight hook run: what was requested, and by which worker."""

    document_type: ClassVar[str] = "expected hook run"
    most_bytes: ClassVar[int] = 64 << 20
    newest: ClassVar[int] = 2
    added: ClassVar[Mapping[str, int]] = {"begin_with": 2, "sources": 2}

    spec_version: int = 2
    id: str
    dataset: str
    hook: str
    batch: str
    definition: Mapping[str, Any] = Field(description="The hook's definition then.")
    release_seq: int
    base: int
    records: tuple[str, ...] | None = Field(
        description="Ids of the records that are computed; None for the whole batch."
    )
    inputs: Mapping[str, DigestField] = Field(description="Per input hook, the manifest's digest.")
    begin_with: Mapping[str, int] = Field(
        default_factory=dict,
        description="Records over which the hook failed before, with the memory to begin with.",
    )
    sources: tuple[DigestField, ...] | None = Field(
        None, description="The artifacts that answers are carried over from."
    )
    request_id: str
    image: str = Field(description="Of the hook's container; attempts are named by it.")
    dagster_run_id: str | None
    begun_at: InstantField = Field(default_factory=utc_now)


@dataclass(frozen=True, slots=True)
class InFlightKey:
    """The key of an in-flight run, which names the worker that waits for it."""

    key: str
    run_id: str
    dagster_run_id: str | None
    begun_at: datetime
    """By the store's clock."""

    def is_late(self, now: datetime) -> bool:
        """Return whether the files left by its pods are deleted by now."""
        return now - self.begun_at > RETENTION


def register(
    store: BlobStore,
    plan: ComputePlan,
    image: str | None,
    *,
    begin_with: Mapping[str, int],
    request_id: str,
    dagster_run_id: str | None,
) -> str | None:
    """Register the run, so that another process can take it over; return the document's key.

    None if no container can be created for it (`image` is None), so that it will have no result.
    """
    if image is None:
        return None
    computed = tuple(record.id for record in plan.compute)
    run = InFlightRun(
        id=plan.hook_run_id(request_id),
        dataset=plan.batch.dataset,
        hook=plan.definition.name,
        batch=plan.batch.key,
        definition=plan.definition.model_dump(mode="json"),
        release_seq=plan.release.seq,
        base=plan.base,
        records=None if len(computed) == len(plan.batch.records) else computed,
        inputs={source.hook: source.manifest_digest for source in plan.inputs},
        begin_with=begin_with,
        sources=plan.sources,
        request_id=request_id,
        image=image,
        dagster_run_id=dagster_run_id,
    )
    key = layout.in_flight(run.id, dagster_run_id or _NO_WORKER)
    # what a worker of the same Dagster run left before it is as good
    create_or_read(store, key, run.encode())
    return key


def list_in_flight(store: BlobStore) -> list[InFlightKey]:
    """List every run that a worker waits for, or waited for when it died. One listing."""
    keys = []
    for info in store.list_objects(layout.IN_FLIGHT):
        run_id, _, worker = info.key.removeprefix(layout.IN_FLIGHT).rpartition(".")
        dagster_run_id = None if worker == _NO_WORKER else worker
        keys.append(InFlightKey(info.key, run_id, dagster_run_id, info.modified_at))
    return keys


def read_in_flight(
    store: BlobStore, keys: Iterable[InFlightKey]
) -> dict[InFlightKey, InFlightRun | FeaturePipelineError]:
    """Read the runs, or why one cannot be read; those gone since the listing are left out."""

    def one(key: InFlightKey) -> InFlightRun | FeaturePipelineError | None:
        try:
            document = get_small(store, key.key, InFlightRun.most_bytes)
            return InFlightRun.decode(document.data, key.key)
        except NotFoundError:
            return None
        except (InvalidInputError, CorruptDataError, StoreUnavailableError) as error:
            return error

    keys = list(keys)
    read = zip(keys, map_threads(one, keys), strict=True)
    return {key: run for key, run in read if run is not None}
