"""Completed outputs of the recorded server, taken into an archive while the server goes on."""

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import NotFoundError, StoreUnavailableError
from feature_pipeline.model.outcomes import Status
from feature_pipeline.osa.server.ids import hook_run_id
from feature_pipeline.osa.server.storage import FolderStorage, Place
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline_tests.fixtures import osa_server as recorded
from feature_pipeline_tests.fixtures.osa_server import Beside
from feature_pipeline_tests.fixtures.stores import copy_of

pytestmark = pytest.mark.postgres

RUNNING = f"ingest-{recorded.RUNNING}"
HISTORY = f"ingest-{recorded.HISTORY}-0"
ABORTED = f"ingest-{recorded.ABORTED}-0"
KILLED = "f36e757b-3bda-4d23-a"
QC_2 = "6554075e-8eeb-4495-97d5-2e3825516536"
POCKETS_1 = "bea90b76-cdad-4084-b0e5-6805d89d3643"
BATCH_4 = {hook: hook_run_id(recorded.RUNNING, 4, hook) for hook in ("pockets", "qc")}


def passed(manifest: Manifest) -> tuple[int, int, int, int]:
    counts = manifest.counts
    return counts.passed, counts.rejected, counts.errored, counts.rows


def test_every_completed_output_is_archived_as_the_server_has_it(beside: Beside) -> None:
    result = beside.follow()
    assert (result.waiting, result.unreadable, result.undefined) == ({}, {}, [])
    beside.accept_all()
    manifests = beside.manifests()
    assert {name: passed(manifest) for name, manifest in manifests.items()} == {
        f"{HISTORY}/pockets": (6, 0, 0, 9),  # 3hist passed without rows
        f"{HISTORY}/qc": (6, 0, 0, 6),
        f"{ABORTED}/pockets": (2, 0, 2, 2),  # given up, with partial results
        f"{ABORTED}/qc": (0, 0, 0, 0),  # its image could not be pulled
        f"{RUNNING}-0/pockets": (17, 1, 2, 30),
        f"{RUNNING}-0/qc": (18, 2, 0, 18),
        f"{RUNNING}-1/pockets": (20, 0, 0, 43),
        f"{RUNNING}-1/qc": (20, 0, 0, 20),
        f"{RUNNING}-2/pockets": (20, 0, 0, 41),
        f"{RUNNING}-2/qc": (8, 0, 12, 8),  # broke off after 8 records
        f"{RUNNING}-3/pockets": (7, 0, 1, 13),  # a string for a number
        f"{RUNNING}-3/qc": (8, 0, 0, 8),
        # the server has no row of the first of these
        "deposition-6db1e311-bd4a-459c-8/qc": (1, 0, 0, 1),
        "deposition-6db1e311-bd4a-459c-8/alignment": (1, 0, 0, 3),
        "deposition-4fe806c1-b3f1-40cb-8/qc": (1, 0, 0, 1),
        "deposition-4fe806c1-b3f1-40cb-8/alignment": (1, 0, 0, 3),
        "deposition-a1eabcc6-449f-465f-9/qc": (1, 0, 0, 1),
        "deposition-a1eabcc6-449f-465f-9/alignment": (1, 0, 0, 3),
        "deposition-6a5dbdc6-c561-4f47-9/qc": (1, 0, 0, 1),
        "deposition-6a5dbdc6-c561-4f47-9/alignment": (1, 0, 0, 3),
    }
    # what is stored are the server's bytes
    for name, manifest in manifests.items():
        key, hook = name.split("/")
        kind, _, rest = key.partition("-")
        run, _, index = rest.rpartition("-")
        parent = (
            beside.batch(int(index), run)
            if kind == "ingest"
            else beside.folder / f"files/depositions/archive.example.org_{rest}"
        )
        theirs = {
            path.name: path.read_bytes()
            for path in (parent / "hooks" / hook / "output").iterdir()
            if path.name != "run.json"
        }
        ours = {
            each.removeprefix("server."): read.read_raw(beside.store, manifest, each)
            for each in read.raw_names(manifest)
        }
        if "log" in manifest.blobs:
            ours["hook.log"] = read.read_log_text(beside.store, manifest).encode()
        assert ours == theirs, name
    failed = manifests[f"{ABORTED}/qc"]
    assert failed.failure is not None
    assert "as 'error'" in failed.failure.reason


