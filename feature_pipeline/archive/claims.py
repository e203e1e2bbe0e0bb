"""Claims: which actions hook runs compute now, so that no two runs compute one at the same time.

Each run that starts a hook has one object with its actions. It writes the object, then lists those
of others. Of two runs, the one that wrote later finds the other, so no clock decides whether two
computations overlap: a run computes after it has found no other claim on its actions, and keeps its
claim until its answers are accepted. A run that finds one waits. If the other claim is earlier, it
withdraws its own while it waits, otherwise two runs could wait for each other.

A claim is renewed while its run continues, and expires if its run has died. A lost, damaged or
expired claim may cause an action to be computed twice. It changes no answer.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final
from uuid import uuid4

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import Document, InstantField, utc_now
from feature_pipeline.archive.store.base import (
    JSON_MEDIA_TYPE,
    BlobStore,
    ObjectInfo,
    create_or_read,
    get_small,
)
from feature_pipeline.errors import (
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted

logger = logging.getLogger(__name__)

LEASE: Final = timedelta(minutes=3)
"""How long after its last renewal a claim is respected."""
RETENTION: Final = timedelta(days=1)
"""How long after its last renewal a claim of a dead run is deleted."""
_RENEWED_SECONDS: Final = 30.0
_FIRST_BACKOFF_SECONDS: Final = 0.5
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_ATTEMPTS: Final = 3
"""How often the store may fail to answer before a run continues without claims."""
_NEWS_EVERY: Final = 8
"""How often the claims are polled between two reads of the memory of answers: a claim may outlive
its run, whose answers are accepted.
"""
_HEX: Final = 16
_NO_ANSWER: Final = (StoreUnavailableError, OutcomeUnknownError)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


class ClaimDocument(Document):
    """The actions that one run computes."""

    document_type: ClassVar[str] = "claim"
    most_bytes: ClassVar[int] = 64 << 20

    holder: str
    """Differs for every run."""
    number: int = 0
    """How often the holder has written it."""
    batch: str
    since: InstantField
    """When it was first written, by the writer's clock. A worker that takes over keeps it."""
    actions: tuple[str, ...]
    """The first 16 hex digits of each action, sorted."""
    is_held: bool = False
    """Whether the run has found no other: its hook may have started."""


@dataclass(frozen=True, slots=True)
class Other:
    """A claim of another run on one of the same actions."""

    key: str
    batch: str | None
    """None if the claim cannot be read."""
    since: datetime
    shared: int
    """Number of shared actions; 0 if it cannot be read."""

    @property
    def order(self) -> tuple[datetime, str]:
        """Of two runs that wait, the first in this order continues first."""
        return self.since, self.key

    def describe(self) -> str:
        """Return what the run waits for."""
        if self.batch is None:
            return f"the claim {self.key}, which cannot be read, to expire"
        return f"the hook run over batch {self.batch!r}, which computes {self.shared} of them now"


