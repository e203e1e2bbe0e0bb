"""`plan`, `rebuild` and `rollback` as people call them, over a real archive and database."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from feature_pipeline.archive.format import layout
from feature_pipeline.cli import output, project_hooks
from feature_pipeline.cli.app import main
from feature_pipeline.cli.commands.tables import plan, rebuild, retire, rollback
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

pytestmark = pytest.mark.postgres

LABEL = {"name": "label", "type": "string"}
NOTE = {"name": "note", "type": "string", "default": "none"}


class Project:
    """One hook whose columns change, an archive of two batches, and the command line."""

    def __init__(
        self, patch: pytest.MonkeyPatch, url: str, capture: pytest.CaptureFixture[str]
    ) -> None:
        self._capture, self._text = capture, io.StringIO()
        # In place of copies of this process's own descriptors, which the command never closes.
        patch.setattr(output, "_console", lambda _: Console(file=self._text, width=400))
        self.define(LABEL)
        self.archive = FeatureArchive(self.definition.feature.columns)
        for number in range(2):
            self.archive.add(f"b{number}", {f"r{number}": [{"label": f"l{number}"}]})
        self.database = Database(url)
        patch.setenv("FEATURE_PIPELINE_DATABASE_URL", url)
        patch.setenv("DAGSTER_HOME", "")
        self.others: list[HookDefinition] = []
        self.wrong: dict[str, str] = {}
        patch.setattr(
            project_hooks,
            "project_hooks",
            lambda: project_hooks.ProjectHooks(
                [SimpleNamespace(definition=d) for d in (self.definition, *self.others)],
                self.wrong,
            ),
        )
        for module in (plan, rebuild, rollback):
            patch.setattr(module, "open_archive", lambda **_: self.archive.store)
        for module in (plan, rebuild, retire):
            patch.setattr(module, "project_hooks", project_hooks.project_hooks)

    def define(self, *columns: dict) -> None:
        self.definition = HookDefinition.model_validate(
            {
                "name": "pockets",
                "dataset": "demo",
                "release": {"version": "1", "command": ["python", "p.py"], "code": ["p.py"]},
                "feature": {"columns": columns},
            }
        )

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit status and standard output, with the error if there was one."""
        self._text.truncate(0)
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        printed = self._capture.readouterr()
        shown = printed.out + (printed.err if ended.value.code else "")
        return ended.value.code, shown + self._text.getvalue()

    def json(self, *arguments: str) -> dict:
        status, text = self.call(*arguments, "--json")
        assert status == 0, text
        return json.loads(text)

    def columns(self) -> list[str]:
        with self.database.connect("test") as connection:
            cursor = connection.execute("select * from features.pockets")
            return [column.name for column in cursor.description or ()][3:]


@pytest.fixture
def project(
    monkeypatch: pytest.MonkeyPatch, database_url: str, capsys: pytest.CaptureFixture[str]
) -> Project:
    return Project(monkeypatch, database_url, capsys)


def test_plan_rebuild_and_rollback(project: Project) -> None:
    assert project.json("plan", "pockets")["action"] == "create"
    built = project.json("rebuild", "--workers", "2")
    assert [(table["table"], table["batches"], table["rows"]) for table in built["tables"]] == [
        ("pockets", 2, 2)
    ]
    assert project.json("plan", "pockets")["action"] == "nothing"

    project.define(LABEL, NOTE)
    shown = project.json("plan", "pockets")
    assert (shown["action"], shown["added"], shown["rows"]) == ("build", ["note"], 2)
    project.json("rebuild", "pockets")
    assert project.columns() == ["label", "note"]

    assert project.json("rollback", "pockets")["behind"] == []
    assert project.columns() == ["label"]
    assert project.json("rollback", "pockets", "--unpin")["building"] is None
    assert project.columns() == ["label", "note"]


def test_a_plan_that_would_be_refused_exits_with_2(project: Project) -> None:
    project.define({"name": "label", "type": "integer"})
    status, text = project.call("plan", "pockets")
    assert status == 2
    assert "refused: batch b0: column 'label': was string, is now integer" in text


