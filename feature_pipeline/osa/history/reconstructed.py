"""What an artifact is whose rows were reconstructed from the server's table of a hook.

It is not a hook's output. Its raw output has the rows in two files: `features.jsonl`, which every
decoder reads, and `server.rows.parquet`, with the server's own columns of the same rows.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import RAW, Manifest
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.osa.server.output import ASIDE

if TYPE_CHECKING:
    import pyarrow as pa

Ids = list[tuple[int, datetime]]
"""`id` and `created_at` of a record's rows, in order."""

RECONSTRUCTED: Final = "osa-table"
"""Name of the runner in a reconstructed artifact. No hook run of ours, or of the server, has it."""
ROW_IDS: Final = f"{ASIDE}rows.parquet"
"""Name of the raw file with the server's own columns."""
_COMPLETION: Final = "osa-table-"


def is_reconstructed(manifest: Manifest) -> bool:
    """Return whether the artifact's rows were read from the server's table.

    An erasure, or decoding the raw output again, does not change the answer.
    """
    return manifest.run.runner == RECONSTRUCTED


def reconstructed_completion(run_id: str) -> str:
    """Return the id of the completion of a reconstructed artifact, by the server's hook run.

    It differs from that of the hook run's output, whose completion has the id of the hook run.
    """
    return f"{_COMPLETION}{run_id}"


def reconstructed_run(completion: str) -> str | None:
    """Return the hook run of the completion of a reconstructed artifact; None if it is another."""
    return completion.removeprefix(_COMPLETION) if completion.startswith(_COMPLETION) else None


def row_ids_schema() -> "pa.Schema":
    """Return the columns of `server_row_ids`."""
    import pyarrow as pa

    fields: list[pa.Field[Any]] = [
        pa.field("record", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("record_srn", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
    return pa.schema(fields)


def server_row_ids(store: BlobStore, manifest: Manifest) -> "pa.Table":
    """Return the server's own columns of a reconstructed artifact's rows, one row each.

    `record` is the id of the record here, `row` the position of the row within the record, from 0;
    the rows are in the order of `features.jsonl`. The table is empty if the artifact has no such
    file: it is a hook's output, or a record was erased from it.

    Raises:
        NotFoundError, CorruptDataError: The file is missing or damaged.
    """
    from feature_pipeline.archive.format.encode import read_parquet

    schema = row_ids_schema()
    if f"{RAW}{ROW_IDS}" not in manifest.blobs:
        return schema.empty_table()
    where = f"artifact of run {manifest.run.id}: {ROW_IDS}"
    table = read_parquet(read.read_raw(store, manifest, ROW_IDS), where)
    if not table.schema.equals(schema, check_metadata=False):
        raise CorruptDataError(f"{where}: its columns are not those of the server's rows")
    return table


def row_ids_by_record(table: "pa.Table") -> dict[str, Ids]:
    """Return `id` and `created_at` of every row of `server_row_ids`, by record."""
    from feature_pipeline.archive.format.encode import instants

    ids_by_record: dict[str, Ids] = {}
    rows: Iterator[Any] = zip(
        *(table.column(name).to_pylist() for name in ("record", "id")),
        instants(table.column("created_at")),
        strict=True,
    )
    for record, row_id, created_at in rows:
        ids_by_record.setdefault(record, []).append((row_id, created_at))
    return ids_by_record