class Claim:
    """The claim of a hook run over one batch. Nothing is written before `acquire`.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        program: The release's program: actions of different programs differ.
        batch: The batch. Another worker's claim for the same batch is taken over, because that
            worker has died, or this one attaches to the containers that it started.
    """

    def __init__(
        self, store: BlobStore, dataset: str, hook: str, program: Digest, batch: str
    ) -> None:
        self._store = store
        self._batch = batch
        self._prefix = layout.claims(dataset, hook, program)
        self._written = _Written(store, layout.claim(dataset, hook, program, batch))
        self._holder = uuid4().hex
        self._since: datetime | None = None
        self._actions: frozenset[str] = frozenset()
        self._is_waiting_reported = False
        self._own_etag: str | None = None
        """Of the stored claim, in the last listing."""
        self._first_seen: dict[tuple[str, str], float] = {}
        self._documents: dict[tuple[str, str], ClaimDocument | None] = {}
        # A claim that is forgotten without being released expires.
        weakref.finalize(self, self._written.stop)

    def covers(self, actions: Collection[Digest]) -> bool:
        """Return whether these actions were taken."""
        return self._actions.issuperset(map(_short, actions))

    def acquire(
        self,
        actions: Collection[Digest],
        contested: Collection[Digest],
        say: Callable[[str], None],
        has_news: Callable[[], bool],
    ) -> bool:
        """Claim `actions`, after waiting until no other run computes any of `contested`.

        If the store does not answer, continue without the claim.

        Args:
            actions: What is computed from now on.
            contested: Those of them that other runs may be computing; the others were forced.
            say: Called with the reason, the first time that this claim waits.
            has_news: Whether there may be new answers; called now and then while it waits.

        Returns:
            True if the actions are claimed, and there was no waiting. False if there may be new
            answers: plan again, and call this again for actions that are not covered then.
        """
        self._actions = frozenset()
        wanted = frozenset(map(_short, contested))
        polls, failures, backoff = 0, 0, _FIRST_BACKOFF_SECONDS
        while True:
            try:
                if not polls and self._write(actions):
                    self._actions = frozenset(map(_short, actions))
                    return True
                others = self._others(wanted)
                if not others:
                    if self._written.hold(self._own_etag):
                        self._actions = frozenset(map(_short, actions))
                        return not polls
                    self._write(actions)
                    continue
                self._report_waiting(others, len(actions), say)
                polls, failures = polls + 1, 0
                if self._written.is_there and any(other.order < self._order for other in others):
                    self._written.delete()
                if polls % _NEWS_EVERY == 0 and has_news():
                    return False
            except _NO_ANSWER as error:
                failures += 1
                if failures >= _ATTEMPTS:
                    logger.warning("%s: continuing without a claim: %s", self._prefix, error)
                    self._actions = frozenset(map(_short, actions))
                    return not polls
            time.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    def _report_waiting(
        self, others: Sequence[Other], actions: int, say: Callable[[str], None]
    ) -> None:
        if not self._is_waiting_reported:
            self._is_waiting_reported = True
            first = min(others, key=lambda other: other.order)
            say(f"{counted(actions, 'record')} to compute: waiting for {first.describe()}")

    def release(self) -> None:
        """Remove the claim. Idempotent; if the store does not answer, the claim expires."""
        self._actions = frozenset()
        self._written.stop()
        with suppress(FeaturePipelineError):
            self._written.delete()

    def abandon(self) -> None:
        """Stop renewing the claim without removing it: its computation may continue elsewhere."""
        self._written.abandon()

    @property
    def _order(self) -> tuple[datetime, str]:
        return self._since or _EARLIEST, self._written.key

    def _write(self, actions: Collection[Digest]) -> bool:
        """Write the claim; return whether a dead worker of the batch held these actions."""
        # It decides only which of two runs waits, so the machine's clock is good enough.
        self._since = self._since or utc_now()
        document = ClaimDocument(
            holder=self._holder,
            batch=self._batch,
            since=self._since,
            actions=tuple(sorted(map(_short, actions))),
        )
        stored = self._written.write(document)
        self._since = stored.since
        return stored.is_held

    def _others(self, actions: frozenset[str]) -> list[Other]:
        """Return the claims of other runs, not expired, on one of the actions."""
        listed = {info.key: info for info in self._store.list_objects(self._prefix)}
        own = listed.pop(self._written.key, None)
        self._own_etag = None if own is None else own.etag
        infos = list(listed.values()) if actions else []
        if not infos:
            return []
        now = self._store.now()
        others = []
        for info in infos:
            if self._is_expired(info, now):
                continue
            try:
                document = self._read(info)
            except NotFoundError:
                continue
            if document is None:
                others.append(Other(info.key, None, _EARLIEST, 0))
            elif shared := actions.intersection(document.actions):
                others.append(Other(info.key, document.batch, document.since, len(shared)))
        return others

    def _is_expired(self, info: ObjectInfo, now: datetime) -> bool:
        """Return whether the claim was not renewed for the lease.

        By the store's clock, or, in case that was set back, by how long this process has seen it
        unchanged.
        """
        seen_at = self._first_seen.setdefault((info.key, info.etag), time.monotonic())
        seen_seconds = time.monotonic() - seen_at
        return now - info.modified_at > LEASE or seen_seconds > LEASE.total_seconds()

    def _read(self, info: ObjectInfo) -> ClaimDocument | None:
        """Return the claim; None if it cannot be read.

        Raises:
            NotFoundError: It is gone.
        """
        known = info.key, info.etag
        if known not in self._documents:
            try:
                data = get_small(self._store, info.key, ClaimDocument.most_bytes).data
                self._documents[known] = ClaimDocument.decode(data, info.key)
            except (CorruptDataError, InvalidInputError) as error:
                logger.warning("%s", error)
                self._documents[known] = None
        return self._documents[known]


