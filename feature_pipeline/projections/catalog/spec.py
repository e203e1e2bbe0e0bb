"""The specification of a table: its name, columns and indexes from its hook's definition."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import RESERVED_COLUMNS, Column, check_columns
from feature_pipeline.model.definition import IndexDefinition, UpcasterDefinition
from feature_pipeline.model.digest import Digest, check_text, document_bytes
from feature_pipeline.model.records import check_dataset
from feature_pipeline.model.table_limits import check_table_limits

LOADER_VERSION: Final = 1
"""Increased when the same artifact would give other rows; every table is then built again."""

MAX_IDENTIFIER_BYTES: Final = 63


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table as its hook's definition declares it.

    `name` is the view's in schema `features`. `columns` are those of the hook's declared columns
    that the table has. `upcasters` convert artifacts that the matrix of `evolve` cannot. `as_of`
    makes it a table of the past: the state of the archive's log at that time.
    """

    dataset: str
    hook: str
    name: str
    columns: tuple[Column, ...]
    indexes: tuple[IndexDefinition, ...] = ()
    description: str | None = None
    upcasters: tuple[UpcasterDefinition, ...] = ()
    as_of: datetime | None = None

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        check_dataset(self.hook)
        check_table_name(self.name)
        check_columns(self.columns)
        check_table_limits([column.kind for column in self.columns])
        known = RESERVED_COLUMNS | {column.name for column in self.columns}
        for index in self.indexes:
            for name in index.columns:
                if name not in known:
                    raise InvalidInputError(
                        f"table {self.name!r}: index on {name!r}, which is not one of its columns:"
                        f" {', '.join(sorted(known))}"
                    )

    @property
    def asset(self) -> str:
        """`<dataset>/features/<hook>`: the feature asset that it shows."""
        return f"{self.dataset}/features/{self.hook}"

    @property
    def generation_digest(self) -> Digest:
        """Equal when the same artifacts give the same rows in a table of the same structure.

        Units and descriptions are comments and indexes are attributes: neither is part of it. Where
        upcasters are, units are: which rows go through one depends on them (`evolve`).
        """
        columns = [
            column.model_dump(mode="json", exclude={"unit", "description"})
            for column in self.columns
        ]
        upcasters = [upcaster.model_dump(mode="json") for upcaster in self.upcasters]
        as_of = None if self.as_of is None else self.as_of.isoformat()
        units = [column.unit for column in self.columns] if upcasters else []
        parts: list[object] = [LOADER_VERSION, columns, upcasters, as_of]
        return Digest.of(document_bytes([*parts, units] if any(units) else parts))

    @property
    def definition_digest(self) -> Digest:
        """Equal when nothing about the table changes, including indexes and comments."""
        return Digest.of(
            document_bytes(
                [
                    str(self.generation_digest),
                    [column.model_dump(mode="json") for column in self.columns],
                    [index.model_dump(mode="json") for index in self.indexes],
                    self.description,
                ]
            )
        )


def check_table_name(name: str) -> str:
    """Return `name` if it can name a table that users read.

    Raises:
        InvalidInputError: It is empty, longer than 63 bytes, starts with `_` (which this package
            keeps for its own views), or has a character that PostgreSQL does not accept or a person
            cannot type.
    """
    check_text(name)
    if not name or len(name.encode()) > MAX_IDENTIFIER_BYTES:
        raise InvalidInputError(
            f"table name {name!r}: 1 to {MAX_IDENTIFIER_BYTES} bytes are needed"
        )
    if name.startswith("_") or not name.isprintable():
        raise InvalidInputError(
            f"table name {name!r}: printable characters, the first not '_', are needed"
        )
    return name