def test_run_release_and_records_are_the_servers(beside: Beside) -> None:
    beside.follow()
    beside.accept_all()
    manifests = beside.manifests()
    manifest = manifests[f"{RUNNING}-1/pockets"]
    run = manifest.run
    assert (run.id, run.runner, run.attempts) == (
        "18e3b0d6-b0fd-5fef-b7e3-cd5d476839fb",
        "osa",
        2,  # it ran out of memory once
    )
    assert run.started_at == datetime.fromisoformat("2026-11-29T15:03:10.981664+00:00")
    (entry,) = beside.entries("pdb_structures", "pockets")[f"{RUNNING}-1"]
    assert (entry.completion, entry.verdict) == (run.id, Verdict.CURRENT)
    assert "source reference git:pockets-1" in manifest.notes[0]
    assert '"memory":"512m"' in manifest.notes[0]
    releases = [e.release.document for e in log.releases(beside.store, "pdb_structures", "qc")]
    assert [(r.version, r.config) for r in releases] == [("1", {"level": 1}), ("2", {"level": 2})]
    assert manifests[f"{RUNNING}-0/qc"].release.version == "1"
    assert manifests[f"{RUNNING}-1/qc"].release.version == "2"
    batch = log.read_batch(beside.store, "pdb_structures", HISTORY)
    record = next(each for each in batch.records if each.id == "pdb:9xyz")
    assert batch.document.source == "harvest"
    assert record.metadata["resolution"] == 0.98
    data = beside.store.get(layout.blob(record.files[0].blob)).data
    assert data == b"data_pdb:9xyz\n# pdb:9xyz.cif\n"
    deposition = log.read_batch(beside.store, "protein_designs", "deposition-6db1e311-bd4a-459c-8")
    assert deposition.document.source == "deposition"
    assert [file.name for file in deposition.records[0].files] == ["design.fasta"]
    # a hook of this project with the same image would not compute these records again
    outcomes = read.read_artifact_outcomes(beside.store, manifest)
    assert all(o.action is not None for o in outcomes if o.status is Status.PASSED)


def test_a_second_pass_changes_nothing_even_without_its_memory(beside: Beside) -> None:
    first = beside.follow()
    assert len(first.published) == 20
    beside.accept_all()
    before = copy_of(beside.store)._objects
    second = beside.follow()
    assert (second.submitted, second.published, second.unchanged) == ([], [], [])
    logs = {key for key in before if not key.startswith(layout.FOLLOWED)}
    assert {k for k in beside.store._objects if not k.startswith(layout.FOLLOWED)} == logs
    key = layout.followed("osa")
    for damage in (None, b'{"spec_version":1', b'{"spec_version":2}'):
        info = beside.store.stat(key)
        assert info is not None
        if damage is None:
            beside.store.delete(key)
        else:
            beside.store.replace(key, damage, info.etag)
        again = beside.follow()
        assert (again.submitted, again.published, len(again.unchanged)) == ([], [], 20)
        assert {k for k in beside.store._objects if not k.startswith(layout.FOLLOWED)} == logs
        assert bool(again.notes) == (damage is not None)


def test_an_output_that_changes_later_is_a_new_entry(beside: Beside) -> None:
    beside.follow()
    beside.accept_all()
    output = beside.batch(1) / "hooks/qc/output"
    lines = (output / "features.jsonl").read_text()
    (output / "features.jsonl").write_text(lines)  # the same bytes, written again
    assert beside.follow().unchanged == [f"{RUNNING}-1/qc"]
    (output / "features.jsonl").write_text(lines.partition("\n")[2])
    assert beside.follow().published == [f"{RUNNING}-1/qc"]
    beside.accept_all()
    first, second = beside.entries("pdb_structures", "qc")[f"{RUNNING}-1"]
    assert (second.completion, second.verdict) == (first.completion, Verdict.CURRENT)
    manifest = read.manifest_of(beside.store, second)
    assert passed(manifest) == (19, 0, 1, 19)
    assert manifest.notes[-1] == "the server's output changed after entry 1"
    # and back to what it was
    (output / "features.jsonl").write_text(lines)
    beside.follow()
    beside.accept_all()
    *_, third = beside.entries("pdb_structures", "qc")[f"{RUNNING}-1"]
    assert (third.seq, third.verdict) == (3, Verdict.CURRENT)
    assert passed(read.manifest_of(beside.store, third)) == (20, 0, 0, 20)


