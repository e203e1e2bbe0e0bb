"""What is encoded comes back, and digests depend on what is said and on nothing else."""

from datetime import UTC, date, datetime

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.archive.format.encode import (
    Content,
    decode_outcomes,
    encode_outcomes,
    encode_rows,
    read_parquet,
    rows_table,
)
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import canonical_json
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status

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


@given(artifacts(), st.randoms())
def test_content_of_a_table_is_that_of_its_rows(artifact, random):
    columns, outcomes = artifact
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    table = rows_table(columns, shuffled)
    assert Content.of(columns, outcomes, table) == Content.of(columns, outcomes)
    in_parts = pa.concat_tables([table[:1], table[1:]])
    assert Content.of(columns, outcomes, in_parts) == Content.of(columns, outcomes)


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
