"""Move a pod's inputs and output through S3: `hooks.runners.kubernetes.transfer_protocol.Transfer`.

The pod gets signed addresses of single objects and no credential. It may read the blobs of its own
inputs, and write the named files of its own upload folder, which is not trusted: digests are
checked here, and the archive's blobs are written from here.
"""

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from feature_pipeline.archive.accept import CLOCKS_DIFFER, EARLIEST
from feature_pipeline.archive.blobs import is_present
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.store.base import BlobStore, get_small
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.output import RAW_FILES
from feature_pipeline.hooks.runner import Workspace
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import (
    AttemptEnd,
    AttemptKey,
    Grants,
    PodResult,
)
from feature_pipeline.model.digest import Digest, digest_stream

if TYPE_CHECKING:
    from feature_pipeline.archive.store.s3_sign import S3Signer
from feature_pipeline.model.text.json_text import INT64_MAX, parse_document
from feature_pipeline.model.text.quoting import problems, quoted
from feature_pipeline.parallel import map_threads

_RESULT: Final = "result.json"
_LOG: Final = "log"
_END: Final = "end.json"
"""Not granted to pods: only a worker writes it."""
MOST_RESULT_BYTES: Final = 1 << 20
"""The largest `result.json` or `end.json` that is read, a thousand times the size of a real one."""
_MOST_EXIT_CODE: Final = 2**31 - 1


def _check_raw(name: str) -> str:
    if name not in RAW_FILES:
        raise ValueError(f"{quoted(name)} is not an output file of a hook")
    return name


Version = Annotated[int, Field(ge=1, le=1)]
Size = Annotated[int, Field(ge=0, le=INT64_MAX)]
Seconds = Annotated[float, Field(ge=EARLIEST.timestamp(), allow_inf_nan=False)]
RawName = Annotated[str, AfterValidator(_check_raw)]
Sum = tuple[Annotated[str, Field(max_length=71)], Size]


class _ResultDocument(BaseModel):
    """The document that `feature_pipeline.pod.publish` writes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    spec_version: Version
    exit_code: int = Field(ge=-_MOST_EXIT_CODE, le=_MOST_EXIT_CODE)
    is_late: bool
    oom_kills: Size
    peak_memory_bytes: Size
    started_at: Seconds
    finished_at: Seconds
    start_error: str | None
    node: str
    files: dict[RawName, Sum]
    irregular: list[RawName]
    too_large: dict[RawName, Size] = {}
    log: Sum


class _EndDocument(BaseModel):
    """A worker's record of an attempt that left no result."""

    model_config = ConfigDict(extra="forbid", strict=True)

    spec_version: Version = 1
    kind: FailureKind
    reason: str
    exit_code: int | None
    log_tail: tuple[str, ...]
    memory_limit_bytes: int | None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    node: str


D = TypeVar("D", bound=BaseModel)


