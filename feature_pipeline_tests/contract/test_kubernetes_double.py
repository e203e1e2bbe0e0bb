"""The double of a cluster tells of pods, events and refusals as the recorded cluster did.

Its containers are scripted here, so that it needs no engine: what they do is in
`test_kubernetes_runner.py`.
"""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from feature_pipeline_tests.acceptance.own_project import wait_for
from feature_pipeline_tests.fixtures.http import serving
from feature_pipeline_tests.fixtures.kubernetes import NAMESPACE, Cluster, Handler, now
from feature_pipeline_tests.fixtures.kubernetes_player import RECORDED

pytestmark = pytest.mark.kubernetes

Json = dict[str, Any]
JOB = "hook-probe-1"
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}


class NoEngine:
    """In place of an engine: nothing is started."""

    def client(self) -> "NoEngine":
        return self

    def close(self) -> None:
        """Nothing is open."""


class Scripted(Cluster):
    """Containers end as `ends` says, by code and reason; a hook without an end is ended, once."""

    ends: dict[str, tuple[int, str]]

    def run_container(
        self, pod: Json, spec: Json, volumes: Path, status: Json, states: dict[str, list[Json]]
    ) -> int:
        name, uid = spec["name"], pod["metadata"]["uid"]
        status["state"] = {"running": {"startedAt": now()}}
        self.update(pod, **states)
        self.running[uid] = name
        ended = self.ends.get(name)
        if ended is None:
            assert self.signalled.wait(30)
            self.ends[name] = (0, "Completed")
        code, reason = ended or (143, "Error")
        del self.running[uid]
        status["state"] = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now()}}
        return code

    @property
    def signalled(self) -> threading.Event:
        return self.__dict__.setdefault("_signalled", threading.Event())

    def kill(self, uid: str, signal: str = "SIGKILL") -> None:
        """The container that runs, if it waits, ends as one that handles SIGTERM."""
        self.signalled.set()


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Scripted]:
    cluster = Scripted(NoEngine(), tmp_path, tmp_path / "wrapper")  # type: ignore[arg-type]
    cluster.ends = {"stage": (0, "Completed"), "publish": (0, "Completed")}
    cluster.visible_seconds = cluster.window_seconds = 0.05
    cluster.refused_again_seconds = (0.01, 0.01, 0.01)
    yield cluster
    cluster.signalled.set()
    cluster.stop()


@pytest.fixture
def url(double: Scripted) -> Iterator[str]:
    with serving(type("BoundHandler", (Handler,), {"cluster": double})) as address:
        yield address


def a_job() -> Json:
    containers = [{"name": "stage"}, {"name": "hook"}]
    spec = {
        "initContainers": containers,
        "containers": [{"name": "publish"}],
        "volumes": [],
        "terminationGracePeriodSeconds": 6,
    }
    return {
        "metadata": {"name": JOB},
        "spec": {"template": {"metadata": {"labels": {}}, "spec": spec}},
    }


