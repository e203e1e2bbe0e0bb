"""Every object key of the archive, as pure functions. No other module writes a key.

::

    blobs/sha256/<ab>/<64 hex>                   immutable bytes, named by their SHA-256
    log/features/<dataset>/<hook>/<batch>/<seq>  the verdict on each completion, in order
    log/batches/<dataset>/<batch>/<seq>          batches, as submitted
    log/releases/<dataset>/<hook>/<seq>          releases, in order of registration
    log/tombstones/<dataset>/<seq>               withdrawn records
    log/erasures/<dataset>/<seq>                 what erasing them replaced and deleted
    log/losses/<dataset>/<seq>                   entries of other logs that were given up
    census/<instant>-<64 hex>                    how far every log went, to notice a lost end
    inbox/<id>                                   waiting to be accepted
    quarantine/<id>                              could not be accepted, and why
    expected/<run>.<worker>                      a hook run whose result pods leave in uploads/
    uploads/<run>/<job>/<part>                   what a pod is given and leaves; not archived
    answers/<dataset>/<hook>/<name>              which artifact answers what was asked; derived
    claims/<dataset>/<hook>/<program>/<batch>    what a hook run is computing now
    followed/<name>                              what was taken of another system; derived
    gc/marks/<name>                              blobs that a collection found orphaned
    gc/lease                                     who may delete blobs now, or was the last to
    probe/conditional-writes                     written when a store is opened: what can it do?

No key is a folder of another: stores over file systems cannot hold both.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import check_batch_key, check_dataset

BLOBS: Final = "blobs/sha256/"
LOGS: Final = "log/"
FEATURE_LOGS: Final = "log/features/"
BATCH_LOGS: Final = "log/batches/"
RELEASE_LOGS: Final = "log/releases/"
TOMBSTONE_LOGS: Final = "log/tombstones/"
ERASURE_LOGS: Final = "log/erasures/"
LOSS_LOGS: Final = "log/losses/"
CENSUS: Final = "census/"
INBOX: Final = "inbox/"
QUARANTINE: Final = "quarantine/"
GC_MARKS: Final = "gc/marks/"
GC_LEASE: Final = "gc/lease"
UPLOADS: Final = "uploads/"
IN_FLIGHT: Final = "expected/"
ANSWERS: Final = "answers/"
CLAIMS: Final = "claims/"
FOLLOWED: Final = "followed/"
PROBE: Final = "probe/conditional-writes"

SEQ_DIGITS: Final = 10
FIRST_SEQ: Final = 1

_ENTRY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,239}")
_INSTANT: Final = "%Y%m%dT%H%M%S.%fZ"
_SEQ: Final = re.compile(r"[0-9]{10}")


def blob(digest: Digest) -> str:
    """Return the key of the bytes with this digest."""
    return f"{BLOBS}{digest.hex[:2]}/{digest.hex}"


def parse_blob(key: str) -> Digest:
    """Return the digest that a blob's key names.

    Raises:
        InvalidInputError: `key` is not a blob's.
    """
    folder, _, name = key.removeprefix(BLOBS).partition("/")
    if not key.startswith(BLOBS) or name[:2] != folder:
        raise InvalidInputError(f"{key!r} is not the key of a blob")
    return Digest(name)


def feature_logs(dataset: str, hook: str) -> str:
    """Return the prefix below which a hook keeps one log per batch."""
    return f"{FEATURE_LOGS}{check_dataset(dataset)}/{check_dataset(hook)}/"


def feature_log(dataset: str, hook: str, batch: str) -> str:
    """Return the prefix of one batch's log under a hook."""
    return f"{feature_logs(dataset, hook)}{check_batch_key(batch)}/"


def batch_logs(dataset: str) -> str:
    """Return the prefix below which a dataset keeps one log per batch."""
    return f"{BATCH_LOGS}{check_dataset(dataset)}/"


def batch_log(dataset: str, batch: str) -> str:
    """Return the prefix of one batch's log."""
    return f"{batch_logs(dataset)}{check_batch_key(batch)}/"


def release_log(dataset: str, hook: str) -> str:
    """Return the prefix of a hook's releases."""
    return f"{RELEASE_LOGS}{check_dataset(dataset)}/{check_dataset(hook)}/"


def tombstone_log(dataset: str) -> str:
    """Return the prefix of a dataset's withdrawals and lifts."""
    return f"{TOMBSTONE_LOGS}{check_dataset(dataset)}/"


def erasure_log(dataset: str) -> str:
    """Return the prefix of a dataset's erasures."""
    return f"{ERASURE_LOGS}{check_dataset(dataset)}/"


def loss_log(dataset: str) -> str:
    """Return the prefix of a dataset's accepted losses."""
    return f"{LOSS_LOGS}{check_dataset(dataset)}/"