def _parsed(model: type[D], data: bytes) -> D:
    """Return the document stored as `data`.

    Raises:
        InvalidInputError: It is something else; the message names its first problems.
    """
    # Pydantic's reader takes the last of two values with one key.
    parse_document(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInputError(problems(error)) from error


class S3Results:
    """Results that pods left in their upload folders; reading them needs no signature.

    Args:
        store: The archive, with the upload folders beside it.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    @property
    def archive(self) -> str:
        """See `Results.archive`."""
        return self._store.identity

    def is_there(self, attempt: AttemptKey) -> bool:
        """Return whether the attempt's pod or worker has recorded its end."""
        return any(
            self._store.stat(layout.upload(attempt.run_id, attempt.job, part)) is not None
            for part in (_RESULT, _END)
        )

    def end(self, attempt: AttemptKey) -> AttemptEnd | None:
        """See `Results.end`."""
        key = layout.upload(attempt.run_id, attempt.job, _END)
        try:
            stored = get_small(self._store, key, MOST_RESULT_BYTES)
            document = _parsed(_EndDocument, stored.data)
        except NotFoundError:
            return None
        except InvalidInputError as error:
            raise CorruptDataError(f"{key}: not an attempt's end: {error}") from error
        return AttemptEnd(
            RuntimeFacts(
                kind=document.kind,
                reason=document.reason,
                exit_code=document.exit_code,
                log_tail=document.log_tail,
                memory_limit_bytes=document.memory_limit_bytes,
            ),
            started_at=document.started_at,
            finished_at=document.finished_at,
            node=document.node,
        )

    def result(self, attempt: AttemptKey) -> PodResult | None:
        """See `Transfer.result`."""
        key = layout.upload(attempt.run_id, attempt.job, _RESULT)
        try:
            stored = get_small(self._store, key, MOST_RESULT_BYTES)
        except NotFoundError:
            return None
        try:
            document = _parsed(_ResultDocument, stored.data)
            latest = (stored.info.modified_at + CLOCKS_DIFFER).timestamp()
            if document.started_at > latest or document.finished_at > latest:
                raise InvalidInputError("its times are later than the time at which it was stored")
            start_error = document.start_error
            return PodResult(
                exit_code=document.exit_code,
                is_late=document.is_late,
                oom_kills=document.oom_kills,
                peak_memory_bytes=document.peak_memory_bytes,
                started_at=datetime.fromtimestamp(document.started_at, UTC),
                finished_at=datetime.fromtimestamp(document.finished_at, UTC),
                start_error=None if start_error is None else quoted(start_error),
                node=quoted(document.node),
                files={raw: _sum(value) for raw, value in document.files.items()},
                irregular=tuple(document.irregular),
                too_large=document.too_large,
                log=_sum(document.log),
            )
        except (ValueError, OverflowError, OSError) as error:
            raise CorruptDataError(f"{key}: not a pod's result: {error}") from error

    def fetch(self, attempt: AttemptKey, result: PodResult, output: Path, log: Path) -> None:
        """See `Transfer.fetch`."""
        for raw, (digest, size) in result.files.items():
            self._fetch(
                layout.upload(attempt.run_id, attempt.job, f"out-{raw}"), output / raw, digest, size
            )
        self._fetch(layout.upload(attempt.run_id, attempt.job, _LOG), log, *result.log)

    def _fetch(self, key: str, path: Path, digest: Digest, size: int) -> None:
        part = path.with_name(path.name + ".part")
        with self._store.open(key, size) as stream, part.open("wb") as file:
            for chunk in stream.chunks:
                file.write(chunk)
        with part.open("rb") as file:
            actual, actual_size = digest_stream(file)
        if (actual, actual_size) != (digest, size):
            part.unlink()
            raise CorruptDataError(
                f"{key}: it is {actual}, {actual_size} bytes, but its result names {digest}"
            )
        part.replace(path)


class S3Transfer(S3Results):
    """Moves workspaces through the archive's store.

    Args:
        store: The archive, with the upload folders beside it.
        signer: Signs for the pods; its credentials may allow less than the store's.
    """

    def __init__(self, store: BlobStore, signer: "S3Signer") -> None:
        super().__init__(store)
        self._signer = signer

    def offer(self, attempt: AttemptKey, workspace: Workspace, lifetime_seconds: float) -> Grants:
        """See `Transfer.offer`. Files that the archive already has are not uploaded again."""
        folders = (("in", workspace.inputs), ("files", workspace.files), ("work", workspace.code))
        paths = [
            (f"{place}/{path.relative_to(folder).as_posix()}", path)
            for place, folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

        def one(item: tuple[str, Path]) -> dict[str, object]:
            place, path = item
            with path.open("rb") as stream:
                digest, size = digest_stream(stream)
            key = layout.blob(digest)
            if not is_present(self._store, BlobRef(digest=digest, size=size)):
                key = layout.upload(attempt.run_id, attempt.job, f"in-{digest.hex}")
                self._store.create_file(key, path, digest, size)
            url = self._signer.sign_get(key, lifetime_seconds)
            return {"path": place, "url": url, "digest": str(digest), "size": size}

        document = {"spec_version": 1, "files": map_threads(one, paths)}
        # a name of its own: who offers again must not change what another pod is reading
        stage = layout.upload(attempt.run_id, attempt.job, f"stage-{secrets.token_hex(8)}.json")
        self._store.create(stage, json.dumps(document).encode())

        def put(part: str) -> str:
            return self._signer.sign_put(
                layout.upload(attempt.run_id, attempt.job, part), lifetime_seconds
            )

        publish = {
            "files": {raw: put(f"out-{raw}") for raw in RAW_FILES},
            "log": put(_LOG),
            "result": put(_RESULT),
        }
        return Grants(self._signer.sign_get(stage, lifetime_seconds), json.dumps(publish))

    def note_end(self, attempt: AttemptKey, end: AttemptEnd) -> None:
        """See `Transfer.note_end`."""
        failure = end.failure
        document = _EndDocument(
            kind=failure.kind,
            reason=failure.reason,
            exit_code=failure.exit_code,
            log_tail=failure.log_tail,
            memory_limit_bytes=failure.memory_limit_bytes,
            started_at=end.started_at,
            finished_at=end.finished_at,
            node=end.node,
        )
        self._store.create(
            layout.upload(attempt.run_id, attempt.job, _END), document.model_dump_json().encode()
        )

    def forget(self, attempt: AttemptKey) -> None:
        """See `Transfer.forget`."""
        self._store.delete(layout.upload(attempt.run_id, attempt.job, _RESULT))


def _sum(value: Sum) -> tuple[Digest, int]:
    return Digest.parse(value[0]), value[1]
