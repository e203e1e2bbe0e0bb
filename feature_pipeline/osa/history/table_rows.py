"""Read the rows of a hook's table on the server, by hook run, with the records that they are of.

Values are read in two ways. For storing, PostgreSQL writes each row as JSON text, in which numbers
keep their shortest spelling and `NaN` and infinities are literals. For comparing, values come with
their types (`Reader.feature_rows` in `server.database`, `typed_rows` here).
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.osa.server.database import Reader, selected
from feature_pipeline.osa.server.ids import local_id
from feature_pipeline.osa.server.schema import COLUMN_TYPES, FIXED_COLUMNS, table_columns

if TYPE_CHECKING:
    import pyarrow as pa

_RUNS: Final = """
select f.run_id::text, r.source ->> 'type', r.source ->> 'ingest_run_id',
       r.source ->> 'batch_index',
       case when r.source ->> 'type' = 'deposition' then r.source ->> 'id' end,
       count(*)
from {table} as f join public.records as r on r.srn = f.record_srn
where r.convention_id = %s
group by 1, 2, 3, 4, 5
order by 1, 2, 3, 4, 5
"""
"""Answers which hook runs have how many rows of a convention's records, by what these are of."""

_OTHERS: Final = """
select r.convention_id, count(*)
from {table} as f left join public.records as r on r.srn = f.record_srn
group by 1 order by 1
"""
"""Answers how many rows each convention's records have."""

_RECORD: Final = sql.SQL(
    "r.convention_id, r.srn, r.source ->> 'type', r.source ->> 'id',"
    " r.source ->> 'upstream_source', r.metadata::text, r.published_at"
)

_RECORDS_OF_RUN: Final = """
select {record} from public.records as r
where r.convention_id = %s and r.srn in (select f.record_srn from {table} as f where f.run_id = %s)
order by r.source ->> 'id' collate "C"
"""
"""Answers which records have rows of a hook run."""

_RECORDS_OF_INGESTS: Final = """
select r.source ->> 'ingest_run_id', r.source ->> 'batch_index', {record}
from public.records as r
where r.convention_id = %s and r.source ->> 'type' = 'ingest'
  and r.source ->> 'ingest_run_id' = any(%s)
order by 1, 2, r.source ->> 'id' collate "C"
"""
"""Answers which records the server published of ingest runs, batch by batch."""

_CHUNK_ROWS: Final = 2_000

_MOST_TEXT_BYTES: Final = 1 << 30
"""Maximum size of the rows of a hook run: acceptance refuses an artifact with more, too."""
_MOST_MARKS: Final = 500
"""Texts with more brackets may be nested deeper than Python's parser follows."""
_LONG_NUMBER: Final = "[0-9]{1000}"
"""Python's parser refuses integers with several thousand digits."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the server published records of: a batch of an ingest, or a deposition."""

    type: str | None
    ingest_run: str | None
    batch_index: str | None
    """As text; None in old records, and for depositions."""
    deposition: str | None
    """Its SRN."""


@dataclass
class RunRows:
    """How many rows a hook run has, by what their records are of."""

    run_id: str
    by_origin: dict[Origin, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.by_origin.values())


@dataclass(frozen=True, slots=True)
class PublishedRecord:
    """A record of the server."""

    srn: str
    record_id: str
    """Its id here: the upstream id, or the local id of its deposition."""
    metadata: str
    """JSON text."""
    published_at: datetime


@dataclass(frozen=True, slots=True)
class TypedRow:
    """A row of the server's table, with its values in the order of the columns asked for."""

    id: int
    created_at: datetime
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class TableColumns:
    """A hook's table on the server.

    Args:
        name: Name of the table in the schema `features`.
        columns: The hook's columns as the server declares them.
        undeclared: Further columns of the table, which are not read.
        with_default: Names under which an absent value means a default here.
    """

    name: str
    columns: tuple[Column, ...]
    undeclared: tuple[str, ...]
    with_default: frozenset[str]

    @classmethod
    def of(
        cls, reader: Reader, hook: str, columns: Sequence[Column], ours: Sequence[Column]
    ) -> "TableColumns":
        """Return a hook's table, checked.

        Args:
            reader: The snapshot.
            hook: The hook.
            columns: Its columns as the server declares them.
            ours: Its columns as this project declares them.

        Raises:
            NotFoundError: The server's catalogue has no table of the hook.
            InvalidInputError: It does not exist, may not be read, or a column is not of the type
                that the server gives it.
        """
        name = reader.feature_table(hook)
        if name is None:
            raise NotFoundError(f"public.feature_tables has no table of hook {hook!r}")
        reader.feature_columns(name)
        there = table_columns(reader.connection, name)
        types = {column: kind for column, (kind, _) in there.items()}
        wanted = {**FIXED_COLUMNS, **{each.name: COLUMN_TYPES[each.kind] for each in columns}}
        for column, kind in wanted.items():
            if types.get(column) != kind:
                actual = f"is of type {types[column]}" if column in types else "does not exist"
                raise InvalidInputError(
                    f'features."{name}": column {column!r} {actual}, and the server declares it'
                    f" as {kind}: its values cannot be read"
                )
        undeclared = tuple(each for each in types if each not in wanted)
        defaults = [each for each in ours if each.default is not None]
        names = frozenset(n for each in defaults for n in (each.name, *each.former_names))
        return cls(name, tuple(columns), undeclared, names)


