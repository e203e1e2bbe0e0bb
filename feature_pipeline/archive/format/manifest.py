"""The manifest: canonical JSON that names an artifact's blobs and records how they were made.

It can be read without a database and without an earlier manifest. Annotations are needed at run
time.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from feature_pipeline.archive.format.documents import (
    DigestField,
    Document,
    InstantField,
    Part,
    SumField,
)
from feature_pipeline.model.columns import Column
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import MOST_REASON, quoted

ROWS: Final = "rows"
OUTCOMES: Final = "outcomes"
LOG: Final = "log"
RAW: Final = "raw/"
"""Names of an artifact's blobs; raw files are `raw/<file name>`."""

ENDED_WELL: Final = "well"
"""The value of `ended` for a start without failure."""

_NOTES_SHOWN: Final = 20

MANIFEST_MEDIA_TYPE: Final = "application/vnd.feature-pipeline.manifest+json"
PARQUET_MEDIA_TYPE: Final = "application/vnd.apache.parquet"


class BlobRef(Part):
    """The digest and size of a stored blob."""

    digest: DigestField
    size: StrictInt = Field(ge=0, description="Bytes.")
    media_type: str = "application/octet-stream"


class ReleaseRef(Part):
    """The release that made an artifact, as registered in the release log."""

    seq: StrictInt = Field(ge=1)
    digest: DigestField
    version: str
    image: str | None = None


class RunInfo(Part):
    """The hook run: one execution of a release over a batch, with all its attempts."""

    id: str
    runner: str
    started_at: InstantField
    finished_at: InstantField
    attempts: StrictInt = Field(
        1,
        ge=0,
        description="Starts of the hook, over parts and retries; 0 if all was carried over.",
    )
    memory_bytes: StrictInt | None = Field(None, description="Peak, where the runner can tell.")
    node: str | None = None
    exit_code: StrictInt | None = None
    dagster_run_id: str | None = None

    @property
    def duration_seconds(self) -> float:
        """Seconds from the first attempt's start to the last one's end."""
        return (self.finished_at - self.started_at).total_seconds()


class StartInfo(Part):
    """One start of the hook: an attempt over all records that were computed, or a part of them."""

    part: str = Field(description="Empty: all of them. Part 2 is divided into 2.1 and 2.2.")
    records: StrictInt = Field(ge=1, description="How many the part holds.")
    attempt: StrictInt = Field(ge=1, description="Counted in each part.")
    started_at: InstantField
    finished_at: InstantField
    memory_limit_bytes: StrictInt
    ended: str = Field(description="`well`, or the kind of its failure.")
    exit_code: StrictInt | None = None
    memory_bytes: StrictInt | None = Field(None, description="Peak, where the runner can tell.")
    node: str | None = None


class WithoutOutput(Part):
    """The outcome of a record about which the hook wrote no output.

    Either the hook failed on it, and the limits are the most that the hook run would grant. Or the
    hook did not get the record, because an input hook has no answer for it.
    """

    kind: str | None
    """None: rejected, by an input hook."""
    reason: str = Field(min_length=1)
    retryable: StrictBool = False
    memory_bytes: StrictInt | None = Field(None, ge=0)
    timeout_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    scratch_bytes: StrictInt | None = Field(None, ge=0)


class FailureInfo(Part):
    """The reason why a hook run gave no verdict."""

    kind: str
    reason: str
    exit_code: StrictInt | None = None


class Manifest(Document):
    """The complete description of one artifact, apart from its bytes.

    `content_digest` and `rows_digest` are None exactly when the hook run failed.
    """

    document_type: ClassVar[str] = "manifest"
    newest: ClassVar[int] = 2
    added: ClassVar[Mapping[str, int]] = {"starts": 2, "without_output": 2}

    spec_version: int = 2
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
    starts: tuple[StartInfo, ...] = ()
    """Every start of the hook, in order; unknown in version 1."""
    counts: OutcomeCounts
    blobs: Mapping[str, BlobRef]
    content_digest: DigestField | None
    rows_digest: SumField | None
    failure: FailureInfo | None = None
    without_output: Mapping[str, WithoutOutput] = Field(
        default_factory=dict,
        description="By record id, outcomes that stand in no output; carried ones as well.",
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_content = self.content_digest is not None
        if has_content == (self.failure is not None) or has_content != (
            self.rows_digest is not None
        ):
            raise ValueError("either the run failed or it has a content and a rows digest")
        if has_content and not {ROWS, OUTCOMES} <= self.blobs.keys():
            raise ValueError(f"blobs {ROWS!r} and {OUTCOMES!r} are needed")
        return self

    @property
    def is_failed(self) -> bool:
        """Whether the hook run gave no verdict; there are no outcomes then."""
        return self.failure is not None

    @property
    def bytes_stored(self) -> int:
        """Total size of its blobs in bytes, without the manifest itself."""
        return sum(ref.size for ref in self.blobs.values())


def shown_notes(manifest: Manifest) -> list[str]:
    """Return the first of the manifest's notes for display, each shortened if it is long."""
    shown = [quoted(note, MOST_REASON) for note in manifest.notes[:_NOTES_SHOWN]]
    more = len(manifest.notes) - len(shown)
    return [*shown, f"and {counted(more, 'more note')}"] if more else shown
