"""The kinds of objects in the archive, and the problems that inspection finds with them."""

import threading
from dataclasses import dataclass, field
from enum import StrEnum

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs.damage import State as State
from feature_pipeline.archive.logs.erasures import Erased
from feature_pipeline.archive.logs.known_lengths import KnownLogs, Shortfall, Sighting
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest


class ObjectKind(StrEnum):
    """The role of an object in the archive."""

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
    """A problem with one object."""

    state: State
    kind: ObjectKind
    key: str
    named_by: str
    """What needs the object, for display."""
    detail: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A blob and a document that names it. `size` is None if the document does not state it."""

    kind: ObjectKind
    digest: Digest
    size: int | None
    named_by: str

    @property
    def key(self) -> str:
        """Key of the blob."""
        return layout.blob(self.digest)


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of an archive to inspect; by default all of it.

    With a hook: its releases and artifacts, without the records' files. With a batch: that batch
    alone. The inbox and the quarantine belong to the whole only.
    """

    dataset: str | None = None
    hook: str | None = None
    batch: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is None and (self.hook is not None or self.batch is not None):
            raise InvalidInputError("a hook or batch belongs to a dataset: name the dataset too")

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole archive."""
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
    """The objects that the roots name, directly or through manifests and batches."""

    references: dict[tuple[Digest, int | None], Reference] = field(default_factory=dict)
    """Each blob once, by digest and the size it should have."""
    findings: list[Finding] = field(default_factory=list)
    """Documents that are missing, cannot be read, or contradict each other."""
    documents: int = 0
    """Log, inbox and quarantine entries, manifests and batches that were read and are valid."""
    bytes_read: int = 0
    erased: dict[Digest, str] = field(default_factory=dict)
    """Manifests and batches that the log names and an erasure replaced, with what names them."""
    withdrawn: dict[str, set[str]] = field(default_factory=dict)
    """By dataset, the withdrawn records."""
    erasures: dict[str, Erased] = field(default_factory=dict)
    """By dataset, the content of its erasures."""
    waiting: set[str] = field(default_factory=set)
    """Keys of the entries in inbox and quarantine."""
    unparsed: dict[str, str] = field(default_factory=dict)
    """Quarantined entries that no code can parse, with the reason, by key. They are kept as they
    came, so this is not damage, but the objects that they name are unknown.
    """
    unchecked: set[str] = field(default_factory=set)
    """Keys of objects that were read and of which the store keeps no checksum."""
    known: KnownLogs | None = None
    """What the logs were compared with; None if they were not."""
    seen: dict[str, dict[int, Sighting]] = field(default_factory=dict)
    """The existing entries, by log and number."""
    shortfalls: tuple[Shortfall, ...] = ()
    """Logs that are shorter than known, or changed; each is a finding too."""
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def digests(self) -> set[Digest]:
        """Every needed blob."""
        return {digest for digest, _ in self.references}

    def add(self, reference: Reference) -> None:
        """Add a document that names a blob.

        Of several documents the first by name is kept, so that the result does not depend on the
        order in which threads find them.
        """
        key = reference.digest, reference.size
        with self._adding:
            known = self.references.setdefault(key, reference)
            if (reference.named_by, reference.kind) < (known.named_by, known.kind):
                self.references[key] = reference
