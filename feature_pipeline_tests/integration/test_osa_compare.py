"""Features in the archive, compared with the rows of the recorded server."""

import os
import re
import secrets
from pathlib import Path

import psycopg
import pytest

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.osa.compare import EXPECTED, Kind
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline_tests.fixtures import osa_server as recorded
from feature_pipeline_tests.fixtures.osa_server import Beside

pytestmark = pytest.mark.postgres

KINDS = {
    "rows differ": Kind.VALUES,
    "rows missing: insertion failed": Kind.MISSING_THERE,
    "no record": Kind.NO_RECORD,
    "record of another batch or run: its rows are from there": Kind.OTHER_BATCH,
}


def recorded_differences() -> set[tuple[str, str, Kind]]:
    """By `<batch key>/<hook>` and record, what was recorded of outputs that are complete."""
    differences = set()
    for each in recorded.lines("differences.jsonl"):
        parts = each["where"].split("/")
        if parts[0] == "ingests" and each["run_json"]:
            name = f"ingest-{parts[1]}-{parts[3]}/{parts[5]}"
            differences.add((name, each["id"], KINDS[each["why"]]))
        elif parts[0] == "files" and each["deposition"] == "accepted" and not each["rows"]:
            differences.add((f"deposition-{each['id']}/{parts[4]}", each["id"], Kind.MISSING_THERE))
    return differences


def test_it_finds_exactly_what_was_recorded(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.follow()
    beside.accept_all()
    monkeypatch.setattr("feature_pipeline.osa.tally.EXAMPLES", 1000)
    differences = set()
    for each in beside.compare().values():
        for kind, tally in each.differences.items():
            for example in tally.examples:
                batch, record = example.split(": ")[0].split(" ")
                differences.add((f"{batch}/{each.hook}", record, kind))
    # the text for a number is published there without rows, and is an error here
    (invalid,) = [one for one in differences if one[2] is Kind.ERRORED_HERE]
    differences.remove(invalid)
    differences.add((invalid[0], invalid[1], Kind.MISSING_THERE))
    assert differences == recorded_differences()
    assert len(differences) == 50


def test_each_kind_of_difference_is_counted_with_examples(beside: Beside) -> None:
    beside.follow()
    beside.accept_all()
    comparisons = beside.compare()
    qc = comparisons["pdb_structures/qc"]
    (changed,) = qc.differences[Kind.VALUES].examples
    assert changed.endswith("-0 1aa12: resolution: 1.64 here, 1.23 there")
    (absent,) = comparisons["pdb_structures/pockets"].differences[Kind.VALUES].examples
    assert absent.endswith("-0 1aa01: row 2, druggable: False here, NULL there")
    (other,) = qc.differences[Kind.OTHER_BATCH].examples[-1:]
    assert other.endswith(f"is of batch 0 of ingest run {recorded.RUNNING}")
    pockets = comparisons["pdb_structures/pockets"]
    assert pockets.differences[Kind.NO_RECORD].number == 22
    assert len(pockets.differences[Kind.NO_RECORD].examples) == 10
    # dates, times and uuids in the server's tables are equal
    assert comparisons["protein_designs/alignment"].differences.keys() == {Kind.MISSING_THERE}
    assert not qc.is_equal
    assert "; expected: not passed here 1, no record there 22, record" in pockets.summary()


def test_rows_that_only_the_server_has_are_missing_here(beside: Beside) -> None:
    beside.settings = beside.settings.model_copy(update={"hooks": ("qc",)})
    beside.follow()
    beside.accept_all()
    run = "8ff0c8ec-f30b-5c71-9d20-e1c3a5497f5b"
    beside.sql(
        "insert into features.qc (record_srn, run_id, passed) select record_srn,"
        " '20c716d5-fd40-5573-8452-2cd7603da8b3', passed from features.qc"
        " where run_id = %s order by id limit 1",
        run,
    )
    for key in [info.key for info in beside.store.list_objects("log/features/pdb_structures/qc/")]:
        if recorded.HISTORY in key:
            beside.store.delete(key)
    missing = beside.compare()["pdb_structures/qc"]
    assert missing.differences[Kind.MISSING_HERE].number == 6
    (example,) = missing.differences[Kind.MISSING_HERE].examples
    assert example.startswith("6 rows of hook run a1c638f4-f711-594c-a454-516f556a435c, such as")
    twice = [e for e in missing.differences[Kind.VALUES].examples if "1 row here, 2 there" in e]
    assert len(twice) == 1


def test_a_value_that_the_server_truncated_is_named_with_the_error_here(beside: Beside) -> None:
    beside.settings = beside.settings.model_copy(update={"hooks": ("qc",)})
    output = beside.batch(1) / "hooks/qc/output/features.jsonl"
    output.write_text(re.sub(r'"atoms": (\d+)', r'"atoms": \1.5', output.read_text(), count=1))
    beside.follow()
    beside.accept_all()
    qc = beside.compare()["pdb_structures/qc"]
    (example,) = qc.differences[Kind.MISSING_HERE].examples
    assert "1 row, urn:osa:" in example
    assert "errored here: features.jsonl line 1: feature 1, column 'atoms': expected an" in example


def test_equal_tables_are_equal(beside: Beside) -> None:
    """A batch without any of the recorded cases, with NaN and large integers."""
    beside.follow()
    beside.accept_all()
    for kind in ("log/features/", "log/batches/"):
        for key in [info.key for info in beside.store.list_objects(kind)]:
            if recorded.HISTORY not in key:
                beside.store.delete(key)
    beside.sql(
        "delete from records where source ->> 'ingest_run_id' is distinct from %s", recorded.HISTORY
    )
    comparisons = beside.compare()
    assert all(each.is_equal for each in comparisons.values())
    assert comparisons["pdb_structures/pockets"].summary() == (
        "pdb_structures/pockets: 1 batch, 6 records equal"
    )
    assert comparisons["protein_designs/qc"].differences.keys() <= EXPECTED


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("drop table features.pockets", r':\d+/\w+ has no table features\."pockets".*osa restore'),
        ("alter table records rename column source to origin", "records has no column 'source'"),
        ("delete from feature_tables", "has no table of hook"),
    ],
)
def test_a_table_that_is_not_there_is_an_error(beside: Beside, change: str, problem: str) -> None:
    beside.sql(change)
    with pytest.raises((InvalidInputError, NotFoundError), match=problem):
        beside.compare()


