"""What a reading of a source gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from feature_pipeline.model.instruments import Instrument


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of an instrument."""

    instrument: Instrument
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.instrument.check_labels(self.labels)


def sample(instrument: Instrument, value: float, /, **labels: str) -> Sample:
    """Return a sample; for labels whose names have no dots."""
    return Sample(instrument, value, labels)
