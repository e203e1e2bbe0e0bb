"""Compare the memory of answers with the logs, and complete or rebuild it.

Acceptance keeps the memory complete. This module finds the cases that acceptance cannot know:
artifacts accepted by code without a memory, objects of the memory that were lost or damaged,
entries restored to a log, and artifacts that an erasure replaced.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from feature_pipeline.archive import claims, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.encode import outcomes_without_rows
from feature_pipeline.archive.logs import answers, log
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.store.base import BlobStore, create_or_read
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import map_threads

OLD: Final = timedelta(days=1)
"""Below this age an object may still be incomplete; after this time a comparison is due."""
_ARTIFACTS_AT_ONCE: Final = 256


@dataclass
class MemoryReport:
    """The result of comparing a hook's memory with its logs."""

    dataset: str
    hook: str
    artifacts: int = 0
    """Artifacts in the logs, without failed hook runs and erased artifacts."""
    added: int = 0
    """Artifacts whose answers were missing from the memory and were added."""
    forgotten: int = 0
    """Artifacts that were removed: erased, or never accepted."""
    discarded: int = 0
    """Segments that were deleted: unreadable, or never finished."""
    problems: list[str] = field(default_factory=list)
    """Logs and artifacts that cannot be read; the next comparison tries them again."""

    def summary(self) -> str:
        """Return a one-line summary."""
        line = (
            f"{self.dataset}/{self.hook}: {counted(self.artifacts, 'artifact')}, {self.added} added"
        )
        for count, what in (
            (self.forgotten, "forgotten"),
            (self.discarded, "segments discarded"),
            (len(self.problems), "cannot be read"),
        ):
            line += f", {count} {what}" if count else ""
        return line

    def to_json(self) -> dict[str, object]:
        """Return the result for programs."""
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
    """Return whether a memory of the hook was not compared with its logs for a day, or never.

    Costs two listings, and the releases of the hook that this process has not read yet.
    """
    known = answers.list_programs(store, dataset, hook)
    now = store.now()
    for prefix in _programs(store, dataset, hook).values():
        completed_at = known[prefix].completed_at if prefix in known else None
        if completed_at is None or now - completed_at >= OLD:
            return True
    return False


def _programs(store: BlobStore, dataset: str, hook: str) -> dict[Digest, str]:
    """Return, by release of the hook, the prefix of its program's memory."""
    return {
        entry.release.digest: layout.answers(dataset, hook, entry.release.program)
        for entry in log.releases(store, dataset, hook)
    }


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
        dataset: The hook's dataset.
        hook: The hook.
        anew: Derive everything from the logs, then delete the old memory.
        progress: Called with (artifacts added, artifacts missing), program by program.

    Raises:
        CorruptDataError: The log of erasures, or that of releases, cannot be read.
        StoreUnavailableError, OutcomeUnknownError: It is not finished; call again.
    """
    claims.remove_expired(store, dataset, hook)
    report = MemoryReport(dataset, hook)
    before = answers.list_programs(store, dataset, hook)
    erased_manifests = erased(store, dataset).manifests
    logged = _logged(store, report, erased_manifests)
    report.artifacts = sum(map(len, logged.values()))
    # A log that cannot be read may name what no other does.
    is_all = not report.problems
    for prefix in sorted(before.keys() | logged.keys()):
        listing = before.get(prefix, answers.NOTHING)
        wanted = logged.get(prefix, set())
        known = {} if anew else _known(store, listing, report)
        remembered = {manifest for manifests in known.values() for manifest in manifests}
        _add(store, prefix, report, sorted(wanted - remembered), progress)
        if anew:
            answers.delete(store, listing.segments)
            report.discarded += len(listing.segments)
        else:
            _forget(
                store, prefix, report, known, wanted if is_all else None, erased_manifests.keys()
            )
        if prefix in logged:
            _mark(store, prefix, listing.marks)
    while answers.compact(store, dataset, hook, answers.FULL_BYTES, fan_in=2):
        pass
    return report


def _logged(
    store: BlobStore, report: MemoryReport, erased_manifests: Mapping[Digest, Digest]
) -> dict[str, set[Digest]]:
    """Return, by program, the artifacts named by the hook's logs, including programs without any.

    Damaged logs, and entries of unknown releases, are problems.
    """
    programs = _programs(store, report.dataset, report.hook)
    logged: dict[str, set[Digest]] = {prefix: set() for prefix in programs.values()}
    for batch, entries in _readable_logs(store, report).items():
        for entry in entries:
            if entry.verdict is Verdict.FAILED or entry.manifest in erased_manifests:
                continue
            if (prefix := programs.get(entry.release)) is None:
                report.problems.append(f"log of batch {batch}: no release {entry.release}")
            else:
                logged[prefix].add(entry.manifest)
    return logged


def _readable_logs(store: BlobStore, report: MemoryReport) -> dict[str, list[FeatureEntry]]:
    """Return the hook's readable logs; damaged ones become problems."""
    readable = log.readable_feature_logs(store, report.dataset, report.hook)
    for batch, damage in readable.damage.items():
        if damage.state is State.UNREADABLE:
            raise damage.error
        report.problems.append(f"log of batch {batch}: {damage.error}")
    return dict(readable.intact)