def test_a_plan_without_a_damaged_batch_exits_with_2(project: Project) -> None:
    key = layout.blob(project.archive.heads()["b0"].manifest)
    project.archive.store.delete(key)
    status, text = project.call("plan", "pockets", "--json")
    assert status == 2
    document, end = json.JSONDecoder().raw_decode(text)
    assert (list(document["damaged"]), document["lost"], document["batches"]) == (["b0"], {}, 1)
    assert "1 damaged, and not in the plan:" in text[end:]
    assert key in text[end:]
    assert "`feature-pipeline repair`" in text[end:]


def test_a_batch_is_written_again_and_the_past_is_a_table_of_its_own(project: Project) -> None:
    project.json("rebuild")
    with project.database.connect("test") as connection:
        connection.execute("update features.pockets set label = 'wrong'")
    done = project.json("rebuild", "pockets", "--batch", "b0", "--batch", "b1")
    assert done["tables"][0]["rows"] == 2
    assert prove(project.archive.store, project.database, project.archive.spec()).is_equal

    now = datetime.now(UTC).isoformat()
    past = project.json("rebuild", "pockets", "--as-of", now)["tables"][0]
    assert past["table"].startswith("pockets_as_of_")
    assert past["rows"] == 2
    assert project.call("rebuild", "--batch", "b0")[0] == 1


def test_two_instants_of_one_second_are_two_tables_which_are_listed_and_dropped(
    project: Project,
) -> None:
    """The name was of whole seconds: the second table replaced the first, or failed."""
    first = project.archive.heads()["b0"].accepted_at
    newer = project.archive.say("b0", {"r0": [{"label": "newer"}]})
    between = newer.accepted_at - timedelta(microseconds=1)
    assert first <= between
    project.json("rebuild")

    past, later = (
        project.json("rebuild", "pockets", "--as-of", time.isoformat())["tables"][0]["table"]
        for time in (between, newer.accepted_at)
    )

    assert past != later
    for table, label in ((past, "l0"), (later, "newer")):
        query = f"select label from {table} where record_id = 'r0'"
        assert project.json("sql", query)["rows"] == [[label]]
    assert project.json("plan", "pockets")["undeclared"] == []
    listed = project.json("retire")["tables"]
    assert {(each["table"], each["rows"], each["as_of"]) for each in listed} == {
        (past, 2, between.isoformat().replace("+00:00", "Z")),
        (later, 2, newer.accepted_at.isoformat().replace("+00:00", "Z")),
    }
    assert project.json("retire", past)["tables"][0]["is_dropped"] is False
    assert f"{past}: demo/features/pockets as of" in project.call("retire", past, "--yes")[1]
    assert [each["table"] for each in project.json("retire")["tables"]] == [later]
    assert project.call("sql", f"select from {past}")[0] == 1
    assert project.columns() == ["label"]


@pytest.mark.parametrize(
    ("time", "why"),
    [
        ("yesterday", "that is not a time"),
        ("2026-01-01T00:00:00", "a time without a UTC offset is ambiguous"),
        ("2026-01-01", "without a UTC offset"),
        ("2026-01-01T00:00:00.1234567Z", "a time has at most microseconds"),
        ("2100-01-01T00:00:00Z", "that is in the future"),
    ],
)
def test_a_time_that_names_no_past_instant_is_refused(
    project: Project, time: str, why: str
) -> None:
    status, text = project.call("rebuild", "--as-of", time)
    assert (status, why in text) == (1, True), text
    assert project.call("retire", "pockets")[0] == 1  # nothing was made


