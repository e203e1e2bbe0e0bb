"""Every kind of object, damaged in every way, under every command: what each of them does.

    python -m feature_pipeline_tests.faults.damage_matrix [--kind "batch document"] [--tables]

A command is `right` if its result is that of the undamaged archive, and `named` if it is not, and
its error, or its result, names the object. Anything else is a problem: an error of another kind, a
value that differs, an object that is gone. `NAMED_BY` says which it is, kind by kind.
"""

import argparse
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import dagster as dg
import psycopg

from feature_pipeline.archive import accept, blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.deletion import find_needed_blobs
from feature_pipeline.archive.maintenance.erase import erase, finish_erasing
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.maintenance.repair import (
    ProjectRelease,
    Remainder,
    Sources,
    carry_out,
    plan_repair,
)
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.operations.batch_status import (
    Sources as StatusSources,
)
from feature_pipeline.orchestration.operations.batch_status import hook_status
from feature_pipeline.orchestration.operations.recover import recover_dagster, recover_table
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import plan_table
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline_tests.faults.damaged_archive import (
    ERASABLE,
    Damage,
    DamagedScene,
    Kind,
    copied,
    damaged,
    damages,
    fill_archive,
)
from feature_pipeline_tests.fixtures.care import holds
from feature_pipeline_tests.fixtures.postgres import forgetful_server
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK

logger = logging.getLogger("damage_matrix")

SPEC: Final = TableSpec(dataset=DATASET, hook=HOOK, name=HOOK, columns=COLUMNS)
_ROUNDS: Final = 6


class Command(StrEnum):
    """What is tried on the damaged archive."""

    ACCEPT = "accept"
    READ = "read"
    STATUS = "status"
    VERIFY = "verify"
    GC = "gc"
    ERASE = "erase"
    REPAIR = "repair"
    PLAN = "plan"
    LOAD = "load"
    REBUILD = "rebuild"
    RECOVER = "recover"


ON_TABLES: Final = (Command.PLAN, Command.LOAD, Command.REBUILD, Command.RECOVER)
"""These need PostgreSQL, and take ten times as long."""
RIGHT: Final = "right"
NAMED: Final = "named"
LOST: Final = "not seen"
WAITING: Final = frozenset({Kind.SUBMISSION, Kind.COMPLETION, Kind.QUARANTINED})
"""Nothing else names these: one that is deleted has left no trace."""


