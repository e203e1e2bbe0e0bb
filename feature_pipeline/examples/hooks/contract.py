"""The contract between an archive and a hook, for hooks written in Python.

A hook is a separate program. It is started with four environment variables and nothing else:

- `OSA_IN`: a folder with `records.jsonl`, one `{"id", "metadata"}` a line, and perhaps
  `config.json`;
- `OSA_FILES`: a folder with `<record id>/<file>`;
- `OSA_OUT`: a folder to write `features.jsonl`, `rejections.jsonl`, `errors.jsonl` and
  `progress.jsonl` into;
- `OSA_HOOK_NAME`: what the hook is called.

`run` does the reading and writing, so that a hook is one function from a record to its rows. This
file needs the standard library only: copy it beside your hook, and change it as you like.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TextIO

Row = Mapping[str, Any]
Hook = Callable[["Record", Mapping[str, Any]], "Iterable[Row] | Row | None"]

log = logging.getLogger(os.environ.get("OSA_HOOK_NAME", "hook"))


class Reject(Exception):
    """The hook does not apply to this record. The text is the reason shown to users."""


class Retry(Exception):
    """The record could not be computed this time, but may be later: a service did not answer."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its id, its metadata, and the folder with its files."""

    id: str
    metadata: Mapping[str, Any]
    folder: Path

    def file(self, *suffixes: str) -> Path:
        """Return the record's first file, by name, that ends in one of `suffixes`.

        Raises:
            Reject: The record has no such file.
        """
        files = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in files:
            if path.name.lower().endswith(suffixes):
                return path
        raise Reject(f"no file ending in {', '.join(suffixes)}")


def run(hook: Hook) -> None:
    """Call `hook` for every record of the batch; afterwards each has exactly one outcome on disk.

    `hook(record, config)` returns the record's rows: an iterable of mappings from column to value,
    one such mapping, or None for no row. `Reject` rejects the record. Any other exception makes
    that record errored, and the next one is processed.

    Raises:
        OSError, ValueError: The input cannot be read. The program then ends with a non-zero status,
            which fails the run: no outcome of it counts.
        MemoryError: Not caught, so that the run is tried again with more memory.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    source, files = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_FILES"])
    config_file = source / "config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    with ExitStack() as stack:
        outputs = _open_outputs(stack, Path(os.environ["OSA_OUT"]))
        for line in stack.enter_context((source / "records.jsonl").open(encoding="utf-8")):
            data = json.loads(line)
            record = Record(data["id"], data.get("metadata") or {}, files / data["id"])
            started = time.monotonic()
            kind, outcome = _outcome(hook, record, config)
            outputs[kind].write(outcome + "\n")
            message = f"{record.id}: {kind}, {time.monotonic() - started:.2f} s"
            progress = {"step": "record", "status": "completed", "message": message}
            outputs["progress"].write(json.dumps(progress) + "\n")
            log.info("%s", message)


def _open_outputs(stack: ExitStack, folder: Path) -> dict[str, TextIO]:
    """Open the four output files, line by line, so that a killed hook leaves whole lines."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        kind: stack.enter_context((folder / f"{kind}.jsonl").open("w", 1, encoding="utf-8"))
        for kind in ("features", "rejections", "errors", "progress")
    }


def _outcome(hook: Hook, record: Record, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the file of the record's outcome, and the line.

    The line is made before anything is written: rows that JSON cannot represent are an error of
    this record, not half a line in the output.
    """
    try:
        rows = hook(record, config)
        rows = [] if rows is None else [rows] if isinstance(rows, Mapping) else list(rows)
        return "features", json.dumps({"id": record.id, "features": rows}, default=_plain)
    except Reject as verdict:
        return "rejections", json.dumps({"id": record.id, "reason": str(verdict)})
    except MemoryError:
        raise
    except Exception as error:
        log.exception("%s could not be judged", record.id)
        text, retryable = f"{type(error).__name__}: {error}", isinstance(error, Retry)
        return "errors", json.dumps({"id": record.id, "error": text, "retryable": retryable})


def _plain(value: object) -> object:
    """Return dates as ISO 8601, NumPy's scalars and arrays as Python's."""
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