def test_a_table_whose_hook_is_gone_is_named_and_retired(project: Project) -> None:
    """Its view went on answering, and nothing mentioned it."""
    project.json("rebuild")
    with project.database.connect("test") as connection:
        connection.execute("create view public.mine as select label from features.pockets")
    kept = project.definition
    project.definition = kept.model_copy(update={"name": "cavities"})

    status, text = project.call("plan", "cavities")
    assert status == 0, text
    line = "table pockets still shows demo/features/pockets, and no definition declares it"
    assert line in text
    assert project.json("plan", "cavities")["undeclared"] == ["pockets"]
    assert "pockets: demo/features/pockets; 2 batches, 2 rows" in project.call("retire")[1]

    for arguments in (["pockets"], ["pockets", "--yes"]):
        status, text = project.call("retire", *arguments)
        assert (status, "view public.mine uses it" in text) == (1, True)
    assert project.columns() == ["label"]
    with project.database.connect("test") as connection:
        connection.execute("drop view public.mine")
    assert project.call("retire", "--yes")[0] == 1  # which ones?
    assert project.call("retire", "nosuch", "--yes")[0] == 1
    [dropped] = project.json("retire", "pockets", "--yes")["tables"]
    assert (dropped["is_dropped"], dropped["rows"]) == (True, 2)

    assert project.json("plan", "cavities")["undeclared"] == []
    left = "select relname from pg_class where relname like '%%pockets%%'"
    assert project.json("sql", left)["rows"] == []
    project.definition = kept
    project.json("rebuild")
    assert prove(project.archive.store, project.database, project.archive.spec()).is_equal


@pytest.mark.parametrize("asset", ["demo/features/pockets", "wrong_definitions/pockets/defs"])
def test_a_table_of_a_wrong_definition_is_not_retired(project: Project, asset: str) -> None:
    project.json("rebuild")
    assert "declares it" in project.call("retire", "pockets", "--yes")[1]
    project.definition = project.definition.model_copy(update={"name": "others"})
    project.wrong[asset] = "defs.yaml:3: cardinality: oen"

    status, text = project.call("retire", "pockets", "--yes")

    assert (status, "cardinality: oen" in text) == (1, True)
    assert project.json("plan", "others")["undeclared"] == []
    assert project.json("retire")["tables"] == []
    assert project.columns() == ["label"]


def test_what_took_the_place_of_a_retired_view_stays(project: Project) -> None:
    project.json("rebuild")
    project.definition = project.definition.model_copy(update={"name": "others"})
    with project.database.connect("test") as connection:
        connection.execute("drop view features.pockets; create table features.pockets (a int)")

    status, text = project.call("retire", "pockets", "--yes")

    assert (status, "table features.pockets of role" in text) == (0, True), text
    assert project.json("sql", "select a from pockets")["rows"] == []
    assert project.json("retire")["tables"] == []


def test_rows_derived_from_raw_output_again_reach_the_table(project: Project, tmp_path: Path):
    raw = tmp_path / "features.jsonl"
    raw.write_text(json.dumps({"id": "r0", "features": [{"label": "as written"}]}) + "\n")
    project.archive.say("b0", {"r0": [{"label": "as misread"}]}, {raw.name: raw})
    raw.write_text(json.dumps({"id": "r1", "features": [{"label": "l1"}]}) + "\n")
    project.archive.say("b1", {"r1": [{"label": "l1"}]}, {raw.name: raw})
    project.json("rebuild")

    status, text = project.call("rebuild", "pockets", "--from-raw")

    assert status == 0, text
    assert "batch b0: 1 record decoded differently" in text
    assert "batch b1" not in text
    with project.database.connect("test") as connection:
        rows = connection.execute("select record_id, label from features.pockets order by 1")
        assert rows.fetchall() == [("r0", "as written"), ("r1", "l1")]
    assert prove(project.archive.store, project.database, project.archive.spec()).is_equal
    status, text = project.call("rebuild", "pockets", "--from-raw", "--batch", "nowhere")
    assert (status, "no current artifact for batch 'nowhere'" in text) == (1, True)
    status, text = project.call("rebuild", "--from-raw", "--as-of", "2026-01-01T00:00Z")
    assert (status, "--from-raw makes current artifacts" in text) == (1, True)


def test_a_table_that_cannot_be_rebuilt_keeps_no_other_away(project: Project) -> None:
    project.json("rebuild")
    project.others.append(project.definition.model_copy(update={"name": "others"}))
    project.define({"name": "label", "type": "integer"})

    status, text = project.call("rebuild", "--json")

    assert status == 1
    printed, _, message = text.partition("Error: ")
    broken, other = json.loads(printed)["tables"]
    assert (broken["table"], broken["batches"]) == ("pockets", 0)
    assert "2 that do not fit its columns" in broken["problem"]
    assert "2 that do not fit its columns" in message
    assert (other["table"], other["problem"]) == ("others", None)
    assert "read from generation others_" in other["state"]


