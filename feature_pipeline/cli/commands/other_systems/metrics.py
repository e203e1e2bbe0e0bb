"""`feature-pipeline metrics`: what an operator watches, for Prometheus and OpenTelemetry."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from feature_pipeline import settings
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.instance import configured_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import NotFoundError
from feature_pipeline.projections.catalog.database import Database

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from feature_pipeline.observability.state import Defined, StateReader

_REST: Final = 4.0
"""A slow reading is followed by a pause this many times as long."""
_FLUSH_SECONDS: Final = 10.0


def metrics(host: str, port: int, every: float, objects_every: float, once: bool) -> None:
    """Carry out `feature-pipeline metrics`."""
    Project.find().load_environment()
    try:
        from feature_pipeline.observability.endpoint import Endpoint, TextReader
        from feature_pipeline.observability.meters import Meters
        from feature_pipeline.observability.otlp import pushing_reader
    except ModuleNotFoundError as error:
        raise NotFoundError(
            f"metrics need the extra `otel` ({error}): pip install 'feature-pipeline[otel]'"
        ) from error
    output = Output()
    collector = settings.otlp_url()
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    text = TextReader()
    readers: list[MetricReader] = [text.reader]
    if collector is not None and not once:
        # Sent after each reading, so that values of one reading stay together.
        readers.append(
            pushing_reader(
                collector,
                is_delta=False,
                every_seconds=float("inf"),
                timeout_seconds=_FLUSH_SECONDS,
            )
        )
    meters = Meters(readers)
    with ExitStack() as stack:
        reader = _reader(stack, objects_every)
        if once:
            reading = reader.read()
            meters.apply(reading.added, reading.state)
            sys.stdout.buffer.write(text.text(meters))
            return
        endpoint = Endpoint(host, port, text, meters)
        stack.callback(endpoint.stop)
        stack.callback(meters.shutdown, _FLUSH_SECONDS)
        output.say(f"metrics         http://{host}:{endpoint.port}/metrics")
        while not stopping.is_set():
            started = time.monotonic()
            reading = reader.read()
            meters.apply(reading.added, reading.state)
            meters.flush(_FLUSH_SECONDS)
            duration = time.monotonic() - started
            stopping.wait(max(every - duration, _REST * duration))


def _reader(stack: ExitStack, objects_seconds: float) -> "StateReader":
    from feature_pipeline.observability.state import StateReader

    opened: list[BlobStore] = []

    def store() -> BlobStore:
        # The store may be away when this begins.
        if not opened:
            opened.append(open_archive(is_changed=False))
        return opened[0]

    return StateReader(
        _defined(),
        store,
        Database(settings.database_url()),
        configured_instance(stack),
        objects_seconds,
    )


def _defined() -> "Callable[[], Defined]":
    """Load the code location, and again when a file of it was changed."""
    from feature_pipeline.definitions import build_defs, hooks_of
    from feature_pipeline.observability.state import Defined
    from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definitions
    from feature_pipeline.orchestration.defs_folder import PACKAGED

    defined: dict[tuple[tuple[str, int, int], ...], Defined] = {}

    def load() -> Defined:
        files = _files(settings.defs_folder(PACKAGED))
        if files not in defined:
            definitions = build_defs()
            defined.clear()
            defined[files] = Defined(
                hooks_of(definitions),
                len(wrong_definitions(definitions)),
                definitions.resolve_asset_graph().asset_check_keys,
            )
        return defined[files]

    return load


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = []
    for path in sorted(folder.rglob("*")):
        if path.suffix != ".pyc" and path.is_file():
            stat = path.stat()
            files.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(files)
