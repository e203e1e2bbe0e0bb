"""Care of a real archive: drills, collections beside publishers, the commands, Dagster."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from datetime import timedelta
from functools import partial

import dagster as dg
import pytest

from feature_pipeline.archive import blobs, deletion_lease, publish, read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import ObjectKind, State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import ConflictError, CorruptDataError
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.checks.integrity import INTEGRITY_CHECK
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.care import CareScene, everything
from feature_pipeline_tests.fixtures.dagster import DATASET as LETTERS
from feature_pipeline_tests.fixtures.dagster import check_of
from feature_pipeline_tests.fixtures.s3 import s3_settings
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, connect, copy_objects

pytestmark = pytest.mark.s3


@pytest.fixture
def care(s3_store, tmp_path):
    # In memory first, in a quarter of the time: how it comes to be there is not tested here.
    scene = CareScene(MemoryStore(), tmp_path)
    everything(scene)
    copy_objects(scene.store, s3_store)
    scene.store = s3_store
    return scene


@pytest.fixture
def damage(s3_client, s3_address, s3_prefix):
    """Change an object behind the archive's back."""

    def act(key, how):
        where = {"Bucket": s3_address.bucket, "Key": f"{s3_prefix}/{key}"}
        data = s3_client.get_object(**where)["Body"].read()
        if how == "delete":
            s3_client.delete_object(**where)
            return
        at = len(data) // 2
        changed = data[:at] if how == "truncate" else data[:at] + bytes([data[at] ^ 1])
        changed += b"" if how == "truncate" else data[at + 1 :]
        s3_client.put_object(**where, Body=changed)

    return act


def one_of_each_kind(store):
    """A key of each kind of object."""
    head = log.head(store, DATASET, HOOK, "b1")
    manifest = read.read_manifest(store, head.manifest)
    batch = log.read_batch(store, DATASET, "b1")
    return {
        ObjectKind.FEATURE_ENTRY: layout.entry(layout.feature_log(DATASET, HOOK, "b1"), 1),
        ObjectKind.BATCH_ENTRY: layout.entry(layout.batch_log(DATASET, "b1"), 1),
        ObjectKind.RELEASE_ENTRY: layout.entry(layout.release_log(DATASET, HOOK), 1),
        ObjectKind.INBOX_ENTRY: f"inbox/{inbox.waiting(store)[0].id}",
        ObjectKind.QUARANTINE_ENTRY: f"quarantine/{inbox.quarantined(store)[0].id}",
        ObjectKind.MANIFEST: layout.blob(head.manifest),
        ObjectKind.BATCH: layout.blob(batch.digest),
        ObjectKind.RECORD_FILE: layout.blob(batch.records[0].files[0].blob),
        ObjectKind.CODE: layout.blob(
            log.releases(store, DATASET, HOOK)[0].release.document.code[0].blob
        ),
        ObjectKind.ROWS: layout.blob(manifest.blobs["rows"].digest),
        ObjectKind.OUTCOMES: layout.blob(manifest.blobs["outcomes"].digest),
        ObjectKind.RAW: layout.blob(manifest.blobs["raw/features.jsonl"].digest),
        ObjectKind.HOOK_LOG: layout.blob(manifest.blobs["log"].digest),
    }


