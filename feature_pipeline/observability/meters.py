"""The meter provider and its instruments: counts and readings until they are collected."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableGauge,
)
from opentelemetry.sdk.metrics.export import CardinalityLimits, MetricReader
from opentelemetry.sdk.resources import Resource

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.instruments import INSTRUMENTS, Instrument, Kind
from feature_pipeline.observability.samples import Sample

SERVICE: Final = "feature-pipeline"
MOST_SERIES: Final = 20_000
"""Of one instrument. What comes beyond it is added up in one series, as OpenTelemetry does it."""
CARDINALITY: Final[CardinalityLimits] = {
    Counter: MOST_SERIES,
    Histogram: MOST_SERIES,
    ObservableGauge: MOST_SERIES,
}


class Meters:
    """All instruments of a process.

    Args:
        readers: Of OpenTelemetry; made with `CARDINALITY`.
        instruments: Those that the process has; all by default.
    """

    def __init__(
        self,
        readers: Sequence[MetricReader],
        instruments: Iterable[Instrument] = tuple(INSTRUMENTS.values()),
    ) -> None:
        self.lock = threading.RLock()
        """Held while values change together; hold it to collect what belongs together."""
        # Attributes of the environment and the machine are left out: they may contain secrets.
        resource = Resource({"service.name": SERVICE, "service.version": version(SERVICE)})
        self._provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._state: dict[str, list[Observation]] = {}
        self._add: dict[str, Callable[[float, dict[str, str]], None]] = {}
        meter = self._provider.get_meter("feature_pipeline", version(SERVICE))
        for each in instruments:
            if each.kind is Kind.GAUGE:
                meter.create_observable_gauge(
                    each.name, [self._observe(each.name)], each.unit, each.description
                )
            elif each.kind is Kind.COUNTER:
                counter = meter.create_counter(each.name, each.unit, each.description)
                self._add[each.name] = counter.add
            else:
                histogram = meter.create_histogram(
                    each.name,
                    each.unit,
                    each.description,
                    explicit_bucket_boundaries_advisory=each.bounds,
                )
                self._add[each.name] = histogram.record

    def count(self, instrument: Instrument, value: float, labels: dict[str, str]) -> None:
        """Add to a counter, or record a value of a histogram: a sink of `measure`.

        Raises:
            InvalidInputError: The instrument has other labels, or does not belong to this process.
        """
        instrument.check_labels(labels)
        add = self._add.get(instrument.name)
        if add is None:
            raise InvalidInputError(f"metric {instrument.name} is not counted in this process")
        add(value, labels)

    def apply(self, added: Iterable[Sample], state: Iterable[Sample]) -> None:
        """Add these values and replace those of all gauges, in one step for holders of `lock`."""
        gauges: dict[str, list[Observation]] = defaultdict(list)
        for one in state:
            gauges[one.instrument.name].append(Observation(one.value, dict(one.labels)))
        with self.lock:
            for one in added:
                self.count(one.instrument, one.value, dict(one.labels))
            self._state = gauges

    def flush(self, timeout_seconds: float) -> None:
        """Give everything to the readers that push."""
        self._provider.force_flush(int(timeout_seconds * 1000))

    def shutdown(self, timeout_seconds: float) -> None:
        """Push what is left, and end the readers."""
        self._provider.shutdown(timeout_millis=timeout_seconds * 1000)

    def _observe(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: self._state.get(name, ())
