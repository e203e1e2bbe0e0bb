"""Compare outcomes with the thresholds of a hook's definition."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from feature_pipeline.model.definition import CheckDefinition, Threshold
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.model.text.counted import counted


class Level(IntEnum):
    """Severity of a result."""

    FINE = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True, slots=True)
class RowChange:
    """Rows of the batches that a release and the one before it have both computed."""

    batches: int
    before: int
    now: int

    @property
    def share(self) -> float:
        """The change as a fraction of the earlier rows; infinite if there were none."""
        if self.before == self.now:
            return 0.0
        return abs(self.now - self.before) / self.before if self.before else float("inf")

    def __str__(self) -> str:
        change = f"{(self.now - self.before) / self.before:+.1%}" if self.before else "all new"
        return (
            f"{counted(self.before, 'row')} became {self.now} ({change})"
            f" in {counted(self.batches, 'batch')}"
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The worst level, and every batch above a threshold with its rates, the worst first."""

    level: Level
    failing: Mapping[str, Mapping[str, float]]
    """By batch, the rates, by name, that are above a threshold."""
    row_change: RowChange | None
    """Its level is included in `level`; None without a threshold or a previous release."""


def level_of(value: float, threshold: Threshold) -> Level:
    """Return the level of a value; a value equal to a threshold passes."""
    if threshold.fail is not None and value > threshold.fail:
        return Level.FAIL
    if threshold.warn is not None and value > threshold.warn:
        return Level.WARN
    return Level.FINE


def judge(
    checks: CheckDefinition, counts: Mapping[str, OutcomeCounts], row_change: RowChange | None
) -> Judgement:
    """Compare the current artifacts with the thresholds.

    Args:
        checks: The thresholds.
        counts: Of every current artifact, by batch. Rates are compared batch by batch: one bad
            batch among thousands shows.
        row_change: Against the previous release; compared as one sum, since few records of a small
            batch change its share a lot.
    """
    thresholds = {"error_rate": checks.error_rate, "rejection_rate": checks.rejection_rate}
    worst = Level.FINE
    failing: dict[str, dict[str, float]] = {}
    for batch, count in counts.items():
        share = max(count.records, 1)
        rates = {"error_rate": count.errored / share, "rejection_rate": count.rejected / share}
        levels = {name: level_of(rates[name], threshold) for name, threshold in thresholds.items()}
        if above := {
            name: rates[name] for name, level in levels.items() if level is not Level.FINE
        }:
            failing[batch] = above
            worst = max(worst, *levels.values())
    if row_change is not None:
        worst = max(worst, level_of(row_change.share, checks.row_count_change))
    by_badness = sorted(failing.items(), key=lambda item: -max(item[1].values()))
    return Judgement(worst, dict(by_badness), row_change)