def test_a_rerun_under_an_older_release_is_current(beside: Beside) -> None:
    """`hook_runs` keeps the row of the first run; `run.json` names the release of the last."""
    beside.follow()
    beside.accept_all()
    output = beside.batch(1) / "hooks/qc/output"
    stated = json.loads((output / "run.json").read_text())
    stated["release_id"] = "2a4de42b-335f-481b-ab92-5d97437fd0a6"
    (output / "run.json").write_text(json.dumps(stated))
    beside.follow()
    beside.accept_all()
    *_, last = beside.entries("pdb_structures", "qc")[f"{RUNNING}-1"]
    assert (last.seq, last.verdict) == (2, Verdict.CURRENT)
    assert read.manifest_of(beside.store, last).release.version == "1"


def test_a_batch_grows_in_the_servers_order_and_is_taken_when_it_is_complete(
    beside: Beside,
) -> None:
    beside.follow()
    beside.accept_all()
    pockets, qc = (beside.batch(4) / "hooks" / hook for hook in ("pockets", "qc"))
    ids = [f"6ee{n:02d}" for n in range(12)]
    names = [f"{RUNNING}-4/pockets", f"{RUNNING}-4/qc"]

    def nothing_is_taken() -> None:
        result = beside.follow()
        assert (result.published, result.unreadable) == ([], {})

    nothing_is_taken()  # a features.jsonl cut in the middle of a line, no run.json
    beside.write_output(pockets, ids, BATCH_4["pockets"], POCKETS_1)
    beside.write_output(qc, ids, BATCH_4["qc"], QC_2)
    nothing_is_taken()  # run.json, and its row is not committed: the server may die before
    began = "2026-11-29 15:05+00"  # after the claim of its worker
    beside.commit_hook_run(BATCH_4["pockets"], POCKETS_1, began)
    beside.commit_hook_run(BATCH_4["qc"], QC_2, began)
    result = beside.follow()
    assert sorted(result.published) == names
    beside.accept_all()
    assert passed(beside.manifests()[names[0]]) == (12, 0, 0, 0)


def test_nothing_is_taken_while_a_later_claim_may_write_it_again(beside: Beside) -> None:
    """After two hours the server gives a claimed batch to a second worker."""
    ids = [f"6ee{n:02d}" for n in range(12)]
    for hook, release in (("pockets", POCKETS_1), ("qc", QC_2)):
        beside.write_output(beside.batch(4) / "hooks" / hook, ids, BATCH_4[hook], release)
        beside.commit_hook_run(BATCH_4[hook], release, "2026-11-29 15:00+00")
    beside.batch(4).joinpath("hooks/qc/output/run.json").write_text("")  # being written
    result = beside.follow()
    assert f"{RUNNING}-4/pockets" in result.waiting
    assert "claimed the batch at 2026-11-29 15:03:23 UTC" in result.waiting[f"{RUNNING}-4/qc"]
    assert not any(name.startswith(f"{RUNNING}-4") for name in result.published)
    assert result.unreadable == {}
    beside.write_output(beside.batch(4) / "hooks/qc", ids, BATCH_4["qc"], QC_2)
    beside.sql("update deliveries set status = 'delivered' where status = 'claimed'")
    assert sorted(beside.follow().published) == [f"{RUNNING}-4/pockets", f"{RUNNING}-4/qc"]