class HookTable:
    """The rows of a hook's table, in one snapshot.

    Args:
        reader: The snapshot.
        layout: The table.
    """

    def __init__(self, reader: Reader, layout: TableColumns) -> None:
        self.reader = reader
        self.name = layout.name
        self.columns = layout.columns
        self.with_default = layout.with_default
        # bytes of texts of values depend on these
        for setting in ("datestyle to iso, ymd", "timezone to 'UTC'", "extra_float_digits to 1"):
            reader.connection.execute(sql.SQL("set local {}").format(sql.SQL(setting)))

    @property
    def _table(self) -> sql.Identifier:
        return sql.Identifier("features", self.name)

    def runs(self, convention: str) -> list[RunRows]:
        """Return the hook runs with rows of the convention's records, by id."""
        runs: dict[str, RunRows] = {}
        for run_id, kind, ingest, index, deposition, rows in self._rows(_RUNS, convention):
            origin = Origin(kind, ingest, index, deposition)
            runs.setdefault(run_id, RunRows(run_id)).by_origin[origin] = rows
        return list(runs.values())

    def rows_by_convention(self) -> dict[str | None, int]:
        """Return the number of rows by convention; those without a record under None."""
        return dict(self._rows(_OTHERS))

    def records(self, run_id: str, convention: str) -> list[PublishedRecord]:
        """Return the convention's records with rows of a hook run, in order of their origin's id.

        Raises:
            InvalidInputError: The origin of one is not known.
        """
        return [_record(*row) for row in self._rows(_RECORDS_OF_RUN, convention, run_id)]

    def rows(self, run_id: str) -> "pa.Table":
        """Return the rows of a hook run as JSON texts, in the hook's order.

        The columns are `id`, `record_srn`, `created_at` and `text`, the hook's columns as a JSON
        object. SQL NULL in an array or object column is an absent key, so that it stays apart from
        JSON null, unless an absent key means a default.

        Raises:
            InvalidInputError: Arrow cannot represent a value, or there is too much text.
        """
        import pyarrow as pa

        plain = [column for column in self.columns if column.kind != "json"]
        nested = [column for column in self.columns if column.kind == "json"]
        parts = [
            sql.SQL("{} || coalesce({}, 'null')").format(
                sql.Literal(("," if number else "") + json.dumps(each.name) + ":"), _json(each)
            )
            for number, each in enumerate(plain)
        ]
        selected_texts = {
            "plain": sql.SQL(" || ").join(parts) if parts else sql.SQL("''"),
            **{
                str(number): _nested(each, is_default=each.name in self.with_default)
                for number, each in enumerate(nested)
            },
        }
        texts = dict.fromkeys(selected_texts, pa.string())
        keys = [json.dumps(column.name) for column in nested]
        try:
            table = self._read(run_id, selected_texts, texts)
            members = [table.column(str(number)) for number in range(len(keys))]
            text = _objects(table.column("plain"), dict(zip(keys, members, strict=True)))
        except ValueError as error:
            raise InvalidInputError(f"its rows cannot be read: {error}") from error
        if text.nbytes > _MOST_TEXT_BYTES:
            raise InvalidInputError(
                f"its rows have {text.nbytes:,} bytes as JSON: at most {_MOST_TEXT_BYTES:,} can be"
                " imported"
            )
        return table.select(["id", "record_srn", "created_at"]).append_column("text", text)

    def typed_rows(
        self, run_id: str, columns: Sequence[Column], srns: Collection[str]
    ) -> dict[str, list[TypedRow]]:
        """Return the rows of a hook run, by SRN, in the hook's order.

        Dates, times, UUIDs, arrays and objects are given as text.
        """
        statement = sql.SQL("select {} from {} where run_id = %s order by id").format(
            sql.SQL(", ").join(
                [sql.SQL("id, record_srn, created_at"), *(selected(each) for each in columns)]
            ),
            self._table,
        )
        wanted = frozenset(srns)
        rows_by_srn: dict[str, list[TypedRow]] = {}
        for row_id, srn, created_at, *values in self._stream(statement, [run_id]):
            if srn in wanted:
                rows_by_srn.setdefault(srn, []).append(TypedRow(row_id, created_at, values))
        return rows_by_srn

    def arrow_rows(self, run_id: str, columns: Sequence[Column]) -> "pa.Table":
        """Return the rows of a hook run as Arrow columns, in order of `id`.

        The columns are `id`, `record_srn`, `created_at`, and then `0`, `1`, … for `columns`.
        Arrays and objects are canonical JSON if they are what the server writes.

        Raises:
            ValueError: Arrow cannot represent a value, or an array or object is not JSON.
        """
        from feature_pipeline.archive.format.encode import arrow_field
        from feature_pipeline.projections.proof.json_texts import canonical_texts

        selection = {str(number): _parsed(each) for number, each in enumerate(columns)}
        fields = {str(number): arrow_field(each).type for number, each in enumerate(columns)}
        table = self._read(run_id, selection, fields)
        for number, column in enumerate(columns):
            if column.kind == "json" and table.num_rows:
                canonical = canonical_texts(table.column(str(number)))
                place = table.schema.get_field_index(str(number))
                table = table.set_column(place, str(number), canonical)
        return table

    def _read(
        self,
        run_id: str,
        selection: "Mapping[str, sql.Composable]",
        fields: "Mapping[str, pa.DataType]",
    ) -> "pa.Table":
        """Return `id`, `record_srn`, `created_at` and a selection of a hook run, by `id`.

        Raises:
            ValueError: Arrow cannot represent a value.
        """
        import pyarrow as pa

        from feature_pipeline.projections.proof.read_back import parse, read_texts

        all_fields: dict[str, pa.DataType] = {
            "id": pa.int64(),
            "record_srn": pa.string(),
            "created_at": pa.timestamp("us", tz="UTC"),
            **fields,
        }
        chosen = [
            sql.SQL("{} as {}").format(expression, sql.Identifier(name))
            for name, expression in selection.items()
        ]
        source = sql.SQL("(select {} from {} as f where f.run_id = {}) as s").format(
            sql.SQL(", ").join([sql.SQL("f.id, f.record_srn, f.created_at"), *chosen]),
            self._table,
            sql.Literal(run_id),
        )
        texts = read_texts(self.reader.connection, source, all_fields, sql.SQL("order by id"))
        schema = pa.schema(list(all_fields.items()))
        return pa.concat_tables(
            [schema.empty_table(), *(parse(text, all_fields) for text in texts)]
        )

    def _rows(self, statement: str, *parameters: object) -> list[Any]:
        composed = sql.SQL(statement).format(table=self._table, record=_RECORD)
        return self.reader.connection.execute(composed, parameters).fetchall()

    def _stream(self, statement: sql.Composed, parameters: Sequence[object]) -> Iterator[Any]:
        with self.reader.connection.cursor("osa_rows") as cursor:
            cursor.itersize = _CHUNK_ROWS
            cursor.execute(statement, parameters)
            yield from cursor


