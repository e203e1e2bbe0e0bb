"""The recorded server's tables, restored out of the archive."""

import json
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from psycopg import sql

from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli.commands.other_systems import osa as command
from feature_pipeline.definitions import build_defs
from feature_pipeline.errors import ConflictError, InvalidInputError, NotFoundError
from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline.osa.definitions import followed_hooks, write_definitions
from feature_pipeline.osa.history.importer import Importer
from feature_pipeline.osa.restore import tables as module
from feature_pipeline.osa.restore.extra_rows import OnlyThere
from feature_pipeline.osa.restore.result import Restored, State
from feature_pipeline.osa.restore.tables import drop_replaced, restore_tables
from feature_pipeline.osa.server.database import Server
from feature_pipeline.osa.settings import (
    DATABASE_URL,
    RESTORE_DATABASE_URL,
    OsaSettings,
    component_text,
)
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.osa_server import Beside, write_storage
from feature_pipeline_tests.fixtures.osa_server.reads import answers, record_page, tables, write
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

pytestmark = pytest.mark.postgres

HOOKS = ["alignment", "pockets", "qc"]
QC_RUN = "a1c638f4-f711-594c-a454-516f556a435c"


def definitions_of(beside: Beside) -> dict[tuple[str, str], Any]:
    with Server(Database(beside.url)).session() as reader:
        followed = followed_hooks(reader.definitions(), beside.settings)
    return {(f.definition.dataset, f.definition.name): f.definition for f in followed}


class Archived(Beside):
    """A database of the recorded server beside an archive of its completed outputs."""

    definitions: dict[tuple[str, str], Any]

    def restore(self, *hooks: str, **options: Any) -> dict[str, Restored]:
        server = Server(Database(self.url))
        restored = restore_tables(
            self.store, server, self.settings, self.definitions, hooks, **options
        )
        return {each.hook: each for each in restored}

    def whole(self, name: str) -> list[tuple[Any, ...]]:
        query = "select f::text from {} as f order by id"
        return self.query(sql.SQL(query).format(sql.Identifier("features", name)))

    def tables(self) -> list[tuple[str, str, list[str]]]:
        with psycopg.connect(self.url) as connection:
            return tables(connection)

    def query(self, statement: Any, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement, parameters).fetchall()


@pytest.fixture(scope="module")
def taken(
    postgres_server: PostgresAddress, osa_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beside]:
    """An archive that no test changes."""
    url = postgres_server.create_database(osa_template)
    folder = tmp_path_factory.mktemp("osa_data")
    write_storage(folder)
    beside = Beside(url, folder)
    beside.follow()
    beside.accept_all()
    yield beside
    postgres_server.drop_database(url)


@pytest.fixture
def archived(taken: Beside, osa_url: str) -> Archived:
    beside = Archived(osa_url, taken.folder)
    beside.store = taken.store
    beside.definitions = definitions_of(beside)
    return beside


@pytest.fixture
def imported(taken: Beside, osa_url: str) -> Archived:
    """The same with every row of the server's tables as history, and no output."""
    beside = Archived(osa_url, taken.folder)
    beside.definitions = definitions_of(beside)
    server = Server(Database(osa_url))
    arguments = beside.store, server, None, beside.settings, beside.definitions
    assert Importer(*arguments).run().is_complete
    return beside