def test_nothing_is_taken_before_all_hooks_ran_again_for_a_new_one(beside: Beside) -> None:
    """A batch that is retried after its convention got a hook: all of its hooks run again."""
    batch = f"{RUNNING}-3"
    beside.sql(
        'update conventions set hooks = \'["pockets", "qc", "alignment"]\''
        " where id = 'pdb-structures'"
    )
    beside.sql(
        "update deliveries set status = 'pending', claimed_at = null where status = 'failed'"
        " and consumer_group = 'ProcessBatch'"
    )
    result = beside.follow()
    assert {n for n in result.waiting if n.startswith(batch)} == {f"{batch}/pockets", f"{batch}/qc"}
    assert "all of them run again" in result.waiting[f"{batch}/qc"]
    assert not any(name.startswith(batch) for name in result.published)
    run_id = hook_run_id(recorded.RUNNING, 3, "alignment")
    release = "8b9cc834-1d7a-45fd-b136-103aa1057afe"
    beside.write_output(beside.batch(3) / "hooks/alignment", ["5dd00"], run_id, release)
    beside.commit_hook_run(run_id, release)
    result = beside.follow()
    assert len([name for name in result.published if name.startswith(batch)]) == 3


def test_a_deposition_is_taken_once_its_validation_is_committed(beside: Beside) -> None:
    beside.follow()
    folder = beside.folder / f"files/depositions/archive.example.org_{KILLED}"
    srn = recorded.DEPOSITION + KILLED
    runs = {"alignment": str(uuid.uuid4())}
    runs["qc"] = json.loads((folder / "hooks/qc/output/run.json").read_text())["run_id"]
    beside.write_output(
        folder / "hooks/alignment", [KILLED], runs["alignment"],
        "8b9cc834-1d7a-45fd-b136-103aa1057afe",
    )  # fmt: skip
    assert beside.follow().published == []
    beside.sql("update depositions set stage = 'validated', updated_at = now() where srn = %s", srn)
    result = beside.follow()  # rows that name no hook run of the database
    assert sorted(result.waiting) == [f"deposition-{KILLED}/alignment", f"deposition-{KILLED}/qc"]
    assert "not in public.hook_runs" in result.waiting[f"deposition-{KILLED}/qc"]
    beside.commit_hook_run(runs["qc"], QC_2)
    beside.commit_hook_run(runs["alignment"], "8b9cc834-1d7a-45fd-b136-103aa1057afe")
    result = beside.follow()
    assert sorted(result.published) == [f"deposition-{KILLED}/alignment", f"deposition-{KILLED}/qc"]
    beside.sql("update depositions set stage = 'published', updated_at = now() where srn = %s", srn)
    assert beside.follow().published == []


def test_a_deposition_that_is_changed_and_submitted_again_is_another_batch(beside: Beside) -> None:
    beside.settings = OsaSettings(hooks=("qc",))
    beside.follow()
    beside.accept_all()
    local = "6db1e311-bd4a-459c-8"
    folder = beside.folder / f"files/depositions/archive.example.org_{local}/hooks/qc"
    for number, title in ((2, "changed"), (3, "changed again")):
        run_id = str(uuid.uuid4())
        beside.write_output(folder, [local], run_id, QC_2)
        beside.commit_hook_run(run_id, QC_2)
        beside.sql(
            "update depositions set metadata = %s, updated_at = now() where srn = %s",
            json.dumps({"title": title}),
            recorded.DEPOSITION + local,
        )
        result = beside.follow()
        assert result.submitted == [f"deposition-{local}-{number}"]
        beside.accept_all()
        assert beside.follow().published == []
    assert len(beside.entries("protein_designs", "qc")) == 6
    batch = log.read_batch(beside.store, "protein_designs", f"deposition-{local}-3")
    assert batch.records[0].metadata == {"title": "changed again"}
    # submitted again as it is: the same batch, and another hook run
    run_id = str(uuid.uuid4())
    beside.write_output(folder, [local], run_id, QC_2)
    beside.commit_hook_run(run_id, QC_2)
    beside.sql("update depositions set updated_at = now() where srn like %s", f"%{local}")
    assert beside.follow().submitted == []
    beside.accept_all()
    *_, last = beside.entries("protein_designs", "qc")[f"deposition-{local}-3"]
    assert (last.seq, last.completion, last.verdict) == (2, run_id, Verdict.CURRENT)


