"""A drill: batches arrive while definitions, servers, workers, hooks and records break.

    python -m feature_pipeline_tests.faults.drill --minutes 10 --seed 7

It runs `feature-pipeline dev` in a folder of its own, gives no command, and then waits. In the end
everything that can be computed and loaded is, once, by the count of the hooks themselves, and
`feature-pipeline status` names the rest with its reason. It ends only processes that it started.
"""

import argparse
import contextlib
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import psycopg

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.publish import submit_batch
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for

logger = logging.getLogger("drill")

DATASET: Final = "drill"
CRASH: Final = "crash"
LONG: Final = "long"
CODE_SERVER: Final = "Dagster's code server of feature_pipeline"
HOSTILE: Final = "batch-hostile"
WORDS, TOTALS, LABELS, WRONG = "words", "totals", "labels", "never_right"
CRASHING: Final = (WORDS, TOTALS)
RECORDS: Final = 4
RETRIES: Final = 3
"""Of a hook that is killed; those that crash over a record are given none."""
LONGEST_KEY: Final = 20_000
"""Characters, at random: a btree index holds a third of a page."""

SETTLED_SECONDS: Final = 1800.0
"""How long the end may take. Dagster looks at backfills every 30 seconds."""

HOOK: Final = """\
import json, os, pathlib, sys, time, uuid

source, out = pathlib.Path(os.environ["OSA_IN"]), pathlib.Path(os.environ["OSA_OUT"])
name, attempt = os.environ["OSA_HOOK_NAME"], uuid.uuid4().hex
config = json.loads((source / "config.json").read_text())
with (source / "records.jsonl").open(encoding="utf-8") as lines:
    records = [json.loads(line) for line in lines]


def ancestors():
    found, pid = [], os.getppid()
    while pid > 1:
        found.append(pid)
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def note(event):
    processes = [os.getpid(), *ancestors()]
    line = {"hook": name, "attempt": attempt, "event": event, "processes": processes}
    line["records"] = [record["id"] for record in records]
    with open(config["ledger"], "a") as ledger:
        ledger.write(json.dumps(line) + "\\n")


note("begin")
time.sleep(config["seconds"])
if config["crashes"] and any(r["metadata"].get("poison") == "crash" for r in records):
    note("crash")
    print("no verdict over a poisoned record", flush=True)
    os._exit(3)
with (out / "features.jsonl").open("w") as features:
    for record in records:
        text = record["metadata"]["text"]
        features.write(json.dumps({"id": record["id"], "features": [{"text": text}]}) + "\\n")
note("end")
"""
"""A hook that writes down each of its starts, and how it ended."""

DEFINITION: Final = """\
type: feature_pipeline.FeatureHook

attributes:
  name: {name}
  dataset: drill
  description: Texts of records, for a drill.
  scope: {scope}
  release:
    version: "1"
    command: [python, hook.py]
    code: [hook.py]
    config: {{ledger: {ledger}, seconds: {seconds}, crashes: {crashes}}}
    retries: {retries}
  feature:
    cardinality: one
    columns:
      - {{name: text, type: string, required: true}}
"""
INDEX: Final = "  table:\n    indexes: [{columns: [text]}]\n"
MISTAKES: Final = (
    ("cardinality: one", "cardinality: oen"),
    ("type: string", "type: text"),
    ("retries: ", "retries: 01"),
    ("columns:", "columns: ["),
    ("scope:", "skope:"),
)


