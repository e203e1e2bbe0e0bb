"""What objects are to the archive, and what can be wrong with them.

What belongs here: the values that `reachable`, `verify`, `gc` and `erase` exchange. Not here:
reading anything.
"""

import threading
from dataclasses import dataclass, field
from enum import StrEnum

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs.damage import State as State
from feature_pipeline.archive.logs.erasures import Erased
from feature_pipeline.archive.logs.known import KnownLogs, Shortfall, Sighting
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest


class ObjectKind(StrEnum):
    """What an object is to the archive."""

    FEATURE_ENTRY = "feature log entry"
    BATCH_ENTRY = "batch log entry"
    RELEASE_ENTRY = "release log entry"
    TOMBSTONE_ENTRY = "tombstone log entry"
    ERASURE_ENTRY = "erasure log entry"
    LOSS_ENTRY = "loss log entry"
    CENSUS = "census"
    INBOX_ENTRY = "inbox entry"
    QUARANTINE_ENTRY = "quarantine entry"
    MANIFEST = "manifest"
    BATCH = "batch"
    RECORD_FILE = "record file"
    CODE = "code file"
    ROWS = "rows"
    OUTCOMES = "outcomes"
    RAW = "raw output"
    HOOK_LOG = "hook log"
    NAMED = "blob"
    """Named by a document that cannot be read whole."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one object."""

    state: State
    kind: ObjectKind
    key: str
    named_by: str
    """Where it is needed, for people."""
    detail: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A blob, and a document that names it. `size` is None where the document does not say."""

    kind: ObjectKind
    digest: Digest
    size: int | None
    named_by: str

    @property
    def key(self) -> str:
        """Where it is."""
        return layout.blob(self.digest)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of an archive; the whole of it unless narrowed.

    With a hook: its releases and what it said, without the records' files. With a batch: that
    batch alone. The inbox and the quarantine belong to the whole alone.
    """

    dataset: str | None = None
    hook: str | None = None
    batch: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is None and (self.hook is not None or self.batch is not None):
            raise InvalidInputError("a hook or batch is one of a dataset: name it too")

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.dataset is None

    def __str__(self) -> str:
        if self.is_whole:
            return "the whole archive"
        parts = [f"dataset {self.dataset}"]
        parts += [f"hook {self.hook}"] if self.hook else []
        parts += [f"batch {self.batch}"] if self.batch else []
        return ", ".join(parts)


@dataclass
class Reached:
    """What the roots name, directly or through manifests and batches."""

    references: dict[tuple[Digest, int | None], Reference] = field(default_factory=dict)
    """Each blob once, by digest and the size it should have."""
    findings: list[Finding] = field(default_factory=list)
    """Documents that are missing, cannot be read, or contradict each other."""
    documents: int = 0
    """Objects of log, inbox and quarantine, manifests and batches that were read and are right."""
    bytes_read: int = 0
    erased: dict[Digest, str] = field(default_factory=dict)
    """Manifests and batches that the log names and an erasure replaced, and what names them."""
    withdrawn: dict[str, set[str]] = field(default_factory=dict)
    """Per dataset the records that are withdrawn."""
    erasures: dict[str, Erased] = field(default_factory=dict)
    """Per dataset what its erasures say."""
    waiting: set[str] = field(default_factory=set)
    """The keys of what waits in inbox and quarantine."""
    unparsed: dict[str, str] = field(default_factory=dict)
    """Quarantined entries that are no entry any code knows, by key, and why. They are kept as they
    came, so nothing is wrong with them, but what they name is not known."""
    unchecked: set[str] = field(default_factory=set)
    """The keys of objects that were read and of which the store keeps no checksum."""
    known: KnownLogs | None = None
    """What the logs were compared with; None if they were not."""
    seen: dict[str, dict[int, Sighting]] = field(default_factory=dict)
    """By log and number the entries that are there."""
    shortfalls: tuple[Shortfall, ...] = ()
    """Logs that are not what they are known to have been; each is a finding too."""
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def digests(self) -> set[Digest]:
        """Every blob that something needs."""
        return {digest for digest, _ in self.references}

    def add(self, reference: Reference) -> None:
        """Add a document that names a blob.

        Of several the first by name stays, in whatever order threads come upon them: two looks at
        the same archive say the same.
        """
        key = reference.digest, reference.size
        with self._adding:
            known = self.references.setdefault(key, reference)
            if (reference.named_by, reference.kind) < (known.named_by, known.kind):
                self.references[key] = reference