class Rewriting(FolderStorage):
    """A storage in which a worker writes an output again while it is read."""

    change: Callable[[], None] | None = None

    def fetch(self, place: Place, target: Path) -> None:
        super().fetch(place, target)
        if Rewriting.change is not None and place.path.endswith("1/hooks/qc/output/features.jsonl"):
            change, Rewriting.change = Rewriting.change, None
            change()


@pytest.mark.parametrize("how", ["written again", "claimed", "removed"])
def test_an_output_that_is_written_while_it_is_read_waits(beside: Beside, how: str) -> None:
    output = beside.batch(1) / "hooks/qc/output"
    text = (output / "features.jsonl").read_text()

    def change() -> None:
        if how == "claimed":
            beside.sql(
                "update deliveries set status = 'claimed', claimed_at = now() where event_id in"
                " (select id from events where payload ->> 'batch_index' = '1')"
            )
        elif how == "removed":
            (output / "run.json").unlink()
        else:
            (output / "features.jsonl").write_text(text[:100])

    Rewriting.change = change
    try:
        result = beside.follower(Rewriting(beside.folder)).follow()
    finally:
        Rewriting.change = None
    assert f"{RUNNING}-1/qc" in result.waiting
    assert f"{RUNNING}-1/qc" not in result.published
    assert result.unreadable == {}