RUNS: Final = """
{ runsOrError(filter: {statuses: [QUEUED, NOT_STARTED, STARTING, STARTED, CANCELING]}, limit: 500) {
  ... on Runs { results { id } } } }
"""
CHECKS: Final = """
{ assetNodes { assetKey { path } assetChecksOrError { ... on AssetChecks { checks {
  name executionForLatestMaterialization { status evaluation { description success } } } } } } }
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each thing happens within `seconds`."""

    seconds: float
    times: Mapping[str, int]

    @classmethod
    def of(cls, seconds: float) -> "Plan":
        """Return a plan in which everything happens at least once.

        `dev` gives up on a server that dies more than five times within five minutes.
        """
        minutes = seconds / 60
        often, seldom = max(1, round(minutes / 3)), max(1, round(minutes / 5))
        return cls(
            seconds,
            {
                "batch": max(2, round(minutes)),
                "poison_record": seldom,
                "poison_value": seldom,
                "hostile_entry": 1,
                "break_definition": often,
                "rename": seldom,
                "kill_code_server": often,
                "kill_parent_of_code_server": seldom,
                "kill_daemon": often,
                "kill_webserver": seldom,
                "second_daemon": seldom,
                "kill_hook": seldom,
                "kill_worker": max(1, round(minutes * 0.6)),
                "kill_seaweedfs": often,
                "kill_postgres": often,
            },
        )

    def events(self, seed: int) -> list[tuple[float, str]]:
        """Return what happens when: at random, each kind spread over the whole time."""
        draw = random.Random(seed)
        return sorted(
            ((number + draw.random()) / times * self.seconds, kind)
            for kind, times in self.times.items()
            for number in range(times)
        )


