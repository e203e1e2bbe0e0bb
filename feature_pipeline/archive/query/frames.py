"""Rows that are read piece by piece, and whole in the form a library wants."""

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
"""Rows of one piece at most."""


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """Return the table as a DataFrame of Arrow dtypes.

    pandas' own dtypes turn 2^60+1 beside NULL into a float, and NaN beside NULL into one thing.
    Importing pandas takes a third of a second, which only those spend who ask for a DataFrame.
    """
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)


class Frame(ABC):
    """Rows of one schema, read from S3 anew whenever they are asked for."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    @abstractmethod
    def tables(self) -> Iterator[pa.Table]:
        """The rows, one table of `schema` per batch, each read from S3 when it is needed."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The rows in pieces of at most `CHUNK_ROWS`, a few batches being held at a time."""
        for table in self.tables():
            yield from table.to_batches(max_chunksize=CHUNK_ROWS)

    def to_reader(self) -> pa.RecordBatchReader:
        """The pieces as an Arrow stream, which DuckDB, Polars and Parquet writers take as it is."""
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
        """All rows as a DuckDB relation, in DuckDB's default connection unless one is given.

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