def copied(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    for info in list(store.list_objects("")):
        copy.create(info.key, store.get(info.key).data)
    return copy


def shape(beside: Archived) -> list[tuple[Any, ...]]:
    """Everything that the catalog of PostgreSQL says of the catalogued tables."""
    names = []
    for _, table, _ in beside.tables():
        names += beside.query(
            "select table_name, column_name, data_type, is_nullable, column_default"
            " from information_schema.columns where table_schema = 'features' and table_name = %s",
            table,
        )
        names += beside.query(
            "select conname, pg_get_constraintdef(oid), convalidated from pg_constraint"
            " where conrelid = %s::regclass and contype <> 'n'",
            f"features.{table}",
        )
        names += beside.query(
            "select indexname, indexdef from pg_indexes where schemaname = 'features'"
            " and tablename = %s",
            table,
        )
    return sorted(names)


def test_lost_tables_come_back(archived: Archived) -> None:
    before = shape(archived)
    archived.sql("drop schema features cascade")
    restored = archived.restore()
    assert [restored[hook].state for hook in HOOKS] == [State.RESTORED] * 3
    assert shape(archived) == before
    kinds = {
        name: {kind.name for kind in each.differences} for name, each in archived.compare().items()
    }
    # what `compare` names before the loss as differing is the archive's now, and the rest stays
    assert all(each.is_equal for each in archived.compare().values())
    assert kinds == {
        "pdb_structures/pockets": {"ERRORED_HERE", "NO_RECORD", "OTHER_BATCH"},
        "pdb_structures/qc": {"NO_RECORD", "OTHER_BATCH"},
        "protein_designs/qc": set(),
        "protein_designs/alignment": set(),
    }
    assert restored["qc"].left_out.number == 7
    assert "1aa04" in " ".join(restored["qc"].left_out.examples)


def test_a_second_run_changes_nothing(archived: Archived) -> None:
    archived.sql("drop schema features cascade")
    archived.restore()
    before = archived.query("select xmin::text, ctid::text, id from features.qc order by id")
    again = archived.restore()
    assert [each.state for each in again.values()] == [State.EQUAL] * 3
    assert again["qc"].lines()[0] == (
        'features."qc" already equals the archive: 57 rows; nothing was changed'
    )
    assert (
        archived.query("select xmin::text, ctid::text, id from features.qc order by id") == before
    )
    assert not archived.query("select from pg_class where relname ~ 'restoring|replaced'")


def test_values_are_those_that_the_server_wrote(archived: Archived) -> None:
    """Text of arrays and objects, JSON null and NULL, NaN: of every record that was equal."""
    archived.sql("alter table features.pockets rename to recorded")
    archived.sql("alter index features.pockets_pkey rename to recorded_pkey")
    archived.sql("alter sequence features.pockets_id_seq rename to recorded_id_seq")
    archived.sql("alter index features.ix_features_pockets_record_srn rename to a")
    archived.sql("alter index features.ix_features_pockets_run_id rename to b")
    archived.restore("pockets")
    columns = "record_srn, run_id, pocket_id, score, volume, rank, center, residues"
    assert archived.query(
        f"select count(*) from (select {columns} from features.recorded"
        f" intersect all select {columns} from features.pockets) as equal"
    ) == [(91,)]
    nulls = "select count(*) from features.{} where residues = 'null'"
    assert archived.query(nulls.format("pockets")) == archived.query(nulls.format("recorded"))


def test_readers_get_the_same_answers_after_a_loss(imported: Archived) -> None:
    """Ids and times included, because history has them."""
    before = answers(imported.url)
    recorded = {hook: imported.whole(hook) for hook in HOOKS}
    imported.sql("drop schema features cascade")
    restored = imported.restore()
    for hook in HOOKS:
        assert imported.whole(hook) == recorded[hook]
    after = answers(imported.url)
    assert after == before
    assert len(before) > 300
    assert restored["qc"].new_ids == 0


def test_ids_stay_when_the_outputs_of_imported_rows_are_found(imported: Archived) -> None:
    """The outputs take the rows' place; records with as many rows keep their ids and times."""
    imported.restore()
    query = "select id, record_srn, created_at from features.{} order by id"
    before = {hook: imported.query(query.format(hook)) for hook in HOOKS}
    imported.follow()
    imported.accept_all()
    imported.sql("drop schema features cascade")
    imported.restore()
    for hook in HOOKS:
        after = set(imported.query(query.format(hook)))
        assert set(before[hook]) <= after
    kinds = {kind.name for each in imported.compare().values() for kind in each.differences}
    assert kinds == {"ERRORED_HERE", "NO_RECORD", "OTHER_BATCH"}


def test_ids_of_archived_outputs_are_those_that_an_import_kept(
    taken: Beside, archived: Archived
) -> None:
    archived.store = copied(taken.store)
    server = Server(Database(archived.url))
    arguments = archived.store, server, archived.storage, archived.settings, archived.definitions
    assert Importer(*arguments, keeps_ids=True).run().is_complete
    query = "select id, record_srn, created_at from features.qc order by id"
    before = archived.query(query)
    archived.sql("drop schema features cascade")
    assert archived.restore("qc")["qc"].new_ids == 9
    after = archived.query(query)
    assert set(before) <= set(after)
    assert len(after) == len(before) + 9


def test_the_server_goes_on_writing(imported: Archived) -> None:
    imported.sql("drop schema features cascade")
    imported.restore()
    query = "select min(record_srn), max(id) from features.qc where run_id = %s"
    ((srn, _),) = imported.query(query, QC_RUN)
    (last,) = imported.query("select max(id) from features.qc")
    rows = [{"resolution": 1.5, "passed": True, "atoms": 3}, {"resolution": 1.6, "passed": False}]
    ids = write(imported.url, "qc", srn, QC_RUN, rows)
    assert ids == [last[0] + 1, last[0] + 2]
    # the cascade is the operator's way of deleting a record
    imported.sql("delete from records where srn = %s", srn)
    assert imported.query("select from features.qc where record_srn = %s", srn) == []


def test_ids_begin_after_the_largest_that_history_knows(imported: Archived) -> None:
    """Although the row that had it is of a record that is gone."""
    imported.sql("delete from records where srn = (select record_srn from features.qc where id=49)")
    imported.sql("drop table features.qc")
    imported.restore("qc")
    assert imported.query("select max(id) from features.qc") == [(48,)]
    assert imported.query("select nextval('features.qc_id_seq')") == [(50,)]


def test_ids_of_the_present_table_are_kept(archived: Archived) -> None:
    """A cursor of a client stays valid where the record has as many rows as before."""
    before = dict(archived.query("select id, record_srn from features.qc"))
    times = dict(archived.query("select id, created_at from features.qc"))
    qc = archived.restore("qc")["qc"]
    after = dict(archived.query("select id, record_srn from features.qc"))
    assert before.items() <= after.items()
    assert times.items() <= dict(archived.query("select id, created_at from features.qc")).items()
    assert qc.new_ids == len(after) - len(before) == 9
    assert min(after.keys() - before.keys()) > max(before)
    finished = archived.query(
        "select bool_and(f.created_at = h.finished_at) from features.qc as f"
        " join hook_runs as h on h.id = f.run_id where f.id > %s",
        max(before),
    )
    assert finished == [(True,)]


def test_the_old_table_stays_until_it_is_dropped(archived: Archived) -> None:
    before = archived.whole("qc")
    qc = archived.restore("qc")["qc"]
    assert qc.replaced == "qc-replaced"
    assert archived.whole("qc-replaced") == before
    archived.sql("update features.qc set resolution = 9 where id = 1")
    assert archived.restore("qc")["qc"].replaced == "qc-replaced-2"
    assert [table for _, table, _ in archived.tables()] == ["alignment", "pockets", "qc"]
    server = Server(Database(archived.url))
    assert drop_replaced(server, archived.settings, ["qc"]) == [
        'features."qc-replaced"',
        'features."qc-replaced-2"',
    ]
    assert drop_replaced(server, archived.settings, ["qc"]) == []
    assert not archived.query("select from pg_class where relname ~ 'replaced'")


def test_a_dry_run_changes_nothing(archived: Archived) -> None:
    archived.sql("update features.qc set resolution = 9 where id = 1")
    before = archived.whole("qc")
    restored = archived.restore(is_dry_run=True)
    assert {each.state for each in restored.values()} == {State.DIFFERS}
    assert restored["qc"].differing.number == 11
    assert archived.whole("qc") == before
    assert not archived.query("select from pg_class where relname ~ 'restoring|replaced'")


def test_lost_hook_runs_and_releases_come_back_first(archived: Archived) -> None:
    runs = archived.query("select id, release_id, status, started_at, oom_retries from hook_runs")
    releases = archived.query(
        "select id, hook_name, version, digest, config, limits, source_ref from hook_releases"
    )
    archived.sql("drop schema features cascade")
    archived.sql("update hooks set live_release_id = null")
    archived.sql("delete from hook_runs")
    archived.sql("delete from hook_releases")
    restored = archived.restore()
    assert sum(each.runs_added for each in restored.values()) == 18
    assert sum(each.releases_added for each in restored.values()) == 4
    assert set(
        archived.query("select id, release_id, status, started_at, oom_retries from hook_runs")
    ) <= set(runs)
    assert sorted(
        map(
            str,
            archived.query(
                "select id, hook_name, version, digest, config, limits, source_ref"
                " from hook_releases"
            ),
        )
    ) == sorted(map(str, releases))
    assert {each.state for each in archived.restore().values()} == {State.EQUAL}


def test_a_missing_row_of_the_catalogue_comes_back(archived: Archived) -> None:
    archived.restore()
    before = archived.query(
        "select hook_name, pg_table, feature_schema::jsonb, schema_version from feature_tables"
        " order by 1"
    )
    archived.sql("delete from feature_tables where hook_name = 'qc'")
    qc = archived.restore("qc")["qc"]
    assert qc.reasons == ["public.feature_tables does not name it"]
    assert qc.state is State.RESTORED
    after = archived.query(
        "select hook_name, pg_table, feature_schema::jsonb, schema_version from feature_tables"
        " order by 1"
    )
    assert after == before


def test_rows_of_deleted_records_are_left_out(archived: Archived) -> None:
    archived.restore()
    (srn,) = archived.query("select min(record_srn) from features.qc where run_id = %s", QC_RUN)[0]
    archived.sql("delete from records where srn = %s", srn)
    again = archived.restore()
    assert {each.state for each in again.values()} == {State.EQUAL}
    archived.sql("drop schema features cascade")
    assert archived.restore("qc")["qc"].left_out.number == 8


@pytest.mark.parametrize(
    ("choice", "number"), [(OnlyThere.KEEP, 58), (OnlyThere.DROP, 57)], ids=["keep", "drop"]
)
def test_rows_that_the_archive_does_not_have(
    archived: Archived, choice: OnlyThere, number: int
) -> None:
    run = "11111111-1111-4111-8111-111111111111"
    archived.commit_hook_run(run, "2a4de42b-335f-481b-ab92-5d97437fd0a6")
    ((srn,),) = archived.query(
        "insert into records select 'urn:osa:archive.example.org:rec:new@1', convention_id,"
        " schema_id, schema_version, jsonb_set(source, '{id}', '\"x:y\"'), metadata, published_at"
        " from records where source ->> 'type' = 'ingest' limit 1 returning srn"
    )
    (number_there,) = write(archived.url, "qc", srn, run, [{"passed": True, "notes": "new"}])
    before = archived.whole("qc")
    with pytest.raises(ConflictError, match=rf"1 row of hook run {run}, such as those of {srn}"):
        archived.restore("qc")
    assert archived.whole("qc") == before
    qc = archived.restore("qc", only_there=choice)["qc"]
    assert qc.only_there.number == 1
    kept = archived.query("select id, notes from features.qc where record_srn = %s", srn)
    assert kept == ([(number_there, "new")] if choice is OnlyThere.KEEP else [])
    assert len(archived.whole("qc")) == number


def test_a_record_that_the_server_wrote_again_is_not_replaced_by_older_rows(
    archived: Archived,
) -> None:
    """Its hook run is not in the archive yet, although the record is."""
    run = "11111111-1111-4111-8111-111111111111"
    archived.commit_hook_run(run, "2a4de42b-335f-481b-ab92-5d97437fd0a6")
    ((srn,),) = archived.query("select min(record_srn) from features.qc where id = 1")
    write(archived.url, "qc", srn, run, [{"passed": False, "notes": "later"}])
    with pytest.raises(ConflictError, match=f"{srn} .hook run {run}."):
        archived.restore("qc")
    archived.restore("qc", only_there=OnlyThere.KEEP)
    query = "select run_id::text, notes from features.qc where record_srn = %s"
    assert archived.query(query, srn) == [(run, "later")]


def test_rows_that_the_server_writes_meanwhile_are_carried(
    archived: Archived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a record that was filled already, and of a new one; none has an id of another row."""
    ((known,),) = archived.query("select record_srn from features.qc where id = 1")
    complete = module._complete

    def writing(*args: Any, **kwargs: Any) -> None:
        write(archived.url, "qc", known, QC_RUN, [{"passed": True, "notes": f"{n}"} for n in "ab"])
        complete(*args, **kwargs)

    monkeypatch.setattr(module, "_complete", writing)
    qc = archived.restore("qc")["qc"]
    assert qc.carried == 2
    query = "select notes from features.qc where record_srn = %s order by id"
    assert archived.query(query, known) == [("a",), ("b",)]
    ((ids, rows),) = archived.query("select count(distinct id), count(*) from features.qc")
    assert ids == rows == 58
    assert archived.query("select max(id) < nextval('features.qc_id_seq') from features.qc") == [
        (True,)
    ]


def test_readers_see_the_old_table_or_the_new_one(archived: Archived) -> None:
    """A reader in a loop over the switch never misses a table."""
    srn = archived.query("select record_srn from features.qc where id = 1")[0][0]
    stop, problems, seen = threading.Event(), list[Any](), set[int]()

    def read() -> None:
        try:
            with psycopg.connect(archived.url, autocommit=True) as connection:
                while not stop.is_set():
                    assert len(record_page(connection, srn)) == 2
                    counts = connection.execute("select count(*) from features.qc").fetchone()
                    seen.add(counts[0] if counts else -1)
        except (AssertionError, psycopg.Error) as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    try:
        for number in range(3):
            archived.restore("qc")
            archived.sql("delete from features.qc where id = %s", number + 40)
    finally:
        stop.set()
        for each in readers:
            each.join()
    assert not problems
    assert seen <= {48, 57, 56}
    assert 57 in seen


def test_the_owner_and_grants_of_the_table_stay(archived: Archived) -> None:
    owner, restorer, reader = (f"{name}_{secrets.token_hex(4)}" for name in ("own", "re", "rd"))
    admin = archived.url

    def as_role(role: str) -> str:
        parameters = psycopg.conninfo.conninfo_to_dict(admin) | {"user": role, "password": "x"}
        return psycopg.conninfo.make_conninfo(**parameters)

    with psycopg.connect(admin, autocommit=True) as connection:

        def run(text: str) -> None:
            connection.execute(text)  # type: ignore[arg-type]

        roles = [owner, restorer, reader]
        for role in roles:
            run(f"create role {role} login password 'x'")
            run(f"grant {role} to current_user")
        try:
            names = connection.execute(
                "select format('%I.%I', schemaname, tablename) from pg_tables"
                " where schemaname in ('public', 'features')"
            ).fetchall()
            run(f"grant create, usage on schema public, features to {owner}")
            run(f"alter schema features owner to {owner}")
            for (name,) in names:
                run(f"alter table {name} owner to {owner}")
            run(f"grant usage on schema features to {reader}")
            run(f"grant select on features.qc to {reader}")
            archived.url = as_role(restorer)
            with pytest.raises(InvalidInputError, match=f'grant "{owner}" to "{restorer}"'):
                archived.restore("qc")
            documented = (Path(__file__).parents[2] / "docs" / "osa.md").read_text()
            (grant,) = re.findall(r"^(grant .* to restorer);$", documented, re.MULTILINE)
            run(grant.replace("osa", owner).replace("restorer", restorer))
            archived.restore()
            archived.url = as_role(reader)
            assert len(archived.query("select from features.qc")) == 57
            run(f"grant select on all tables in schema public, features to {reader}")
            dry = archived.restore("qc", is_dry_run=True)["qc"]
            assert (dry.state, dry.reasons) == (State.EQUAL, [])
            archived.url = as_role(owner)
            ((srn,),) = archived.query("select min(record_srn) from features.qc")
            write(archived.url, "qc", srn, QC_RUN, [{"passed": True}])
            owners = archived.query(
                "select distinct pg_get_userbyid(relowner) from pg_class as c join pg_namespace"
                " as n on n.oid = c.relnamespace where n.nspname = 'features'"
            )
            assert owners == [(owner,)]
            # without the schema
            run("drop schema features cascade")
            archived.url = as_role(restorer)
            with pytest.raises(
                InvalidInputError, match=f'create schema features authorization "{owner}'
            ):
                archived.restore("qc")
            run(f'create schema features authorization "{owner}"')
            run(f"revoke create on schema features from {owner}")
            with pytest.raises(InvalidInputError, match="grant create, usage on schema"):
                archived.restore("qc")
            run(f"grant create on schema features to {owner}")
            assert archived.restore("qc")["qc"].state is State.RESTORED
        finally:
            archived.url = admin
            run(f"drop owned by {', '.join(roles)} cascade")
            run(f"drop role {', '.join(roles)}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            "create view v as select * from features.qc",
            "the old table: view features.v. Drop",
        ),
        (
            "create table t (id bigint references features.qc)",
            "table features.t by its foreign key t_id_fkey",
        ),
        (
            "create function f() returns trigger language plpgsql as 'begin return new; end';"
            " create trigger audit before insert on features.qc for each row execute function f()",
            "trigger audit",
        ),
    ],
    ids=["view", "foreign key", "trigger"],
)
def test_what_is_built_upon_a_table_is_named(archived: Archived, change: str, problem: str) -> None:
    archived.sql(change)
    with pytest.raises(ConflictError, match=problem):
        archived.restore("qc")


def test_a_name_that_another_table_has_is_named(archived: Archived) -> None:
    """As after a table was renamed by hand."""
    archived.sql("alter table features.qc rename to qc_old")
    with pytest.raises(ConflictError, match=r'record_srn, a name .* is of features."qc_old"'):
        archived.restore("qc")
    assert not archived.query("select from pg_class where relname ~ 'restoring'")


def test_a_hook_that_cannot_be_restored_is_named(archived: Archived) -> None:
    with pytest.raises(NotFoundError, match="no followed convention of the server names a hook"):
        archived.restore("volumes")
    definition = archived.definitions.pop(("protein_designs", "qc"))
    with pytest.raises(NotFoundError, match="'protein-designs' has no definition of it in"):
        archived.restore("qc")
    columns = [c for c in definition.feature.columns if c.name != "atoms"]
    feature = definition.feature.model_copy(update={"columns": tuple(columns)})
    changed = definition.model_copy(update={"feature": feature})
    archived.definitions["protein_designs", "qc"] = changed
    with pytest.raises(InvalidInputError, match="does not declare column 'atoms'"):
        archived.restore("qc")


def test_a_table_of_another_shape_is_replaced(archived: Archived) -> None:
    archived.restore("qc")
    before = shape(archived)
    archived.sql("alter table features.qc drop constraint qc_record_srn_fkey")
    archived.sql("drop index features.ix_features_qc_run_id")
    archived.sql("alter table features.qc alter column passed drop not null")
    qc = archived.restore("qc")["qc"]
    assert qc.reasons == [
        "column 'passed' is boolean, and should be boolean not null",
        "it has no foreign key to public.records that cascades",
        "it has no index ix_features_qc_run_id",
    ]
    assert shape(archived) == before


def test_the_command_and_the_asset_restore_tables(
    archived: Archived,
    tmp_path: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defs = tmp_path / "defs"
    defs.mkdir()
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(defs))
    monkeypatch.setenv(DATABASE_URL, "postgresql://reader@127.0.0.1:1/closed")
    monkeypatch.setenv(RESTORE_DATABASE_URL, archived.url)
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "archive")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_archive", lambda: archived.store)
    monkeypatch.setattr(ArchiveResource, "store", lambda _: archived.store)
    with Server(Database(archived.url)).session() as reader:
        followed = followed_hooks(reader.definitions(), archived.settings)
    settings = OsaSettings(restore_tables=True)
    write_definitions(followed, defs, settings)
    assert "name the hooks whose tables are restored" in command_line.refused("osa", "restore")
    status, out, _ = command_line("osa", "restore", "qc", "--dry-run")
    assert (status, out.splitlines()[0]) == (2, 'features."qc" would be restored: 57 rows')
    status, out, _ = command_line("osa", "restore", "qc", "--json")
    (table,) = json.loads(out)["tables"]
    assert (status, table["state"], table["replaced"]) == (0, "restored", 'features."qc-replaced"')
    status, out, _ = command_line("osa", "restore", "--drop-old", "--all")
    assert (status, out) == (0, 'dropped features."qc-replaced"\n')

    text = component_text("osa").replace("# restore_tables", "restore_tables")
    (defs / "osa" / "defs.yaml").write_text(text)
    repository = build_defs().get_repository_def()
    graph = repository.asset_graph
    tables = sorted(key.path[2] for key in graph.get_all_asset_keys() if key.path[1] == "features"
                    and key.path[0] == "osa")  # fmt: skip
    assert tables == HOOKS
    key = dg.AssetKey(["osa", "features", "qc"])
    assert {each.to_user_string() for each in graph.get(key).parent_keys} == {
        "pdb_structures/features/qc",
        "protein_designs/features/qc",
    }
    archived.sql("drop table features.qc")
    # as in a run's worker; a job that is run in process has none
    monkeypatch.setattr(InMemoryJob, "get_repository_definition", lambda _: repository)
    job = repository.get_implicit_job_def_for_assets([key])
    assert job is not None
    (event,) = job.execute_in_process(asset_selection=[key]).get_asset_materialization_events()
    assert event.materialization.metadata["state"].value == "restored"
    assert len(archived.whole("qc")) == 57
