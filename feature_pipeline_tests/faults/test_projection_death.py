"""A rebuild is killed at every step, or the server under it: readers notice nothing false."""

import signal
import threading
from multiprocessing import get_context
from typing import Any

import psycopg
import pytest

from feature_pipeline.errors import ProjectionError
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections import load
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.switch import finalize, switch
from feature_pipeline_tests.faults.projection_child import Step, connect, rebuild_until
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.own_postgres import own_server

pytestmark = [pytest.mark.postgres, pytest.mark.faults, pytest.mark.slow]

LABEL = Column(name="label", type="string")
COUNT = Column(name="count", type="integer")
NOTE = Column(name="note", type="string", default="none")
INDEX = IndexDefinition(columns=("label",))
BATCHES, ROWS = 3, 40

STEPS = [
    Step("load", "ensure_table", is_after=True),
    Step("load", "replace_batches", call=2),
    Step("rows.write", "write_progress", call=1),
    Step("rows.write", "write_progress", call=1, is_after=True),
    Step("load", "_flush"),
    Step("switch.finalize", "ensure_key"),
    Step("switch.finalize", "ensure_key", is_after=True),
    Step("switch.finalize", "follow_indexes", is_after=True),
    Step("switch.finalize", "prove_once", is_after=True),
    Step("switch.finalize", "wait_for_older_snapshots", is_after=True),
    Step("switch.switch", "_change_view"),
    Step("switch.switch", "_change_view", is_after=True),
    Step("switch.finalize", "drop_superseded"),
    Step("switch.finalize", "drop_generation"),
]


def fill_archive(archive: FeatureArchive) -> None:
    for number in range(BATCHES):
        rows = [{"label": f"l{row}", "count": row} for row in range(ROWS)]
        archive.add(f"b{number}", {f"r{number}": rows})


class Reader:
    """Selects in a loop; remembers whatever is not the whole table under one of its definitions."""

    def __init__(self, url: str, *, may_lose_server: bool = False) -> None:
        self.problems: list[object] = []
        self.reads = 0
        self._url, self._may_lose_server = url, may_lose_server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except psycopg.OperationalError as error:
                if not self._may_lose_server:
                    self.problems.append(error)
                    return
                self._stop.wait(0.02)

    def _read(self) -> None:
        # No prepared `select *`: PostgreSQL refuses it when any process changes columns.
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=None) as connection:
            while not self._stop.is_set():
                cursor = connection.execute("select * from features.pockets")
                rows, names = (
                    cursor.fetchall(),
                    [column.name for column in cursor.description or ()],
                )
                self.reads += 1
                self._stop.wait(0.005)  # leaves the cores to what it watches
                is_known = names[3:] in (["label", "count"], ["label", "count", "note"], ["label"])
                if len(rows) != BATCHES * ROWS or not is_known:
                    self.problems.append((len(rows), names))


def run_child(*arguments: Any) -> int | None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["feature_pipeline_tests.faults.projection_child"])
    process = context.Process(target=rebuild_until, args=arguments)
    process.start()
    process.join(60)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    return code


@pytest.mark.s3
def test_a_killed_rebuild_is_finished_by_the_next_run(
    s3_address: S3Address, s3_prefix: str, database_url: str
) -> None:
    store = connect(s3_address, s3_prefix)
    archive, database = FeatureArchive((LABEL, COUNT), store), Database(database_url)
    fill_archive(archive)
    list(load_batches(store, database, archive.spec()))
    definitions: list[TableSpec] = []
    for _ in range(len(STEPS) // 3 + 1):
        for columns in ((LABEL, COUNT, NOTE), (LABEL,), (LABEL, COUNT)):
            number = len(definitions)
            archive.columns = columns
            definitions.append(archive.spec(indexes=(INDEX,), description=f"Number {number}."))
    with Reader(database_url) as reader:
        for step, spec in zip(STEPS, definitions, strict=False):
            code = run_child(s3_address, s3_prefix, database_url, spec, step)
            assert code == -signal.SIGKILL, f"{step} was never reached"
            assert reader.problems == [], step

            list(load_batches(store, database, spec))

            assert prove(store, database, spec).is_equal, step
            with database.connect("test") as connection:
                names = connection.execute("select * from features.pockets limit 0").description
            assert [c.name for c in names or ()][3:] == [c.name for c in spec.columns], step
    assert reader.problems == []
    assert reader.reads > len(STEPS)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (load, "replace_batches"),
        (finalize, "prove_once"),
        (switch, "_change_view"),
        (finalize, "drop_superseded"),
    ],
)
def test_a_killed_server_takes_nothing_false_back_up(
    module: Any, function: str, monkeypatch: pytest.MonkeyPatch, archive_of_three: FeatureArchive
) -> None:
    archive = archive_of_three
    with own_server() as server:
        database = Database(server.server.url("tables"))
        list(load_batches(archive.store, database, archive.spec()))
        archive.columns = (LABEL, COUNT, NOTE)
        spec = archive.spec(indexes=(INDEX,))
        original = getattr(module, function)

        def fatal(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(module, function, original)
            done = original(*args, **kwargs)
            server.kill()
            return done

        monkeypatch.setattr(module, function, fatal)
        with Reader(database.url, may_lose_server=True) as reader:
            with pytest.raises(ProjectionError):
                list(load_batches(archive.store, database, spec))
            server.start()
            list(load_batches(archive.store, database, spec))

        assert reader.problems == []
        assert prove(archive.store, database, spec).is_equal
        with database.connect("test") as connection:
            names = connection.execute("select * from features.pockets limit 0").description
        assert [c.name for c in names or ()][3:] == ["label", "count", "note"]


@pytest.fixture
def archive_of_three() -> FeatureArchive:
    archive = FeatureArchive((LABEL, COUNT))
    fill_archive(archive)
    return archive