def _known(
    store: BlobStore, listing: answers.Listing, report: MemoryReport
) -> dict[answers.Segment, tuple[Digest, ...]]:
    """Return each segment's artifacts; delete segments that are damaged or were never finished."""
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
    report.discarded += len(useless)
    return known


def _add(
    store: BlobStore,
    prefix: str,
    report: MemoryReport,
    missing: list[Digest],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the answers of artifacts that the memory lacks, many to a segment."""
    for start in range(0, len(missing), _ARTIFACTS_AT_ONCE):
        group = missing[start : start + _ARTIFACTS_AT_ONCE]
        read_answers = map_threads(lambda manifest: _answers_of(store, manifest), group)
        answered: list[tuple[Digest, set[Digest]]] = []
        for manifest, answers_of in zip(group, read_answers, strict=True):
            if isinstance(answers_of, str):
                report.problems.append(answers_of)
            else:
                answered.append((manifest, answers_of))
        if answered:
            answers.write_segment(store, prefix, answers.table_of(answered))
        report.added += len(answered)
        if progress is not None:
            progress(start + len(group), len(missing))


def _answers_of(store: BlobStore, digest: Digest) -> set[Digest] | str:
    """Return what the artifact answers by itself, or why that cannot be read."""
    try:
        table = read.read_outcomes(store, read.read_manifest(store, digest))
        outcomes_without_rows(table)  # raises what is wrong with it
        return answers.own_answers(table)
    except (NotFoundError, CorruptDataError, InvalidInputError) as error:
        return f"manifest {digest}: {error}"


def _forget(
    store: BlobStore,
    prefix: str,
    report: MemoryReport,
    known: dict[answers.Segment, tuple[Digest, ...]],
    logged: set[Digest] | None,
    erased_manifests: Iterable[Digest],
) -> None:
    """Rewrite segments without artifacts that were erased or, if given, that no log names."""
    erased_now, now = set(erased_manifests), store.now()
    forgotten: set[Digest] = set()
    for segment, manifests in known.items():
        stale = erased_now.intersection(manifests)
        if logged is not None and now - segment.modified_at >= OLD:
            # A younger one may belong to an acceptance that has not appended its entry yet.
            stale |= set(manifests) - logged
        if stale and answers.merge(store, prefix, [segment], stale):
            forgotten |= stale
    report.forgotten += len(forgotten)


def _mark(store: BlobStore, prefix: str, older: Iterable[str]) -> None:
    key = f"{prefix}{answers.COMPLETE}{store.now():%Y%m%dT%H%M%S.%f}Z"
    create_or_read(store, key, b"{}")
    for mark in older:
        store.delete(mark)