def published_batches(
    reader: Reader, convention: str, ingest_runs: Collection[str]
) -> Iterator[tuple[tuple[str, str | None], list[PublishedRecord] | InvalidInputError]]:
    """Yield the records that the server published of ingest runs, by run and batch index.

    One batch is in memory at a time. Records are in order of their upstream ids. The error stands
    for a batch with a record whose id is not known.
    """
    with reader.connection.cursor("osa_records") as cursor:
        cursor.itersize = _CHUNK_ROWS
        statement = sql.SQL(_RECORDS_OF_INGESTS).format(record=_RECORD)
        cursor.execute(statement, [convention, list(ingest_runs)])
        key: Callable[[Any], tuple[str, str | None]] = lambda row: (row[0], row[1])  # noqa: E731
        for group, rows in groupby(cursor, key):
            yield group, _records(rows)


def _records(rows: Iterable[Any]) -> list[PublishedRecord] | InvalidInputError:
    try:
        return [_record(*row[2:]) for row in rows]
    except InvalidInputError as error:
        return error


def _record(
    convention: str,
    srn: str,
    kind: str | None,
    source_id: str | None,
    upstream: str | None,
    metadata: str,
    published_at: datetime,
) -> PublishedRecord:
    prefix = f"{convention}:"
    if kind == "ingest" and upstream is None and source_id is not None:
        # an old record
        upstream = source_id.removeprefix(prefix) if source_id.startswith(prefix) else None
    if kind == "ingest" and upstream is not None:
        return PublishedRecord(srn, upstream, metadata, published_at)
    if kind == "deposition" and source_id is not None:
        return PublishedRecord(srn, local_id(source_id), metadata, published_at)
    raise InvalidInputError(
        f"record {srn}: its source is of type {kind!r}, with id {source_id!r} and upstream_source"
        f" {upstream!r}: expected an ingest with"
        f" upstream_source or {prefix}<upstream id>, or a deposition with its SRN"
    )


