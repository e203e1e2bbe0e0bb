"""What hooks wrote is read in Dagster's pages as what it is: rendered here as Markdown is."""

import html
import re
from datetime import UTC, datetime

import pytest
from markdown_it import MarkdownIt

from feature_pipeline.archive.format.manifest import FailureInfo, Manifest
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.orchestration.events.metadata import (
    artifact_metadata,
    failure_metadata,
)
from feature_pipeline.orchestration.markdown import bullets, code, fenced, plain, table

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
