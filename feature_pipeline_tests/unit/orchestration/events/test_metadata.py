"""What people see of rows in Dagster: few of them, and as they are."""

import re

import dagster as dg

from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.orchestration.events.metadata import PREVIEW_ROWS, column_sources, preview

LABEL = Column(name="label", type=ColumnType.STRING)
VALUE = Column(name="a_value", type=ColumnType.NUMBER)


def passed(record_id: str, *rows: tuple) -> Outcome:
    return Outcome(record_id=record_id, status=Status.PASSED, rows=rows)


def cells(line: str) -> list[str]:
    """The cells as GFM splits them: at bars that no backslash escapes, escapes then undone."""
    matches = re.findall(r"((?:\\.|[^|\\])*)\|", line.removeprefix("|"))
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in matches]


def shown(*outcomes: Outcome) -> list[list[str]]:
    """Header and rows of the preview, without the line between."""
    header, _, *rows = preview([LABEL, VALUE], outcomes)["preview"].value.split("\n")
    return [cells(line) for line in (header, *rows)]


def test_at_most_five_rows_are_shown_however_many_records_there_are():
    header, *rows = shown(
        passed("r0", *((f"l{n}", 0.5) for n in range(3))),
        passed("r1", *((f"m{n}", 0.5) for n in range(30))),
        passed("r2", ("n", 0.5)),
    )
    assert header == ["record_id", "ordinal", "label", "a_value"]
    assert len(rows) == PREVIEW_ROWS == 5
    assert [row[:3] for row in rows] == [
        ["r0", "0", "l0"],
        ["r0", "1", "l1"],
        ["r0", "2", "l2"],
        ["r1", "0", "m0"],
        ["r1", "1", "m1"],
    ]


def test_ids_and_values_cannot_break_a_row_or_be_markup():
    """A SMILES is no link, and an id with a bar has one cell."""
    ids = ["a|b", "a\\|b", "two\nlines|", "pdb:1_a_*x*", "<img src=x>"]
    texts = ["C[C@H](N)C(=O)O", "x|y", "`code`", "~~gone~~", "back\\"]
    outcomes = [passed(i, (text, None)) for i, text in zip(ids, texts, strict=True)]
    _, *rows = shown(*outcomes)
    assert [row[0] for row in rows] == [name.replace("\n", " ") for name in ids]
    assert [row[2] for row in rows] == texts
    assert {row[3] for row in rows} == {"NULL"}
    assert all(len(row) == 4 for row in rows)
    markup = preview([LABEL, VALUE], outcomes)["preview"].value
    assert "\\[C@H\\](N)" in markup
    assert "\\<img" in markup


def test_long_values_are_cut_before_they_are_escaped():
    _, row = shown(passed("r" * 200, ("|" * 100, 1 / 3)))
    assert row == ["r" * 200, "0", "|" * 57 + "...", "0.333333"]


def test_nothing_is_shown_of_no_rows_or_no_columns():
    assert preview([LABEL, VALUE], [passed("r0")]) == {}
    assert preview([], [passed("r0", ())]) == {}


def test_the_sources_of_a_tables_columns_name_former_names():
    renamed = Column(name="area", type=ColumnType.NUMBER, renamed_from=["surface", "sasa"])
    features = dg.AssetKey(["structures", "features", "pockets"])
    assert column_sources(features, [LABEL, renamed]).value == "\n".join(
        [
            "| column | comes from | column there |",
            "| --- | --- | --- |",
            "| `record_id` | `structures/features/pockets` | `record_id` |",
            "| `ordinal` | `structures/features/pockets` | `ordinal` |",
            "| `label` | `structures/features/pockets` | `label` |",
            "| `area` | `structures/features/pockets` | `area`, `surface`, `sasa` in older"
            " releases |",
            "| `batch` | the partition | |",
        ]
    )
