"""The memory of answers is compared with the logs, and completed or built anew from them.

What belongs here: what the memory lacks or should not have, and putting that right. Not here: the
objects of the memory (`archive.logs.answers`).

Acceptance keeps the memory complete. What it cannot know of is found here: artifacts accepted by
code that had no memory, objects of the memory that were lost or damaged, entries put back into a
log, and artifacts that an erasure replaced.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from feature_pipeline.archive import layout, log, read
from feature_pipeline.archive.blob_store import BlobStore, create_or_read
from feature_pipeline.archive.documents import NewerVersionError
from feature_pipeline.archive.encode import outcomes_without_rows
from feature_pipeline.archive.erasures import erased
from feature_pipeline.archive.log import FeatureEntry, Verdict
from feature_pipeline.archive.logs import answers
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.digest import Digest
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError

OLD: Final = timedelta(days=1)
"""Objects younger than this may be in the making; a memory not compared for so long is due."""
_ARTIFACTS_AT_ONCE: Final = 256


@dataclass
class MemoryReport:
    """What a comparison of the memory with the logs came to."""

    dataset: str
    hook: str
    artifacts: int = 0
    """In the logs, failed hook runs and erased artifacts aside."""
    added: int = 0
    """Artifacts whose answers the memory lacked, and has now."""
    forgotten: int = 0
    """Artifacts that are left out from now on: erased, or never accepted."""
    discarded: int = 0
    """Objects that could not be read, or were never finished; deleted."""
    problems: list[str] = field(default_factory=list)
    """Logs and artifacts that cannot be read; they are tried again the next time."""

    def summary(self) -> str:
        """One line for people."""
        line = f"{self.dataset}/{self.hook}: {self.artifacts} artifacts, {self.added} added"
        for count, what in (
            (self.forgotten, "forgotten"),
            (self.discarded, "objects discarded"),
            (len(self.problems), "cannot be read"),
        ):
            line += f", {count} {what}" if count else ""
        return line

    def to_json(self) -> dict[str, object]:
        """The result for programs."""
        return {
            "dataset": self.dataset,
            "hook": self.hook,
            "artifacts": self.artifacts,
            "added": self.added,
            "forgotten": self.forgotten,
            "discarded": self.discarded,
            "problems": self.problems,
        }


def is_due(store: BlobStore, dataset: str, hook: str) -> bool:
    """Whether the hook's memory was not compared with its logs for a day, or never. One listing."""
    completed_at = answers.list_answers(store, dataset, hook).completed_at
    return completed_at is None or store.now() - completed_at >= OLD