PARENTS = [
    ObjectKind.MANIFEST,
    ObjectKind.BATCH,
    ObjectKind.BATCH_ENTRY,
    ObjectKind.RELEASE_ENTRY,
]
"""What they name is not known while they are damaged."""


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_damage_of_every_kind_is_named(care, damage, how):
    """All at once: no damage hides another."""
    objects = one_of_each_kind(care.store)
    waiting = {ObjectKind.INBOX_ENTRY, ObjectKind.QUARANTINE_ENTRY}
    leaves = {
        kind: key
        for kind, key in objects.items()
        if kind not in PARENTS and (how == "truncate" or kind not in waiting)
    }
    if how == "flip":
        # The bytes were put there without a checksum, and may be those of another entry: then what
        # it names is not there, or the entry after it names another.
        del leaves[ObjectKind.FEATURE_ENTRY]
    for key in leaves.values():
        damage(key, how)
    state = State.MISSING if how == "delete" else State.CORRUPT
    findings = {(f.state, f.kind, f.key) for f in verify(care.store).findings}
    assert findings == {(state, kind, key) for kind, key in leaves.items()}


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("kind", PARENTS)
def test_damage_of_what_names_others_is_named(care, damage, how, kind):
    key = one_of_each_kind(care.store)[kind]
    damage(key, how)
    findings = verify(care.store).findings
    if how == "flip" and kind in {ObjectKind.BATCH_ENTRY, ObjectKind.RELEASE_ENTRY}:
        # Put there without a checksum, the bytes may be another entry's: then the entry after it
        # names another, too.
        assert {f.key.rpartition("/")[0] for f in findings} == {key.rpartition("/")[0]}
        assert {f.state for f in findings} == {State.CORRUPT}
        return
    [finding] = findings
    assert (finding.kind, finding.key) == (kind, key)
    assert finding.state is (State.MISSING if how == "delete" else State.CORRUPT)


def test_an_entry_that_became_another_is_noticed(care, damage):
    damage(one_of_each_kind(care.store)[ObjectKind.FEATURE_ENTRY], "flip")
    assert not verify(care.store).is_clean


def test_objects_that_another_tool_restored(care, s3_client, s3_address, s3_prefix):
    """Their bytes are right; that the server has no SHA-256 of them is a note."""
    keys = [key for kind, key in one_of_each_kind(care.store).items()]
    for key in keys:
        where = {"Bucket": s3_address.bucket, "Key": f"{s3_prefix}/{key}"}
        s3_client.put_object(**where, Body=s3_client.get_object(**where)["Body"].read())
    report = verify(care.store)
    assert report.findings == ()
    [note] = report.notes
    assert f"no checksum of {len(keys)} valid objects" in note
    [note] = verify(care.store, restore_checksums=True).notes
    assert "set again" in note
    assert care.store.stat(keys[0]).sha256 is not None
    report = verify(care.store)
    assert report.findings == ()
    assert "no checksum of 2 valid objects" in report.notes[0]  # what waits is left as it is


def test_damage_is_never_read_as_data(care, damage):
    store = care.store
    head = log.head(store, DATASET, HOOK, "b1")
    manifest = read.read_manifest(store, head.manifest)
    for name in ("rows", "outcomes", "raw/features.jsonl", "log"):
        damage(layout.blob(manifest.blobs[name].digest), "flip")
        with pytest.raises(CorruptDataError):
            read.read_named(store, manifest, name)
    damage(layout.blob(head.manifest), "flip")
    with pytest.raises(CorruptDataError):
        read.read_manifest(store, head.manifest)


def test_damage_is_repaired_when_the_bytes_are_published_again(care, damage):
    batch = log.read_batch(care.store, DATASET, "b1")
    key = layout.blob(batch.records[0].files[0].blob)
    damage(key, "flip")
    assert not verify(care.store).is_clean
    publish.submit_batch(care.store, batch, care.paths(batch))
    assert verify(care.store).is_clean


