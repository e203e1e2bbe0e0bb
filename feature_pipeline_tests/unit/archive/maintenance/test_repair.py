"""What is brought back, from what, and what is named because nothing brings it back."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.findings import Finding, Scope
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log, tombstones
from feature_pipeline.archive.maintenance.accept_loss import accept_losses, plan_losses
from feature_pipeline.archive.maintenance.compare_databases import (
    Knowledge,
    KnownBatch,
    KnownEntry,
    find_lost,
    find_lost_batches,
)
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.repair import (
    Action,
    ProjectRelease,
    RepairPlan,
    Sources,
    carry_out,
    plan_repair,
)
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline_tests.fixtures.care import CareScene, all_keys
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK

NOW = datetime.now(UTC)


@pytest.fixture
def scene(tmp_path: Path) -> CareScene:
    """b1 was computed three times, b2 once."""
    scene = CareScene(MemoryStore(), tmp_path)
    release = scene.release()
    batch = scene.submit(scene.batch_of("b1", ("r1", "r2")))
    for base, label in enumerate("abc"):
        scene.compute(batch, release, label, base=base)
    scene.compute(scene.submit(scene.batch_of("b2", ("r3",))), release, "a")
    return scene


def backup(scene: CareScene) -> MemoryStore:
    """A copy of every object as it is now, in a store of its own."""
    store = MemoryStore()
    for key in all_keys(scene.store):
        assert store.create(key, scene.store.get(key).data)
    return store


def flip(scene: CareScene, key: str) -> None:
    stored = scene.store.get(key)
    data = bytes([stored.data[0] ^ 1]) + stored.data[1:] if stored.data else b"x"
    assert scene.store.replace(key, data, stored.info.etag)
    log.forget_read_entries()


def entry_key(batch: str, seq: int) -> str:
    return layout.entry(layout.feature_log(DATASET, HOOK, batch), seq)


def contents(store: MemoryStore) -> dict[str, bytes]:
    return {key: store.get(key).data for key in all_keys(store)}


def findings(scene: CareScene, sources: Sources) -> list[Finding]:
    wrong = [one.finding for one in find_lost(scene.store, sources.entries)]
    wrong += [one.finding for one in find_lost_batches(scene.store, sources.batches)]
    wrong += verify(scene.store).findings
    return list({finding.key: finding for finding in wrong}.values())


def repaired(scene: CareScene, sources: Sources) -> RepairPlan:
    """The plan that is left once every step was taken, and taken again."""
    for _ in range(5):
        log.forget_read_entries()
        plan = plan_repair(scene.store, findings(scene, sources), sources)
        if not plan.steps:
            break
        before = contents(scene.store)
        again = plan_repair(scene.store, findings(scene, sources), sources)
        assert contents(scene.store) == before, "planning writes nothing"
        assert [s.finding for s in again.steps] == [s.finding for s in plan.steps]
        assert carry_out(plan, lambda _: None) == []
        assert carry_out(plan, lambda _: None) == [], "it can be repeated"
    return plan


def known(scene: CareScene, seqs: tuple[int, ...], batch: str = "b1") -> list[KnownEntry]:
    entries = log.read_log(scene.store, DATASET, HOOK, batch)
    return [
        KnownEntry(DATASET, HOOK, batch, seq, entries[seq - 1].manifest, "table pockets", NOW)
        for seq in seqs
    ]


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_every_object_comes_back_from_a_second_archive_byte_by_byte(scene, how) -> None:
    before = contents(scene.store)
    sources = Sources(second=backup(scene))
    for key in before:
        if not key.startswith((layout.BLOBS, layout.LOGS)):
            continue
        is_last = key in (entry_key("b1", 3), entry_key("b2", 1))
        if how == "delete" and (is_last or key.startswith(layout.RELEASE_LOGS)):
            continue  # below: their loss is not seen in the log
        if how == "flip":
            flip(scene, key)
        else:
            scene.store.delete(key)
        plan = repaired(scene, sources)
        assert (plan.steps, plan.remainders) == ((), ()), key
        after = contents(scene.store)
        assert {k: v for k, v in after.items() if k in before} == before, key


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_the_entry_of_an_accepted_loss_comes_back(scene, how) -> None:
    """Without it the log that was given up would be lost again."""
    write_census(scene.store)
    scene.store.delete(entry_key("b1", 3))
    accept_losses(
        scene.store, plan_losses(scene.store, verify(scene.store).findings), by="me", reason="gone"
    )
    write_census(scene.store)
    sources, key = Sources(second=backup(scene)), f"{layout.loss_log(DATASET)}0000000001"
    before = scene.store.get(key).data
    if how == "flip":
        flip(scene, key)
    else:
        scene.store.delete(key)
    for _ in range(2):
        wrong = verify(scene.store, writes_census=False).findings
        assert carry_out(plan_repair(scene.store, wrong, sources), lambda _: None) == []
    assert scene.store.get(key).data == before
    assert verify(scene.store).is_clean


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_an_entry_that_became_another_valid_one_comes_back(scene, seq) -> None:
    """The entry after it names its bytes, or a census does: it is found through these."""
    before = contents(scene.store)
    sources = Sources(second=backup(scene))
    write_census(scene.store)
    key = entry_key("b1", seq)
    stored = scene.store.get(key)
    document = json.loads(stored.data)
    document["dagster_run_id"] = "another"
    assert scene.store.replace(key, document_bytes(document), stored.info.etag)
    log.forget_read_entries()
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert [step.action for step in plan.steps] == [Action.COPY]
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    assert {k: v for k, v in contents(scene.store).items() if k in before} == before


@pytest.mark.parametrize(
    "changes",
    [
        {2: "previous", 3: "previous"},
        {2: "dagster_run_id", 3: "previous"},
        {1: "dagster_run_id", 2: "previous"},
        {1: "dagster_run_id", 2: "previous", 3: "previous"},
        {2: "gone", 3: "previous"},
        {1: "gone", 2: "previous", 3: "dagster_run_id"},
        {2: "dagster_run_id", 3: "gone"},
        {1: "gone", 2: "gone", 3: "previous"},
    ],
    ids=str,
)
def test_neighbours_that_became_other_valid_ones_come_back(scene, changes) -> None:
    """Each is contradicted by the other, and by the copy; what was before both proves the copy."""
    before = contents(scene.store)
    sources = Sources(second=backup(scene))
    write_census(scene.store)
    for seq, name in changes.items():
        key = entry_key("b1", seq)
        stored = scene.store.get(key)
        if name == "gone":
            scene.store.delete(key)
            continue
        value = str(Digest.of(b"another")) if name == "previous" else "another"
        document = json.loads(stored.data) | {name: value}
        assert scene.store.replace(key, document_bytes(document), stored.info.etag)
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    assert {k: v for k, v in contents(scene.store).items() if k in before} == before


def test_bytes_of_a_second_archive_are_compared_with_their_digest(scene) -> None:
    second = backup(scene)
    head = log.head(scene.store, DATASET, HOOK, "b2")
    assert head is not None
    key = layout.blob(head.manifest)
    flip(scene, key)
    stored = second.get(key)
    assert second.replace(key, stored.data + b" ", stored.info.etag)
    plan = plan_repair(scene.store, findings(scene, Sources(second=second)), Sources(second=second))
    assert plan.steps == ()
    assert [r.finding.key for r in plan.remainders] == [key]
    assert "backfill" in plan.remainders[0].remedy


def test_an_entry_of_another_history_is_not_taken(scene, tmp_path) -> None:
    """The second archive went its own way after entry 1."""
    second = backup(scene)
    for seq in (2, 3):
        second.delete(entry_key("b1", seq))
    (tmp_path / "other").mkdir()
    other = CareScene(second, tmp_path / "other", count=50)
    batch = log.read_batch(second, DATASET, "b1")
    release = log.releases(second, DATASET, HOOK)[0]
    other.compute(batch, release, "x", base=1)
    scene.store.delete(entry_key("b1", 2))
    sources = Sources(second=second)
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert plan.steps == ()
    assert [r.finding.key for r in plan.remainders] == [entry_key("b1", 2)]


def test_a_lost_end_comes_back_from_a_second_archive_with_what_it_names(scene) -> None:
    before = contents(scene.store)
    sources = Sources(second=backup(scene), entries=known(scene, (3,)))
    manifest = sources.entries[0].manifest
    rows = read.read_manifest(scene.store, manifest).blobs["rows"].digest
    for seq in (2, 3):
        scene.store.delete(entry_key("b1", seq))
    scene.store.delete(layout.blob(manifest))
    scene.store.delete(layout.blob(rows))
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert [step.action for step in plan.steps] == [Action.COPY]
    assert "table pockets knows its number and manifest" in plan.steps[0].proof
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    assert {k: v for k, v in contents(scene.store).items() if k in before} == before


def test_a_lost_end_of_which_only_the_manifest_is_known_comes_back_from_a_second_archive(
    scene,
) -> None:
    """Dagster knows no numbers of entries."""
    before = contents(scene.store)
    [table] = known(scene, (3,))
    sources = Sources(second=backup(scene), entries=[replace(table, seq=None)])
    for seq in (2, 3):
        scene.store.delete(entry_key("b1", seq))
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert [step.action for step in plan.steps] == [Action.COPY]
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    assert {k: v for k, v in contents(scene.store).items() if k in before} == before


def test_an_entry_that_two_databases_know_is_lost_once(scene) -> None:
    [table] = known(scene, (3,))
    reported = Knowledge([table, replace(table, seq=None, known_by="Dagster")])
    scene.store.delete(entry_key("b1", 3))
    log.forget_read_entries()
    [lost] = reported.lost(scene.store, Scope())
    assert lost.key == entry_key("b1", 3)
    [lost] = reported.add_lost(verify(scene.store), scene.store).findings
    assert lost.key == entry_key("b1", 3)


def test_an_entry_that_was_accepted_after_a_loss_is_not_overwritten(scene) -> None:
    """Both histories are kept: the log goes on, and what it lost is appended to it."""
    sources = Sources(second=backup(scene), entries=known(scene, (3,)))
    write_census(scene.store)
    scene.store.delete(entry_key("b1", 3))
    log.forget_read_entries()
    batch = log.read_batch(scene.store, DATASET, "b1")
    completion = scene.run(batch, log.releases(scene.store, DATASET, HOOK)[0], "x", base=2)
    later = completion.model_copy(update={"published_at": datetime.now(UTC)})
    accepted = accept.accept(scene.store, later)
    assert accepted.seq == 3
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert Action.COPY not in {step.action for step in plan.steps}
    carry_out(plan, lambda _: None)
    log.forget_read_entries()
    entries = log.read_log(scene.store, DATASET, HOOK, "b1")
    assert entries[2] == accepted
    assert entries[3].manifest == sources.entries[0].manifest
    assert log.last_current(entries) == accepted


def test_a_lost_end_that_a_database_knows_is_appended_again_as_a_new_entry(scene) -> None:
    sources = Sources(entries=known(scene, (2, 3)))
    was = log.read_log(scene.store, DATASET, HOOK, "b1")
    for seq in (2, 3):
        scene.store.delete(entry_key("b1", seq))
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert {step.action for step in plan.steps} == {Action.APPEND}
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    log.forget_read_entries()
    now = log.read_log(scene.store, DATASET, HOOK, "b1")
    assert [(e.seq, e.manifest, e.verdict) for e in now] == [
        (e.seq, e.manifest, e.verdict) for e in was
    ]
    assert now[1:] != was[1:]
    assert all(e.completion.startswith("restored-") for e in now[1:])


def test_what_no_copy_and_no_manifest_brings_back_is_named_with_its_recomputation(scene) -> None:
    sources = Sources(entries=known(scene, (3,)))
    scene.store.delete(entry_key("b1", 3))
    scene.store.delete(layout.blob(sources.entries[0].manifest))
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert plan.steps == ()
    [remainder] = plan.remainders
    assert "`feature-pipeline backfill pockets --select all --batch b1`" in remainder.remedy


def test_a_hole_whose_bytes_are_named_is_filled_by_these_bytes_alone(scene) -> None:
    """What a database knows of it would be another entry than the one that the next one names."""
    sources = Sources(entries=known(scene, (2,)))
    scene.store.delete(entry_key("b1", 2))
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert plan.steps == ()
    assert [r.finding.key for r in plan.remainders] == [entry_key("b1", 2)]


@pytest.mark.parametrize("name", ["rows", "outcomes"])
def test_rows_and_outcomes_are_derived_from_raw_output_again(scene, name) -> None:
    head = log.head(scene.store, DATASET, HOOK, "b2")
    assert head is not None
    digest = read.read_manifest(scene.store, head.manifest).blobs[name].digest
    scene.store.delete(layout.blob(digest))
    sources = Sources(derive=decode_batch_again)
    plan = plan_repair(scene.store, findings(scene, sources), sources)
    assert [(s.finding.key, s.action) for s in plan.steps] == [(layout.blob(digest), Action.DERIVE)]
    assert carry_out(plan, lambda _: None) == []
    now = log.head(scene.store, DATASET, HOOK, "b2")
    assert now is not None
    manifest = read.read_manifest(scene.store, now.manifest)
    assert len(read.read_artifact_outcomes(scene.store, manifest)) == 1


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_lost_batch_is_entered_again_from_its_document(scene, is_reported) -> None:
    was = log.batch_entry(scene.store, DATASET, "b1")
    reported = KnownBatch(DATASET, "b1", was.digest, "Dagster", NOW, was.submitted_at)
    scene.store.delete(layout.entry(layout.batch_log(DATASET, "b1"), 1))
    log.forget_read_entries()
    sources = Sources(batches=[reported] if is_reported else [])
    plan = repaired(scene, sources)
    assert (plan.steps, plan.remainders) == ((), ())
    now = log.batch_entry(scene.store, DATASET, "b1")
    assert (now.digest, now.records, now.source) == (was.digest, was.records, was.source)
    if is_reported:
        assert now.submitted_at == was.submitted_at


def test_a_batch_that_was_given_up_is_lost_no_more(scene) -> None:
    """Dagster keeps its materialization of it; what it learns later is a loss again."""
    was = log.batch_entry(scene.store, DATASET, "b2")
    scene.store.delete(layout.entry(layout.batch_log(DATASET, "b2"), 1))
    log.forget_read_entries()
    reported = KnownBatch(DATASET, "b2", was.digest, "Dagster", datetime.now(UTC))
    lost = [one.finding for one in find_lost_batches(scene.store, [reported])]
    accept_losses(scene.store, plan_losses(scene.store, lost), by="me", reason="gone")
    assert find_lost_batches(scene.store, [reported]) == []
    later = replace(reported, known_at=datetime.now(UTC))
    assert len(find_lost_batches(scene.store, [later])) == 1


def test_releases_and_code_come_back_from_the_project(scene) -> None:
    entry = log.releases(scene.store, DATASET, HOOK)[0]
    code = entry.release.document.code[0]
    declared = ProjectRelease(entry.release, {code.name: scene.folder / code.blob.hex})
    scene.store.delete(layout.entry(layout.release_log(DATASET, HOOK), 1))
    scene.store.delete(layout.blob(code.blob))
    log.forget_read_entries()
    plan = repaired(scene, Sources(releases=[declared]))
    assert (plan.steps, plan.remainders) == ((), ())
    assert log.releases(scene.store, DATASET, HOOK)[0].release == entry.release
    flip(scene, layout.blob(code.blob))
    plan = repaired(scene, Sources(releases=[declared]))
    assert (plan.steps, plan.remainders) == ((), ())


def test_a_lost_tombstone_is_made_again_from_the_log_of_erasures(scene) -> None:
    erase(scene.store, DATASET, ["r1"], "asked for")
    scene.store.delete(layout.entry(layout.tombstone_log(DATASET), 1))
    log.forget_read_entries()
    repaired(scene, Sources())
    assert tombstones.withdrawn(scene.store, DATASET) == {"r1"}


def test_an_entry_is_known_by_number_and_manifest(scene) -> None:
    [one] = known(scene, (3,))
    assert find_lost(scene.store, [one]) == []
    assert find_lost(scene.store, [replace(one, seq=2)]) != []
    assert find_lost(scene.store, [replace(one, seq=None)]) == []
    gone = KnownEntry(DATASET, HOOK, "b1", 3, Digest.of(b"another"), "table pockets", NOW)
    [lost] = find_lost(scene.store, [gone])
    assert "entry 3 of the log has manifest" in str(lost)
