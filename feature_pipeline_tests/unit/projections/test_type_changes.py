"""Every change of a column's type, over representative values: exact, rounded as documented, or
refused with a sentence. Without an upcaster, and with one that returns what it is given.
"""

import json
import math
import sys
import types
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import product
from pathlib import Path

import pytest

from feature_pipeline.archive.format.encode import iter_record_rows, rows_table
from feature_pipeline.archive.read import manifest_of, read_rows
from feature_pipeline.compute.redecode import decode_raw
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column, decode_value
from feature_pipeline.model.definition import Cardinality, UpcasterDefinition
from feature_pipeline.model.digest import Value
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.projections.rows.evolve import artifact_rows, evolve_rows, map_columns
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
VALUES: dict[str, Sequence[object]] = {
    "string": ("", "NaN", "Infinity", "1", "1.0", "true", "2026-01-31", UUID, "[]", "é\n"),
    "number": (0.0, -0.0, 1.5, 2.0**53, 1e300, 5e-324, math.nan, math.inf, -math.inf),
    "integer": (0, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**60, 1234567890123456800, 2**63 - 1),
    "boolean": (True, False),
    "array": ([], [1, "NaN", None], [[1.5]]),
    "object": ({}, {"a": 2**53 + 1}),
    "date": ("0001-01-01", "2026-01-31"),
    "date-time": ("2026-01-31T12:00:00.000001Z", "0001-01-01T00:00:00Z"),
    "uuid": (UUID,),
}


def column(kind: str) -> Column:
    if kind in {"date", "date-time", "uuid"}:
        return Column(name="c", type="string", format=kind)
    return Column(name="c", type=kind)


def digits_are_kept(value: int) -> bool:
    """docs/format.md 4.3: the float64, written with as many significant digits as the value has."""
    digits = str(abs(value)).rstrip("0")
    return not digits or f"{float(abs(value)):.{len(digits) - 1}e}".split("e")[0] == (
        digits[0] + ("." + digits[1:] if digits[1:] else "")
    )


def same(one: Value, other: Value) -> bool:
    """Equal in type and bits, NaN included."""
    return type(one) is type(other) and repr(one) == repr(other)


def changed(written: Column, wanted: Column, value: Value) -> Value:
    rows = rows_table([written], [Outcome("r0", Status.PASSED, rows=((value,),))])
    table = evolve_rows(rows, map_columns([written], [wanted]))
    [(_, [(result,)])] = iter_record_rows(table, [wanted])
    return result


@pytest.mark.parametrize(("old", "new"), list(product(VALUES, VALUES)))
def test_a_change_of_type_is_exact_or_rounded_as_documented_or_refused(old: str, new: str) -> None:
    written, wanted = column(old), column(new)
    for raw in VALUES[old]:
        value = decode_value(written, raw)
        if old == new:
            assert same(changed(written, wanted, value), value)
        elif (old, new) == ("integer", "number"):
            assert isinstance(value, int)
            if digits_are_kept(value):
                assert same(changed(written, wanted, value), float(value))
                assert same(decode_value(wanted, raw), float(value))
            else:
                with pytest.raises(CannotEvolveError, match=f"{value} of record 'r0'"):
                    changed(written, wanted, value)
                with pytest.raises(InvalidInputError, match="more digits than a float64 holds"):
                    decode_value(wanted, raw)
        else:
            with pytest.raises(CannotEvolveError, match=r"column 'c': was .*, is now "):
                changed(written, wanted, value)


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> UpcasterDefinition:
    """An upcaster that returns the feature that it is given."""
    module = types.ModuleType("upcasters_of_this_test")
    module.unchanged = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return UpcasterDefinition(releases=("1",), function=f"{module.__name__}:unchanged")


@pytest.mark.parametrize("old", VALUES)
def test_what_an_upcaster_returns_is_judged_as_raw_output_is(
    old: str, unchanged: UpcasterDefinition
) -> None:
    """An array that becomes an object went through no upcaster: both are JSON in a table."""
    written = column(old)
    archive = FeatureArchive((written,))
    outcomes = {f"r{n}": [{"c": raw}] for n, raw in enumerate(VALUES[old])}
    manifests = {}
    for record_id, rows in outcomes.items():
        entry = archive.add(f"b-{record_id}", {record_id: rows})
        manifest = manifest_of(archive.store, entry)
        manifests[record_id] = (manifest, read_rows(archive.store, manifest))
    for new in VALUES.keys() - {old}:
        wanted = column(new)
        for record_id, (manifest, rows) in manifests.items():
            raw = outcomes[record_id][0]["c"]
            try:
                expected = decode_value(wanted, as_json(written, raw))
            except InvalidInputError:
                with pytest.raises(CannotEvolveError, match=f"record {record_id!r}, row 0: column"):
                    artifact_rows(manifest, rows, [wanted], [unchanged])
            else:
                table = artifact_rows(manifest, rows, [wanted], [unchanged])
                [(_, [(result,)])] = iter_record_rows(table, [wanted])
                assert same(result, expected), (old, new, raw)


@pytest.mark.parametrize(("old", "new"), list(product(VALUES, VALUES)))
def test_raw_output_that_is_read_again_is_judged_under_the_new_type(
    old: str, new: str, tmp_path: Path
) -> None:
    """As if the hook had written the same under what is declared now."""
    written, wanted = column(old), column(new)
    archive = FeatureArchive((written,))
    raws = {f"r{n}": json_of(raw) for n, raw in enumerate(VALUES[old])}
    lines = [f'{{"id": "{i}", "features": [{{"c": {raw}}}]}}\n' for i, raw in raws.items()]
    file = tmp_path / "features.jsonl"
    file.write_text("".join(lines), "utf-8")
    outcomes = {f"r{n}": [{"c": raw}] for n, raw in enumerate(VALUES[old])}
    archive.submit("b", outcomes)
    manifest = manifest_of(archive.store, archive.say("b", outcomes, {file.name: file}))
    again = decode_raw(archive.store, manifest, list(raws), [wanted], Cardinality.MANY)
    for outcome, raw in zip(again, VALUES[old], strict=True):
        try:
            expected = decode_value(wanted, raw)
        except InvalidInputError:
            assert (outcome.status, outcome.kind) == (Status.ERRORED, OutcomeKind.INVALID_OUTPUT)
        else:
            [(value,)] = outcome.rows
            assert same(value, expected), (raw, value)


def json_of(raw: object) -> str:
    """As Python's `json` writes it, NaN and infinities as literals."""
    return json.dumps(raw, ensure_ascii=False)


def as_json(written: Column, raw: object) -> object:
    """As an upcaster is given it."""
    value = decode_value(written, raw)
    if isinstance(value, datetime):
        assert value.tzinfo is UTC
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return json.loads(str(value)) if written.kind == "json" else value


@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind != "string"])
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_the_text_of_a_number_that_json_does_not_have_is_no_number(kind: str, text: str) -> None:
    """Hooks are given such texts of their inputs; one that writes them on is told so."""
    with pytest.raises(InvalidInputError, match="expected"):
        decode_value(column(kind), text)