_DELETES: Final = frozenset({Command.VERIFY, Command.GC, Command.ERASE})
_LOG_OF_HOOK: Final = _DELETES | {Command.READ, Command.STATUS}
_LOG_OF_RECORDS: Final = _DELETES | {Command.READ, Command.ACCEPT}
_WAITS: Final = _DELETES | {Command.ACCEPT, Command.REPAIR}
_TABLES: Final = frozenset(ON_TABLES)
NAMED_BY: Final[dict[Kind, frozenset[Command]]] = {
    # Derived from raw output, which is read to erase a record from it.
    Kind.RAW: frozenset({Command.VERIFY, Command.ERASE}),
    Kind.ROWS: frozenset({Command.READ, Command.VERIFY, Command.ERASE}) | _TABLES,
    Kind.OUTCOMES: frozenset({Command.READ, Command.VERIFY, Command.ERASE}) | _TABLES,
    # What is stored and not read again.
    Kind.HOOK_LOG: frozenset({Command.VERIFY}),
    Kind.RECORD_FILE: frozenset({Command.VERIFY}),
    Kind.CODE: frozenset({Command.VERIFY}),
    # While what they name is unknown, nothing is deleted.
    Kind.MANIFEST: _LOG_OF_HOOK | _TABLES,
    Kind.OLD_MANIFEST: _DELETES,
    Kind.FEATURE_ENTRY: _LOG_OF_HOOK | _TABLES,
    Kind.OLD_FEATURE_ENTRY: _LOG_OF_HOOK | _TABLES,
    Kind.BATCH: _DELETES | _TABLES,
    # Where another entry is in the place of the only one, an operator decides.
    Kind.BATCH_ENTRY: _LOG_OF_HOOK | _TABLES | {Command.REPAIR},
    Kind.RELEASE_ENTRY: _DELETES | {Command.STATUS, Command.ACCEPT, Command.RECOVER},
    Kind.OLD_RELEASE_ENTRY: _DELETES | {Command.STATUS, Command.ACCEPT, Command.RECOVER},
    # Without it, records that were withdrawn could come back: nothing is accepted or loaded.
    Kind.TOMBSTONE: _LOG_OF_RECORDS | _TABLES | {Command.REPAIR},
    Kind.ERASURE: _LOG_OF_RECORDS | _TABLES | {Command.STATUS, Command.REPAIR},
    Kind.LOSS: _LOG_OF_HOOK | _TABLES | {Command.ACCEPT, Command.REPAIR},
    # `erase` deletes it again.
    Kind.ERASED_BLOB: frozenset({Command.VERIFY, Command.REPAIR}),
    Kind.CENSUS: _DELETES,
    Kind.SUBMISSION: _WAITS,
    Kind.COMPLETION: _WAITS,
    Kind.QUARANTINED: _DELETES | {Command.REPAIR},
    Kind.WAITING_MANIFEST: _DELETES | {Command.ACCEPT},
    Kind.WAITING_ROWS: frozenset({Command.VERIFY, Command.ACCEPT}),
    # Who may delete, and what was orphaned when, is unknown.
    Kind.GC_MARK: frozenset({Command.GC}),
    Kind.GC_LEASE: frozenset({Command.GC, Command.ERASE}),
}
"""The commands whose result or error names the damaged object; all others are right, whatever the
damage. Those that are not listed here are derived, or are remade by their owners.
"""


class Wrong(AssertionError):
    """A command did something that it must not."""


@dataclass
class Tables:
    """A database, in which each trial has a table of its own."""

    database: Database
    rows: list[tuple[Any, ...]]
    """Of a table that was loaded from the undamaged archive."""
    spec: TableSpec = SPEC
    """That table. Nothing is loaded into it again."""
    names: Iterator[str] = field(default_factory=lambda: map("t{}".format, count(1)))

    @classmethod
    def of(cls, url: str, store: MemoryStore) -> "Tables":
        tables = cls(Database(url), [])
        tables.spec = tables.loaded(store)
        tables.rows = tables.rows_of(tables.spec)
        return tables

    def loaded(self, store: MemoryStore) -> TableSpec:
        """A table that was loaded before the damage."""
        spec = replace(SPEC, name=next(self.names))
        list(load_batches(store, self.database, spec))
        return spec

    def rows_of(self, spec: TableSpec) -> list[tuple[Any, ...]]:
        """Every row that a reader of the table sees; none if there is no table."""
        with psycopg.connect(self.database.url) as connection:
            try:
                rows = connection.execute(
                    f"select * from features.{spec.name} order by record_id, ordinal"
                )
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []
            return rows.fetchall()


@dataclass
class Matrix:
    """The archive, and what is right of it."""

    scene: DamagedScene
    other: DamagedScene
    tables: Tables | None = None
    needed: dict[str, bytes] = field(default_factory=dict)
    """What no collection may delete or change."""
    values: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    accepted_values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, url: str | None = None) -> "Matrix":
        scene, other = (fill_archive(folder / word, word) for word in ("a", "z"))
        matrix = cls(scene, other)
        store = scene.store
        assert isinstance(store, MemoryStore)
        digests = find_needed_blobs(store).needed
        matrix.needed = {
            info.key: store.get(info.key).data
            for info in store.list_objects("")
            if info.key.startswith((layout.LOGS, layout.INBOX, layout.QUARANTINE))
            or (info.key.startswith(layout.BLOBS) and layout.parse_blob(info.key) in digests)
        }
        matrix.values, damage = read_values(store)
        assert not damage
        matrix.status, _ = status_of(scene, store)
        after = copied(store)
        results = accept.accept_entries(after, accept.waiting(after))
        assert all(isinstance(result, accept.Accepted) for result in results)
        matrix.accepted_values, _ = read_values(after)
        if url is not None:
            matrix.tables = Tables.of(url, store)
        return matrix

    def trial(self, kind: Kind, damage: Damage, command: Command) -> str:
        """Run the command on the damaged archive.

        Raises:
            Wrong: It does what it must not.
        """
        store, key = damaged(self.scene, self.other, kind, damage)
        before = dict(store._objects)
        trial = Trial(self, kind, damage, store, key)
        try:
            result = _COMMANDS[command](trial)
        except FeaturePipelineError as error:
            result = trial.named(str(error))
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"{type(error).__name__}: {error}") from error
        if command in _READERS and store._objects != before:
            raise Wrong("it wrote to the archive")
        if command is not Command.ERASE and not trial.is_unseen:
            trial.check_kept()
        return result


