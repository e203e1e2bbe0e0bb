"""Steps of a drill that are done again until they end well, and what came of them."""

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from feature_pipeline.errors import FeaturePipelineError


class NotYet(FeaturePipelineError):
    """A step ended without an error of its own, and is not done."""


@dataclass
class StepTally:
    """What came of the steps."""

    tries: Counter[str] = field(default_factory=Counter)
    """Tries of each step: one, if no error reached it."""
    errors: Counter[str] = field(default_factory=Counter)
    """Errors that reached a step, by step and type."""
    problems: list[str] = field(default_factory=list)
    """Whatever was lost, written twice, wrong, left behind, or needed a hand."""
    rounds: int = 0

    def do(
        self,
        name: str,
        act: Callable[[], object],
        during: Callable[[], AbstractContextManager[None]],
        most: int,
        logger: logging.Logger,
    ) -> bool:
        """Do a step until it ends well; only errors of this package may leave it.

        Args:
            name: The step.
            act: Does it.
            during: The conditions of one try.
            most: The maximum number of tries.
            logger: Is given each error, as details.

        Returns:
            Whether it ended well.
        """
        for _ in range(most):
            self.tries[name] += 1
            with during():
                try:
                    act()
                except FeaturePipelineError as error:
                    logger.debug("%s: %s", name, error)
                    self.errors[f"{name}: {type(error).__name__}"] += 1
                else:
                    return True
        return False

    def show(self, logger: logging.Logger) -> None:
        """Print it."""
        for name, tries in self.tries.items():
            logger.info("%6d tries of %s", tries, name)
        for name, count in sorted(self.errors.items()):
            logger.info("%6d errors of %s", count, name)
        for problem in self.problems:
            logger.error("PROBLEM %s", problem)
        logger.info("%d problems", len(self.problems))


class StepDrill:
    """A drill whose rounds are steps, each done again until it ends well.

    `tally` is its own, and `name` that of the round.
    """

    logger: ClassVar[logging.Logger]
    most_tries: ClassVar[int]
    tally: StepTally
    name = ""

    def under_faults(self) -> AbstractContextManager[None]:
        """What goes wrong during one try."""
        raise NotImplementedError

    def problem(self, text: str) -> None:
        """Note what is wrong in this round."""
        self.tally.problems.append(f"{self.name}: {text}")

    def step(self, name: str, act: Callable[[], object]) -> None:
        """Do a step; it is a problem if it does not end well."""
        if not self.tally.do(name, act, self.under_faults, self.most_tries, self.logger):
            self.problem(f"{name} did not end well in {self.most_tries} tries")

    @contextmanager
    def problems_noted(self) -> Iterator[None]:
        """Note any error of the block, which ends the round."""
        try:
            yield
        except Exception as error:
            self.logger.exception("%s", self.name)
            self.problem(f"{type(error).__name__}: {error}")


def drill_options(document: str | None, rate: float, rate_help: str) -> argparse.ArgumentParser:
    """Return the options of a drill that injects faults at random, with its first sentence."""
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=1000, help="Ends once so many were injected.")
    parser.add_argument("--rate", type=float, default=rate, help=rate_help)
    parser.add_argument("--seed", type=int, default=1, help="Of the first round.")
    return parser
