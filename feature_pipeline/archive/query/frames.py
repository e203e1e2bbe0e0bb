"""Convert rows that are read piece by piece into the frames of other libraries.

DuckDB and Polars are extras, imported on use.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

CHUNK_ROWS = 65_536
"""Maximum number of rows of one piece."""


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """Return the table as a DataFrame of Arrow dtypes.

    pandas' own dtypes turn 2^60+1 beside NULL into a float, and do not distinguish NaN from NULL.
    pandas is imported only here, because that takes a third of a second.
    """
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)


class Frame(ABC):
    """Rows of one schema, read from S3 again on each use."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    @abstractmethod
    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows, one table of `schema` per batch, each read from S3 on demand."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in pieces of at most `CHUNK_ROWS`, with few batches in memory."""
        for table in self.tables():
            yield from table.to_batches(max_chunksize=CHUNK_ROWS)

    def to_reader(self) -> pa.RecordBatchReader:
        """Return the pieces as an Arrow stream, which DuckDB, Polars and Parquet writers accept."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def to_arrow(self) -> pa.Table:
        """Return all rows as an Arrow table."""
        return pa.Table.from_batches(list(self), schema=self.schema)

    def to_pandas(self) -> "pd.DataFrame":
        """Return all rows as a DataFrame of Arrow dtypes; see `to_pandas`."""
        return to_pandas(self.to_arrow())

    def to_polars(self) -> "pl.DataFrame":
        """Return all rows as a Polars DataFrame.

        Raises:
            InvalidInputError: Polars is not installed.
        """
        try:
            import polars as pl
        except ImportError as error:
            raise _missing("polars") from error
        frame = pl.from_arrow(self.to_arrow())
        if not isinstance(frame, pl.DataFrame):
            raise TypeError(f"Polars made a {type(frame).__name__} of a table")
        return frame

    def to_duckdb(
        self, connection: "duckdb.DuckDBPyConnection | None" = None
    ) -> "duckdb.DuckDBPyRelation":
        """Return all rows as a DuckDB relation, in the default connection unless one is given.

        Raises:
            InvalidInputError: DuckDB is not installed.
        """
        try:
            import duckdb
        except ImportError as error:
            raise _missing("duckdb") from error
        return (connection or duckdb.default_connection()).from_arrow(self.to_arrow())


def _missing(extra: str) -> InvalidInputError:
    return InvalidInputError(f"{extra} is not installed: pip install 'feature-pipeline[{extra}]'")
