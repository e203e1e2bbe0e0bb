"""Soak: what a stack uses while batches arrive and its processes are killed, for an hour.

    python -m benchmarks.soak [--minutes 60] [--seed 7] [--every 60]

Runs the drill of `feature_pipeline_tests.faults.drill`: random work, and random kills of the
daemon, the code server, workers, PostgreSQL and SeaweedFS. Beside it, prints what every role of
process uses: memory, open files, connections; and the files in temporary folders, Dagster's events
and database. At the end the tables must equal the archive, and `verify` must find nothing wrong.
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.load import DAGSTER_SIZE
from benchmarks.watch import Usage, Watch, slope
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline_tests.faults.drill import Drill, Plan

LASTING: Final = ("PostgreSQL", "SeaweedFS", "webserver", "daemon", "code server")
"""Roles of processes that stay; a killed one begins anew, with as little as at the start."""
_CLIENTS: Final = """
select count(*) from pg_stat_activity where backend_type = 'client backend'
"""


@dataclass
class Curve:
    """What was used, once a minute."""

    drill: Drill
    watch: Watch
    temporary: Path
    figures: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By name, minutes and values."""

    def follow(self, every: float, is_over: threading.Event) -> None:
        """Note and print figures until it is over."""
        began = time.monotonic()
        while not is_over.wait(every):
            minutes = (time.monotonic() - began) / 60
            usage = self.watch.look().usage
            row = self._row(usage)
            for name, value in row.items():
                self.figures.setdefault(name, []).append((minutes, value))
            shown = ", ".join(f"{name} {value:,.0f}" for name, value in row.items())
            print(f"{minutes:5.1f} min: {shown}", flush=True)

    def _row(self, usage: Mapping[str, Usage]) -> dict[str, float]:
        row: dict[str, float] = {}
        for role in LASTING:
            one = usage.get(role, Usage())
            row |= {
                f"{role} RSS, MB": one.rss / 1e6,
                f"{role} files": one.files,
                f"{role} connections": one.connections,
            }
        files = [path for path in self.temporary.rglob("*") if path.is_file()]
        row["temporary files"] = len(files)
        return row | self._database()

    def _database(self) -> dict[str, float]:
        """Return what PostgreSQL knows; nothing while it is away."""
        try:
            urls = load_dotenv(self.drill.project.root / ".env")
            url = urls["DAGSTER_DATABASE_URL"].replace("postgresql+psycopg2", "postgresql")
            with psycopg.connect(url, connect_timeout=5) as connection:
                events = connection.execute(DAGSTER_SIZE).fetchone()
                clients = connection.execute(_CLIENTS).fetchone()
        except (psycopg.Error, OSError, KeyError):
            return {}
        assert events is not None
        assert clients is not None
        return {
            "Dagster's events": events[0],
            "Dagster's database, MB": events[1] / 1e6,
            "clients of PostgreSQL": clients[0],
        }

    def show(self, batches: int) -> None:
        """Print each figure's first and last values, its highest, and its growth."""
        print(f"\ngrowth over the whole time, with {batches} batches:")
        for name, points in self.figures.items():
            values = [value for _, value in points]
            print(
                f"  {name}: {values[0]:,.0f} first, {values[-1]:,.0f} last, {max(values):,.0f}"
                f" highest, {slope(points) * 60:+,.1f} an hour"
            )


def run(root: Path, options: argparse.Namespace) -> Sequence[str]:
    """Run the drill; return what is not as it must be."""
    temporary = root / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    os.environ["TMPDIR"] = str(temporary)
    drill = Drill(root / "drill", Plan.of(options.minutes * 60), options.seed)
    is_over = threading.Event()
    with Watch(options.every).running() as watch:
        curve = Curve(drill, watch, temporary)
        following = threading.Thread(target=curve.follow, args=(options.every, is_over))
        following.start()
        try:
            problems = drill.run()
        finally:
            is_over.set()
            following.join()
            curve.show(len(drill.submitted.batches))
    kills = len(drill.deaths) + len(drill.killed)
    print(f"{kills} processes were killed, {len(drill.killed)} of them workers and hooks")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two rows")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)  # as root, PostgreSQL is another user
        problems = run(Path(name), options)
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
