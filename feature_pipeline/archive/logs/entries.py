"""One entry of a log: its form, and the check that it is in its place.

Every reader and `verify` use these functions.

An entry names its log and number, which are also in its key, and (from version 2 on) the digest of
the stored bytes of the entry before it. So every reader detects an entry that was copied, moved or
replaced, alone or beside its neighbour.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Generic, TypeVar
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import DigestField, Document
from feature_pipeline.errors import CorruptDataError, InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.quoting import quoted

CHAINED: Final = 2
"""The first version whose entries name the one before them."""


def new_write_id() -> str:
    """Return a value by which a writer recognises its own entry among equal ones."""
    return uuid4().hex


class LogEntry(Document):
    """An entry of any log. `seq` is also in its key."""

    document_type: ClassVar[str] = "log entry"
    newest: ClassVar[int] = 2
    added: ClassVar[dict[str, int]] = {"previous": CHAINED}

    spec_version: int = 2
    seq: int = Field(ge=layout.FIRST_SEQ)
    write_id: str = Field(default_factory=new_write_id)
    previous: DigestField | None = None
    """Digest of the stored bytes of the entry before it; None for the first, and in version 1."""

    @property
    def log_prefix(self) -> str:
        """The log that the entry belongs to according to its own fields."""
        raise NotImplementedError


E = TypeVar("E", bound=LogEntry)


@dataclass(frozen=True, slots=True)
class StoredEntry(Generic[E]):
    """An entry in its place, with the digest of its stored bytes."""

    entry: E
    digest: Digest

    @classmethod
    def of(cls, entry: E) -> "StoredEntry[E]":
        """Return the entry as it is stored."""
        return cls(entry, Digest.of(entry.encode()))


def decode_entry(model: type[E], key: str, data: bytes, store: str) -> StoredEntry[E]:
    """Return the entry stored under `key`, after checking that this is its place.

    Args:
        model: The kind of entry that the log has.
        key: The key at which `data` is stored.
        data: The stored bytes.
        store: The store's identity, for messages.

    Raises:
        CorruptDataError: `data` is not such an entry, is not written in canonical form, or belongs
            elsewhere.
        NewerVersionError: Its version is newer than this code supports.
    """
    where = f"{key} in {store}"
    entry = model.decode(data, where, broken=CorruptDataError)
    if (place := _place(entry)) != key:
        raise CorruptDataError(f"log entry {where}: by its fields, its place is {quoted(place)}")
    is_first = entry.seq == layout.FIRST_SEQ
    if entry.spec_version >= CHAINED and is_first != (entry.previous is None):
        wrong = (
            "is the first, but names an entry before it" if is_first else "names no entry before it"
        )
        raise CorruptDataError(f"log entry {where} {wrong}")
    # Equal entries have equal bytes, so whatever else can be read as this entry was altered.
    if entry.encode() != data:
        raise CorruptDataError(f"log entry {where} is not in canonical form: it was altered")
    return StoredEntry(entry, Digest.of(data))


def _place(entry: LogEntry) -> str:
    try:
        return layout.entry(entry.log_prefix, entry.seq)
    except InvalidInputError as error:
        return f"in no log: {error}"


def check_follows(before: StoredEntry[E], after: StoredEntry[E], store: str) -> None:
    """Check that `after` was appended after `before`.

    Entries of version 1 do not name the one before them, so only their order can be checked.

    Raises:
        CorruptDataError: It was not; the message names both.
    """
    if problem := link_problem(before, after):
        key = layout.entry(after.entry.log_prefix, after.entry.seq)
        raise CorruptDataError(f"log entry {key} in {store}: {problem}")


def link_problem(before: StoredEntry[E], after: StoredEntry[E]) -> str | None:
    """Return why `after` cannot have been appended after `before`; None if it can."""
    earlier, later = before.entry, after.entry
    if later.seq != earlier.seq + 1:
        return f"the entry before it is missing: there is {earlier.seq}"
    if later.previous is None:
        if earlier.spec_version < CHAINED:
            return None
        return (
            f"it has spec_version {later.spec_version}, the entry before it"
            f" {earlier.spec_version}: it was not appended after it"
        )
    if later.previous != before.digest:
        return (
            f"it follows {later.previous}, and entry {earlier.seq} is {before.digest}: one of the"
            " two was replaced"
        )
    return None


def misfits(entries: Sequence[StoredEntry[E]]) -> Iterator[tuple[StoredEntry[E], str]]:
    """Yield the entries of one log that break its chain, each with the problem.

    If two neighbours do not match, the later one is right if the entry after it names it.

    Args:
        entries: Of one log, in order; numbers may be missing.
    """
    for at, (before, after) in enumerate(pairwise(entries)):
        if after.entry.seq != before.entry.seq + 1:
            continue
        problem = link_problem(before, after)
        if problem is None:
            continue
        next_entry = entries[at + 2].entry if at + 2 < len(entries) else None
        is_named = next_entry is not None and next_entry.previous == after.digest
        yield (before if is_named and after.entry.previous else after), problem


def chained(entry: E, before: StoredEntry[E] | None) -> E:
    """Return `entry` as it is appended after `before` (None: as the first of its log)."""
    previous = None if before is None else before.digest
    return entry.model_copy(update={"spec_version": entry.newest, "previous": previous})
