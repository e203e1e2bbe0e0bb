"""A report's pages: bounded whatever the archive holds, and no markup that a hook wrote."""

import base64
import re

import pytest

from feature_pipeline.archive.query.api import Archive
from feature_pipeline.model.columns import Column
from feature_pipeline.model.text.quoting import MOST_CHARACTERS
from feature_pipeline.orchestration.operations import reports
from feature_pipeline.orchestration.operations.reports import (
    SHOWN_BATCHES,
    SHOWN_RECORDS,
    report,
    table,
)
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

COLUMNS = tuple(Column(name=f"column_{number}", type="number") for number in range(8))


def pages(archive: FeatureArchive) -> dict[str, str]:
    metadata = report(Archive(archive.store).features("pockets"))
    return {name: str(value.value) for name, value in metadata.items()}


def lines(page: str) -> list[str]:
    """The lines of a page's table, without its head."""
    return [line for line in page.splitlines() if line.startswith("|")][2:]


def test_lists_are_bounded_and_count_what_they_leave_out() -> None:
    archive = FeatureArchive(COLUMNS)
    for number in range(SHOWN_BATCHES + 5):
        archive.add(f"b{number:02}", {f"r{number}-{n}": f"no | <b>\n{'x' * 999}" for n in range(3)})
    archive.add("worst", {"worst": ValueError("boom"), "good": [{"column_0": 1.0}]})
    shown = pages(archive)
    outcomes = lines(shown["outcomes"])
    assert outcomes[:2] == ["| **all** | 1 | 0 | 165 | 1 |", "| worst | 1 | 0 | 0 | 1 |"]
    assert len(outcomes) == SHOWN_BATCHES + 1
    assert shown["outcomes"].endswith("6 more batches not shown.")
    unhappy = lines(shown["rejected_and_errored"])
    assert len(unhappy) == SHOWN_RECORDS
    assert unhappy[0].startswith("| worst | worst | errored | hook |")
    assert r"no \| \<b\> xxx" in unhappy[1]
    assert max(map(len, unhappy)) < MOST_CHARACTERS + 100
    assert (
        "100 of 166 records. All: `feature-pipeline read pockets" in (shown["rejected_and_errored"])
    )
    assert lines(shown["columns"])[0] == "| column_0 | 1 | 0 | 0 | 0 | 1 | 1 | 1 |"


def test_without_rejected_or_errored_records_the_list_is_empty() -> None:
    archive = FeatureArchive(())
    archive.add("b1", {"r1": []})
    shown = pages(archive)
    assert shown["rejected_and_errored"] == "None."
    assert "columns" not in shown
    assert lines(shown["outcomes"]) == ["| **all** | 1 | 1 | 0 | 0 |", "| b1 | 1 | 1 | 0 | 0 |"]


def test_a_picture_that_is_too_large_has_fewer_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = FeatureArchive(COLUMNS)
    archive.add("b1", {"r1": [{column.name: 1.0 for column in COLUMNS}]})
    whole = pages(archive)["plots"]
    (data,) = re.findall(r"base64,(.*)\)$", whole)
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    monkeypatch.setattr(reports, "_DPI", (80,))
    monkeypatch.setattr(reports, "MAX_PICTURE_BYTES", len(data) - 1)
    smaller = pages(archive)["plots"]
    assert len(smaller) < len(whole)
    assert smaller.endswith("4 more columns: name them in `columns`.")
    monkeypatch.setattr(reports, "MAX_PICTURE_BYTES", 10)
    assert pages(archive)["plots"] == "The picture is too large."


def test_what_is_in_a_cell_stays_in_it() -> None:
    hostile = "a | b\n![x](http://example.org/x.png) `c` \\"
    (line,) = lines(table(["x"], [[hostile]]))
    assert line == r"| a \| b !\[x\](http://example.org/x.png) \`c\` \\ |"