@dataclass
class Trial:
    """One damaged archive."""

    matrix: Matrix
    kind: Kind
    damage: Damage
    store: MemoryStore
    key: str

    @property
    def is_unseen(self) -> bool:
        """Whether nothing else in the archive knows that the object was there."""
        return self.damage is Damage.DELETED and self.kind in WAITING

    def named(self, text: str) -> str:
        """Check that the text names the object."""
        names = [self.key]
        if self.key.startswith(layout.BLOBS):
            digest = layout.parse_blob(self.key)
            names = [digest.hex, digest.short]
        if self.key.startswith((layout.INBOX, layout.QUARANTINE)):
            names = [layout.last_part(self.key)]
        if self.key.startswith(layout.LOGS):
            # Of two neighbours that do not follow each other, either may be the wrong one.
            log_name = self.key.rpartition("/")[0]
            names = [log_name]
            if not self.key.startswith(layout.RELEASE_LOGS):
                names.append(f"batch {layout.last_part(log_name)!r}")
        if not any(name in text for name in names):
            raise Wrong(f"it does not name {self.key}: {text or '(nothing)'}")
        return NAMED

    def check_kept(self) -> None:
        """Nothing that is needed is gone, or another."""
        for key, data in self.matrix.needed.items():
            if key == self.key or key.startswith((layout.INBOX, layout.QUARANTINE)):
                continue
            stored = self.store._objects.get(key)
            if stored is None or stored.data != data:
                raise Wrong(f"{key} is {'gone' if stored is None else 'changed'}")

    def check_values(
        self, values: Mapping[str, Any], damage: Mapping[str, str], right: Mapping[str, Any]
    ) -> str:
        """Each batch is right, or left out and named."""
        text = "\n".join(damage.values())
        for batch, expected in right.items():
            if batch in damage:
                continue
            if batch not in values:
                raise Wrong(f"batch {batch} is left out without a word")
            if values[batch] != expected and "nor is known which records" not in text:
                raise Wrong(f"batch {batch} has {values[batch]} instead of {expected}")
        return self.named(text) if damage else RIGHT


def read_values(store: MemoryStore) -> tuple[dict[str, Any], dict[str, str]]:
    """Rows and outcomes of every batch, and what is left out with the reason."""
    log.forget_read_entries()
    features = Archive(store).features(HOOK, skip_damaged=True)
    values: dict[str, Any] = {}
    for batch, table in features.batch_tables():
        values[batch] = [table.drop_columns(["batch"]).to_pylist()]
    outcomes = Archive(store).outcomes(HOOK, skip_damaged=True)
    for table in outcomes.tables():
        for row in table.select(["record_id", "status", "batch"]).to_pylist():
            values.setdefault(row.pop("batch"), [[]]).append(row)
    return values, {**features.damage, **outcomes.damage}


def status_of(scene: DamagedScene, store: MemoryStore) -> tuple[dict[str, Any], dict[str, str]]:
    """What `status` shows of every batch, and what is damaged."""
    status = hook_status(StatusSources(store), scene.definition(), scene.folder, is_deep=True)
    facts: dict[str, Any] = {
        batch: (fact.is_there, sorted(fact.reasons()), status.counts.get(batch))
        for batch, fact in status.features.facts.items()
    }
    facts["release"] = status.is_registered
    return facts, {**status.damaged, **status.lost}


