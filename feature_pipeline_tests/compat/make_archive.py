"""Makes the archive that `compat` keeps for a `spec_version`: run once, when a version is released.

    python -m feature_pipeline_tests.compat.make_archive v3

An archive that is checked in is never made again: that it can still be read is the point of it. The
folder has one file per object, its path being the key.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feature_pipeline.archive import accept, blobs, publish, read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import ENDED_WELL, FailureInfo, RunInfo, StartInfo
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.loss_entries import accept_losses, plan_loss
from feature_pipeline.archive.publish import Artifact
from feature_pipeline.archive.store.base import create_or_read
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.hooks.action_digests import record_action
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import GrantedLimits, Outcome, OutcomeKind, Status
from feature_pipeline.model.records import Record, RecordBatch, RecordFile, Source
from feature_pipeline.model.release import HookRelease, ReleaseDocument

ARCHIVES = Path(__file__).parent / "archives"
DATASET = "structures"
ERASED = "letters"
"""A dataset of which a record was erased."""
FAILING = "solids"
"""A dataset with a record that its hook fails over."""
STARTED = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)

OLD_COLUMNS = (
    Column(name="label", type="string", required=True, description="What people call it."),
    Column(name="score", type="number", unit="kcal/mol"),
    Column(name="count", type="integer"),
    Column(name="is_open", type="boolean"),
    Column(name="parts", type="array"),
    Column(name="centre", type="object", unit="Å"),
    Column(name="day", type="string", format="date"),
    Column(name="seen", type="string", format="date-time"),
    Column(name="key", type="string", format="uuid"),
)
NEW_COLUMNS = (
    Column(name="título", type="string", required=True, renamed_from="label"),
    *OLD_COLUMNS[1:],
    Column(name="grade", type="integer", default=3),
)
FULL = {
    "label": 'α "quoted" \\ tab\t and 🧬',
    "score": -0.0,
    "count": 2**63 - 1,
    "is_open": True,
    "parts": [1, 1.5, 1e-05, 1.5e20, -0.0, "é", None, {"b": [], "a": {}}, True],
    "centre": {"z": 3, "x": 1.0, "y": -2.25},
    "day": "0001-01-01",
    "seen": "2026-01-31T12:00:00.000001+05:30",
    "key": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
}
SPARSE = {"label": "", "score": float("nan"), "count": -(2**63), "day": "9999-12-31"}
ENDLESS = {"label": "no end", "score": float("-inf"), "seen": "1969-12-31T23:59:59.999999Z"}
ANSWERS: Mapping[str, object] = {
    "pdb:1UBI": [FULL, SPARSE],
    "pdb:5PTI": [ENDLESS],
    "leer": [],
    "abgelehnt": "no protein:\nonly waters",
    "später": ("the service did not answer", True),
    "kaputt": ("division by zero", False),
    "ungültig": [{"label": "x", "count": 1.5}],
    "Zürich 1": [{"label": "once", "score": 0.1}],
}


@dataclass
class Maker:
    """One archive that is being filled, by the same functions that production uses."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    runs: int = 0

    def submit(
        self, key: str, ids: Sequence[str], *, dataset: str = DATASET, is_accepted: bool = True
    ) -> RecordBatch:
        structure = self.folder / "structure.cif"
        structure.write_bytes(b"data_1UBI\n")
        file = RecordFile(name="1ubi.cif", digest=str(Digest.of(b"data_1UBI\n")), size=10)
        records = tuple(
            Record(
                id=record_id,
                metadata={"title": f"{record_id} é", "resolution": 2.0} if number == 0 else {},
                files=(file,) if number == 0 else (),
            )
            for number, record_id in enumerate(ids)
        )
        batch = RecordBatch.create(dataset, key, Source.HARVEST, records)
        submission = publish.submit_batch(self.store, batch, {file.blob: structure})
        if is_accepted:
            accept.accept_batch(self.store, submission)
            inbox.remove(self.store, submission.inbox_id)
        return batch

    def release(self, hook: str, version: str, dataset: str = DATASET) -> ReleaseEntry:
        code = self.folder / "hook.py"
        code.write_bytes(b"print('hook')\n")
        document = ReleaseDocument(
            dataset=dataset,
            hook=hook,
            version=version,
            command=("python", "hook.py"),
            code=(RecordFile(name="hook.py", digest=str(Digest.of(code.read_bytes())), size=14),),
            config={"limit": 2.0, "name": "é"},
        )
        return log.register_release(self.store, HookRelease.of(document), {"hook.py": code})

    def publish(
        self,
        batch: RecordBatch,
        release: ReleaseEntry,
        answers: Mapping[str, object],
        columns: Sequence[Column],
        *,
        base: int,
        carried: Mapping[str, Outcome] | None = None,
        failure: FailureInfo | None = None,
        cardinality: Cardinality = Cardinality.MANY,
        inputs: Mapping[str, Digest] | None = None,
        failed: Mapping[str, Outcome] | None = None,
    ) -> FeatureEntry:
        """Publish and accept what a hook run said of the records that were not carried over.

        Args:
            failed: Records over which the hook failed.
        """
        self.runs += 1
        output = self.folder / f"run-{self.runs}"
        write_output(output, answers)
        (log_file := self.folder / f"run-{self.runs}.log").write_text("reading …\ndone\n", "utf-8")
        actions = {
            record.id: record_action(release.release, record, {}) for record in batch.records
        }
        outcomes = dict(carried or {})
        if failure is None:
            decoded = decode_output(output, list(answers), columns, cardinality, actions)
            outcomes.update({outcome.record_id: outcome for outcome in decoded.outcomes})
            outcomes.update(failed or {})
        run = RunInfo(
            id=f"run-{self.runs}",
            runner="subprocess",
            started_at=STARTED,
            finished_at=STARTED + timedelta(seconds=self.runs),
            attempts=2,
            memory_bytes=12_345_678,
            exit_code=0 if failure is None else failure.exit_code,
        )
        start = StartInfo(
            part="",
            records=len(answers) + len(failed or {}),
            attempt=1,
            started_at=run.started_at,
            finished_at=run.finished_at,
            memory_limit_bytes=2**31,
            ended="evicted",
            node="node-1",
        )
        ended = ENDED_WELL if failure is None else failure.kind
        last = {
            "attempt": 2,
            "ended": ended,
            "exit_code": run.exit_code,
            "memory_bytes": 12_345_678,
        }
        artifact = Artifact(
            batch=batch,
            release=release,
            columns=tuple(columns),
            cardinality=cardinality.value,
            run=run,
            outcomes=() if failure else tuple(outcomes[record.id] for record in batch.records),
            raw={path.name: path for path in output.iterdir()},
            log=log_file,
            failure=failure,
            notes=("a note",),
            inputs=inputs or {},
            starts=(start, start.model_copy(update=last)),
        )
        published = publish.publish_artifact(self.store, artifact)
        completion = completion_of(artifact, published.manifest_digest, base=base)
        publish.enqueue_completion(self.store, completion)
        entry = accept.accept(self.store, completion)
        inbox.remove(self.store, completion.inbox_id)
        return entry


