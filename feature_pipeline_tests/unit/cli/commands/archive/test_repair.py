"""`feature-pipeline repair`: it plans, acts when it is told to, and says what is left."""

import io
import json
from types import SimpleNamespace

import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.losses import losses
from feature_pipeline.archive.maintenance import loss_entries
from feature_pipeline.archive.maintenance.compare_databases import Knowledge
from feature_pipeline.cli.commands.archive import repair as repair_module
from feature_pipeline.cli.project_hooks import ProjectHooks
from feature_pipeline_tests.fixtures.care import CareScene, all_keys
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, Death, copy_of


class Repair:
    """The command over an archive in memory: b1 was computed three times, b2 once."""

    def __init__(self, scene: CareScene, command_line: CommandLine) -> None:
        self.scene, self.store, self.command_line = scene, scene.store, command_line
        release = scene.release()
        for key, labels in (("b1", "abc"), ("b2", "a")):
            batch = scene.submit(scene.batch_of(key, (f"{key}-r1", f"{key}-r2")))
            for base, label in enumerate(labels):
                scene.compute(batch, release, label, base=base)
        write_census(self.store)
        self.second = copy_of(self.store)

    def __call__(self, *options: str, status: int = 0) -> dict:
        log.forget_read_entries()
        ended, out, error = self.command_line("repair", "--json", *options)
        assert ended == status, out + error
        return json.JSONDecoder().raw_decode(out)[0]  # what follows was on standard error

    def flip(self, key: str) -> str:
        stored = self.store.get(key)
        changed = bytes([stored.data[0] ^ 1]) + stored.data[1:]
        assert self.store.replace(key, changed, stored.info.etag)
        return key

    def lose(self, batch: str, seq: int) -> str:
        key = layout.entry(layout.feature_log(DATASET, HOOK, batch), seq)
        self.store.delete(key)
        return key

    def contents(self) -> dict[str, bytes]:
        return {key: self.store.get(key).data for key in all_keys(self.store)}


@pytest.fixture
def repair(monkeypatch, memory_store, command_line, tmp_path) -> Repair:
    repair = Repair(CareScene(memory_store, tmp_path), command_line)
    monkeypatch.setattr(repair_module, "open_archive", lambda **_: memory_store)
    second = SimpleNamespace(open=lambda url: SimpleNamespace(store=repair.second))
    monkeypatch.setattr(repair_module, "Archive", second)
    monkeypatch.setattr(repair_module, "project_hooks", lambda: ProjectHooks([], {}))
    monkeypatch.setattr(repair_module, "query_databases", lambda *_: Knowledge())
    return repair


ACCEPT = ("--accept-loss", "--reason", "no copy is left", "--yes")


def test_nothing_is_wrong(repair):
    before = repair.contents()
    plan = repair()
    assert plan.keys() == {"steps", "remainders", "done", "failed", "given_up", "unfinished"}
    assert not any(plan.values())
    repair("--yes")
    assert repair.contents() == before
    status, out, _ = repair.command_line("repair")
    assert (status, out.splitlines()[-1]) == (0, "no problem found")


def test_it_plans_and_writes_nothing_without_yes(repair):
    was = repair.contents()
    [code] = log.releases(repair.store, DATASET, HOOK)[0].release.document.code
    keys = {repair.flip(layout.blob(code.blob)), repair.lose("b1", 2), repair.lose("b2", 1)}
    damaged = repair.contents()
    plan = repair("--from", "s3://copy/x", status=2)
    assert {step["key"] for step in plan["steps"]} == keys
    assert {step["action"] for step in plan["steps"]} == {"copy from the second archive"}
    assert all(step["proof"] for step in plan["steps"])
    assert (plan["done"], plan["remainders"]) == ([], [])
    status, out, _ = repair.command_line("repair", "--from", "s3://copy/x")
    assert status == 2
    assert "3 objects can be restored" in out
    assert "Nothing was written. `feature-pipeline repair --yes` carries it out" in out
    assert repair.contents() == damaged
    done = repair("--from", "s3://copy/x", "--yes")
    assert {step["key"] for step in done["done"]} == keys
    assert (done["steps"], done["remainders"], done["failed"]) == ([], [], {})
    assert repair.contents() == was
    assert verify(repair.store).is_clean


def test_what_cannot_be_brought_back_is_listed_with_what_to_do(repair):
    key = repair.lose("b1", 3)
    head = log.head(repair.second, DATASET, HOOK, "b2")
    manifest = repair.flip(layout.blob(head.manifest))
    repair.second.delete(key)
    left = repair("--yes", status=2)
    assert {r["key"]: r["state"] for r in left["remainders"]} == {key: "lost", manifest: "corrupt"}
    for remainder in left["remainders"]:
        assert "feature-pipeline backfill" in remainder["remedy"]
    # Of what is wrong, what a copy has comes back; the rest is still said, and so is the status.
    left = repair("--yes", "--from", "s3://copy/x", status=2)
    assert [step["key"] for step in left["done"]] == [manifest]
    assert [r["key"] for r in left["remainders"]] == [key]
    status, out, _ = repair.command_line("repair", "--yes")
    assert status == 2
    assert "1 object cannot be restored" in out
    assert "no problem" not in out