def _accept(trial: Trial) -> str:
    store = trial.store
    entries = accept.waiting(store)
    results = accept.accept_entries(store, entries)
    reasons = {
        entry.id: result.reason
        for entry, result in zip(entries, results, strict=True)
        if not isinstance(result, accept.Accepted)
    }
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, accept.Accepted):
            accept.remove(store, entry.id)
    text = "\n".join([*reasons, *reasons.values()])
    if reasons:
        return trial.named(text)
    # An entry that is gone has left no trace; what is damaged beside it, the readers name.
    values, damage = read_values(store)
    right = trial.matrix.accepted_values
    if trial.key.startswith(layout.INBOX):
        right = {b: v for b, v in right.items() if values.get(b) == v or b not in ("b2",)}
    trial.check_values(values, damage, right)
    return RIGHT


def _read(trial: Trial) -> str:
    values, damage = read_values(trial.store)
    return trial.check_values(values, damage, trial.matrix.values)


def _status(trial: Trial) -> str:
    facts, damage = status_of(trial.matrix.scene, trial.store)
    if "releases" in damage or any("release" in key for key in damage):
        facts["release"] = trial.matrix.status["release"]
    return trial.check_values(facts, damage, trial.matrix.status)


def _verify(trial: Trial) -> str:
    report = verify(trial.store)
    if report.is_clean:
        return RIGHT
    return trial.named("\n".join(f"{f.key} {f.detail}" for f in report.findings))


def _gc(trial: Trial) -> str:
    obstacles: list[str] = []
    for _ in range(2):
        report = collect_garbage(
            trial.store, GcScope.everything(), is_dry_run=False, new_orphans=1 << 20
        )
        obstacles += report.obstacles
    if obstacles:
        return trial.named("\n".join(obstacles))
    if trial.store.stat(layout.blob(Digest.of(b"orphan"))) is not None:
        raise Wrong("the orphan is left")
    return RIGHT


def _erase(trial: Trial) -> str:
    store, scene = trial.store, trial.matrix.scene
    report = erase(store, DATASET, [ERASABLE], "asked for")
    values, damage = read_values(store)
    right = {
        batch: [
            [row for row in rows if row["record_id"] != ERASABLE],
            *(row for row in outcomes if row["record_id"] != ERASABLE),
        ]
        for batch, (rows, *outcomes) in trial.matrix.values.items()
    }
    if report.is_finished:
        # What is damaged cannot be read as Parquet, and is another record's.
        readable = copied(store, MemoryStore)
        if trial.kind is not Kind.ERASED_BLOB:
            readable.delete(trial.key)
        left = [
            key
            for key in holds(readable, f"{scene.word} {ERASABLE}".encode())
            if not key.startswith(layout.LOGS)
        ]
        if left:
            raise Wrong(f"it says that it is finished, and the record is in {left}")
        trial.check_values(values, damage, right)
        return RIGHT
    trial.check_values(values, {**damage, "b1": trial.key}, right)
    return trial.named("\n".join([*report.problems, *report.obstacles]))


def _repair(trial: Trial) -> str:
    scene = trial.matrix.scene
    second = copied(scene.store)
    left = repair(trial.store, scene, second)
    if left:
        result = trial.named(
            "\n".join(f"{r.finding.key} {r.finding.detail}: {r.remedy}" for r in left)
        )
        hand_step(trial)
        return result
    stored = trial.store._objects.get(trial.key)
    needed = trial.matrix.needed.get(trial.key)
    if needed is not None and (stored is None or stored.data != needed):
        if trial.is_unseen:
            return LOST
        raise Wrong("nothing is left to repair, and the object is not as it was")
    values, damage = read_values(trial.store)
    if damage or values != trial.matrix.values:
        raise Wrong(f"nothing is left to repair, and {damage or values} is read")
    return RIGHT


