"""What is encoded comes back, and digests depend on what is said and on nothing else."""

from datetime import UTC, date, datetime

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import (
    decode_outcomes,
    encode_outcomes,
    encode_rows,
    read_parquet,
    rows_table,
)
from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.columns import Column, row_encoder
from feature_pipeline.model.digest import ContentSum, canonical_json
from feature_pipeline.model.outcomes import Outcome, OutcomeCounts, OutcomeKind, Status

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
VALUES = {
    ("string", None): TEXT,
    ("number", None): st.floats(),
    ("integer", None): st.integers(-(2**63), 2**63 - 1),
    ("boolean", None): st.booleans(),
    ("array", None): st.lists(JSON, max_size=3).map(canonical_json),
    ("object", None): st.dictionaries(TEXT, JSON, max_size=3).map(canonical_json),
    ("string", "date"): st.dates(date(1, 1, 1), date(9999, 12, 31)),
    ("string", "date-time"): st.datetimes(
        datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001
    ).map(lambda value: value.replace(tzinfo=UTC, fold=0)),
    ("string", "uuid"): st.uuids().map(str),
}  # fmt: skip
REASONS = TEXT.filter(bool)
RECORD_IDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=8
)


@st.composite
def artifacts(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES, key=str)), max_size=5))
    columns = tuple(
        Column(name=f"c{n}", type=type_, format=format_) for n, (type_, format_) in enumerate(kinds)
    )
    row = st.tuples(*(st.none() | VALUES[kind] for kind in kinds))
    outcomes = []
    for record_id in draw(st.lists(RECORD_IDS, unique=True, max_size=6)):
        status = draw(st.sampled_from(Status))
        if status is Status.PASSED:
            rows = tuple(draw(st.lists(row, max_size=4)))
            outcomes.append(Outcome(record_id, status, rows))
        elif status is Status.REJECTED:
            outcomes.append(Outcome(record_id, status, reason=draw(REASONS)))
        else:
            kind = draw(st.sampled_from(OutcomeKind))
            outcomes.append(
                Outcome(
                    record_id,
                    status,
                    reason=draw(REASONS),
                    kind=kind,
                    is_retryable=draw(st.booleans()),
                )
            )
    return columns, tuple(outcomes)


@given(artifacts())
def test_decoding_gives_what_was_encoded(artifact):
    columns, outcomes = artifact
    decoded = decode_outcomes(
        columns,
        read_parquet(encode_rows(columns, outcomes), "rows"),
        read_parquet(encode_outcomes(outcomes), "outcomes"),
    )
    # By repr: NaN is not equal to itself, and -0.0 is to 0.0.
    assert repr(decoded) == repr(list(outcomes))
    assert Content.of(columns, decoded) == Content.of(columns, outcomes)


def content_of_values(columns, outcomes):
    """The digests as they are defined, one value at a time."""
    encoder = row_encoder(columns)
    encoded = [(each, encoder.rows(each.rows)) for each in outcomes]
    sums = ContentSum.of(
        encoder.outcome_digest(each.record_id, each.status.value, each.reason, rows)
        for each, rows in encoded
    )
    of_rows = [encoder.rows_digest(o.record_id, rows) for o, rows in encoded if o.rows]
    return Content(encoder.content_digest(sums), ContentSum.of(of_rows), OutcomeCounts.of(outcomes))


@given(artifacts(), st.randoms())
def test_content_of_columns_is_that_of_their_values(artifact, random):
    columns, outcomes = artifact
    wanted = content_of_values(columns, outcomes)
    assert Content.of(columns, outcomes) == wanted
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    rows, table = rows_table(columns, shuffled), OutcomeColumns.of(columns, outcomes).outcomes
    in_parts = pa.concat_tables([rows[:1], rows[1:]]), pa.concat_tables([table[:1], table[1:]])
    for tables in ((rows, table), in_parts):
        assert Content.of(columns, OutcomeColumns(columns, *tables)) == wanted


@given(artifacts())
def test_columns_are_a_sequence_of_outcomes(artifact):
    columns, outcomes = artifact
    tables = OutcomeColumns.of(columns, outcomes)
    assert tables.is_sound()
    assert repr(list(tables)) == repr(list(outcomes))
    assert len(tables) == len(outcomes)
    assert repr(tables[:1]) == repr(list(outcomes[:1]))


@given(artifacts(), st.data())
def test_tables_are_sound_if_they_can_be_decoded(artifact, data):
    """What acceptance checks by column is what reading checks value by value."""
    columns, outcomes = artifact
    tables = OutcomeColumns.of(columns, outcomes)
    changed = {}
    for name in ("rows", "outcomes"):
        table = getattr(tables, name)
        if table.num_rows:
            places = data.draw(
                st.lists(st.integers(0, table.num_rows - 1), max_size=table.num_rows + 1)
            )
            table = data.draw(st.sampled_from([table, table.take(pa.array(places, pa.int64()))]))
        changed[name] = table
    odd = OutcomeColumns(columns, changed["rows"], changed["outcomes"])
    try:
        decode_outcomes(columns, odd.rows, odd.outcomes)
    except CorruptDataError:
        assert not odd.is_sound()
    else:
        assert odd.is_sound()


@given(artifacts(), st.randoms())
def test_content_has_no_order(artifact, random):
    columns, outcomes = artifact
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    assert Content.of(columns, shuffled) == Content.of(columns, outcomes)


@given(artifacts(), st.data())
def test_content_changes_when_an_outcome_is_removed(artifact, data):
    columns, outcomes = artifact
    if not outcomes:
        return
    gone = data.draw(st.integers(0, len(outcomes) - 1))
    less = outcomes[:gone] + outcomes[gone + 1 :]
    was, now = Content.of(columns, outcomes), Content.of(columns, less)
    assert was.content_digest != now.content_digest
    assert (was.rows_digest == now.rows_digest) == (not outcomes[gone].rows)