def test_a_step_that_fails_is_named_and_stops_no_other(repair, monkeypatch):
    """Between the plan and the step, the copy's own bytes changed."""
    keys = [repair.lose("b1", 3), repair.lose("b2", 1)]
    carry_out = repair_module.carry_out

    def changed(plan, progress):
        repair.second.delete(keys[0])
        head = log.head(repair.second, DATASET, HOOK, "b2")
        manifest = layout.blob(head.manifest)
        repair.second.delete(manifest)
        repair.store.delete(manifest)
        return carry_out(plan, progress)

    monkeypatch.setattr(repair_module, "carry_out", changed)
    done = repair("--yes", "--from", "s3://copy/x", status=2)
    assert [step["key"] for step in done["done"]] == [keys[0]]
    assert list(done["failed"]) == [keys[1]]
    assert "no object" in done["failed"][keys[1]]


@pytest.mark.parametrize("how", ["flip", "lose"])
def test_a_batch_is_named_though_its_own_entry_is_damaged(repair, how):
    key = layout.entry(layout.batch_log(DATASET, "b1"), 1)
    if how == "flip":
        repair.flip(key)
    else:
        repair.store.delete(key)
    [step] = repair("--batch", "b1", "--from", "s3://copy/x", status=2)["steps"]
    assert step["key"] == key
    repair("--batch", "b1", "--from", "s3://copy/x", "--yes")
    assert verify(repair.store).is_clean
    assert "no dataset of the archive has batch 'b9'" in repair.command_line.refused(
        "repair", "--batch", "b9"
    )


class TestAcceptingALoss:
    def test_it_needs_a_reason_and_a_yes(self, repair, monkeypatch):
        repair.lose("b1", 3)
        lost = repair.contents()
        refused = repair.command_line.refused("repair", "--accept-loss", "--yes", "--json")
        assert "--accept-loss needs --reason" in refused
        # No terminal answers the question.
        monkeypatch.setattr("sys.stdin", io.StringIO())
        status, out, error = repair.command_line(
            "repair", "--accept-loss", "--reason", "gone", "--json"
        )
        assert status == 1
        assert "keeps 2 of 3 entries" in out
        assert "Aborted" in error
        assert repair.contents() == lost

    def test_nothing_is_given_up_that_can_be_brought_back(self, repair):
        repair.lose("b1", 3)
        lost = repair.contents()
        options = ("--from", "s3://copy/x", "--accept-loss", "--reason", "gone")
        status, _, error = repair.command_line("repair", *options)
        assert status == 1
        assert "1 object can be restored: run this command with --yes first" in error
        assert repair.contents() == lost
        # With --yes it is brought back, and then there is nothing to give up.
        done = repair(*options, "--yes")
        assert (len(done["done"]), done["given_up"]) == (1, [])
        assert losses(repair.store, DATASET) == []

    def test_the_shorter_log_is_right_from_then_on(self, repair):
        key = repair.lose("b1", 3)
        done = repair(*ACCEPT)
        [given_up] = done["given_up"]
        assert given_up == f"{key.rpartition('/')[0]}/ keeps 2 of 3 entries"
        assert (done["steps"], done["remainders"]) == ([], [])
        [entry] = losses(repair.store, DATASET)
        assert (entry.reason, bool(entry.by)) == ("no copy is left", True)
        assert verify(repair.store).is_clean
        assert repair(*ACCEPT)["given_up"] == []
        assert len(losses(repair.store, DATASET)) == 1

    def test_artifacts_behind_a_damaged_entry_are_appended_again(self, repair):
        was = log.head(repair.store, DATASET, HOOK, "b1")
        repair.flip(layout.entry(was.log_prefix, 2))
        repair(*ACCEPT)
        log.forget_read_entries()
        now = log.head(repair.store, DATASET, HOOK, "b1")
        assert (now.seq, now.manifest) == (2, was.manifest)
        assert now.completion.startswith("restored-")

    @pytest.mark.parametrize("at", ["remove", "append"])
    def test_an_interrupted_call_is_finished_by_the_next(self, repair, monkeypatch, at):
        was = log.head(repair.store, DATASET, HOOK, "b1")
        repair.flip(layout.entry(was.log_prefix, 2))

        def die(_: object, given_up: list[object], *__: object) -> list[object]:
            if given_up:
                raise Death
            return []

        with monkeypatch.context() as patch:
            if at == "remove":
                patch.setattr(loss_entries, "_remove_behind", die)
            else:
                patch.setattr(repair_module, "append_again", die)
            with pytest.raises(Death):
                repair(*ACCEPT)
        [_] = losses(repair.store, DATASET)
        died = repair.contents()
        assert (at == "append") == bool(repair(status=2)["unfinished"])
        assert repair.contents() == died
        repair("--yes")
        log.forget_read_entries()
        now = log.head(repair.store, DATASET, HOOK, "b1")
        assert (now.seq, now.manifest) == (2, was.manifest)
        assert verify(repair.store).is_clean
        before = repair.contents()
        repair("--yes")
        assert repair.contents() == before
