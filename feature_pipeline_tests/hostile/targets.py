"""The doors as functions of bytes, for fuzzers: only errors of this package may leave them."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import Document, utc_now
from feature_pipeline.archive.format.encode import (
    OUTCOMES_SCHEMA,
    decode_outcomes,
    encode_outcomes,
    encode_rows,
    read_bounded,
    rows_schema,
)
from feature_pipeline.archive.logs.entries import StoredEntry
from feature_pipeline.archive.logs.known_lengths import (
    Census,
    Line,
    decode_census,
    encode_census,
)
from feature_pipeline.cli.local_records import read_records
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, InvalidInputError
from feature_pipeline.hooks.osa_manifest import import_hooks
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.yaml_text import check_yaml
from feature_pipeline_tests.fixtures.columns import EVERY_TYPE
from feature_pipeline_tests.fixtures.stores import COLUMNS as ROW_COLUMNS
from feature_pipeline_tests.fixtures.stores import make_batch, make_outcomes
from feature_pipeline_tests.hostile.doors import doors

ROW = (
    b'{"name": "x", "score": 1.5, "count": 3, "good": true, "list": [1, {"a": 2}],'
    b' "map": {"k": [1]}, "day": "2026-01-31", "at": "2026-01-31T12:00:00Z",'
    b' "uid": "c0ffee00-0000-4000-8000-000000000000"}'
)
OUTPUT = {
    "features.jsonl": b'{"id": "a", "features": [%s]}\n' % ROW,
    "rejections.jsonl": b'{"id": "a", "reason": "too short"}\n',
    "errors.jsonl": b'{"id": "a", "error": "no memory", "retryable": true}\n',
    "features.json": b"[%s]" % ROW,
}
DEFINITION = b"""type: feature_pipeline.FeatureHook
attributes:
  name: pockets
  release: &release {version: '1', command: [python, x.py]}
  again: *release
  at: 2026-01-31
"""
MANIFEST = Path(__file__).parents[1] / "fixtures/osa/manifest.json"
IMAGE = f"registry.example.org/probe@sha256:{'c' * 64}"


@dataclass(frozen=True)
class Target:
    """A door: a good input, and what reads any."""

    good: bytes
    read: Callable[[bytes], object]

    def __call__(self, data: bytes) -> bool:
        """Whether it was taken; what is not this package's own error is raised."""
        try:
            self.read(data)
        except yaml.YAMLError:
            return False
        except FeaturePipelineError as error:
            message = str(error)
        else:
            return True
        message.encode()
        assert len(message) < 5_000, message[:500]
        return False


def _output(name: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        ids = ("a",) if name == "features.json" else ("a", "b")
        decoded = decode_output({name: data}, ids, EVERY_TYPE, Cardinality.MANY, {})
        assert [outcome.record_id for outcome in decoded.outcomes] == list(ids)
        # What is decoded can be stored, and is read back as it is.
        rows = read_bounded(
            encode_rows(EVERY_TYPE, decoded.outcomes),
            "rows",
            rows_schema(EVERY_TYPE),
            sum(len(outcome.rows) for outcome in decoded.outcomes),
        )
        outcomes = read_bounded(
            encode_outcomes(decoded.outcomes), "outcomes", OUTCOMES_SCHEMA, len(ids)
        )
        again = decode_outcomes(EVERY_TYPE, rows, outcomes)
        assert repr(again) == repr(list(decoded.outcomes))
        for text in (*decoded.unknown_ids, *decoded.undeclared_keys, *decoded.notes):
            text.encode()

    return read


def _document(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """A reader of documents, with the round trip of what it takes."""

    def read_twice(data: bytes) -> None:
        value = read(data)
        if isinstance(value, StoredEntry):
            value = value.entry
        if isinstance(value, Document):
            again = type(value).decode(value.encode(), "again")
            assert again == value

    return read_twice


def _records(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        (Path(made) / "x.cif").write_bytes(b"x")
        path = Path(made) / "records.jsonl"
        path.write_bytes(data)
        read_records(path)


def _census(data: bytes) -> None:
    key = layout.census(utc_now(), Digest.of(data))
    census: Census = decode_census(key, data, "memory")
    census.below("log/")


def _yaml(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("not UTF-8") from error
    check_yaml(text)
    yaml.safe_load_all(text)


def targets() -> dict[str, Target]:
    """All doors by name."""
    outcomes = make_outcomes(make_batch())
    rows, schema = encode_rows(ROW_COLUMNS, outcomes), rows_schema(ROW_COLUMNS)
    count = sum(len(outcome.rows) for outcome in outcomes)
    outcome_data = encode_outcomes(outcomes)

    def read_rows(data: bytes) -> None:
        table = read_bounded(data, "rows", schema, count)
        try:
            decode_outcomes(
                ROW_COLUMNS, table, read_bounded(outcome_data, "outcomes", OUTCOMES_SCHEMA, 4)
            )
        except OverflowError as error:
            # as `check_artifact` does: dates beyond the calendar
            raise CorruptDataError("a value that cannot be") from error

    made = {f"output {name}": Target(good, _output(name)) for name, good in OUTPUT.items()}
    made |= {f"document {n}": Target(d.good, _document(d.read)) for n, d in doors().items()}
    made["records"] = Target(
        b'{"id": "r1", "metadata": {"x": 1.10}, "files": {"x.cif": "x.cif"}}\n', _records
    )
    made["rows"] = Target(rows, read_rows)
    made["outcomes"] = Target(
        outcome_data, lambda data: read_bounded(data, "outcomes", OUTCOMES_SCHEMA, 4)
    )
    line = Line(1, Digest.of(b"x"), "etag")
    made["census"] = Target(encode_census({"log/batches/structures/b1/": line}), _census)
    made["yaml"] = Target(DEFINITION, _yaml)
    made["manifest of osa"] = Target(
        MANIFEST.read_bytes(),
        lambda data: import_hooks(data, dataset="structures", image=IMAGE),
    )
    return made
