"""What hooks wrote is read in Dagster's pages as what it is: rendered here as Markdown is."""

import html
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt

from feature_pipeline.archive.format.manifest import FailureInfo, Manifest
from feature_pipeline.archive.inspection.findings import Finding, ObjectKind, State
from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.query.compare import Comparison, Difference, Example
from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.run import HookRun, Start
from feature_pipeline.hooks.runner import RunResult
from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeCounts, Status
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.orchestration.checks.integrity import _findings_metadata
from feature_pipeline.orchestration.events.metadata import (
    artifact_metadata,
    attempts_table,
    column_schema,
    failure_metadata,
    preview,
    shown_schema,
)
from feature_pipeline.orchestration.markdown import bullets, code, fenced, plain, table
from feature_pipeline.orchestration.operations.reports import comparison_markdown, damage_markdown
from feature_pipeline.projections.catalog.shown_table import ShownColumn

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "```\nleaves the fence",
    "`` ` `code` `",
    "`",
    "# heading",
    "- item",
    "1. item",
    "+ item",
    "= ---",
    "---",
    "> quote",
    "a | b",
    "*b* __c__ ~~d~~ &lt;",
    "back\\",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\u202edesrever",
    "~~~",
    "## heading",
    "===",
    "10) item",
]
RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def rendered(markdown: str) -> tuple[str, set[str]]:
    """The text of the page, and the tags that are in it."""
    page = RENDER.render(markdown)
    tags = set(re.findall(r"<(\w+)", page))
    return html.unescape(re.sub(r"<[^>]*>", "", page)).strip(), tags


def shown(text: str) -> str:
    """The text on one line, control characters as escapes."""
    escapes = {"\x1b": r"\x1b", "\x07": r"\x07", "\u202e": r"\u202e"}
    for control, escape in escapes.items():
        text = text.replace(control, escape)
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_read_as_it_is(text: str):
    assert rendered(plain(text)) == (shown(text), {"p"})
    assert rendered(code(text)) == (shown(text), {"p", "code"})
    page, tags = rendered(fenced(text))
    assert tags == {"pre", "code"}
    assert page.split() == shown(text).split()
    page, tags = rendered(bullets([text, "next"]))
    assert tags <= {"ul", "li", "p"}
    assert page.split() == [*shown(text).split(), "next"]
    page, tags = rendered(table([text], [[text], ["b"]]))
    assert tags == {"table", "thead", "tr", "th", "tbody", "td"}
    assert page.split() == [*shown(text).split() * 2, "b"]


def manifest(**changes: object) -> Manifest:
    digest = Digest.of(b"x")
    blob = {"digest": str(digest), "size": 1, "media_type": "x"}
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    document = {
        "dataset": "d",
        "hook": "h",
        "batch": "b",
        "batch_digest": digest,
        "release": {"seq": 1, "digest": digest, "version": "1"},
        "columns": (),
        "cardinality": "one",
        "run": {"id": "r", "runner": "x", "started_at": instant, "finished_at": instant},
        "counts": OutcomeCounts(),
        "blobs": {"rows": blob, "outcomes": blob},
        "content_digest": digest,
        "rows_digest": ContentSum(),
    }
    return Manifest.model_validate(document | changes)


@pytest.mark.parametrize("hostile", [HOSTILE[:12], HOSTILE[12:]])
def test_notes(hostile: list[str]):
    made = manifest(notes=[f"note {text}" for text in hostile])
    notes = artifact_metadata("s3://a", Digest.of(b"x"), made, "s3://a/x")["notes"]
    page, tags = rendered(str(notes.value))
    assert tags <= {"ul", "li", "p"}
    assert page.count("note") == len(hostile)


def test_notes_without_end():
    made = manifest(notes=["x" * 1_000_000] * 30)
    notes = artifact_metadata("s3://a", Digest.of(b"x"), made, "s3://a/x")["notes"]
    assert len(str(notes.value)) < 50_000
    assert "(1,000,000 characters)" in str(notes.value)
    assert "and 10 more notes" in str(notes.value)


