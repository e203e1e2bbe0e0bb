"""However declarations change, every way of reading an artifact gives the same values.

An artifact is read under later columns from its rows, as readers and tables do, or from its raw
output, as a run does that only changed columns led to. Which of them it was must not be seen.
"""

import json

from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.archive.format.align_columns import MisfitError, map_columns, select_columns
from feature_pipeline.archive.format.encode import rows_table
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.column_sources import UnclearColumnError, raw_keys
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import Outcome

NAMES = "abcd"


@st.composite
def _declarations(draw: st.DrawFn) -> tuple[Column, ...]:
    """Columns of which none has a name, or had one, that another has or had."""
    names = draw(st.permutations(NAMES))
    columns = []
    while names and (not columns or draw(st.booleans())):
        name, former = names[0], names[1 : 1 + draw(st.integers(0, 2))]
        names = names[1 + len(former) :]
        columns.append(Column(name=name, type="integer", renamed_from=tuple(former) or None))
    return tuple(columns)


def _decode(data: bytes, columns: tuple[Column, ...], keys: object = None) -> list[Outcome]:
    files = {"features.jsonl": data}
    return list(decode_output(files, ["r"], columns, Cardinality.MANY, {}, keys).outcomes)


@given(written=_declarations(), wanted=_declarations(), absent=st.sets(st.sampled_from(NAMES)))
def test_rows_and_raw_output_agree(written, wanted, absent) -> None:
    # The hook writes under the names that are declared.
    row = {c.name: ord(c.name) for c in written if c.name not in absent}
    raw = json.dumps({"id": "r", "features": [row]}).encode()
    table = rows_table(written, _decode(raw, written))
    try:
        aligned = select_columns(table, map_columns(written, wanted))
    except MisfitError:
        try:
            raw_keys(written, wanted)
        except UnclearColumnError:
            return
        raise
    [outcome] = _decode(raw, wanted, raw_keys(written, wanted))
    [values] = aligned.select([c.name for c in wanted]).to_pylist()
    assert outcome.rows == (tuple(values.values()),)