@pytest.mark.slow
def test_collections_beside_publishers(s3_store, s3_address, s3_prefix, tmp_path, monkeypatch):
    """The grace is a blink: publishers and collections meet on the same old blobs all the time.

    What was announced must be there whole, however often its bytes were orphaned before.
    """
    monkeypatch.setattr(blobs, "GRACE", timedelta(seconds=2))
    monkeypatch.setattr(deletion_lease, "LEASE", timedelta(seconds=5))
    monkeypatch.setattr(deletion_lease, "MARGIN", timedelta(seconds=1))
    scene = CareScene(s3_store, tmp_path, takes_census=True)
    batch = scene.submit(scene.batch_of("b1", ("r1", "r2")))
    release = scene.release()
    begun = time.monotonic()
    errors: list[BaseException] = []
    counts = {"announced": 0, "deleted": 0}

    def goes_on() -> bool:
        """For 15 seconds, and on a slow machine until both have met often enough."""
        seconds = time.monotonic() - begun
        return seconds < 15 or (seconds < 90 and not errors and min(counts.values()) <= 5)

    def publisher(number: int) -> None:
        """Publishes the same artifact over and over, and takes it back each time."""
        own = CareScene(s3_store, tmp_path / str(number))
        own.folder.mkdir()
        artifact = own.artifact(batch, release, run_id=f"p{number}")
        turn = 0
        try:
            while goes_on():
                turn += 1
                published, completion = publish.publish_and_enqueue(
                    s3_store, artifact, partial(completion_of, artifact, base=0)
                )
                for _ in range(3):
                    assert blobs.find_missing(s3_store, published.refs) == [], "named, and gone"
                    time.sleep(0.1)
                counts["announced"] += 1
                inbox.remove(s3_store, completion.inbox_id)
                # Orphaned for longer than the grace, so that the next round finds it old or gone.
                time.sleep(0.7 * (turn % 5))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    def collector() -> None:
        try:
            with connect(s3_address, s3_prefix) as other:
                while goes_on():
                    with contextlib.suppress(ConflictError):
                        report = collect_garbage(
                            other, GcScope.everything(), is_dry_run=False, new_orphans=1000
                        )
                        counts["deleted"] += len(report.deleted)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=publisher, args=(n,)) for n in range(3)]
    threads += [threading.Thread(target=collector)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert counts["announced"] > 5
    assert counts["deleted"] > 5
    scene.compute(batch, release, "x")
    assert verify(s3_store).is_clean


def printed(arguments, expected, status, out, error):
    """What a command printed: the document if that was asked for."""
    assert status == expected, out + error
    return json.loads(out) if "--json" in arguments and status != 1 else out + error


class TestCommands:
    @pytest.fixture
    def run(self, s3_address, s3_prefix, tmp_path, monkeypatch, command_line):
        """A command within this process; what it printed, or the document."""
        for name, value in s3_settings(s3_address, s3_prefix).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)

        def command(*arguments, status=0):
            log.forget_read_entries()  # as a new process has none
            return printed(arguments, status, *command_line(*arguments))

        return command

    @pytest.fixture
    def start(self, run):
        """The same in a process of its own, without an input."""

        def command(*arguments, status=0):
            done = subprocess.run(
                [sys.executable, "-m", "feature_pipeline.cli.app", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            return printed(arguments, status, done.returncode, done.stdout, done.stderr)

        return command

    def test_verify(self, care, damage, run, start):
        assert "all right" in start("verify")
        report = run("verify", "--hook", HOOK, "--json")
        assert (report["is_clean"], report["scope"]["dataset"]) == (True, DATASET)
        key = one_of_each_kind(care.store)[ObjectKind.ROWS]
        damage(key, "flip")
        report = run("verify", "--dataset", DATASET, "--batch", "b1", "--json", status=2)
        assert [(f["state"], f["key"]) for f in report["findings"]] == [("corrupt", key)]
        assert "corrupt" in run("verify", status=2)
        assert "no dataset" in run("verify", "--hook", "nothing", status=1)

    def test_history(self, care, run, start):
        document = start("history", HOOK, "b1", "--json")
        assert [e["verdict"] for e in document["entries"]] == ["current", "current"]
        assert [e["is_head"] for e in document["entries"]] == [False, True]
        assert [e["version"] for e in document["entries"]] == ["1", "2"]
        assert document["entries"][1]["counts"]["records"] == 3
        assert "2*" in run("history", HOOK)
        assert "has been accepted yet" in run("history", HOOK, "b9", status=1)

    def test_quarantine(self, care, run, start):
        [quarantined] = start("quarantine", "--json")["quarantined"]
        assert quarantined["reason"] == "for the test"
        assert "for the test" in run("quarantine")
        assert "not in the quarantine" in run("quarantine", "--requeue", "nobody", status=1)
        assert run("quarantine", "--requeue", "--all", "--json")["requeued"] == [quarantined["id"]]
        assert quarantined["id"] in {entry.id for entry in inbox.waiting(care.store)}
        assert inbox.quarantined(care.store) == []

    def test_erase(self, care, run, start):
        run("verify")  # writes the first census: without one nothing is deleted
        assert "--reason" in run("erase", "r2", "--dataset", DATASET, status=1)
        assert "Aborted" in start("erase", "r2", "--dataset", DATASET, "--reason", "x", status=1)
        arguments = ("--dataset", DATASET, "--reason", "asked for", "--yes", "--json")
        report = run("erase", "r2", *arguments)
        assert (report["record_ids"], report["artifacts"]) == (["r2"], 2)
        assert "Dagster" in report["outside_reach"][0]
        assert run("verify", "--json")["erased"] > 3
        assert run("erase", "--dataset", DATASET, "--json")["artifacts"] == 0
        lifted = run("erase", "r2", "--lift", "--dataset", DATASET, "--reason", "ok", "--json")
        assert lifted["lifted"] == ["r2"]

    def test_gc(self, care, run, start):
        run("verify")  # writes the first census: without one nothing is deleted
        blobs.put_blob(care.store, b"nobody needs this")
        assert "choose the blobs to collect" in run("gc", status=1)
        assert "Dry run" in start("gc", "--all")
        report = run("gc", "--all", "--delete", "--json")
        assert (report["orphaned"], report["due"], report["is_dry_run"]) == (1, [], False)
        assert care.store.list_folders("gc/") == ["marks"]


@pytest.mark.postgres
@pytest.mark.dagster
class TestPipelines:
    @pytest.fixture
    def computed(self, pipeline):
        hook = pipeline.add_hook()
        pipeline.submit("b1", {"a": "xyz", "b": "xx", "c": ""})
        pipeline.submit("b2", {"d": "q"})
        pipeline.tick()
        key = features_key(LETTERS, hook.name)
        for batch in ("b1", "b2"):
            assert pipeline.run(key, batch, checks=False).success
        return pipeline

    def damaged(self, pipeline, name, how):
        head = log.head(pipeline.store, LETTERS, "counts", "b1")
        digest = head.manifest
        if name != "manifest":
            digest = read.read_manifest(pipeline.store, digest).blobs[name].digest
        key = layout.blob(digest)
        info = pipeline.store.stat(key)
        if how == "delete":
            pipeline.store.delete(key)
        else:
            data = pipeline.store.get(key).data
            pipeline.store.replace(key, data[: len(data) // 2] + b"?", info.etag)
        return key

    @pytest.mark.parametrize("name", ["manifest", "rows", "outcomes"])
    @pytest.mark.parametrize("how", ["change", "delete"])
    def test_a_rebuild_never_skips_damage(self, computed, name, how):
        self.damaged(computed, name, how)
        spec = table_spec(computed.hooks["counts"])
        with pytest.raises(CorruptDataError, match="batch 'b1': "):
            list(load_batches(computed.store, computed.database, spec))

    def test_the_check_and_the_job_name_what_is_damaged(self, computed):
        for batch in ("b1", "b2"):
            run = computed.run(features_key(LETTERS, "counts"), batch)
            assert check_of(run, INTEGRITY_CHECK).passed
        key = self.damaged(computed, "rows", "change")
        job = computed.defs.resolve_job_def("verify_archive")
        result = job.execute_in_process(instance=computed.instance, raise_on_error=False)
        assert not result.success
        check = self.integrity(computed)
        assert not check.passed
        assert key in check.metadata["findings"].value
        assert "b1" in check.metadata["findings"].value
        # The run of another batch does not turn it green, nor does the repaired batch's own: what
        # was wrong in all of it is for a reading of all of it to take back.
        for batch in ("b2", "b1"):
            run = computed.run(features_key(LETTERS, "counts"), batch, config={"force": True})
            check = check_of(run, INTEGRITY_CHECK)
            assert not check.passed
            assert "all of it was read at" in check.description

    def integrity(self, pipeline):
        """The check, executed alone."""
        selection = dg.AssetSelection.checks(
            dg.AssetCheckKey(features_key(LETTERS, "counts"), INTEGRITY_CHECK)
        )
        job = dg.define_asset_job("integrity", selection=selection)
        defs = dg.Definitions.merge(pipeline.defs, dg.Definitions(jobs=[job]))
        result = defs.resolve_job_def("integrity").execute_in_process(instance=pipeline.instance)
        [check] = result.get_asset_check_evaluations()
        return check

    @pytest.mark.parametrize("known_by", ["Dagster", "table"])
    def test_the_end_of_a_log_that_only_a_database_knows(self, computed, known_by):
        """No census was taken: a table or Dagster alone knows what the log has lost."""
        if known_by == "table":
            spec = table_spec(computed.hooks["counts"])
            list(load_batches(computed.store, computed.database, spec))
            computed.instance.wipe_assets([features_key(LETTERS, "counts")])
        prefix = layout.feature_log(LETTERS, "counts", "b1")
        [info] = computed.store.list_objects(prefix)
        data = computed.store.get(info.key).data
        computed.store.delete(info.key)
        check = self.integrity(computed)
        assert not check.passed
        assert check.metadata["wrong"].value == {"lost": 1}
        assert f"needed by {known_by}" in check.metadata["findings"].value
        assert prefix in check.metadata["findings"].value
        job = computed.defs.resolve_job_def("verify_archive")
        result = job.execute_in_process(instance=computed.instance, raise_on_error=False)
        [failed] = [e for e in result.all_events if e.is_step_failure]
        failure = failed.step_failure_data.user_failure_data
        assert failure.metadata["wrong"].value == {"lost": 1}
        computed.store.create(info.key, data)
        assert self.integrity(computed).passed
        assert job.execute_in_process(instance=computed.instance).success

    def test_the_end_of_a_log_that_is_lost(self, computed):
        """The job writes what there is, and later fails until what it knew is back."""
        job = computed.defs.resolve_job_def("take_census")
        assert job.execute_in_process(instance=computed.instance).success
        prefix = layout.feature_log(LETTERS, "counts", "b1")
        *_, key = (info.key for info in computed.store.list_objects(prefix))
        data = computed.store.get(key).data
        computed.store.delete(key)
        for _ in range(2):
            result = job.execute_in_process(instance=computed.instance, raise_on_error=False)
            assert not result.success
            [failed] = [e for e in result.all_events if e.is_step_failure]
            [failure] = [failed.step_failure_data.user_failure_data]
            assert f"{key} is not in" in failure.description
            assert failure.metadata["wrong"].value == {"lost": 1}
        run = computed.run(features_key(LETTERS, "counts"), "b2", config={"force": True})
        assert run.success
        computed.store.create(key, data)
        assert job.execute_in_process(instance=computed.instance).success

    def test_tables_follow_an_erasure(self, computed):
        spec = table_spec(computed.hooks["counts"])
        list(load_batches(computed.store, computed.database, spec))
        erase(computed.store, LETTERS, ["a", "d"], "asked for")
        list(load_batches(computed.store, computed.database, spec))
        rows = computed.rows("select distinct record_id from features.counts")
        assert rows == [("b",)]
        outcomes = computed.rows("select record_id from features._outcomes order by 1")
        assert outcomes == [("b",), ("c",)]
        proof = prove(computed.store, computed.database, spec)
        assert proof.is_equal, proof.summary()
        # Nothing of what stays is computed again.
        processes = computed.processes()
        for batch in ("b1", "b2"):
            assert computed.run(features_key(LETTERS, "counts"), batch).success
        assert computed.processes() == processes