def _json(column: Column) -> sql.Composable:
    """Return the JSON text of a value; NaN and infinities are the literals that decoders read."""
    name = sql.Identifier("f", column.name)
    if column.kind in {"number", "integer", "boolean"}:
        return sql.SQL("{}::text").format(name)
    return sql.SQL("to_json({})::text").format(name)


def _parsed(column: Column) -> sql.Composable:
    """Return the selection of a column, an array or object as the text of its own JSON."""
    name = sql.Identifier("f", column.name)
    if column.kind != "json":
        return name
    return sql.SQL(
        "nullif(case when jsonb_typeof({0}) = 'string' then {0} #>> '{{}}' else {0}::text end,"
        " 'null')"
    ).format(name)


def _nested(column: Column, *, is_default: bool) -> sql.Composable:
    """Return the text of an array or object, with `s` before it if it is the text of a string.

    SQL NULL stays NULL, or is JSON null if an absent key would be a default.
    """
    name = sql.Identifier("f", column.name)
    text = sql.SQL(
        "case when jsonb_typeof({0}) = 'string' then 's' || ({0} #>> '{{}}') else 'j' || {0}::text"
        " end"
    ).format(name)
    return sql.SQL("coalesce({}, 'jnull')").format(text) if is_default else text


def _objects(plain: Any, nested: Mapping[str, Any]) -> Any:
    """Return JSON objects.

    Args:
        plain: Members of each object, as one text; empty if no object has any.
        nested: By key, further members, as `_nested` selects them; none where NULL.
    """
    import pyarrow.compute as pc

    compute: Any = pc
    members = [plain]
    for key, values in nested.items():
        written = compute.binary_join_element_wise(f",{key}:", _inner(values), "")
        members.append(compute.fill_null(written, ""))
    text = compute.binary_join_element_wise("{", *members, "}", "")
    if compute.any(compute.starts_with(text, "{,")).as_py():
        # none has members before these
        text = compute.replace_substring_regex(text, r"\A\{,", "{")
    return text


def _inner(texts: Any) -> Any:
    """Return the JSON values of array or object cells, which the server stores as strings.

    A string that is not JSON stays a string, which is not a value of the column.
    """
    import pyarrow.compute as pc

    compute: Any = pc
    texts = texts.combine_chunks()
    values = compute.utf8_slice_codeunits(texts, 1)
    is_string = compute.fill_null(compute.starts_with(texts, "s"), False)
    if not compute.any(is_string).as_py():
        return values
    strings = values.filter(is_string)
    if not _are_json(strings):
        strings = compute.cast([_of_string(each) for each in strings.to_pylist()], values.type)
    elif compute.any(compute.match_substring_regex(strings, "[\n\r]")).as_py():
        # valid JSON has line ends between tokens only
        strings = compute.replace_substring_regex(strings, "[\n\r]", " ")
    return compute.replace_with_mask(values, is_string, strings)


def _are_json(strings: Any) -> bool:
    """Return whether every text is JSON, with nothing around it, if that is quickly seen."""
    import msgspec
    import pyarrow.compute as pc

    compute: Any = pc
    marks = compute.add(
        compute.count_substring(strings, "["), compute.count_substring(strings, "{")
    )
    if compute.max(marks).as_py() > _MOST_MARKS:
        return False
    if compute.any(compute.match_substring_regex(strings, _LONG_NUMBER)).as_py():
        return False
    octets: list[bytes] = strings.cast("binary").to_pylist()
    try:
        values = msgspec.json.decode(b"[%b]" % b",".join(octets), type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return list(map(bytes, values)) == octets


def _of_string(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.replace("\n", " ").replace("\r", " ")


def metadata_of(record: PublishedRecord) -> object:
    """Return the metadata of a record, with the spelling of its numbers.

    Raises:
        InvalidInputError: It is not JSON that can be stored.
    """
    return read_json(record.metadata.encode(), f"record {record.srn}: metadata")
