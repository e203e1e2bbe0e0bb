"""The example batches: wwPDB entries, as a harvest and a depositor would submit them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from feature_pipeline.model.records import Source

DATASET: Final = "structures"
STRUCTURES: Final = Path(__file__).parent / "structures"


@dataclass(frozen=True, slots=True)
class ExampleRecord:
    """A record with local files: name in the archive to local path."""

    id: str
    metadata: dict[str, JsonValue]
    files: dict[str, Path]


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Records that are submitted together, and their origin."""

    key: str
    source: Source
    records: tuple[ExampleRecord, ...]


class _RecordEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    file: str
    metadata: dict[str, JsonValue]


class _BatchEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    batch: str
    source: Source
    records: list[_RecordEntry]


@cache
def example_batches() -> tuple[ExampleBatch, ...]:
    """Return the batches in order of submission: two harvests and a deposition of one record.

    No record is in two of them. `structures/records.json` lists their files, with entry, title and
    method from the files' headers.
    """
    listing = (STRUCTURES / "records.json").read_bytes()
    return tuple(
        ExampleBatch(
            entry.batch,
            entry.source,
            tuple(
                ExampleRecord(r.id, r.metadata, {r.file: STRUCTURES / r.file})
                for r in entry.records
            ),
        )
        for entry in TypeAdapter(list[_BatchEntry]).validate_json(listing)
    )


def example_records() -> list[ExampleRecord]:
    """Return the records of all example batches, in the order of submission."""
    return [record for batch in example_batches() for record in batch.records]