def hand_step(trial: Trial) -> None:
    """Do what the remedy of `repair` says.

    Raises:
        Wrong: It did not help.
    """
    store, scene = trial.store, trial.matrix.scene
    match trial.kind:
        case Kind.ERASED_BLOB:
            finish_erasing(store, DATASET)
        case Kind.SUBMISSION | Kind.COMPLETION | Kind.QUARANTINED:
            # Discarded, and submitted or published again.
            store.delete(trial.key)
            store.create(trial.key, trial.matrix.needed[trial.key])
        case _:
            store.delete(trial.key)
    log.forget_read_entries()
    if left := repair(store, scene, copied(scene.store)):
        raise Wrong(f"{left[0].finding} is left")
    values, damage = read_values(store)
    if damage or values != trial.matrix.values:
        raise Wrong(f"{damage or values} is read")


def repair(store: MemoryStore, scene: DamagedScene, second: MemoryStore | None) -> list[Remainder]:
    """Repair as the command does; return what is left."""
    definition = scene.definition()
    release = ProjectRelease(
        definition.hook_release(scene.folder), definition.code_files(scene.folder)
    )
    sources = Sources(second=second, releases=(release,), derive=decode_batch_again)
    for _ in range(_ROUNDS):
        log.forget_read_entries()
        plan = plan_repair(store, verify(store, writes_census=False).findings, sources)
        if not plan.steps:
            return list(plan.remainders)
        if failed := carry_out(plan, lambda _: None):
            return failed
    raise Wrong(f"{_ROUNDS} rounds of repair did not end")


def _tables(trial: Trial) -> Tables:
    assert trial.matrix.tables is not None
    return trial.matrix.tables


def _plan(trial: Trial) -> str:
    tables = _tables(trial)
    plan = plan_table(trial.store, tables.database, tables.spec)
    problems = {**plan.damaged, **plan.lost}
    if problems or plan.violations or plan.blocked:
        lines = [f"batch {batch!r}: {why}" for batch, why in problems.items()]
        return trial.named("\n".join([*lines, *plan.violations, *plan.blocked]))
    if plan.batches:
        raise Wrong(f"it plans to load {plan.batches} batches")
    return RIGHT


def _loaded(trial: Trial) -> TableSpec:
    store = trial.matrix.scene.store
    assert isinstance(store, MemoryStore)
    return _tables(trial).loaded(store)


def _load(trial: Trial) -> str:
    spec = _loaded(trial)
    return _keeps_rows(
        trial, spec, lambda: load_batches(trial.store, _tables(trial).database, spec)
    )


def _rebuild(trial: Trial) -> str:
    database, spec = _tables(trial).database, _loaded(trial)

    def act() -> Iterator[object]:
        yield from fill(trial.store, database, begin_rebuild(trial.store, database, spec))

    return _keeps_rows(trial, spec, act)


def _keeps_rows(trial: Trial, spec: TableSpec, act: Callable[[], Iterator[object]]) -> str:
    """Readers of a loaded table see the same rows, whether or not the command fails."""
    result = RIGHT
    try:
        for _ in act():
            pass
    except FeaturePipelineError as error:
        result = trial.named(str(error))
    tables = _tables(trial)
    if (rows := tables.rows_of(spec)) != tables.rows:
        raise Wrong(f"the table has {rows}")
    return result


def _recover(trial: Trial) -> str:
    """Into empty databases: each batch is in the table, or named."""
    tables = _tables(trial)
    definition = trial.matrix.scene.definition(next(tables.names))
    texts: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        drift = recover_dagster(trial.store, "memory://", instance, [definition])
        for named in (*drift.damaged.values(), *drift.lost.values()):
            texts += [f"batch {batch!r}: {why}" for batch, why in named.items()]
        loads = recover_table(trial.store, instance, tables.database, definition)
        try:
            with closing(loads):
                for _ in loads:
                    pass
        except FeaturePipelineError as error:
            texts.append(str(error))
    rows = tables.rows_of(replace(SPEC, name=definition.table_name))
    if added := [row for row in rows if row not in tables.rows]:
        raise Wrong(f"the table has {added}")
    if not texts and len(rows) < len(tables.rows):
        raise Wrong(f"the table has {len(rows)} rows instead of {len(tables.rows)}")
    return trial.named("\n".join(texts)) if texts else RIGHT