def dataset_of(log: str) -> str:
    """Return the dataset of the log with this prefix, of whatever kind.

    Raises:
        InvalidInputError: `log` is not the prefix of a log.
    """
    parts = log.split("/")
    if not log.startswith(LOGS) or not log.endswith("/") or len(parts) < 4:
        raise InvalidInputError(f"{log!r} is not the prefix of a log")
    return check_dataset(parts[2])


def census(taken_at: datetime, digest: Digest) -> str:
    """Return the key of a census; names sort by time, and name the bytes."""
    return f"{CENSUS}{taken_at.astimezone(UTC):{_INSTANT}}-{digest.hex}"


def parse_census(key: str) -> tuple[datetime, Digest]:
    """Return when a census was begun, and the digest of its bytes.

    Raises:
        InvalidInputError: `key` is not a census's.
    """
    instant, _, name = key.removeprefix(CENSUS).partition("-")
    try:
        if not key.startswith(CENSUS):
            raise ValueError(key)
        return datetime.strptime(instant, _INSTANT).replace(tzinfo=UTC), Digest(name)
    except ValueError as error:
        raise InvalidInputError(f"{key!r} is not the key of a census") from error


def answers(dataset: str, hook: str, program: Digest | None = None) -> str:
    """Return the prefix of a hook's memory of answers, or of one program's part of it."""
    prefix = f"{ANSWERS}{check_dataset(dataset)}/{check_dataset(hook)}/"
    return prefix if program is None else f"{prefix}{program.hex}/"


def claims(dataset: str, hook: str, program: Digest | None = None) -> str:
    """Return the prefix of the claims of a hook's runs, or of those of one program."""
    prefix = f"{CLAIMS}{check_dataset(dataset)}/{check_dataset(hook)}/"
    return prefix if program is None else f"{prefix}{program.hex}/"


def claim(dataset: str, hook: str, program: Digest, batch: str) -> str:
    """Return the key of the claim of the runs over one batch."""
    return f"{claims(dataset, hook, program)}{check_batch_key(batch)}"


def followed(name: str) -> str:
    """Return the key of the memory of what was taken of the followed system of this name."""
    return f"{FOLLOWED}{check_dataset(name)}"


def gc_mark(name: str) -> str:
    """Return the key of one mark of a collection; names sort by the time they were begun."""
    return f"{GC_MARKS}{check_entry_id(name)}"


def entry(log: str, seq: int) -> str:
    """Return the key of entry `seq` in the log with prefix `log`."""
    if not FIRST_SEQ <= seq < 10**SEQ_DIGITS:
        raise InvalidInputError(f"log {log!r}: {seq} is not a sequence number")
    return f"{log}{seq:0{SEQ_DIGITS}d}"


@dataclass(frozen=True, slots=True)
class EntryKey:
    """A log entry's key, split into its parts."""

    log: str
    """The log's prefix, ending in `/`."""
    seq: int


def parse_entry(key: str) -> EntryKey:
    """Return the log and sequence number of an entry's key.

    Raises:
        InvalidInputError: `key` is not a log entry's.
    """
    log, _, text = key.rpartition("/")
    if not key.startswith(LOGS) or not _SEQ.fullmatch(text):
        raise InvalidInputError(f"{key!r} is not the key of a log entry")
    return EntryKey(f"{log}/", int(text))


def check_entry_id(entry_id: str) -> str:
    """Return `entry_id` if it can name an inbox entry.

    Raises:
        InvalidInputError: It is not 1 to 240 of letters, digits, `.`, `_` and `-`.
    """
    if not _ENTRY_ID.fullmatch(entry_id):
        raise InvalidInputError(
            f"id {entry_id!r}: 1 to 240 letters, digits, '.', '_', '-', starting with a letter"
            " or digit"
        )
    return entry_id


def inbox(entry_id: str) -> str:
    """Return the key of a waiting entry."""
    return f"{INBOX}{check_entry_id(entry_id)}"


def quarantine(entry_id: str) -> str:
    """Return the key of an entry that could not be accepted."""
    return f"{QUARANTINE}{check_entry_id(entry_id)}"


def last_part(key: str) -> str:
    """Return the last part of a key or prefix: `hook` of `log/releases/dataset/hook/`."""
    return key.rstrip("/").rpartition("/")[2]


def uploads(run_id: str) -> str:
    """Return the prefix under which pods of a hook run exchange files before they are archived."""
    return f"{UPLOADS}{check_entry_id(run_id)}/"


def upload(run_id: str, job: str, part: str) -> str:
    """Return the key of one file that the pod of an attempt reads or writes."""
    return f"{uploads(run_id)}{check_entry_id(job)}/{part}"


def in_flight(run_id: str, worker: str) -> str:
    """Return the key of an in-flight hook run's document, written by the worker that started it."""
    return f"{IN_FLIGHT}{check_entry_id(f'{run_id}.{worker}')}"