class _Written:
    """The stored claim, which a thread renews. It does not refer to the `Claim`."""

    def __init__(self, store: BlobStore, key: str) -> None:
        self.key = key
        self._store = store
        self._document: ClaimDocument | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        return self._document is not None

    def write(self, document: ClaimDocument) -> ClaimDocument:
        """Write the claim, over that of another worker of the batch; return what is stored.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may not be stored.
        """
        with self._lock:
            wanted = document
            stored = create_or_read(self._store, self.key, document.encode())
            for _ in range(_ATTEMPTS):
                if stored == document.encode():
                    break
                with suppress(NotFoundError):
                    current = self._store.get(self.key)
                    is_expired = self._store.now() - current.info.modified_at > LEASE
                    document = _after(current.data, wanted, is_expired)
                    data = document.encode()
                    if self._store.replace(self.key, data, current.info.etag, JSON_MEDIA_TYPE):
                        break
                document = wanted
                stored = create_or_read(self._store, self.key, document.encode())
            self._document = document
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._renew, name=self.key, daemon=True)
            self._thread.start()
        return document

    def hold(self, etag: str | None) -> bool:
        """Record that the run computes; return whether the claim was written and is stored.

        Args:
            etag: Of the stored claim; None if there is none.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may not be recorded.
        """
        with self._lock:
            if self._document is None or etag is None:
                return False
            marked = self._document.model_copy(
                update={"number": self._document.number + 1, "is_held": True}
            )
            # If another worker of the batch has taken the claim over, both go on.
            self._store.replace(self.key, marked.encode(), etag, JSON_MEDIA_TYPE)
            self._document = marked
            return True

    def delete(self) -> None:
        """Delete the claim, if it was written."""
        with self._lock:
            if self._document is not None:
                self._document = None
                self._store.delete(self.key)

    def abandon(self) -> None:
        """Stop renewing; `delete` does nothing any more."""
        self.stop()
        with self._lock:
            self._document = None

    def stop(self) -> None:
        """Stop renewing."""
        self._stopped.set()

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEWED_SECONDS):
            with self._lock, suppress(FeaturePipelineError):
                if self._document is None:
                    continue
                current = self._store.get(self.key)
                stored = ClaimDocument.decode(current.data, self.key)
                # What another worker of the batch has taken over is not this one's to renew.
                if stored.holder == self._document.holder:
                    renewed = stored.model_copy(update={"number": stored.number + 1})
                    data = renewed.encode()
                    self._store.replace(self.key, data, current.info.etag, JSON_MEDIA_TYPE)


def _after(stored: bytes, document: ClaimDocument, is_expired: bool) -> ClaimDocument:
    """Return the claim as it is written over a stored one, whose place in the order it keeps.

    It is held if the stored one was, for at least its actions, and has not expired: no other run
    has begun with them.
    """
    try:
        before = ClaimDocument.decode(stored, "the claim before")
    except InvalidInputError:
        return document
    return document.model_copy(
        update={
            "since": min(before.since, document.since),
            "number": before.number + 1,
            "is_held": before.is_held
            and not is_expired
            and set(before.actions) >= set(document.actions),
        }
    )


def _short(action: Digest) -> str:
    return action.hex[:_HEX]


def remove_expired(store: BlobStore, dataset: str, hook: str) -> int:
    """Delete the claims of a hook's dead runs; return their number.

    Raises:
        StoreUnavailableError: Some may still exist; call it again.
    """
    now = store.now()
    listed = store.list_objects(layout.claims(dataset, hook))
    expired = [info.key for info in listed if now - info.modified_at > RETENTION]
    for key in expired:
        store.delete(key)
    return len(expired)
