"""The webhook: every cause is told once, a receiver that is down is tried again, within bounds."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import dagster as dg
import pytest

from feature_pipeline import settings
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.orchestration.sensors import webhook
from feature_pipeline.orchestration.sensors.alerts import Alert
from feature_pipeline.orchestration.sensors.webhook import WebhookState, parse_state, post, tick
from feature_pipeline_tests.fixtures.http import serving

SECRET = "T0KEN"


class Receiver:
    """A real HTTP server that keeps what is posted to it."""

    url: str

    def __init__(self) -> None:
        self.status = 200
        self.alerts: list[dict[str, Any]] = []
        self.attempts = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.attempts += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                # Before the answer: the sender goes on as soon as it has that.
                if receiver.status == 200 and self.headers["Content-Type"] == "application/json":
                    receiver.alerts.append(json.loads(body))
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.handler = Handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with serving(receiver.handler) as url:
        receiver.url = f"{url}/{SECRET}"
        yield receiver


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Scene:
    """A sensor's state over an instance, and a clock that the test moves."""

    def __init__(self, instance: dg.DagsterInstance, url: str) -> None:
        self.instance = instance
        self.url = url
        self.store = MemoryStore()
        self.cursor: str | None = None
        self.now = 1_000_000.0

    def tick(self, times: int = 1) -> webhook.WebhookTick:
        """Ticks as the daemon gives them: the state goes through the cursor's text."""
        for _ in range(times):
            state = parse_state(self.cursor)
            done = tick(
                state, self.instance, self.store, self.url, "https://ui", clock=lambda: self.now
            )
            self.cursor = state.model_dump_json()
            self.now += webhook.TICK_SECONDS
        return done

    @property
    def state(self) -> WebhookState:
        return parse_state(self.cursor)


@pytest.fixture
def scene(instance: dg.DagsterInstance, receiver: Receiver) -> Scene:
    scene = Scene(instance, receiver.url)
    scene.tick()
    return scene


def run(instance: dg.DagsterInstance, *, fails: bool, **tags: str) -> str:
    @dg.op
    def compute() -> None:
        if fails:
            raise dg.Failure("out of cheese")

    @dg.job
    def science() -> None:
        compute()

    done = science.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
    return done.run_id


@dg.job
def empty() -> None: ...


def evaluate(instance: dg.DagsterInstance, **failing: float) -> None:
    @dg.asset_check(asset="pockets")
    def outcomes() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            passed=not failing,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(failing)} batches",
            metadata={"failing_batches": dg.MetadataValue.json(failing)},
        )

    defs = dg.Definitions(asset_checks=[outcomes])
    job = defs.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance).success


def test_a_failed_run_is_posted_once_with_reason_and_link(scene: Scene, receiver: Receiver):
    run(scene.instance, fails=False)
    failed = run(scene.instance, fails=True)
    scene.tick(4)
    (posted,) = receiver.alerts
    assert posted["kind"] == "run_failed"
    assert posted["what"] == "run of science failed"
    assert posted["why"] == "out of cheese"
    assert posted["where"]["run"] == failed
    assert posted["link"] == f"https://ui/runs/{failed}"
    assert posted["text"] == f"run of science failed: out of cheese https://ui/runs/{failed}"
    assert {"id", "at"} <= set(posted)


def test_retries_of_a_run_and_runs_of_a_backfill_are_one_cause(scene: Scene, receiver: Receiver):
    first = run(scene.instance, fails=True)
    retry = scene.instance.create_run_for_job(
        empty, root_run_id=first, parent_run_id=first, status=dg.DagsterRunStatus.STARTED
    )
    scene.instance.report_run_failed(retry, "again")
    for _ in range(3):
        run(scene.instance, fails=True, **{"dagster/backfill": "bf", "dagster/partition": "b1"})
    scene.tick(2)
    run(scene.instance, fails=True, **{"dagster/backfill": "bf"})
    scene.tick(4)
    assert [posted["where"]["backfill"] for posted in receiver.alerts] == [None, "bf"]
    assert "for batch b1" in receiver.alerts[1]["what"]