def test_sql_leaves_on_the_server_what_is_not_printed(project: Project) -> None:
    project.json("rebuild")
    query = "select label, name from pockets, pg_cursors order by 1;"
    assert project.json("sql", query, "--max-rows", "1") == {
        "columns": ["label", "name"],
        "rows": [["l0", "rows"]],
        "more": 1,
    }
    counted = project.json("sql", "select generate_series(1, 100000)", "--max-rows", "0")
    assert (counted["rows"], counted["more"]) == ([], 100_000)
    assert "2 rows" in project.call("sql", query)[1]
    # what no cursor can be declared for
    assert project.json("sql", "show search_path")["rows"] == [["features, public"]]
    assert "Scan" in project.call("sql", "explain select * from pockets")[1]
    assert project.json("sql", "values (1), (2)")["rows"] == [[1], [2]]
    for wrong, message in (
        ("selec 1", 'syntax error at or near "selec"'),
        ("select * from nowhere", 'relation "nowhere" does not exist'),
        ("set work_mem = '1MB'", "returns no rows"),
        ("delete from feature_pipeline.tables", "read-only transaction"),
        ("select 1 / (label = '')::int from pockets", "DivisionByZero"),
    ):
        status, text = project.call("sql", wrong)
        assert (status, message in text) == (1, True), text


def test_sql_prints_values_as_they_are(project: Project) -> None:
    project.json("rebuild")
    query = (
        "select 'c1cc[nH]c1' as \"[red]x\", 'HIS:A:45' as b, '[/x]' as c,"
        " 1234567.25::float8 as d, 1234567 as e, 'nan'::float8 as f, true as g, null as h,"
        """ '{"b": [1.50, 12345678901234567890.5, 0.1]}'::jsonb as i,"""
        " 'infinity'::timestamptz as j, '0044-03-15 BC'::date as k,"
        " '2026-02-01 10:00+02'::timestamptz as l, '\\x00ff'::bytea as m,"
        " '2 days 3 s'::interval as n, array[0.1, '-inf']::float8[] as o"
    )

    status, text = project.call("sql", query)

    assert status == 0, text
    head, row = (
        [cell.strip() for cell in line.strip("┃│ \n").replace("┃", "│").split("│")]
        for line in text.splitlines()
        if "nH" in line or "[red]" in line
    )
    assert head[0] == "[red]x"
    assert row == [
        *("c1cc[nH]c1", "HIS:A:45", "[/x]", "1234567.25", "1234567", "NaN", "true", "NULL"),
        '{"b": [1.50, 12345678901234567890.5, 0.1]}',
        *("infinity", "0044-03-15 BC", "2026-02-01 08:00:00+00", "\\x00ff"),
        *("2 days 00:00:03", "{0.1,-Infinity}"),
    ]
    [values] = project.json("sql", query)["rows"]
    assert values == [
        *("c1cc[nH]c1", "HIS:A:45", "[/x]", 1234567.25, 1234567, "NaN", True, None),
        {"b": [1.5, "12345678901234567890.5", 0.1]},
        *("infinity", "0044-03-15 BC", "2026-02-01T08:00:00Z", "\\x00ff"),
        *("2 days 00:00:03", [0.1, "-Infinity"]),
    ]


def test_sql_tells_a_refused_statement_from_a_database_that_is_away(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.json("rebuild")
    with project.database.connect("test") as connection:
        connection.execute("create materialized view empty as select 1 with no data")

    refused = project.call("sql", "select * from empty")[1]
    assert "has not been populated" in refused
    assert "running?" not in refused
    url = "postgresql://user:secret@127.0.0.1:9/tables"
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", url)
    away = project.call("sql", "select 1")[1]
    assert "no connection to PostgreSQL at 127.0.0.1:9/tables" in away
    assert "is `feature-pipeline dev` running?" in away
    assert "secret" not in away