def test_the_documented_grants_are_enough_and_needed(beside: Beside) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "osa.md").read_text()
    role = f"follower_{secrets.token_hex(4)}"
    blocks = re.findall(r"```sql\n(.*?)```", documented, re.DOTALL)
    grants = [each.strip() for block in blocks for each in block.split(";")]
    grants = [each for each in grants if each.endswith("to follower")]
    assert len(grants) == 6

    def taken_and_compared() -> None:
        beside.follow()
        beside.compare()

    owner = beside.url
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(f"create role {role} login password 'x'")  # type: ignore[arg-type]
        connection.execute(f"grant {role} to current_user")  # type: ignore[arg-type]
        try:
            parameters = psycopg.conninfo.conninfo_to_dict(owner) | {"user": role, "password": "x"}
            beside.url = psycopg.conninfo.make_conninfo(**parameters)
            for number, grant in enumerate(grants):
                wanted = ["public.hooks", "public.hooks", "public.hook_runs", "public.records"]
                wanted += ["features.", "features."]
                with pytest.raises(InvalidInputError, match=f"has no access to {wanted[number]}"):
                    taken_and_compared()
                connection.execute(grant.replace("follower", role))  # type: ignore[arg-type]
            taken_and_compared()
            beside.accept_all()
            assert beside.compare()["pdb_structures/qc"].batches == 5
        finally:
            connection.execute(f"drop owned by {role}")  # type: ignore[arg-type]
            connection.execute(f"drop role {role}")  # type: ignore[arg-type]


def test_a_changed_deposition_is_compared_once(beside: Beside) -> None:
    beside.settings = OsaSettings(hooks=("alignment",))
    beside.follow()
    beside.accept_all()
    local = "6db1e311-bd4a-459c-8"
    output = next(beside.folder.rglob(f"*{local}/hooks/alignment/output/run.json"))
    os.utime(output, (0, 0))
    beside.sql(
        "update depositions set metadata = '{}', updated_at = now() where srn like %s", f"%{local}"
    )
    beside.follow()
    beside.accept_all()
    comparison = beside.compare()["protein_designs/alignment"]
    assert comparison.batches == 4
    (example,) = comparison.differences[Kind.MISSING_THERE].examples
    assert example.startswith(f"deposition-{local}-2 {local}: 3 rows")