@dataclass(slots=True)
class Submitted:
    """What was asked of the archive."""

    batches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Per batch the text of each record."""
    crashing: set[str] = field(default_factory=set)
    """Records over which some hooks crash."""
    too_long: set[str] = field(default_factory=set)
    """Records whose text no btree index holds."""


class Drill:
    """One drill in `root`."""

    def __init__(self, root: Path, plan: Plan, seed: int, hook_seconds: float = 2.0) -> None:
        self.root = root
        self.plan = plan
        self.seed = seed
        self.draw = random.Random(seed)
        self.hooks = root / "hooks"
        self.ledger = root / "starts.jsonl"
        self.submitted = Submitted()
        self.killed: list[int] = []
        """Workers and hooks."""
        self.deaths: list[str] = []
        """Servers that `dev` starts again."""
        self.second_daemons = 0
        self.labels = f"{LABELS}_0"
        self.broken: dict[str, str] = {}
        """The right text of each definition that is broken."""
        self.due: list[tuple[float, Callable[[], None]]] = []
        """What ends a breakage, and when."""
        root.mkdir(exist_ok=True)
        root.chmod(0o711)
        for folder, name, is_crashing in (
            (WORDS, WORDS, True),
            (TOTALS, TOTALS, True),
            (LABELS, self.labels, False),
            (WRONG, WRONG, False),
        ):
            text = DEFINITION.format(
                name=name,
                scope="batch" if name == TOTALS else "record",
                ledger=self.ledger,
                seconds=hook_seconds,
                crashes=str(is_crashing).lower(),
                retries=0 if is_crashing else RETRIES,
            )
            (self.hooks / folder).mkdir(parents=True)
            (self.hooks / folder / "hook.py").write_text(HOOK)
            self.definition(folder).write_text(text + (INDEX if name == WORDS else ""))
        self._replace(WRONG, *MISTAKES[0])
        # A copy of the package: what is edited meanwhile is no part of the drill.
        shell = {"FEATURE_PIPELINE_DEFS": str(self.hooks)}
        self.project = OwnProject(root / "project", hooks=[], shell=shell)

    def definition(self, folder: str) -> Path:
        return self.hooks / folder / "defs.yaml"

    def run(self) -> list[str]:
        """Do everything, wait for the end, and return what is not as it must be."""
        with self.project.dev() as lines, self._telling(lines):
            self._break_things()
            self._wait_until_settled()
            return [*self._problems(), *self._problems_of_dev(lines)]

    # What happens.

    def _break_things(self) -> None:
        begun = time.monotonic()
        for at, kind in self.plan.events(self.seed):
            self._do_due(begun + at)
            time.sleep(max(0.0, begun + at - time.monotonic()))
            logger.info("%4.0f s: %s", time.monotonic() - begun, kind)
            getattr(self, f"_{kind}")()
        self._do_due(float("inf"))

    def _do_due(self, until: float) -> None:
        """End what is to be ended before `until`."""
        for at, end in sorted(self.due, key=lambda each: each[0]):
            if at <= until:
                time.sleep(max(0.0, at - time.monotonic()))
                end()
        self.due = [each for each in self.due if each[0] > until]

    def _batch(self, poison: str | None = None) -> None:
        key = f"b{len(self.submitted.batches):03d}"
        texts = {f"{key}/r{number}": f"text {number} of {key}" for number in range(RECORDS)}
        first = f"{key}/r0"
        if poison == LONG:
            texts[first] = "".join(self.draw.choices("abcdefghijklmnopqrstuvwxyz", k=LONGEST_KEY))
            self.submitted.too_long.add(first)
        elif poison == CRASH:
            self.submitted.crashing.add(first)
        records = tuple(
            Record(id=name, metadata={"text": text, "poison": poison if name == first else None})
            for name, text in texts.items()
        )
        batch = RecordBatch.create(DATASET, key, Source.HARVEST, records)
        self.submitted.batches[key] = texts
        self._insist(lambda archive: submit_batch(archive.store, batch, {}))

    def _poison_record(self) -> None:
        self._batch(CRASH)

    def _poison_value(self) -> None:
        self._batch(LONG)

    def _hostile_entry(self) -> None:
        self._insist(lambda archive: archive.store.create(f"inbox/{HOSTILE}", b"[" * 100_000))

    def _insist(self, act: Callable[[Archive], object]) -> None:
        """Do it as a client does whose store is away now and then."""

        def is_done() -> bool:
            try:
                act(self._archive())
            except FeaturePipelineError as error:
                logger.info("      again: %s", str(error)[:120])
                return False
            return True

        wait_for(is_done, 120)

    def _break_definition(self) -> None:
        folder = self.draw.choice([WORDS, TOTALS, LABELS])
        mistake = self.draw.choice(MISTAKES)
        if folder in self.broken:
            return
        self.broken[folder] = self.definition(folder).read_text()
        self._replace(folder, *mistake)
        logger.info("      %s: %s", folder, mistake[1])
        self.due.append(
            (time.monotonic() + self.draw.uniform(5, 20), lambda: self._correct(folder))
        )

    def _correct(self, folder: str) -> None:
        if folder in self.broken:
            logger.info("      %s is corrected", folder)
            self.definition(folder).write_text(self.broken.pop(folder))

    def _rename(self) -> None:
        self._correct(LABELS)
        number = int(self.labels.rpartition("_")[2]) + 1
        self._replace(LABELS, f"name: {self.labels}", f"name: {LABELS}_{number}")
        self.labels = f"{LABELS}_{number}"

    def _replace(self, folder: str, old: str, new: str) -> None:
        path = self.definition(folder)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def _kill_code_server(self) -> None:
        self._kill(self._code_servers, CODE_SERVER)

    def _kill_parent_of_code_server(self) -> None:
        self._kill(lambda: self._server("dagster-processes", "code-server-0"), CODE_SERVER)

    def _kill_daemon(self) -> None:
        self._kill(lambda: self._server("dagster-processes", "daemon"), "Dagster's daemon")

    def _kill_webserver(self) -> None:
        self._kill(lambda: self._server("dagster-processes", "webserver"), "Dagster's webserver")

    def _second_daemon(self) -> None:
        """Run another daemon on the same instance for a while, as by mistake."""
        with contextlib.suppress(AssertionError, psutil.NoSuchProcess):
            [daemon] = wait_for(lambda: self._server("dagster-processes", "daemon"), 30)
            second = subprocess.Popen(
                daemon.cmdline(),
                env=daemon.environ(),
                cwd=daemon.cwd(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            logger.info("      a second daemon: %d", second.pid)
            self.second_daemons += 1

            def end() -> None:
                logger.info("      the second daemon is killed; it had ended: %s", second.poll())
                second.kill()
                second.wait()

            self.due.append((time.monotonic() + self.draw.uniform(30, 90), end))

    def _kill_hook(self) -> None:
        self.killed += self._kill(self._hook_processes)

    def _kill_seaweedfs(self) -> None:
        self._kill(lambda: self._server("seaweedfs"), "SeaweedFS")

    def _kill_postgres(self) -> None:
        self._kill(lambda: self._server("postgres"), "PostgreSQL")

    def _kill_worker(self) -> None:
        self.killed += self._kill(self._workers)

    def _kill(self, find: Callable[[], list[psutil.Process]], name: str = "") -> list[int]:
        """Kill one of these processes, once there is one; its id.

        Args:
            find: Returns the processes.
            name: What `dev` calls a server that it starts again.
        """
        with contextlib.suppress(AssertionError):
            chosen = self.draw.choice(wait_for(find, 30))
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen.kill()
                logger.info("      killed: %d", chosen.pid)
                self.deaths += [name] if name else []
                return [chosen.pid]
        logger.info("      nothing to kill")
        return []

    def _server(self, *path: str) -> list[psutil.Process]:
        """The process that `dev` started for this server, if it runs."""
        record = self.project.data.joinpath(*path, "server.json")
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return [psutil.Process(json.loads(record.read_text())["pid"])]
        return []

    def _code_servers(self) -> list[psutil.Process]:
        """The processes that have loaded the code; older ones too, as long as their runs go on."""
        servers = []
        for parent in self._server("dagster-processes", "code-server-0"):
            with contextlib.suppress(psutil.NoSuchProcess):
                servers += [p for p in parent.children() if {"api", "grpc"} <= set(p.cmdline())]
        return servers

    def _workers(self) -> list[psutil.Process]:
        """Processes of runs: what code servers started by `multiprocessing`."""
        workers = []
        for server in self._code_servers():
            with contextlib.suppress(psutil.NoSuchProcess):
                workers += [p for p in server.children() if "spawn_main" in " ".join(p.cmdline())]
        return workers

    def _hook_processes(self) -> list[psutil.Process]:
        """Processes of the hook that is started again when one of its own dies."""
        hooks = []
        for worker in self._workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in worker.children(recursive=True):
                    if (
                        process.cmdline()[-1:] == ["hook.py"]
                        and process.environ().get("OSA_HOOK_NAME") == self.labels
                    ):
                        hooks.append(process)
        return hooks

    # How it ends.

    def _wait_until_settled(self) -> None:
        logger.info("waiting, with no command given")
        last = ""

        def is_settled() -> bool:
            nonlocal last
            why = self._unsettled()
            if why and why != last:
                logger.info("      %s", why)
            last = why
            return not why

        with contextlib.suppress(AssertionError):
            wait_for(is_settled, SETTLED_SECONDS)

    def _unsettled(self) -> str:
        """What is still to be done, as the archive, the tables and Dagster have it."""
        under_way = self._runs_under_way()
        if under_way:
            return f"{under_way} runs are under way"
        try:
            missing = self._missing_features() | self._missing_rows()
        except (FeaturePipelineError, psycopg.Error) as error:
            return str(error).strip()[:200]
        return f"missing: {sorted(missing)}"[:300] if missing else ""

    def _runs_under_way(self) -> int:
        try:
            return len(self.project.graphql(RUNS)["runsOrError"]["results"])
        except Exception as error:  # noqa: BLE001  (the webserver may be starting)
            logger.info("      %s", str(error)[:120])
            return 1

    def _wanted(self, hook: str) -> list[str]:
        """The batches that the hook can answer."""
        crashing = {name.partition("/")[0] for name in self.submitted.crashing}
        return [b for b in self.submitted.batches if hook != TOTALS or b not in crashing]

    def _missing_features(self) -> set[str]:
        store = self._archive().store
        problems = set()
        for hook in (WORDS, TOTALS, self.labels):
            heads = log.readable_heads(store, DATASET, hook).intact
            problems |= {f"{hook} of {batch}" for batch in self._wanted(hook) if batch not in heads}
        return problems

    def _missing_rows(self) -> set[str]:
        problems = set()
        for hook in (WORDS, TOTALS, self.labels):
            rows = {name for name, _ in self._rows(hook)}
            expected = set(self._expected_rows(hook))
            problems |= {f"a row of {name} in {hook}" for name in expected - rows}
        return problems

    def _expected_rows(self, hook: str) -> dict[str, str]:
        left_out = self.submitted.crashing if hook in CRASHING else set()
        if hook == WORDS:
            left_out = left_out | self.submitted.too_long
        return {
            name: text
            for batch in self._wanted(hook)
            for name, text in self.submitted.batches[batch].items()
            if name not in left_out
        }

    def _rows(self, hook: str) -> list[tuple[str, str]]:
        url = load_dotenv(self.project.root / ".env")["FEATURE_PIPELINE_DATABASE_URL"]
        with psycopg.connect(url) as connection:
            try:
                query = psycopg.sql.SQL("select record_id, text from features.{}")
                return connection.execute(query.format(psycopg.sql.Identifier(hook))).fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []

    def _archive(self) -> Archive:
        return Archive.open(environment=load_dotenv(self.project.root / ".env"))

    def _problems(self) -> list[str]:
        """What is not as it must be."""
        return [
            *self._problems_of_rows(),
            *self._problems_of_starts(),
            *self._problems_of_status(),
            *self._problems_of_dagster(),
            *self._problems_of_the_archive(),
        ]

    def _problems_of_rows(self) -> Iterator[str]:
        for hook in (WORDS, TOTALS, self.labels):
            rows, expected = self._rows(hook), self._expected_rows(hook)
            if len(rows) != len(expected) or dict(rows) != expected:
                wrong = {name for name, text in rows if expected.get(name) != text}
                named = sorted(wrong | expected.keys() - dict(rows))
                yield f"table {hook}: {len(rows)} rows, not {len(expected)}: {named}"

    def _problems_of_starts(self) -> Iterator[str]:
        """A record was computed once; what a killed worker or hook had begun is begun again.

        So is what Dagster terminates when a rename ends its backfill.
        """
        begun: dict[tuple[str, str], list[str]] = defaultdict(list)
        ends: dict[str, str] = {}
        excused: set[str] = set()
        for line in self.ledger.read_text().splitlines():
            document = json.loads(line)
            if document["event"] != "begin":
                ends[document["attempt"]] = document["event"]
                continue
            if not set(self.killed).isdisjoint(document["processes"]):
                excused.add(document["attempt"])
            for record in document["records"]:
                begun[document["hook"], record].append(document["attempt"])
        attempts = {attempt for each in begun.values() for attempt in each}
        cut_off = attempts - ends.keys() - excused
        logger.info(
            "%d attempts at %d questions; the processes of %d were killed, %d others did not end",
            *(len(attempts), len(begun), len(excused), len(cut_off)),
        )
        for (hook, record), starts in begun.items():
            computed = [a for a in starts if ends.get(a) == "end" and a not in excused]
            crashed = [a for a in starts if ends.get(a) == CRASH and a not in excused]
            if len(computed) > 1:
                yield f"{hook}, {record}: computed {len(computed)} times, {len(starts)} starts"
            if hook == TOTALS and len(crashed) > 1:
                yield f"{hook}, {record}: {len(crashed)} starts failed by themselves"
        for hook in (WORDS, TOTALS, self.labels):
            for record in self._expected_rows(hook):
                if not any(ends.get(a) == "end" for a in begun[hook, record]):
                    yield f"{hook}, {record}: no start of the hook ended"

    def _problems_of_status(self) -> Iterator[str]:
        done = self.project.run("status", "--deep", "--json")
        if done.returncode:
            yield f"status ends with {done.returncode}: {done.stderr}"
            return
        status = json.loads(done.stdout)
        hooks = {row["hook"]: row for row in status["hooks"]}
        crashing = sorted({name.partition("/")[0] for name in self.submitted.crashing})
        for hook in (WORDS, TOTALS, self.labels):
            row = hooks[hook]
            failed = crashing if hook == TOTALS else []
            expected = {
                "missing": len(failed),
                "failed": len(failed),
                **dict.fromkeys(
                    ("stale", "old_release", "damaged", "lost", "waiting", "to_load"), 0
                ),
            }
            wrong = {name: row[name] for name in expected if row[name] != expected[name]}
            table = {name: row["table"][name] for name in ("missing", "failed", "stale")}
            if wrong or any(table.values()):
                yield f"status of {hook}: {wrong}, table {table}"
        if list(status["wrong_definitions"]) != [f"{DATASET}/features/{WRONG}"]:
            yield f"status, wrong definitions: {status['wrong_definitions']}"
        if [entry["id"] for entry in status["quarantined"]] != [HOSTILE]:
            yield f"status, quarantine: {status['quarantined']}"
        if status["waiting"]:
            yield f"status: {status['waiting']} wait"
        logger.info("%s", self.project.run("status", "--deep").stdout)
        for kind, named, expected in (
            ("failed batches", hooks[TOTALS]["failures"], crashing),
            ("errored records", hooks[WORDS]["errored_records"], self.submitted.crashing),
            ("records left out", hooks[WORDS]["table"]["left_out"], self.submitted.too_long),
        ):
            if set(named) != set(expected) or not all(named.values()):
                yield f"status names as {kind}: {named}, not {sorted(expected)}"
        if status["repeats"]:
            yield f"status: {status['repeats']} wait to be repeated"

    def _problems_of_dagster(self) -> Iterator[str]:
        for node in self.project.graphql(CHECKS)["assetNodes"]:
            key = "/".join(node["assetKey"]["path"])
            for check in node["assetChecksOrError"].get("checks", ()):
                execution = check["executionForLatestMaterialization"]
                evaluation = execution and execution["evaluation"]
                if evaluation and not evaluation["success"]:
                    described = f"{key} {check['name']}: {evaluation['description']}"
                    logger.info("red: %s", described)
                    if not self._may_be_red(key, check["name"]):
                        yield f"red: {described}"

    def _may_be_red(self, key: str, check: str) -> bool:
        if key == f"{DATASET}/tables/{WORDS}":
            return bool(self.submitted.too_long)
        # records that a hook crashes over are errored; a renamed hook's assets are gone
        return key == f"{DATASET}/features/{WORDS}" and check == "outcomes"

    def _problems_of_dev(self, lines: list[str]) -> Iterator[str]:
        for name in sorted(set(self.deaths)):
            if f"{name} runs again.\n" not in lines:
                yield f"dev does not say that {name} runs again"

    def _problems_of_the_archive(self) -> Iterator[str]:
        done = self.project.run("verify")
        if done.returncode:
            yield f"verify ends with {done.returncode}: {done.stdout}{done.stderr}"

    @contextlib.contextmanager
    def _telling(self, lines: list[str]) -> Iterator[None]:
        try:
            yield
        finally:
            logger.info("dev printed:\n%s", "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="Other seeds break other things.")
    parser.add_argument("--folder", type=Path, help="Kept afterwards; a temporary one otherwise.")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory(prefix="drill-") as temporary:
        root = options.folder or Path(temporary) / "drill"
        if root == options.folder and root.exists() and any(root.iterdir()):
            parser.error(f"{root} is not empty")
        Path(temporary).chmod(0o711)
        drill = Drill(root, Plan.of(options.minutes * 60), options.seed)
        problems = drill.run()
    for problem in problems:
        logger.error("PROBLEM %s", problem)
    logger.info("killed: %d workers and hooks, %s", len(drill.killed), Counter(drill.deaths))
    logger.info("%d second daemons", drill.second_daemons)
    logger.info("%d problems; %d batches", len(problems), len(drill.submitted.batches))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
