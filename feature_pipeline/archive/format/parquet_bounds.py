"""Read Parquet that any writer may have made, in memory bounded by what was checked before.

The footer is the writer's word. A page of a few bytes can be decompressed to two gigabytes, a chunk
can stand for a billion values, and a text need not be UTF-8. So sizes are taken from the headers of
the pages, of which each is decompressed to exactly the size in its header or refused.

Source: https://github.com/apache/parquet-format (`parquet.thrift`) and Thrift's compact protocol,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from feature_pipeline.errors import CorruptDataError, InvalidInputError

MOST_DECODED_BYTES: Final = 1 << 30
"""Maximum size of the values of one table."""

_DECODED_SIZE: Final = 2
_STORED_SIZE: Final = 3
"""Fields of a page's header: `uncompressed_page_size` and `compressed_page_size`."""
_MOST_NESTED: Final = 8
"""Deeper than any header."""
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)


def open_parquet(data: bytes, subject: str) -> pq.ParquetFile:
    """Open Parquet whose pages are within the limit; nothing of them is decompressed.

    Raises:
        CorruptDataError: `data` is not Parquet, or its footer contradicts itself or the pages.
        InvalidInputError: It is too large.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [field.name for field in file.schema_arrow]
        sizes = [_decoded_size(data, chunk) for chunk in _chunks(file.metadata)]
    except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError, _WrongHeader) as error:
        raise CorruptDataError(f"{subject} is not Parquet: {error}") from error
    if len(set(names)) != len(names):
        raise CorruptDataError(f"{subject} is not a table: two of its columns have the same name")
    check_decoded_size(sum(sizes), subject)
    return file


def check_decoded_size(size: int, subject: str) -> None:
    """Check the total size of a table's values, in bytes.

    Raises:
        InvalidInputError: They are too large.
    """
    if size > MOST_DECODED_BYTES:
        raise InvalidInputError(
            f"{subject}: {size:,} bytes once decoded; the limit is {MOST_DECODED_BYTES:,}"
        )


def check_texts(table: pa.Table, subject: str) -> None:
    """Check that each text of a table is UTF-8, and its arrays are consistent.

    Raises:
        CorruptDataError: They are not.
    """
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise CorruptDataError(f"{subject}: {error}") from error


def _chunks(metadata: Any) -> list[Any]:
    """Return the column chunks of a flat table, after checking that each has a value per row."""
    chunks: list[Any] = []
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        for position in range(group.num_columns):
            chunk = group.column(position)
            if chunk.num_values != group.num_rows:
                raise _WrongHeader(
                    f"column {chunk.path_in_schema!r} states {chunk.num_values:,} values in"
                    f" {group.num_rows:,} rows"
                )
            chunks.append(chunk)
    if rows != metadata.num_rows:
        raise _WrongHeader(
            f"its row groups have {rows:,} rows, its footer says {metadata.num_rows:,}"
        )
    return chunks


def _decoded_size(data: bytes, chunk: Any) -> int:
    """Return the size of a chunk's pages once decompressed, from their headers, in bytes."""
    if not chunk.num_values:
        return 0  # nothing of it is read, and its offsets may name no page
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    if not 0 <= start <= end <= len(data):
        raise _WrongHeader(f"column {chunk.path_in_schema!r} is not within the file")
    total = 0
    while start < end:
        header = _Header(data, start)
        decoded, stored = header.read()
        if decoded < 0 or stored < 0:
            raise _WrongHeader(f"a page of column {chunk.path_in_schema!r} has a negative size")
        total += decoded
        start = header.at + stored
    return total


class _WrongHeader(Exception):
    """A footer or a page's header is not one, or contradicts another."""


class _Header:
    """A reader of one page's header: a Thrift struct, of which two fields matter."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def read(self) -> tuple[int, int]:
        """Return the page's sizes, decompressed and stored; `at` is behind the header then."""
        sizes: dict[int, int] = {}
        field = 0
        while (kind_and_step := self._byte()) != _STOP:
            kind, step = kind_and_step & 0x0F, kind_and_step >> 4
            field = field + step if step else self._integer()
            if kind == _I32 and field in (_DECODED_SIZE, _STORED_SIZE):
                sizes[field] = self._integer()
            else:
                self._skip(kind, 1)
        if sizes.keys() != {_DECODED_SIZE, _STORED_SIZE}:
            raise _WrongHeader("a page's header has no size")
        return sizes[_DECODED_SIZE], sizes[_STORED_SIZE]

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise _WrongHeader("a page's header has a number beyond 64 bits")

    def _integer(self) -> int:
        zigzag = self._unsigned()
        return zigzag >> 1 if zigzag % 2 == 0 else -(zigzag >> 1) - 1

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _MOST_NESTED:
            raise _WrongHeader("a page's header is nested too deep")
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self.at += 1
        elif kind in (_I16, _I32, _I64):
            self._unsigned()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            size = self._unsigned()
            self.at += size
        elif kind in (_LIST, _SET):
            size_and_kind = self._byte()
            size = size_and_kind >> 4
            self._skip_each(
                self._unsigned() if size == 15 else size, (size_and_kind & 0x0F,), depth
            )
        elif kind == _MAP:
            if size := self._unsigned():
                kinds = self._byte()
                self._skip_each(size, (kinds >> 4, kinds & 0x0F), depth)
        elif kind == _STRUCT:
            while (kind_and_step := self._byte()) != _STOP:
                if not kind_and_step >> 4:
                    self._integer()
                self._skip(kind_and_step & 0x0F, depth + 1)
        else:
            raise _WrongHeader(f"a page's header has a value of the unknown type {kind}")

    def _skip_each(self, size: int, kinds: tuple[int, ...], depth: int) -> None:
        for _ in range(size):
            for kind in kinds:
                # In a list, unlike in a field, true and false take a byte.
                self._skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
            if self.at > len(self._data):
                raise _WrongHeader("a page's header is cut off")