def test_an_unusable_output_is_named_and_delays_nothing(beside: Beside) -> None:
    def rewrite(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    (beside.batch(0) / "hooks/pockets/output/run.json").unlink()
    unknown = "00000000-0000-4000-8000-000000000000"
    run_json = beside.batch(0) / "hooks/qc/output/run.json"
    rewrite(run_json, json.loads(run_json.read_text())["run_id"], unknown)
    rewrite(beside.batch(1) / "hooks/qc/output/run.json", QC_2, unknown)
    (beside.batch(2) / "hooks/qc/output/run.json").write_text("{}")
    (beside.batch(3) / "ingester/files/5dd01/5dd01.cif").unlink()
    rewrite(beside.batch(0, recorded.ABORTED) / "ingester/records.jsonl", '"4ab00"', "17")
    fasta = beside.folder / (
        "files/depositions/archive.example.org_6db1e311-bd4a-459c-8/files/design.fasta"
    )
    rewrite(fasta, ">", ";")
    result = beside.follow()
    reasons = {
        f"{RUNNING}-0/pockets": "hooks/pockets/output/run.json is not in",
        f"{RUNNING}-0/qc": f"run.json names hook run {unknown}, but that of {RUNNING}-0/qc is 8b39",
        f"{RUNNING}-1/qc": f"release {unknown}, which is not a release of hook 'qc'",
        f"{RUNNING}-2/qc": "run.json: expected an object with run_id and release_id",
        f"{RUNNING}-3/pockets": "file '5dd01.cif' of record '5dd01': ",
        f"{RUNNING}-3/qc": "file '5dd01.cif' of record '5dd01': ",
        f"{ABORTED}/pockets": "ingester/records.jsonl:1: the record has neither source_id",
        f"{ABORTED}/qc": "ingester/records.jsonl:1: the record has neither source_id",
        "deposition-6db1e311-bd4a-459c-8/qc": "design.fasta",
        "deposition-6db1e311-bd4a-459c-8/alignment": "design.fasta",
    }
    assert result.unreadable.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in result.unreadable[name], name
    assert len(result.published) == 20 - len(reasons)
    beside.accept_all()
    # a sensor leaves them out for an hour, a command looks at once
    rewrite(fasta, ";", ">")
    assert beside.follow(is_patient=True).published == []
    result = beside.follow()
    assert sorted(result.published) == [
        "deposition-6db1e311-bd4a-459c-8/alignment",
        "deposition-6db1e311-bd4a-459c-8/qc",
    ]
    assert result.unreadable.keys() == {n for n in reasons if not n.startswith("deposition-")}


def test_a_storage_that_is_not_there_is_an_error(beside: Beside, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        beside.follower(FolderStorage(tmp_path / "unmounted")).follow()
    assert beside.store._objects == {}


def test_erased_records_do_not_come_back_with_a_changed_output(beside: Beside) -> None:
    beside.follow()
    beside.accept_all()
    erase(beside.store, "pdb_structures", ["2bb01"], "asked for")
    output = beside.batch(1) / "hooks/qc/output/features.jsonl"
    output.write_text(output.read_text() + "\n")
    result = beside.follow()
    assert "records were erased from batch" in result.unreadable[f"{RUNNING}-1/qc"]
    assert result.published == []


class Failing(MemoryStore):
    """A store that stops answering after a number of writes."""

    left = 0

    def create(self, key: str, data: bytes, media_type: str = "") -> bool:
        if Failing.left <= 0:
            raise StoreUnavailableError("the store does not answer")
        Failing.left -= 1
        return super().create(key, data, media_type)


def test_a_pass_that_ends_anywhere_is_completed_by_the_next(beside: Beside) -> None:
    designs = OsaSettings(conventions={"protein-designs": "designs"})

    def heads(archive: Beside) -> dict[str, object]:
        return {
            name: (manifest.content_digest, manifest.run, dict(manifest.blobs))
            for name, manifest in archive.manifests().items()
        }

    whole = Beside(beside.url, beside.folder)
    whole.settings = beside.settings = designs
    whole.follow()
    whole.accept_all()
    for writes in (0, 5, 20, 40, 70):
        beside.store = Failing()
        Failing.left = writes
        with pytest.raises(StoreUnavailableError):
            beside.follow()
        Failing.left = 1_000_000
        beside.follow()
        beside.accept_all()
        assert beside.follow().published == []
        assert heads(beside) == heads(whole)
        assert {len(e) for e in beside.entries("designs", "qc").values()} == {1}


def test_a_limited_pass_continues_where_it_ended(beside: Beside) -> None:
    follower = beside.follower()
    clock = iter(range(1000))
    follower.now = lambda: float(next(clock))
    passes = [follower.follow(seconds=6) for _ in range(2)]
    assert [each.is_finished for each in passes] == [False, False]
    published = [name for each in passes for name in each.published]
    assert len(published) == len(set(published)) == 20
    assert follower.follow().is_finished


def test_an_ended_run_is_closed_and_never_requested_again(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.sql("update ingest_runs set completed_at = now() where id = %s", recorded.HISTORY)
    beside.follow()
    asked: list[Place] = []
    files = FolderStorage.files

    def noted(storage: FolderStorage, place: Place) -> object:
        asked.append(place)
        return files(storage, place)

    monkeypatch.setattr(FolderStorage, "files", noted)
    beside.follow()
    # of runs that go on or ended just now, what may change is looked at again; nothing else is
    changing = {recorded.RUNNING, recorded.HISTORY}
    assert {place.path.split("/")[0] for place in asked} == changing
    assert len(asked) == 10
    monkeypatch.setattr("feature_pipeline.osa.sync.pending.LAST_LOOKS_A_PASS", 1)
    beside.sql("update ingest_runs set completed_at = now() - interval '3 h'")
    beside.follow()
    asked.clear()
    beside.follow()
    assert [p.path for p in asked if p.path.startswith(recorded.HISTORY)] == [
        f"{recorded.HISTORY}/batches/0/hooks/qc/output"
    ]
    asked.clear()
    beside.follow()
    assert {place.path.split("/")[0] for place in asked} == {recorded.RUNNING}
    assert len(asked) == 8
    monkeypatch.setattr("feature_pipeline.osa.sync.pending.LOOKS_A_PASS", 3)
    asked.clear()
    for _ in range(3):
        beside.follow()
    assert len(asked) == 9
    assert len(set(asked)) == 8
    # a hook that is followed only now is asked for in closed runs, too
    beside.settings = OsaSettings(hooks=("qc",))
    beside.store = MemoryStore()
    beside.follow()
    beside.follow()
    beside.settings = OsaSettings()
    assert f"{HISTORY}/pockets" in beside.follow().published