def test_events_before_the_first_tick_are_not_posted(
    instance: dg.DagsterInstance, receiver: Receiver
):
    run(instance, fails=True)
    Scene(instance, receiver.url).tick(4)
    assert receiver.alerts == []


def test_a_failing_check_is_posted_when_it_names_other_batches_or_fails_again(
    scene: Scene, receiver: Receiver
):
    for failing in ({"b1": 0.5}, {"b1": 0.5}, {"b1": 0.4, "b2": 0.1}, {}, {"b1": 0.5}):
        evaluate(scene.instance, **failing)
    scene.tick(4)
    batches = [posted["where"]["batches"] for posted in receiver.alerts]
    assert batches == [["b1"], ["b1", "b2"], ["b1"]]
    first = receiver.alerts[0]
    assert (first["kind"], first["where"]["severity"]) == ("check_failed", "warn")
    assert first["what"] == "check outcomes of pockets fails"
    assert first["link"] == "https://ui/assets/pockets?view=checks&checkDetail=outcomes"
    assert len({posted["id"] for posted in receiver.alerts}) == 3


def test_a_receiver_that_is_down_is_tried_again_with_pauses(scene: Scene, receiver: Receiver):
    receiver.status = 503
    run(scene.instance, fails=True)
    done = scene.tick(2)
    assert done.problem == "the receiver answered 503"
    tried = receiver.attempts
    scene.tick(40)
    assert 3 <= receiver.attempts - tried <= 8, "pauses grow: ten minutes are not forty attempts"
    receiver.status = 200
    scene.now += 3600
    assert scene.tick().posted == 1
    scene.tick(3)
    assert len(receiver.alerts) == 1
    assert scene.state.waiting == []


def test_a_tick_ends_at_the_first_post_that_is_not_taken(scene: Scene, receiver: Receiver):
    receiver.status = 500
    for _ in range(3):
        run(scene.instance, fails=True)
    scene.tick(2)
    assert receiver.attempts == 1
    assert len(scene.state.waiting) == 3


def test_posts_that_are_never_accepted_are_dropped_in_the_end(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(webhook, "WAITING_AT_MOST", 2)
    receiver.status = 500
    for _ in range(3):
        run(scene.instance, fails=True)
    assert scene.tick(2).dropped == 1
    scene.now += webhook.GIVE_UP_AFTER_SECONDS
    assert scene.tick().dropped == 2
    assert scene.state.waiting == []


@pytest.mark.parametrize("status", [302, 404, 500])
def test_other_answers_are_not_taken_and_redirects_not_followed(receiver: Receiver, status: int):
    receiver.status = status
    assert post(receiver.url, {"a": "é"}) == f"the receiver answered {status}"
    assert receiver.attempts == 1


def test_a_receiver_on_this_machine_is_reached_by_no_proxy(receiver, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(receiver.url, {}) is None


def test_problems_do_not_show_the_address():
    problem = post(f"http://127.0.0.1:1/{SECRET}", {})
    assert "could not be reached" in problem
    assert SECRET not in problem
    with pytest.raises(InvalidInputError) as caught:
        settings.webhook_url({settings.WEBHOOK_URL: f"ftp://host/{SECRET}"})
    assert SECRET not in str(caught.value)


def test_the_sensor_is_idle_without_an_address(
    instance: dg.DagsterInstance, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    class Archive:
        def store(self) -> MemoryStore:
            return MemoryStore()

    sensor = webhook.webhook_sensor()
    context = dg.build_sensor_context(instance=instance, resources={"archive": Archive()})
    assert "is not set" in sensor(context).skip_message
    monkeypatch.setenv(settings.WEBHOOK_URL, "nonsense")
    assert "is not an address" in sensor(context).skip_message
    monkeypatch.setenv(settings.WEBHOOK_URL, receiver.url)
    assert sensor(context).skip_message == "0 posted, 0 waiting"


def test_an_alert_without_a_page_has_no_link():
    from datetime import UTC, datetime

    from feature_pipeline.orchestration.sensors.alerts import AlertKind

    notice = Alert("c", AlertKind.QUARANTINED, "what", {}, "why", datetime.now(UTC))
    assert notice.document("https://ui")["link"] is None
    assert notice.document(None)["text"] == "what: why"
