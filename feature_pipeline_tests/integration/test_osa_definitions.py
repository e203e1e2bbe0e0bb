"""Definitions made from the recorded server, and their drift."""

import importlib
import json
import warnings
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.job_base import InMemoryJob

import feature_pipeline.orchestration
from feature_pipeline.archive import accept
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli.commands.other_systems import osa as command
from feature_pipeline.definitions import DefinedHook, build_defs, hooks_of
from feature_pipeline.model.definition import Compute, HookDefinition
from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline.osa.settings import (
    DATABASE_URL,
    STORAGE,
    OsaSettings,
    component_text,
    find_settings,
)
from feature_pipeline_tests.fixtures import osa_server as recorded
from feature_pipeline_tests.fixtures.commands import CommandLine

pytestmark = pytest.mark.postgres


@pytest.fixture
def defs(tmp_path: Path, osa_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of definitions, beside the recorded server."""
    folder = tmp_path / "defs"
    folder.mkdir()
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(folder))
    monkeypatch.setenv(DATABASE_URL, osa_url)
    monkeypatch.chdir(tmp_path)
    return folder


def loaded() -> dict[str, DefinedHook]:
    return {
        f"{each.definition.dataset}/{each.definition.name}": each for each in hooks_of(build_defs())
    }


def test_each_hook_of_each_convention_is_defined_and_never_started_here(
    defs: Path, command_line: CommandLine
) -> None:
    status, out, error = command_line("osa", "scaffold")
    assert (status, error) == (0, "")
    assert out.count("defs.yaml") == 4
    hooks = loaded()
    assert sorted(hooks) == [
        "pdb_structures/pockets",
        "pdb_structures/qc",
        "protein_designs/alignment",
        "protein_designs/qc",
    ]
    assert {h.definition.compute for h in hooks.values()} == {Compute.ELSEWHERE}
    # one table for each: all of them are in one schema
    assert {h.definition.table_name for h in hooks.values()} == {
        "pockets",
        "alignment",
        "pdb_structures_qc",
        "protein_designs_qc",
    }
    qc = hooks["pdb_structures/qc"].definition
    assert qc.release.version == "2"
    assert qc.release.image == (
        "registry.example.org/hooks/qc"
        "@sha256:91e0f21f4513f50b55627eccf939e80e6e255069ba98ac1b8ae6a4ef054c9b76"
    )
    assert qc.release.config == {"level": 2}
    assert qc.release.limits.memory == "1Gi"
    kinds = {column.name: column.kind for column in qc.feature.columns}
    assert kinds["checked_at"] == "date-time"
    assert kinds["released"] == "date"
    alignment = hooks["protein_designs/alignment"].definition
    assert {c.name: c.description for c in alignment.feature.columns}["source_url"] == (
        "(format uri)"
    )
    assert all(h.spec.automation_condition is None for h in hooks.values())
    assets = build_defs().resolve_asset_graph()
    for each in hooks.values():
        assert not assets.get(each.spec.key).is_materializable
    status, out, _ = command_line("osa", "plan")
    assert (status, out.strip()) == (0, "nothing differs")


def test_nothing_is_overwritten(defs: Path, command_line: CommandLine) -> None:
    command_line("osa", "scaffold")
    file = defs / "pockets" / "defs.yaml"
    file.write_text(file.read_text() + "# by hand\n")
    (defs / "alignment" / "defs.yaml").unlink()
    refusal = command_line.refused("osa", "scaffold")
    assert f"{file}" in refusal
    assert "nothing was written" in refusal
    assert not (defs / "alignment" / "defs.yaml").exists()
    assert file.read_text().endswith("# by hand\n")


def test_one_convention_under_a_name_of_its_own(defs: Path, command_line: CommandLine) -> None:
    command_line("osa", "scaffold", "--convention", "protein-designs=designs", "--hook", "qc")
    (hook,) = loaded().values()
    assert (hook.definition.dataset, hook.definition.table_name) == ("designs", "qc")
    assert "no convention 'other'" in command_line.refused(
        "osa", "scaffold", "--convention", "other"
    )
    assert "no hook 'other'" in command_line.refused("osa", "scaffold", "--hook", "other")


def test_the_component_is_written_beside_the_hooks_and_follows_the_same(
    defs: Path, command_line: CommandLine
) -> None:
    chosen = ("--convention", "protein-designs=designs", "--hook", "qc")
    status, out, error = command_line("osa", "scaffold", "--server", "archive", *chosen)
    assert (status, error) == (0, "")
    assert out.count("defs.yaml") == 2
    written = find_settings(defs)
    assert written == OsaSettings(
        name="archive", conventions={"protein-designs": "designs"}, hooks=("qc",)
    )
    assert (status, command_line("osa", "plan")[1].strip()) == (0, "nothing differs")
    assert "leave --server out" in command_line.refused("osa", "scaffold", "--server", "other")
    for wrong in ("Not a name", "../up"):
        (defs / "archive" / "defs.yaml").unlink(missing_ok=True)
        assert "name" in command_line.refused("osa", "scaffold", "--server", wrong)


def test_definitions_with_a_server_load_without_warnings(
    defs: Path, command_line: CommandLine
) -> None:
    command_line("osa", "scaffold", "--server", "osa")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        importlib.reload(feature_pipeline.orchestration)  # sets its filters
        build_defs().get_repository_def()
    wanted = (dg.BetaWarning, dg.PreviewWarning)
    assert [str(each.message) for each in caught if issubclass(each.category, wanted)] == []


def test_drift_is_shown(defs: Path, osa_url: str, command_line: CommandLine) -> None:
    command_line("osa", "scaffold")
    pockets = loaded()["pdb_structures/pockets"].definition
    with psycopg.connect(osa_url) as connection:
        connection.execute(
            "update hooks set feature_spec = jsonb_set(feature_spec, '{columns,99}',"
            ' \'{"name": "depth", "json_type": "number", "required": false}\') where name ='
            " 'pockets'"
        )
        connection.execute(
            "update hooks set live_release_id = (select id from hook_releases"
            " where hook_name = 'qc' and version = 1) where name = 'qc'"
        )
    file = defs / "pockets" / "defs.yaml"
    changed = file.read_text().replace(
        "name: volume\n      type: number", "name: volume\n      type: string"
    )
    file.write_text(changed)
    status, out, _ = command_line("osa", "plan")
    assert status == 2
    assert (
        "pdb_structures/pockets: column 'volume' differs: optional string here,"
        " optional number on the server"
    ) in out
    assert "pdb_structures/pockets: the server has a column 'depth' (optional number)" in out
    assert "protein_designs/qc: the server's live release is 1, and the definition's is 2" in out
    assert command.drift_lines(pockets) == [
        "  differs from the server: the server has a column 'depth' (optional number), the"
        " definition does not"
    ]


@pytest.mark.parametrize("name", ["plan", "compare"])
def test_an_error_has_another_exit_status_than_a_difference(
    defs: Path,
    name: str,
    memory_store: MemoryStore,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command_line("osa", "scaffold")
    monkeypatch.setattr(command, "open_archive", lambda: memory_store)
    monkeypatch.setenv(DATABASE_URL, "postgresql://reader@127.0.0.1:1/closed")
    assert "no connection to PostgreSQL at 127.0.0.1:1" in command_line.refused("osa", name)


def test_a_plan_names_a_server_that_cannot_be_read(
    defs: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_line("osa", "scaffold")
    pockets: HookDefinition = loaded()["pdb_structures/pockets"].definition
    monkeypatch.delenv(DATABASE_URL)
    (line,) = command.drift_lines(pockets)
    assert "not compared with the server that computes it: " in line
    assert DATABASE_URL in line


def test_the_component_checks_the_definitions(
    defs: Path,
    osa_url: str,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (defs / "osa").mkdir()
    text = component_text("osa").replace(
        "# conventions: {protein-designs: designs}", "conventions: {protein-designs: designs}"
    )
    (defs / "osa" / "defs.yaml").write_text(text)
    assert command_line("osa", "scaffold")[1].count("defs.yaml") == 2  # of its convention alone
    assert {each.definition.dataset for each in loaded().values()} == {"designs"}

    def checked() -> dg.AssetCheckEvaluation:
        repository = build_defs().get_repository_def()
        # as in a run's worker; a job that is run in process has none
        monkeypatch.setattr(InMemoryJob, "get_repository_definition", lambda _: repository)
        result = repository.get_job("compare_osa_hooks").execute_in_process()
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation

    checked_result = checked()
    assert checked_result.passed, checked_result.description
    with psycopg.connect(osa_url) as connection:
        connection.execute(
            "update hooks set live_release_id = (select id from hook_releases"
            " where hook_name = 'qc' and version = 1) where name = 'qc'"
        )
    checked_result = checked()
    assert not checked_result.passed
    assert checked_result.description is not None
    assert "designs/qc: the server's live release is 1" in checked_result.description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update hooks set live_release_id = null where name = 'qc'", "'qc': it has no live"),
        (
            "update hooks set feature_spec = jsonb_set(feature_spec, '{columns,0,json_type}',"
            " '\"geometry\"') where name = 'pockets'",
            "column 'pocket_id' has the type 'geometry'",
        ),
        (
            'update hook_releases set limits = limits || \'{"memory": "lots"}\'',
            "limits.memory 'lots'",
        ),
    ],
)
def test_what_cannot_be_defined_is_named_and_nothing_is_written(
    defs: Path, osa_url: str, command_line: CommandLine, change: str, message: str
) -> None:
    with psycopg.connect(osa_url) as connection:
        connection.execute(psycopg.sql.SQL(change))  # type: ignore[arg-type]
    assert message in command_line.refused("osa", "scaffold")
    assert list(defs.iterdir()) == []


def test_completed_outputs_are_taken_and_compared_by_commands_and_dagster(
    defs: Path,
    osa_folder: Path,
    command_line: CommandLine,
    memory_store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Archive:
        def store(self) -> MemoryStore:
            return memory_store

    (defs / "osa").mkdir()
    (defs / "osa" / "defs.yaml").write_text(component_text("osa"))
    command_line("osa", "scaffold")
    (defs / "alignment" / "defs.yaml").unlink()
    monkeypatch.setattr(command, "open_archive", lambda: memory_store)
    assert STORAGE in command_line.refused("osa", "sync", "--once")

    def sensed() -> str | None:
        repository = build_defs().get_repository_def()
        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_sensor_context(
                instance, repository_def=repository, resources={"archive": Archive()}
            ) as context,
        ):
            answer = repository.get_sensor_def("osa_completions")(context)
        assert isinstance(answer, dg.SkipReason)
        return answer.skip_message

    assert STORAGE in str(sensed())
    monkeypatch.setenv(STORAGE, str(osa_folder))
    broken = next(osa_folder.rglob(f"{recorded.HISTORY}/batches/0/hooks/qc/output/run.json"))
    text = broken.read_text()
    broken.write_text("{")
    status, out, _ = command_line("osa", "sync", "--once")
    assert status == 2
    assert "protein_designs/alignment is not defined here" in out
    name = f"ingest-{recorded.HISTORY}-0/qc"
    assert f"cannot be taken: {name}: ingests/" in out
    assert "10 batches submitted, 15 outputs published, 0 waiting, 1 cannot be taken" in out
    assert "0 batches submitted, 0 outputs published" in str(sensed())
    broken.write_text(text)
    status, out, _ = command_line("osa", "sync", "--once", "--json")
    assert (status, json.loads(out)["published"]) == (0, [name])
    for key in [info.key for info in memory_store.list_objects("")]:
        memory_store.delete(key)
    assert "10 batches submitted, 16 outputs published" in str(sensed())
    entries = inbox.waiting(memory_store)
    accept.accept_entries(memory_store, entries)
    status, out, _ = command_line("osa", "compare", "--hook", "pockets")
    assert status == 2
    assert "pdb_structures/pockets: 6 batches, " in out
    assert "  values differ: ingest-" in out
    assert "  no record there (expected): 22 in all" in out
    repository = build_defs().get_repository_def()
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "archive")
    monkeypatch.setattr(ArchiveResource, "store", lambda _: memory_store)
    result = repository.get_job("compare_osa_rows").execute_in_process()
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "pdb_structures/qc: 5 batches, " in str(evaluation.description)
    assert "pdb_structures/pockets" in evaluation.metadata
