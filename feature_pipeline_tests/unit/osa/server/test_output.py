"""Which lines of an output of the server count."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import FeatureDefinition
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.osa.server.database import HookRun
from feature_pipeline.osa.server.output import JudgedOutput, judge

FEATURE = FeatureDefinition(columns=(Column(name="score", type="number"),))
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def features(record_id: str, *scores: float | None) -> str:
    return json.dumps({"id": record_id, "features": [{"score": score} for score in scores]}) + "\n"


def rejection(record_id: str) -> str:
    return json.dumps({"id": record_id, "reason": "no protein"}) + "\n"


def error(record_id: str) -> str:
    return json.dumps({"id": record_id, "error": "out of memory"}) + "\n"


def judged(
    folder: Path,
    ids: str,
    status: str = "passed",
    *,
    is_deposition: bool = False,
    **files: str,
) -> JudgedOutput:
    for name, text in files.items():
        suffix = "json" if name == "single" else "log" if name == "hook" else "jsonl"
        stem = "features" if name == "single" else name
        (folder / f"{stem}.{suffix}").write_text(text)
    run = HookRun("run-1", "release-1", status, BEGAN, BEGAN, 0)
    judged_output = judge(folder, ids.split(), FEATURE, run, {}, is_deposition=is_deposition)
    # The stored files give the same outcomes when they are decoded again.
    again = decode_output(
        {name: path.read_bytes() for name, path in judged_output.raw.items()},
        [o.record_id for o in judged_output.outcomes if o.is_from_output],
        FEATURE.columns,
        FEATURE.cardinality,
        {},
    )
    assert again.outcomes == tuple(o for o in judged_output.outcomes if o.is_from_output)
    return judged_output


def brief(outcomes: tuple[Outcome, ...]) -> dict[str, object]:
    return {
        o.record_id: [row[0] for row in o.rows] if o.status is Status.PASSED else o.status.value
        for o in outcomes
    }


def test_an_output_whose_lines_all_count_is_stored_as_it_is(tmp_path: Path) -> None:
    text = features("a", 1.0, None) + "\n" + features("b")
    output = judged(
        tmp_path, "a b c d", features=text, rejections=rejection("c"), errors=error("d")
    )
    assert brief(output.outcomes) == {"a": [1.0, None], "b": [], "c": "rejected", "d": "errored"}
    assert sorted(output.raw) == ["errors.jsonl", "features.jsonl", "rejections.jsonl"]
    assert output.raw["features.jsonl"].read_text() == text
    assert output.notes == ()


def test_a_stale_rejection_overrules_a_feature_as_it_does_for_the_server(tmp_path: Path) -> None:
    text = features("a", 1.0) + features("b", 2.0)
    output = judged(tmp_path, "a b", features=text, rejections=rejection("a"))
    assert brief(output.outcomes) == {"a": "rejected", "b": [2.0]}
    assert output.raw["server.features.jsonl"].read_text() == text
    assert output.raw["features.jsonl"].read_text() == features("b", 2.0)
    (note,) = output.notes
    assert note.startswith("features.jsonl: 1 line overruled")
    assert "line 1" in note


def test_partial_results_that_the_server_gave_up_in_a_bucket_are_kept_beside(
    tmp_path: Path,
) -> None:
    """Its give-up marks all records as errors there, also those with features."""
    text = features("a", 1.0) + features("b", 2.0)
    output = judged(tmp_path, "a b", "error", features=text, errors=error("a") + error("b"))
    assert brief(output.outcomes) == {"a": "errored", "b": "errored"}
    assert {o.reason for o in output.outcomes} == {"out of memory"}
    assert sorted(output.raw) == ["errors.jsonl", "server.features.jsonl"]
    assert output.raw["server.features.jsonl"].read_text() == text
    assert output.failure is None


def test_the_last_of_several_lines_on_a_record_counts(tmp_path: Path) -> None:
    text = features("a", 1.0) + features("b", 2.0) + features("a", 3.0)
    output = judged(tmp_path, "a b", features=text)
    assert brief(output.outcomes) == {"a": [3.0], "b": [2.0]}
    assert output.raw["server.features.jsonl"].read_text() == text
    assert output.raw["features.jsonl"].read_text() == features("b", 2.0) + features("a", 3.0)


def test_lines_that_the_server_skips_do_not_count(tmp_path: Path) -> None:
    text = features("a", 1.0) + '{"features": []}\n' + '{"id": "b", "featu'
    output = judged(tmp_path, "a b", features=text)
    assert brief(output.outcomes) == {"a": [1.0], "b": "errored"}
    assert output.outcomes[1].kind is OutcomeKind.INVALID_OUTPUT
    assert output.raw["server.features.jsonl"].read_text() == text
    assert "2 lines that cannot be read or without a record's id" in output.notes[0]


def test_a_failed_run_answers_for_the_records_that_it_names(tmp_path: Path) -> None:
    log = "Traceback\nKeyError: 'r_free'\n\n"
    output = judged(tmp_path, "a b c", "error", features=features("a", 1.0), hook=log)
    assert brief(output.outcomes) == {"a": [1.0], "b": "errored", "c": "errored"}
    lost = output.outcomes[1]
    assert (lost.kind, lost.is_retryable, lost.is_from_output) == (OutcomeKind.LOST, True, False)
    # the end of the log may name a record, and reasons outlast the erasure of other records
    assert lost.reason == "no output about it: the server recorded hook run run-1 as 'error'"
    assert output.log is not None
    assert output.log.read_text() == log


@pytest.mark.parametrize("text", ["", features("of another batch", 1.0)])
def test_a_failed_run_without_a_word_on_its_batch_has_failed(tmp_path: Path, text: str) -> None:
    output = judged(tmp_path, "a b", "error", features=text)
    assert output.outcomes == ()
    assert output.failure is not None
    assert "hook run run-1 as 'error'; it has no hook.log" in output.failure.reason
    (tmp_path / "hook.log").write_text("Traceback\nKeyError: 'r_free'\n\n")
    output = judged(tmp_path, "a b", "error", features=text)
    assert output.failure is not None
    assert "its log ends with \"KeyError: 'r_free'\"" in output.failure.reason
    assert output.raw["features.jsonl"].read_text() == text


def test_an_accepted_deposition_passed_whatever_an_earlier_try_left(tmp_path: Path) -> None:
    output = judged(
        tmp_path,
        "a",
        is_deposition=True,
        features=features("a", 1.0),
        rejections=rejection("a"),
        errors=error("a"),
    )
    assert brief(output.outcomes) == {"a": [1.0]}
    assert sorted(output.raw) == [
        "features.jsonl",
        "server.errors.jsonl",
        "server.rejections.jsonl",
    ]
    assert output.raw["server.rejections.jsonl"].read_text() == rejection("a")


@pytest.mark.parametrize("text", ['{"score": 1.0}', '[{"score": 1.0}]'])
def test_the_single_document_beside_equal_lines_is_kept_beside(tmp_path: Path, text: str) -> None:
    output = judged(tmp_path, "a", is_deposition=True, features=features("a", 1.0), single=text)
    assert brief(output.outcomes) == {"a": [1.0]}
    assert output.raw["server.features.json"].read_text() == text
    assert output.notes == ()


@pytest.mark.parametrize("text", ['{"score": 2.0}', "[]", "[{"])
def test_a_single_document_that_differs_is_noted(tmp_path: Path, text: str) -> None:
    """The server inserts it into its table, and never compares."""
    output = judged(tmp_path, "a", is_deposition=True, features=features("a", 1.0), single=text)
    assert brief(output.outcomes) == {"a": [1.0]}
    (note,) = output.notes
    assert "features.json" in note
    assert "stored as server.features.json" in note


def test_the_single_document_counts_where_no_line_does(tmp_path: Path) -> None:
    output = judged(
        tmp_path, "a", is_deposition=True, single='{"score": 2.0}', rejections=rejection("a")
    )
    assert brief(output.outcomes) == {"a": [2.0]}
    assert sorted(output.raw) == ["features.json", "server.rejections.jsonl"]
    (tmp_path / "features.json").write_text("[{")
    with pytest.raises(InvalidInputError, match=r"features\.json"):
        judged(tmp_path, "a", is_deposition=True)


def test_the_single_document_of_an_ingest_never_counts(tmp_path: Path) -> None:
    output = judged(tmp_path, "a", single='{"score": 2.0}')
    assert brief(output.outcomes) == {"a": "errored"}
    assert sorted(output.raw) == ["server.features.json"]