_COMMANDS: Final[Mapping[Command, Callable[[Trial], str]]] = {
    Command.ACCEPT: _accept,
    Command.READ: _read,
    Command.STATUS: _status,
    Command.VERIFY: _verify,
    Command.GC: _gc,
    Command.ERASE: _erase,
    Command.REPAIR: _repair,
    Command.PLAN: _plan,
    Command.LOAD: _load,
    Command.REBUILD: _rebuild,
    Command.RECOVER: _recover,
}
_READERS: Final = frozenset({Command.READ, Command.STATUS, *ON_TABLES})


@contextmanager
def no_waiting() -> Iterator[None]:
    """A collection that waits for no week."""
    with patch.object(blobs, "GRACE", timedelta()):
        yield


def run_all(
    matrix: Matrix,
    kinds: list[Kind],
    commands: list[Command],
    chosen: Collection[Damage] = tuple(Damage),
) -> tuple[dict[tuple[Kind, Command], dict[Damage, str]], list[str]]:
    """Try everything; return the results, and what is wrong."""
    results: dict[tuple[Kind, Command], dict[Damage, str]] = defaultdict(dict)
    problems: list[str] = []
    for kind in kinds:
        for damage in damages(matrix.scene, matrix.other, kind):
            if damage not in chosen:
                continue
            for command in commands:
                try:
                    result = matrix.trial(kind, damage, command)
                    check_expected(kind, damage, command, result)
                except Wrong as error:
                    result = "WRONG"
                    problems.append(f"{kind}, {damage}, {command}: {error}")
                results[kind, command][damage] = result
    return results, problems


def check_expected(kind: Kind, damage: Damage, command: Command, result: str) -> None:
    """Check that a command is right wherever `NAMED_BY` says so.

    Raises:
        Wrong: It is not.
    """
    if result == NAMED and command not in NAMED_BY.get(kind, frozenset()):
        raise Wrong("it names the object, and should be right")
    if command is Command.VERIFY and result == RIGHT and kind in NAMED_BY:
        is_known = kind not in WAITING and kind is not Kind.CENSUS
        if is_known and kind not in (Kind.GC_MARK, Kind.GC_LEASE):
            raise Wrong("it does not see the damage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", action="append", choices=[k.value for k in Kind])
    parser.add_argument("--command", action="append", choices=[c.value for c in Command])
    given = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    kinds = [Kind(k) for k in given.kind or list(Kind)]
    commands = [Command(c) for c in given.command or list(Command)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="damage-")))
        stack.enter_context(no_waiting())
        has_tables = not set(commands).isdisjoint(ON_TABLES)
        url = stack.enter_context(forgetful_server()).create_database() if has_tables else None
        results, problems = run_all(Matrix.make(folder, url), kinds, commands)
    show(results, kinds, commands)
    for problem in problems:
        logger.error("PROBLEM %s", problem[:600])
    logger.info("%d trials, %d problems", sum(map(len, results.values())), len(problems))
    sys.exit(bool(problems))


def show(
    results: Mapping[tuple[Kind, Command], Mapping[Damage, str]],
    kinds: list[Kind],
    commands: list[Command],
) -> None:
    """Print a Markdown table: a line for each kind, a column for each command."""
    logger.info("| object | %s |", " | ".join(commands))
    logger.info("| --- |%s", " --- |" * len(commands))
    for kind in kinds:
        cells = [in_words(results[kind, command]) for command in commands]
        logger.info("| %s | %s |", kind, " | ".join(cells))


def in_words(results: Mapping[Damage, str]) -> str:
    """One word if every damage has the same result; otherwise the exceptions."""
    by_result: dict[str, list[Damage]] = defaultdict(list)
    for damage, result in results.items():
        by_result[result].append(damage)
    first, *rest = sorted(by_result, key=lambda result: -len(by_result[result]))
    return "; ".join([first, *(f"{', '.join(by_result[r])}: {r}" for r in rest)])


if __name__ == "__main__":
    main()