def recorded(scenario: str) -> list[Json]:
    lines = (RECORDED / f"{scenario}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def shape(pod: Json | None) -> Any:
    """What a runner can see of a pod's state; None when the pod is gone."""
    if pod is None:
        return None
    metadata, status = pod["metadata"], pod["status"]
    conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
    containers = {}
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        [(kind, detail)] = each["state"].items()
        containers[each["name"]] = (kind, detail.get("exitCode"), detail.get("reason"))
    return (
        status["phase"],
        status.get("reason"),
        conditions.get("PodScheduled"),
        conditions.get("DisruptionTarget"),
        metadata.get("deletionGracePeriodSeconds"),
        containers,
    )


def shapes(history: list[tuple[str, Json | None]]) -> list[Any]:
    """Per state, the number of its pod and its shape, without repetitions."""
    numbers: dict[str, int] = {}
    states: list[Any] = []
    for name, pod in history:
        state = (numbers.setdefault(name, len(numbers)), shape(pod))
        if state not in states[-1:]:
            states.append(state)
    return states


def recorded_history(scenario: str, until: float = float("inf")) -> list[tuple[str, Json | None]]:
    return [
        (line["object"]["metadata"]["name"], None if line["kind"] == "DELETED" else line["object"])
        for line in recorded(scenario)
        if line["kind"] in {"Pod", "DELETED"}
        and line["object"]["kind"] == "Pod"
        and line["at"] < until
    ]


def job_conditions(double: Cluster) -> list[str]:
    return [c["type"] for c in double.get("jobs", JOB)["status"].get("conditions", ())]


@pytest.mark.parametrize(
    ("scenario", "end", "conditions"),
    [
        ("success", (0, "Completed"), ["SuccessCriteriaMet", "Complete"]),
        ("hook-out-of-memory-137", (137, "OOMKilled"), ["FailureTarget", "Failed"]),
    ],
)
def test_a_pod_that_ends(
    double: Scripted, scenario: str, end: tuple[int, str], conditions: list[str]
) -> None:
    double.ends["hook"] = end
    double.create("jobs", a_job())
    wait_for(lambda: job_conditions(double), 30)
    assert shapes(double.history) == shapes(recorded_history(scenario))
    assert job_conditions(double) == conditions


def test_the_state_of_a_hook_out_of_memory_that_hangs(double: Scripted) -> None:
    """Until the pod's deadline, after 30 s there, which the double does not keep."""
    double.ends["hook"] = (0, "OOMKilled")
    double.create("jobs", a_job())
    expected = shapes(recorded_history("hook-out-of-memory-hangs", until=30))
    wait_for(lambda: shapes(double.history) == expected, 30)
    assert job_conditions(double) == []


def test_a_pod_that_is_taken_away_and_replaced(double: Scripted) -> None:
    """Condition, date of deletion, end, the date moved back, no pod at all, another pod."""
    double.create("jobs", a_job())
    wait_for(lambda: "hook" in double.running.values(), 30)
    asked = now()
    double.take_away(JOB, conditions=[DISRUPTED])
    wait_for(lambda: job_conditions(double), 30)
    history = double.history
    assert shapes(history) == shapes(recorded_history("evicted-while-hook-runs"))

    dates = [pod["metadata"].get("deletionTimestamp") for _, pod in history if pod is not None]
    first, last = next(filter(None, dates)), [date for date in dates if date][-1]
    assert asked < last < first


REFUSALS = [
    "quota-pods",
    "podsecurity-violation",
    "missing-service-account",
    "missing-priorityclass",
]


def summary(event: Json) -> tuple[str, str, int, str]:
    """An event without the name of the pod, of which the end, if it has one, is random."""
    message = re.sub(r'"hook-[^"]*-\w{5}"', "NAMED", event["message"])
    message = re.sub(r'"hook-[^"]*-"', "UNNAMED", message)
    return event["type"], event["reason"], event["count"], message


@pytest.mark.parametrize("scenario", REFUSALS)
def test_pods_that_are_refused(double: Scripted, scenario: str) -> None:
    """One event for each pod that has a name, else one that counts."""
    events = {}
    for line in recorded(scenario):
        event = line["object"]
        if line["kind"] == "Event" and event["reason"] == "FailedCreate":
            events[event["metadata"]["name"]] = event
    message = next(iter(events.values()))["message"]
    double.refused_pods = message.partition(" is forbidden: ")[2]
    double.create("jobs", a_job())

    expected = [summary(event) for event in events.values()]
    wait_for(lambda: [summary(event) for event in double.all("events")] == expected, 30)
    assert double.all("pods") == []
    assert job_conditions(double) == []


def test_a_warning_comes_with_the_job(double: Scripted, url: str) -> None:
    [answer] = [
        line["object"]
        for line in recorded("podsecurity-violation")
        if line["kind"] == "HTTP" and line["object"].get("warning")
    ]
    text = answer["warning"].removeprefix('299 - "').removesuffix('"').replace('\\"', '"')
    double.warnings = [text]
    jobs = f"{url}/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    response = requests.post(jobs, json=a_job(), timeout=30)
    assert (response.status_code, response.headers["Warning"]) == (
        answer["status"],
        answer["warning"],
    )


def test_a_missing_namespace_is_forbidden(url: str) -> None:
    """As any namespace without a role for the caller: 403, and not 404."""
    [refused] = [
        line["object"]["body"]
        for line in recorded("api-server-killed-and-restarted")
        if line["kind"] == "HTTP"
        and line["object"].get("status") == 403
        and "jobs" in line["object"]["path"]
    ][:1]
    response = requests.get(f"{url}/apis/batch/v1/namespaces/elsewhere/jobs/{JOB}", timeout=30)
    assert response.status_code == refused["code"] == 403
    document = response.json()
    assert {name: document[name] for name in ("kind", "status", "reason", "code")} == {
        name: refused[name] for name in ("kind", "status", "reason", "code")
    }