def test_logs_and_reasons():
    log_tail = "\n".join(HOSTILE)
    metadata = failure_metadata(None, FailureInfo(kind="x", reason="\x1b[31m"), log_tail)
    assert rendered(str(metadata["log_tail"].value))[1] == {"pre", "code"}
    assert metadata["decision"].value == r"\x1b[31m"


@pytest.mark.parametrize("text", ["10.5281/zenodo.1", "-0.5", "+1", "record_id", "#1", "=1"])
def test_what_is_no_markup_stays_as_it_is(text: str):
    assert plain(text) == text
    assert rendered(plain(text)) == (text, {"p"})


COLUMN = Column(name="label", type=ColumnType.STRING, description="".join(HOSTILE))
FLAT = " ".join(text for text in HOSTILE if "\n" not in text)
"""One line with everything in it."""
TABLE_TAGS = {"table", "thead", "tr", "th", "tbody", "td"}


def test_rows_that_are_shown():
    outcomes = [
        Outcome(record_id=text, status=Status.PASSED, rows=((text[:50],),)) for text in HOSTILE[:5]
    ]
    page, tags = rendered(str(preview([COLUMN], outcomes)["preview"].value))
    assert tags == TABLE_TAGS
    assert all(page.count(shown(text)) == 2 for text in HOSTILE[:5])


def test_descriptions_of_columns():
    """Dagster renders them, and any writer of a manifest chooses them."""
    (declared,) = column_schema([COLUMN]).columns
    (in_postgres,) = shown_schema([ShownColumn("label", "text", FLAT)], [COLUMN]).columns
    for description in (declared.description, in_postgres.description):
        assert description is not None
        assert rendered(description)[1] == {"p"}
    assert rendered(in_postgres.description or "")[0] == shown(FLAT)


def test_reasons_of_attempts():
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    facts = RuntimeFacts(FailureKind.NON_ZERO_EXIT, FLAT)
    result = RunResult(1, facts, instant, instant, Path("log"), None, "node")
    run = HookRun("r", "x", (Start("", 1, 1, 1, result),), facts, None, Path("log"))
    page, tags = rendered(str(attempts_table(run)["attempts_made"].value))
    assert tags == TABLE_TAGS
    assert shown(FLAT) in page


def test_findings_of_verify():
    """Whoever may write one object chooses its key."""
    report = SimpleNamespace(
        findings=[Finding(State.CORRUPT, ObjectKind.FEATURE_ENTRY, FLAT, "by", "detail")]
    )
    findings = _findings_metadata([report])["findings"]  # type: ignore[list-item]
    page, tags = rendered(str(findings.value))
    assert tags <= {"ul", "li", "p", "code"}
    assert shown(FLAT) in page


def test_a_comparison_of_releases():
    def release(seq: int) -> ReleaseEntry:
        document = ReleaseDocument(dataset="d", hook="h", version=FLAT, command=("x",), code=())
        return ReleaseEntry(seq, HookRelease.of(document))

    difference = Difference(
        outcomes=Counter({(FLAT, "passed"): 1}),
        columns=Counter({FLAT: 1}),
        examples=[Example(FLAT, FLAT, "before", "after", (FLAT,))],
    )
    compared = Comparison(release(1), release(2), difference, (FLAT,), (FLAT,), (FLAT,))
    page, tags = rendered(comparison_markdown(compared))
    assert tags == TABLE_TAGS | {"p", "ul", "li", "code"}
    assert page.count(shown(FLAT)) == 10


def test_damage_that_a_report_leaves_out():
    features = SimpleNamespace(damage={FLAT: FLAT})
    page, tags = rendered(damage_markdown(features))  # type: ignore[arg-type]
    assert tags == TABLE_TAGS | {"p", "code"}
    assert shown(FLAT) in page