def complete(
    store: BlobStore,
    dataset: str,
    hook: str,
    *,
    anew: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryReport:
    """Bring the memory in line with the hook's logs. Safe beside acceptance, and repeatable.

    Reads every log entry and the whole memory, and two objects of each artifact that is missing.

    Args:
        store: The archive.
        dataset: The hook's.
        hook: Whose memory.
        anew: Believe nothing of what is there: derive all of it from the logs, then delete it.
        progress: Called with (artifacts added, artifacts missing).

    Raises:
        CorruptDataError: The log of erasures cannot be read.
        StoreUnavailableError, OutcomeUnknownError: It is not finished; call again.
    """
    done = MemoryReport(dataset, hook)
    before = answers.list_answers(store, dataset, hook)
    known = {} if anew else _known(store, before, done)
    gone = erased(store, dataset).manifests
    logs = _readable_logs(store, done)
    logged = {
        entry.manifest
        for entries in logs.values()
        for entry in entries
        if entry.verdict is not Verdict.FAILED and entry.manifest not in gone
    }
    done.artifacts = len(logged)
    remembered = {manifest for manifests in known.values() for manifest in manifests}
    _add(store, done, sorted(logged - remembered), progress)
    if anew:
        answers.delete(store, before.segments)
        done.discarded = len(before.segments)
    else:
        # A log that cannot be read may name what no other does.
        _forget(store, done, known, None if done.problems else logged, gone.keys())
    while answers.compact(store, dataset, hook, answers.FULL_BYTES, fan_in=2):
        pass
    _mark(store, dataset, hook, before.marks)
    return done


def _readable_logs(store: BlobStore, done: MemoryReport) -> dict[str, list[FeatureEntry]]:
    """The hook's logs, but for those that are damaged: these are problems."""
    readable = log.readable_feature_logs(store, done.dataset, done.hook)
    for batch, damage in readable.damage.items():
        if damage.state is State.UNREADABLE:
            raise damage.error
        done.problems.append(f"log of batch {batch}: {damage.error}")
    return dict(readable.found)


def _known(
    store: BlobStore, listing: answers.Listing, done: MemoryReport
) -> dict[answers.Segment, tuple[Digest, ...]]:
    """Per segment its artifacts. Segments that are damaged or were never finished are deleted."""
    known: dict[answers.Segment, tuple[Digest, ...]] = {}
    useless: list[answers.Segment] = []
    for segment in listing.segments:
        if not segment.is_whole:
            if store.now() - segment.modified_at >= OLD:
                useless.append(segment)
            continue
        try:
            tables = map_threads(lambda part: answers.read_part(store, part), segment.parts)
        except (NotFoundError, NewerVersionError):
            continue  # merged since; or of code that keeps its own memory complete
        except CorruptDataError:
            useless.append(segment)
            continue
        known[segment] = tables[0].manifests
    answers.delete(store, useless)
    done.discarded = len(useless)
    return known


def _add(
    store: BlobStore,
    done: MemoryReport,
    missing: list[Digest],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the answers of artifacts that the memory lacks, many to a segment."""
    for start in range(0, len(missing), _ARTIFACTS_AT_ONCE):
        group = missing[start : start + _ARTIFACTS_AT_ONCE]
        read_answers = map_threads(lambda manifest: _answers_of(store, manifest), group)
        answered: list[tuple[Digest, set[Digest]]] = []
        for manifest, found in zip(group, read_answers, strict=True):
            if isinstance(found, str):
                done.problems.append(found)
            else:
                answered.append((manifest, found))
        if answered:
            table = answers.table_of(answered)
            answers.write_segment(store, done.dataset, done.hook, table)
        done.added += len(answered)
        if progress is not None:
            progress(start + len(group), len(missing))


def _answers_of(store: BlobStore, digest: Digest) -> set[Digest] | str:
    """What the artifact answers by itself, or why that cannot be read."""
    try:
        table = read.read_outcomes(store, read.read_manifest(store, digest))
        return answers.own_answers(outcomes_without_rows(table))
    except (NotFoundError, CorruptDataError, InvalidInputError) as error:
        return f"manifest {digest}: {error}"


def _forget(
    store: BlobStore,
    done: MemoryReport,
    known: dict[answers.Segment, tuple[Digest, ...]],
    logged: set[Digest] | None,
    gone: Iterable[Digest],
) -> None:
    """Write segments again without artifacts that were erased, or that no log names if given."""
    erased_now, now = set(gone), store.now()
    forgotten: set[Digest] = set()
    for segment, manifests in known.items():
        stale = erased_now.intersection(manifests)
        if logged is not None and now - segment.modified_at >= OLD:
            # A younger one may be of an acceptance that has not appended its entry yet.
            stale |= set(manifests) - logged
        if stale and answers.merge(store, done.dataset, done.hook, [segment], stale):
            forgotten |= stale
    done.forgotten = len(forgotten)


def _mark(store: BlobStore, dataset: str, hook: str, older: Iterable[str]) -> None:
    prefix = layout.answers(dataset, hook)
    now = store.now()
    key = f"{prefix}{answers.COMPLETE}{now:%Y%m%dT%H%M%S.%f}Z"
    create_or_read(store, key, b"{}")
    for mark in older:
        store.delete(mark)
