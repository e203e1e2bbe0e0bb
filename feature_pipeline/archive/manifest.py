"""The manifest: canonical JSON that names an artifact's blobs and says how they were made.

It needs no database and no earlier manifest to be read. Annotations are needed at run time.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from feature_pipeline.archive.documents import (
    DigestField,
    Document,
    InstantField,
    Part,
    SumField,
)
from feature_pipeline.columns import Column
from feature_pipeline.outcomes import OutcomeCounts

ROWS: Final = "rows"
OUTCOMES: Final = "outcomes"
LOG: Final = "log"
RAW: Final = "raw/"
"""Names of an artifact's blobs; raw files are `raw/<file name>`."""

MANIFEST_MEDIA_TYPE: Final = "application/vnd.feature-pipeline.manifest+json"
PARQUET_MEDIA_TYPE: Final = "application/vnd.apache.parquet"


class BlobRef(Part):
    """Where bytes are, and which."""

    digest: DigestField
    size: int = Field(ge=0, description="Bytes.")
    media_type: str = "application/octet-stream"


class ReleaseRef(Part):
    """The release that made an artifact, as it stood in the release log."""

    seq: int = Field(ge=1)
    digest: DigestField
    version: str
    image: str | None = None


class RunInfo(Part):
    """The hook run: one execution of a release over a batch, with all its attempts."""

    id: str
    runner: str
    started_at: InstantField
    finished_at: InstantField
    attempts: int = Field(1, ge=0, description="Processes started; 0 when all was carried over.")
    memory_bytes: int | None = Field(None, description="Peak, where the runner can tell.")
    node: str | None = None
    exit_code: int | None = None
    dagster_run_id: str | None = None

    @property
    def duration_seconds(self) -> float:
        """From the first attempt's start to the last one's end."""
        return (self.finished_at - self.started_at).total_seconds()


class FailureInfo(Part):
    """Why a hook run gave no verdict."""

    kind: str
    reason: str
    exit_code: int | None = None


class Manifest(Document):
    """Everything about one artifact but its bytes.

    `content_digest` and `rows_digest` are None exactly when the hook run failed: nothing was said.
    """

    what: ClassVar[str] = "manifest"

    dataset: str
    hook: str
    batch: str
    batch_digest: DigestField
    release: ReleaseRef
    columns: tuple[Column, ...]
    cardinality: Annotated[str, Field(pattern="^(one|many)$")]
    inputs: Mapping[str, DigestField] = Field(
        default_factory=dict, description="Per input hook, the content digest that was read."
    )
    run: RunInfo
    counts: OutcomeCounts
    blobs: Mapping[str, BlobRef]
    content_digest: DigestField | None
    rows_digest: SumField | None
    failure: FailureInfo | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        said = self.content_digest is not None
        if said == (self.failure is not None) or said != (self.rows_digest is not None):
            raise ValueError("either the run failed or it has a content and a rows digest")
        if said and not {ROWS, OUTCOMES} <= self.blobs.keys():
            raise ValueError(f"blobs {ROWS!r} and {OUTCOMES!r} are needed")
        return self

    @property
    def is_failed(self) -> bool:
        """Whether the hook run gave no verdict; there are no outcomes then."""
        return self.failure is not None

    @property
    def bytes_stored(self) -> int:
        """The sum of its blobs' sizes, without the manifest itself."""
        return sum(ref.size for ref in self.blobs.values())
