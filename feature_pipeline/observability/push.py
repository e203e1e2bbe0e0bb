"""A process that reports what it does: run workers, sensors, commands.

Counts go by OTLP to the address in `FEATURE_PIPELINE_METRICS_URL`, which is that of
`feature-pipeline metrics`: every few seconds, and at the process's end, so that a run that takes a
second loses none. A process that is killed loses those of its last seconds. If nothing listens
there, counts are lost, the process ends as it would, and it waits for no longer than
`END_SECONDS`.
"""

import atexit
import logging
import os
from typing import Final

from feature_pipeline import measure
from feature_pipeline.model.instruments import INSTRUMENTS, Origin
from feature_pipeline.observability.meters import Meters
from feature_pipeline.observability.otlp import pushing_reader

EVERY_SECONDS: Final = 15.0
END_SECONDS: Final = 3.0

_connected: tuple[int, str] | None = None
"""The process that is connected, and where to."""


def start(url: str) -> None:
    """Report from now on what this process counts. Does nothing if it does so already."""
    global _connected
    if _connected == (os.getpid(), url):
        return
    _connected = (os.getpid(), url)
    # A collector that is away is the operator's to see, in `source.up` and `up`: not in every log.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    reader = pushing_reader(
        url, is_delta=True, every_seconds=EVERY_SECONDS, timeout_seconds=END_SECONDS
    )
    meters = Meters([reader], [one for one in INSTRUMENTS.values() if one.origin is Origin.WORK])
    measure.connect(meters.count)
    atexit.register(_end, meters)


def _end(meters: Meters) -> None:
    measure.connect(None)
    meters.shutdown(END_SECONDS)
