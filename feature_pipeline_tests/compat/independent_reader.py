"""A reader of all versions made from docs/format.md alone: the standard library and pyarrow only.

It shares no code with the package, so that the two agree only if the page describes what is stored.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

SHAPES = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "array": pa.string(),
    "object": pa.string(),
    "date": pa.date32(),
    "date-time": pa.timestamp("us", tz="UTC"),
    "uuid": pa.string(),
}
OUTCOME_COLUMNS = {
    "record_id": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "kind": pa.string(),
    "retryable": pa.bool_(),
    "row_count": pa.int32(),
    "action": pa.string(),
    "carried_from": pa.string(),
}


class Damaged(Exception):
    """Bytes are not what their name says."""


class Number(str):
    """A number as it was written, unless Python writes an integer in the same way."""


def number(written: str) -> int | Number:
    is_plain = written.lstrip("-").isdigit() and written != "-0"
    return int(written) if is_plain else Number(written)


def document(value: Any) -> bytes:
    if isinstance(value, Number):
        return value.encode()
    if isinstance(value, dict):
        return b"{%s}" % b",".join(
            document(key) + b":" + document(item) for key, item in sorted(value.items())
        )
    if isinstance(value, list):
        return b"[%s]" % b",".join(map(document, value))
    return json.dumps(value, ensure_ascii=False).encode()


def text(tag: bytes, value: str) -> bytes:
    data = value.encode()
    return tag + struct.pack(">I", len(data)) + data


def cell(column: dict[str, Any], value: Any) -> bytes:
    if value is None:
        return b"N"
    match column["format"] or column["type"]:
        case "string":
            return text(b"s", value)
        case "number":
            is_nan = value != value
            return b"d" + (
                bytes.fromhex("7ff8000000000000") if is_nan else struct.pack(">d", value)
            )
        case "integer":
            return b"i" + struct.pack(">q", value)
        case "boolean":
            return b"T" if value else b"F"
        case "array" | "object":
            return text(b"j", value)
        case "date":
            return b"D" + struct.pack(">q", (value - date(1970, 1, 1)).days)
        case "date-time":
            return b"t" + struct.pack(">q", value)
        case "uuid":
            return b"u" + UUID(value).bytes
    raise Damaged(f"no such column: {column}")


@dataclass(frozen=True)
class Digests:
    content: str
    rows: str


class Reader:
    """Reads one archive, kept as a folder of files whose paths are the keys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, digest: str, size: int | None = None) -> bytes:
        algorithm, _, name = digest.partition(":")
        data = (self.root / "blobs" / algorithm / name[:2] / name).read_bytes()
        if (size is not None and len(data) != size) or sha256(data).hexdigest() != name:
            raise Damaged(digest)
        return data

    def decoded(self, data: bytes, newest: int = 1) -> dict[str, Any]:
        value = json.loads(data, parse_float=number, parse_int=number)
        if not 1 <= value["spec_version"] <= newest:
            raise Damaged(f"spec_version {value['spec_version']} is not known")
        if document(value) != data:
            raise Damaged("the document is not canonical")
        return value

    def entries(self, *log: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        before, version = None, 1
        for number, file in enumerate(sorted((self.root / "log").joinpath(*log).iterdir()), 1):
            data = file.read_bytes()
            entry = self.decoded(data, newest=2)
            if (file.name, entry["seq"]) != (f"{number:010d}", number):
                raise Damaged(f"{file}: not entry {number}")
            if self.place(log[0], entry) != log[1:]:
                raise Damaged(f"{file}: an entry of {self.place(log[0], entry)}")
            if entry["spec_version"] < version:
                raise Damaged(f"{file}: version 1 after version 2")
            if entry["spec_version"] > 1 and entry["previous"] != before:
                raise Damaged(f"{file}: follows {entry['previous']}, not {before}")
            before = f"sha256:{sha256(data).hexdigest()}"
            version = entry["spec_version"]
            entries.append(entry)
        return entries

    def place(self, kind: str, entry: dict[str, Any]) -> tuple[str, ...]:
        """What the entry says of the log that it is in."""
        names = {"batches": ("dataset", "batch"), "features": ("dataset", "hook", "batch")}
        if kind == "releases":
            return entry["release"]["dataset"], entry["release"]["hook"]
        return tuple(entry[name] for name in names.get(kind, ("dataset",)))

    def heads(self, dataset: str, hook: str) -> dict[str, dict[str, Any]]:
        entries = {}
        for folder in (self.root / "log/features" / dataset / hook).iterdir():
            for entry in self.entries("features", dataset, hook, folder.name):
                if entry["verdict"] == "current":
                    entries[folder.name] = entry
        return entries

    def withdrawn(self, dataset: str) -> set[str]:
        last = {
            record_id: entry["action"]
            for entry in self.entries("tombstones", dataset)
            for record_id in entry["record_ids"]
        }
        return {record_id for record_id, action in last.items() if action == "withdraw"}

    def manifest(self, digest: str) -> dict[str, Any]:
        manifest = self.decoded(self.blob(digest), newest=2)
        added = {"starts", "without_output"}
        if added & manifest.keys() != (added if manifest["spec_version"] > 1 else set()):
            raise Damaged(f"{digest}: fields of another version")
        return manifest

    def without_output(self, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The records that have an outcome and no output, with what is stated of them."""
        stated = manifest.get("without_output", {})
        outcomes = {outcome["record_id"]: outcome for outcome in self.outcomes(manifest)}
        for record_id, one in stated.items():
            outcome = outcomes[record_id]
            recorded = (outcome["status"], outcome["kind"], outcome["reason"], outcome["retryable"])
            if recorded != ("errored", one["kind"], one["reason"], one["retryable"]):
                raise Damaged(f"{record_id}: {recorded} in its outcomes")
        return stated

    def table(self, manifest: dict[str, Any], name: str) -> pa.Table:
        ref = manifest["blobs"][name]
        return pq.read_table(pa.BufferReader(self.blob(ref["digest"], ref["size"])))

    def rows(self, manifest: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Per record its rows; instants are microseconds since 1970."""
        table = self.table(manifest, "rows")
        shapes = {c["name"]: SHAPES[c["format"] or c["type"]] for c in manifest["columns"]}
        wanted = {"record_id": pa.string(), "ordinal": pa.int32(), **shapes}
        if dict(zip(table.schema.names, table.schema.types, strict=True)) != wanted:
            raise Damaged(f"columns are {table.schema}")
        for position, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                instants = table.column(position).cast(pa.int64())
                table = table.set_column(position, field.name, instants)
        by_record: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            rows = by_record.setdefault(row.pop("record_id"), [])
            if row.pop("ordinal") != len(rows):
                raise Damaged("ordinals are not 0, 1, 2, ...")
            rows.append(row)
        return by_record

    def outcomes(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        table = self.table(manifest, "outcomes")
        if dict(zip(table.schema.names, table.schema.types, strict=True)) != OUTCOME_COLUMNS:
            raise Damaged(f"columns are {table.schema}")
        return table.to_pylist()

    def digests(self, manifest: dict[str, Any]) -> Digests:
        """What `content_digest` and `rows_digest` should be, from the two tables."""
        columns = manifest["columns"]
        header = document([[c["name"], c["type"], c["format"]] for c in columns])
        prefix = struct.pack(">I", len(header)) + header
        rows, outcomes, in_rows = self.rows(manifest), 0, 0
        for outcome in self.outcomes(manifest):
            record_id, reason = outcome["record_id"], outcome["reason"]
            own = rows.pop(record_id, [])
            if len(own) != outcome["row_count"]:
                raise Damaged(f"{record_id}: {len(own)} rows, not {outcome['row_count']}")
            cells = struct.pack(">I", len(own))
            cells += b"".join(cell(c, row[c["name"]]) for row in own for c in columns)
            verdict = text(b"s", outcome["status"]) + (
                b"N" if reason is None else text(b"s", reason)
            )
            name = text(b"s", record_id)
            outcomes += int.from_bytes(sha256(prefix + name + verdict + cells).digest(), "big")
            if own:
                in_rows += int.from_bytes(sha256(prefix + name + cells).digest(), "big")
        if rows:
            raise Damaged(f"rows of {sorted(rows)}, which have no outcome")
        content = sha256(prefix + (outcomes % 2**256).to_bytes(32, "big")).hexdigest()
        return Digests(f"sha256:{content}", f"{in_rows % 2**256:064x}")

    def action(self, batch: dict[str, Any], release: dict[str, Any], record_id: str) -> str:
        """The action of a record under a hook without inputs."""
        (record,) = [r for r in batch["records"] if r["id"] == record_id]
        program: dict[str, Any] = {"command": release["command"], "config": release["config"]}
        if release["image"] is None:
            program["version"] = release["version"]
        else:
            program["image"] = release["image"]
        if release["code"] or release["image"] is None:
            program["code"] = {file["name"]: file["digest"] for file in release["code"]}
        asked = {
            "action": "record",
            "release": program,
            "record": {
                "id": record_id,
                "metadata": record["metadata"],
                "files": {file["name"]: file["digest"] for file in record["files"]},
            },
            "inputs": {},
        }
        return f"sha256:{sha256(document(asked)).hexdigest()}"

    def erased(self, dataset: str) -> dict[str, str]:
        """Per manifest that was replaced its successor."""
        if not (self.root / "log/erasures" / dataset).exists():
            return {}
        replaced: dict[str, str] = {}
        for entry in self.entries("erasures", dataset):
            replaced |= entry["manifests"]
        return replaced

    def known(self) -> dict[str, tuple[int, bytes | None]]:
        """By log how far it went, and the digest of its last entry."""
        lines: dict[str, tuple[int, bytes | None]] = {}
        for path in sorted((self.root / "census").iterdir(), reverse=True):
            data = path.read_bytes()
            if sha256(data).hexdigest() != path.name.partition("-")[2]:
                continue  # damaged: the one before it is used
            table = pq.read_table(pa.BufferReader(data))
            if table.schema.metadata[b"spec_version"] != b"1":
                raise Damaged(f"{path}: spec_version {table.schema.metadata} is not known")
            lines = {line["log"]: (line["entries"], line["digest"]) for line in table.to_pylist()}
            break
        for folder in self.root.glob("log/losses/*"):
            first, _ = lines.get(f"log/losses/{folder.name}/", (0, None))
            for entry in self.entries("losses", folder.name)[first:]:
                for loss in entry["losses"]:
                    lines.pop(loss["log"], None)
                    if loss["entries"]:
                        last = bytes.fromhex(loss["last"].removeprefix("sha256:"))
                        lines[loss["log"]] = (loss["entries"], last)
        return lines

    def lost(self) -> list[str]:
        """The logs that have lost their end."""
        logs = []
        for log, (entries, digest) in self.known().items():
            path = self.root / log / f"{entries:010d}"
            is_there = path.exists() and digest in {None, sha256(path.read_bytes()).digest()}
            logs += [] if is_there else [log]
        return logs

    def manifests(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every feature entry with its manifest, but for those that were erased."""
        for folder in sorted(self.root.glob("log/features/*/*/*")):
            dataset, hook, batch = folder.parts[-3:]
            erased = self.erased(dataset)
            for entry in self.entries("features", dataset, hook, batch):
                if entry["manifest"] not in erased:
                    yield entry, self.manifest(entry["manifest"])