def write_output(folder: Path, answers: Mapping[str, object]) -> None:
    """The files that a hook would have written."""
    folder.mkdir()
    lines: dict[str, list[str]] = {"features": [], "rejections": [], "errors": []}
    for record_id, value in answers.items():
        document: dict[str, object] = {"id": record_id}
        match value:
            case str():
                name = "rejections"
                document["reason"] = value
            case (str() as error, bool() as retryable):
                name = "errors"
                document |= {"error": error, "retryable": retryable}
            case _:
                name = "features"
                document["features"] = value
        lines[name].append(json.dumps(document, ensure_ascii=False))
    for name, text in lines.items():
        content = "".join(f"{line}\n" for line in text)
        (folder / f"{name}.jsonl").write_text(content, "utf-8")


def fill(maker: Maker) -> None:
    """One of everything that an archive can say."""
    first = maker.submit("harvest-1", list(ANSWERS))
    second = maker.submit("harvest-2", ["pdb:1UBI", "neu"])
    maker.submit("waiting", ["pdb:9XYZ"], is_accepted=False)

    one = maker.release("everything", "1.0")
    begun = maker.publish(first, one, ANSWERS, OLD_COLUMNS, base=0)
    two = maker.release("everything", "1.1")
    crash = FailureInfo(kind="non_zero_exit", reason="ended with status 3", exit_code=3)
    maker.publish(first, two, {"pdb:1UBI": []}, OLD_COLUMNS, base=1, failure=crash)
    # As after a retry: only what a hook called retryable is computed, the rest is carried over.
    stand = {
        outcome.record_id: replace(outcome, carried_from=begun.manifest)
        for outcome in read.read_artifact_outcomes(
            maker.store, read.read_manifest(maker.store, begun.manifest)
        )
        if not outcome.is_retryable
    }
    retried = {"später": [{"label": "at last"}]}
    maker.publish(first, two, retried, OLD_COLUMNS, base=2, carried=stand)
    maker.publish(first, one, ANSWERS, OLD_COLUMNS, base=1)  # too late: superseded
    renamed = {"pdb:1UBI": [{"título": "new", "grade": 1}], "neu": [{"label": "old name"}]}
    maker.publish(second, two, renamed, NEW_COLUMNS, base=0)

    verdicts = maker.release("verdicts", "1")
    judged: dict[str, object] = {record.id: [] for record in first.records}
    judged["leer"] = "empty"
    inputs = {"everything": begun.content_digest} if begun.content_digest else {}
    maker.publish(first, verdicts, judged, (), base=0, cardinality=Cardinality.ONE, inputs=inputs)

    tombstones.withdraw(maker.store, DATASET, ["neu"], "the depositor asked")
    tombstones.lift(maker.store, DATASET, ["neu"], "the depositor changed their mind")
    letters = maker.submit("mail", ["alice", "bob"], dataset=ERASED)
    counter = maker.release("words", "1", ERASED)
    words = (Column(name="words", type="integer"),)
    counted = {"alice": [{"words": 3}], "bob": [{"words": 5}]}
    maker.publish(letters, counter, counted, words, base=0)
    erase(maker.store, ERASED, ["bob"], "asked for")

    pile = maker.submit("pile", ["small", "large"], dataset=FAILING)
    mesher = maker.release("meshes", "1", FAILING)
    large = Outcome(
        "large",
        Status.ERRORED,
        reason="not done after 1h",
        kind=OutcomeKind.DEADLINE,
        is_from_output=False,
        limits=GrantedLimits(2**34, 3600.0, 5 * 2**30),
    )
    maker.publish(pile, mesher, {"small": [{"words": 1}]}, words, base=0, failed={"large": large})

    given_up(maker)
    create_or_read(maker.store, layout.inbox("run.broken"), b'{"not": "a completion"}')
    (broken,) = [entry for entry in inbox.waiting(maker.store) if entry.content is None]
    inbox.quarantine(maker.store, broken, "not a completion")
    blobs.put_blob(maker.store, b"an orphan: nothing names it")


def given_up(maker: Maker) -> None:
    """A release that a census knows, whose entry was lost, and whose loss was accepted."""
    maker.release("verdicts", "2")
    write_census(maker.store)
    prefix = layout.release_log(DATASET, "verdicts")
    maker.store.delete(layout.entry(prefix, 2))
    loss = plan_loss(maker.store, prefix)
    assert loss is not None
    accept_losses(maker.store, DATASET, [loss], by="the operator", reason="no copy is left")


def main(version: str) -> None:
    """Write the archive to `archives/<version>`, which must not exist."""
    target = ARCHIVES / version
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        fill(maker)
        for info in maker.store.list_objects(""):
            path = target / info.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(maker.store.get(info.key).data)


if __name__ == "__main__":
    main(sys.argv[1])
