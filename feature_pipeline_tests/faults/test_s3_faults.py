"""The S3 drill's short form: each fault at each place, and a life of an archive under all of them.

What a transient wrong answer leads to is named, and done again it is right.
"""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest

from feature_pipeline.archive import accept, blobs, publish
from feature_pipeline.archive.accept import Accepted, Waiting
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.errors import FeaturePipelineError, StoreUnavailableError
from feature_pipeline_tests.faults.s3_dagster_drill import DagsterDrill
from feature_pipeline_tests.faults.s3_drill import Drill, conditions
from feature_pipeline_tests.fixtures.own_seaweedfs import own_seaweed
from feature_pipeline_tests.fixtures.s3_faults import (
    REQUEST_FAULTS,
    Fault,
    FaultProxy,
    Plan,
    fault_proxy,
)
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    Scene,
    archive_client,
    connect,
    make_batch,
)

pytestmark = [pytest.mark.s3, pytest.mark.faults]

QUICK = [f for f in REQUEST_FAULTS if f not in (Fault.SILENT, Fault.SLOW_FIRST_BYTE)]
"""Faults that end at once."""


@pytest.fixture
def fault(s3_address) -> Iterator[FaultProxy]:
    with conditions(), fault_proxy(s3_address.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def faulty(fault, s3_address, s3_prefix) -> Iterator[S3Store]:
    client = archive_client(s3_address, fault.endpoint_url)
    yield S3Store(client, s3_address.bucket, s3_prefix)
    client.close()


def retried(act, tries=20):
    """Do it until it ends well; return how often."""
    for number in range(1, tries):
        try:
            act()
        except FeaturePipelineError:
            log.forget_read_entries()
        else:
            return number
    return pytest.fail(f"it did not end well in {tries} tries")


@pytest.mark.parametrize("kind", QUICK)
def test_any_request_of_a_publication_may_meet_any_fault(
    kind, fault, faulty, s3_address, s3_prefix, tmp_path
):
    """At each place in turn: the log has one entry, and the archive is whole."""
    with connect(s3_address, s3_prefix) as direct:
        scene = Scene(faulty, tmp_path)
        release = scene.release()
        for at in range(1 + QUICK.index(kind), 60, 8):
            batch = make_batch(f"b{at}")
            fault.plan = plan = Plan((kind,), at=at)

            def submit_and_publish(batch=batch, at=at) -> None:
                if not log.batch_entries(faulty, DATASET, batch.key):
                    submission = publish.submit_batch(faulty, batch, {})
                    accept.accept_batch(faulty, submission)
                    inbox.remove(faulty, submission.inbox_id)
                completion = scene.completion(scene.artifact(batch, release, run_id=f"run{at}"))
                accept.accept(faulty, completion)

            assert retried(submit_and_publish) <= 2
            [entry] = log.read_log(direct, DATASET, HOOK, batch.key)
            assert entry.completion == f"run{at}"
            if plan.requests < at:
                break
        assert verify(direct).is_clean
        assert inbox.waiting(direct) == []


def test_a_wrong_byte_on_the_way_quarantines_nothing(
    fault, faulty, s3_address, s3_prefix, tmp_path
):
    """The store keeps a checksum, so what was read is known not to be what is stored."""
    with connect(s3_address, s3_prefix) as direct:
        scene = Scene(direct, tmp_path)
        completion = scene.completion(scene.artifact(scene.submit(make_batch()), scene.release()))
        publish.enqueue_completion(direct, completion)
        fault.plan = Plan((Fault.WRONG_BYTES,), at=1)
        [result] = accept.accept_entries(faulty, accept.waiting(faulty))
        assert fault.plan.injected.total() == 1
        assert isinstance(result, Waiting)
        [result] = accept.accept_entries(faulty, accept.waiting(faulty))
        assert isinstance(result, Accepted)


def test_an_error_whose_own_text_is_cut_short_is_no_answer(fault, faulty):
    """boto3 reads it where it translates no error of the connection."""
    for ask in (faulty.stat, faulty.get):
        fault.plan = Plan((Fault.TRUNCATED,), at=1)
        with pytest.raises(StoreUnavailableError):
            ask("a/absent")
        assert fault.plan.injected.total() == 1
    assert faulty.stat("a/absent") is None


@pytest.mark.parametrize("hours", [-5, 5])
def test_the_stores_clock_may_be_hours_away(hours, fault, faulty, tmp_path):
    fault.plan = Plan(skew=timedelta(hours=hours))
    scene = Scene(faulty, tmp_path)
    scene.submit(make_batch())
    accept.accept(faulty, scene.completion(scene.artifact(make_batch(), scene.release())))
    publish.submit_batch(faulty, make_batch("b2"), {})
    [result] = accept.accept_entries(faulty, accept.waiting(faulty))
    assert isinstance(result, Accepted)
    assert blobs.put_blob(faulty, b"x").size == 1
    assert verify(faulty).is_clean


def test_a_clock_that_is_ahead_of_the_stores_deletes_nothing_and_is_named(fault, faulty):
    """Every deletion has a deadline by the store's clock, which has passed by this one."""
    faulty.create("inbox/x", b"x")
    fault.plan = Plan(skew=timedelta(hours=-5))
    deadline = faulty.now() + timedelta(minutes=3)
    with pytest.raises(StoreUnavailableError, match=r"by the store's clock; .* set it if it is"):
        faulty.delete_before("inbox/x", deadline)
    assert faulty.stat("inbox/x") is not None


@pytest.mark.postgres
@pytest.mark.slow
def test_a_life_under_faults(s3_address, postgres_server, tmp_path):
    with conditions(), fault_proxy(s3_address.endpoint_url) as proxy:
        drill = Drill(s3_address, proxy, tmp_path, postgres_server.create_database)
        drill.round(Plan(tuple(QUICK), rate=0.06, seed=1))
    assert drill.tally.problems == []
    assert drill.tally.injected.total() > 15, json.dumps(drill.tally.injected)


@pytest.mark.postgres
@pytest.mark.dagster
@pytest.mark.slow
def test_dagsters_way_under_faults_and_kills(postgres_server, tmp_path):
    faults = tuple(fault for fault in Fault if fault is not Fault.SILENT)
    with (
        own_seaweed() as seaweed,
        conditions(),
        fault_proxy(seaweed.address.endpoint_url, seaweed) as proxy,
    ):
        drill = DagsterDrill(seaweed.address, proxy, postgres_server)
        drill.round(Plan(faults, rate=0.04, seed=2), tmp_path)
    assert drill.tally.problems == []
    assert drill.tally.injected[Fault.KILLED] > 0
    assert drill.tally.injected.total() > 10, json.dumps(drill.tally.injected)
