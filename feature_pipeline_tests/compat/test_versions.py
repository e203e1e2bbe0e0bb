"""The checked-in archives of every version stay readable, and docs/format.md says how.

If a test here fails, the code must change, not the archive: other people have archives like it.
"""

import ast
import doctest
import json
import math
import shutil
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.logs.erasures import erasures
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import GrantedLimits, OutcomeKind, Status
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.release import HookRelease
from feature_pipeline_tests.compat import independent_reader
from feature_pipeline_tests.compat.independent_reader import Damaged, Reader
from feature_pipeline_tests.compat.make_archive import FAILING, OLD_COLUMNS, Maker

ARCHIVES = Path(__file__).parent / "archives"
VERSIONS = ("v1", "v2", "v3", "v4")
WITH_STARTS = "v3"
"""The first whose manifests are of version 2."""
WITH_CENSUS = "v4"
FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
DATASET, HOOK = "structures", "everything"


@pytest.fixture(scope="module", params=VERSIONS)
def archive(request):
    """The folder of one version's archive."""
    return ARCHIVES / request.param


@pytest.fixture(scope="module")
def store(archive):
    return filled_from(archive)


@pytest.fixture
def reader(archive):
    return Reader(archive)


@pytest.fixture
def has_starts(archive):
    return archive.name >= WITH_STARTS


def filled_from(folder):
    filled = MemoryStore()
    for path in folder.rglob("*"):
        if path.is_file():
            assert filled.create(path.relative_to(folder).as_posix(), path.read_bytes())
    return filled


class TestThePage:
    def test_its_examples_are_right(self):
        assert doctest.testfile(str(FORMAT), module_relative=False).failed == 0
        assert doctest.testfile(str(FORMAT), module_relative=False).attempted > 10

    def test_the_reader_made_from_it_uses_nothing_of_the_package(self):
        source = Path(independent_reader.__file__).read_text("utf-8")
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(source))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or "."]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert imported - {"pyarrow"} <= sys.stdlib_module_names

    def test_it_names_every_field_that_is_stored(self, archive, reader):
        page = FORMAT.read_text("utf-8")
        documents = [
            reader.decoded(path.read_bytes(), newest=2)
            for folder in ("log", "inbox", "quarantine")
            for path in (archive / folder).rglob("*")
            if path.is_file()
        ]
        documents += [manifest for _, manifest in reader.manifests()]
        names = {name for each in documents for name in each}
        parts = [start for each in documents for start in each.get("starts") or ()]
        parts += [one for each in documents for one in (each.get("without_output") or {}).values()]
        names |= {name for part in parts for name in part}
        for part in ("run", "counts", "release", "failure"):
            parts = [each.get(part) for each in documents]
            names |= {name for part in parts if isinstance(part, dict) for name in part}
        assert len(names) > 50
        assert {name for name in names if f"`{name}`" not in page} == set()


class TestIndependentReader:
    def test_digests_are_those_of_the_manifests(self, reader, has_starts):
        checked = 0
        for entry, manifest in reader.manifests():
            if manifest["failure"] is not None:
                assert entry["verdict"] == "failed"
                assert manifest["content_digest"] is manifest["rows_digest"] is None
                continue
            digests = reader.digests(manifest)
            assert manifest["rows_digest"] == digests.rows
            assert manifest["content_digest"] == entry["content_digest"] == digests.content
            reader.without_output(manifest)
            checked += 1
        assert checked == 6 + has_starts

    def test_every_blob_matches_its_name(self, archive, reader):
        names = [path.name for path in archive.glob("blobs/sha256/*/*")]
        assert len(names) > 20
        for name in names:
            reader.blob(f"sha256:{name}")
        for _, manifest in reader.manifests():
            for ref in manifest["blobs"].values():
                reader.blob(ref["digest"], ref["size"])
        with pytest.raises(Damaged):
            reader.blob(f"sha256:{names[0]}", 10**9)

    def test_actions_can_be_computed_again(self, reader):
        batch = reader.decoded(
            reader.blob(reader.entries("batches", DATASET, "harvest-1")[-1]["digest"])
        )
        head = reader.heads(DATASET, HOOK)["harvest-1"]
        releases = {e["seq"]: e["release"] for e in reader.entries("releases", DATASET, HOOK)}
        computed = 0
        for outcome in reader.outcomes(reader.manifest(head["manifest"])):
            seq = 1 if outcome["carried_from"] else 2
            assert outcome["action"] == reader.action(batch, releases[seq], outcome["record_id"])
            computed += seq == 2
        assert computed == 1

    def test_it_finds_what_the_package_finds(self, reader, store):
        for hook in ("everything", "verdicts"):
            heads = log.heads(store, DATASET, hook)
            assert {b: str(e.manifest) for b, e in heads.items()} == {
                batch: entry["manifest"] for batch, entry in reader.heads(DATASET, hook).items()
            }
        assert reader.withdrawn(DATASET) == tombstones.withdrawn(store, DATASET) == set()


class TestPackage:
    def test_the_content_of_the_archive(self, store, has_starts):
        archive = Archive(store)
        failing = [FAILING] if has_starts else []
        assert archive.datasets() == ["letters", *failing, DATASET]
        assert [(h.name, h.versions) for h in archive.hooks(DATASET)] == [
            ("everything", ("1.0", "1.1")),
            ("verdicts", ("1",)),
        ]
        assert [batch.batch for batch in archive.batches(DATASET)] == ["harvest-1", "harvest-2"]
        entries = log.read_log(store, DATASET, HOOK, "harvest-1")
        assert [entry.verdict for entry in entries] == [
            Verdict.CURRENT,
            Verdict.FAILED,
            Verdict.CURRENT,
            Verdict.SUPERSEDED,
        ]
        failed = read.read_manifest(store, entries[1].manifest)
        assert failed.failure is not None
        assert (failed.failure.kind, failed.failure.exit_code) == ("non_zero_exit", 3)
        assert read.read_log_text(store, failed) == "reading …\ndone\n"
        assert [e.action for e in tombstones.tombstones(store, DATASET)] == ["withdraw", "lift"]
        (waiting,) = inbox.waiting(store)
        assert waiting.content is not None
        assert [quarantined.reason for quarantined in inbox.quarantined(store)] == [
            "not a completion"
        ]

    def test_every_value_of_every_type(self, store):
        rows = Archive(store).features(HOOK, batches=["harvest-1"]).to_arrow().to_pylist()
        full, sparse, endless, late, once = rows
        assert full == {
            "record_id": "pdb:1UBI",
            "ordinal": 0,
            "label": 'α "quoted" \\ tab\t and 🧬',
            "score": 0.0,
            "count": 2**63 - 1,
            "is_open": True,
            "parts": '[1,1.5,1e-05,1.5e+20,0,"é",null,{"a":{},"b":[]},true]',
            "centre": '{"x":1,"y":-2.25,"z":3}',
            "day": date(1, 1, 1),
            "seen": datetime(2026, 1, 31, 6, 30, 0, 1, UTC),
            "key": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "batch": "harvest-1",
        }
        assert math.copysign(1, full["score"]) == -1
        assert (sparse["ordinal"], sparse["label"], sparse["count"]) == (1, "", -(2**63))
        assert math.isnan(sparse["score"])
        assert sparse["parts"] is sparse["seen"] is sparse["key"] is None
        assert sparse["day"] == date(9999, 12, 31)
        assert endless["score"] == -math.inf
        assert endless["seen"] == datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
        assert (late["record_id"], late["label"]) == ("später", "at last")
        assert (once["record_id"], once["score"]) == ("Zürich 1", 0.1)

    def test_outcomes_of_every_kind(self, store):
        head = log.heads(store, DATASET, HOOK)["harvest-1"]
        outcomes = {
            o.record_id: o
            for o in read.read_artifact_outcomes(store, read.read_manifest(store, head.manifest))
        }
        assert {i: (o.status, o.kind) for i, o in outcomes.items()} == {
            "pdb:1UBI": (Status.PASSED, None),
            "pdb:5PTI": (Status.PASSED, None),
            "leer": (Status.PASSED, None),
            "abgelehnt": (Status.REJECTED, None),
            "später": (Status.PASSED, None),
            "kaputt": (Status.ERRORED, OutcomeKind.HOOK),
            "ungültig": (Status.ERRORED, OutcomeKind.INVALID_OUTPUT),
            "Zürich 1": (Status.PASSED, None),
        }
        assert outcomes["abgelehnt"].reason == "no protein:\nonly waters"
        assert {i for i, o in outcomes.items() if o.carried_from is None} == {"später"}
        first = log.read_log(store, DATASET, HOOK, "harvest-1")[0].manifest
        assert {o.carried_from for o in outcomes.values()} == {None, first}

    def test_a_record_that_the_hook_failed_over(self, store, reader, has_starts):
        if not has_starts:
            return
        head = log.heads(store, FAILING, "meshes")["pile"]
        manifest = read.read_manifest(store, head.manifest)
        small, large = read.read_artifact_outcomes(store, manifest)
        assert (small.status, small.limits, small.is_from_output) == (Status.PASSED, None, True)
        assert (large.kind, large.reason) == (OutcomeKind.DEADLINE, "not done after 1h")
        assert large.limits == GrantedLimits(2**34, 3600.0, 5 * 2**30)
        assert not large.is_from_output
        assert set(reader.without_output(reader.manifest(str(head.manifest)))) == {"large"}
        assert manifest.run.attempts == len(manifest.starts) == 2
        assert [start.ended for start in manifest.starts] == ["evicted", "well"]

    def test_columns_of_both_declarations_together(self, store):
        table = Archive(store).features(HOOK).to_arrow()
        by_id = {row["record_id"]: row for row in table.to_pylist() if row["ordinal"] == 0}
        assert {i: (row["título"], row["grade"], row["batch"]) for i, row in by_id.items()} == {
            "pdb:1UBI": ("new", 1, "harvest-2"),
            "neu": ("old name", 3, "harvest-2"),
            "pdb:5PTI": ("no end", 3, "harvest-1"),
            "später": ("at last", 3, "harvest-1"),
            "Zürich 1": ("once", 3, "harvest-1"),
        }

    def test_a_hook_without_columns(self, store):
        archive = Archive(store)
        assert archive.features("verdicts").columns == ()
        assert archive.features("verdicts").to_pandas().empty
        outcomes = archive.outcomes("verdicts").to_arrow().to_pylist()
        assert [o["reason"] for o in outcomes if o["status"] == "rejected"] == ["empty"]
        assert [o["status"] for o in outcomes].count("passed") == 7

    def test_digests_are_still_computed_the_same(self, store):
        checked = 0
        for hook in ("everything", "verdicts"):
            for batch in ("harvest-1", "harvest-2"):
                for entry in log.read_log(store, DATASET, hook, batch):
                    manifest = read.read_manifest(store, entry.manifest)
                    if manifest.is_failed:
                        continue
                    outcomes = read.read_artifact_outcomes(store, manifest)
                    content = Content.of(manifest.columns, outcomes)
                    assert content.content_digest == manifest.content_digest
                    assert content.rows_digest == manifest.rows_digest
                    assert content.counts == manifest.counts
                    checked += 1
        assert checked == 5

    def test_raw_output_still_decodes_to_the_same(self, store):
        """A decoder that reads old output otherwise would change data versions by itself."""
        for batch in ("harvest-1", "harvest-2"):
            entry = log.read_log(store, DATASET, HOOK, batch)[0]
            manifest = read.read_manifest(store, entry.manifest)
            stored = read.read_artifact_outcomes(store, manifest)
            decoded = decode_output(
                {n: read.read_raw(store, manifest, n) for n in read.raw_names(manifest)},
                [outcome.record_id for outcome in stored],
                manifest.columns,
                Cardinality(manifest.cardinality),
                {o.record_id: o.action for o in stored if o.action is not None},
            )
            content = Content.of(manifest.columns, decoded.outcomes)
            assert content.content_digest == manifest.content_digest

    def test_what_was_erased(self, archive, store, reader):
        """The erased record is nowhere; the other stays, also in what was current before."""
        (replaced,) = erasures(store, "letters")
        assert replaced.record_ids == ("bob",)
        assert reader.withdrawn("letters") == tombstones.withdrawn(store, "letters") == {"bob"}
        assert set(reader.erased("letters")) == set(replaced.manifests)
        entries = log.read_log(store, "letters", "words", "mail")
        assert len(entries) == 2
        (before, after) = (entry.manifest for entry in entries)
        assert replaced.manifests[str(before)] == after
        with pytest.raises(NotFoundError):
            read.read_manifest(store, before)
        for as_of in (None, 1, entries[0].accepted_at):
            rows = Archive(store).features("words", as_of=as_of).to_arrow()
            assert rows.to_pydict() == {
                "record_id": ["alice"],
                "ordinal": [0],
                "words": [3],
                "batch": ["mail"],
            }
        assert all(b"bob" not in path.read_bytes() for path in archive.glob("blobs/sha256/*/*"))
        assert [r.id for r in log.read_batch(store, "letters", "mail").records] == ["alice"]

    def test_documents_are_encoded_to_the_same_bytes(self, store):
        for entry in log.read_log(store, DATASET, HOOK, "harvest-1"):
            data = Archive(store).blob(entry.manifest)
            assert Manifest.decode(data, "manifest").encode() == data
        for registered in log.releases(store, DATASET, HOOK):
            release = registered.release
            assert HookRelease.decode(release.encode()).digest == release.digest
        for batch in log.batches(store, DATASET).values():
            data = Archive(store).blob(batch.digest)
            assert RecordBatch.decode(data).encode() == data

    def test_what_waited_can_be_accepted(self, store):
        (settled,) = accept.accept_entries(copy(store), inbox.waiting(store))
        assert isinstance(settled, accept.Accepted)

    def test_all_of_it_is_as_it_should_be(self, store):
        assert [f.key for f in verify(copy(store)).findings] == []

    def test_what_is_known_of_logs(self, archive, tmp_path):
        """Both readers tell a log that was shortened from one that has lost its end."""
        if archive.name < WITH_CENSUS:
            assert known_logs(filled_from(archive)).below("log/") == {}
            return
        folder = tmp_path / "copy"
        shutil.copytree(archive, folder)
        lines = known_logs(filled_from(folder)).below("log/")
        assert {
            name: (line.entries, line.digest and bytes.fromhex(line.digest.hex))
            for name, line in lines.items()
        } == Reader(folder).known()
        shortened = "log/releases/structures/verdicts/"
        assert lines[shortened].entries == 1
        assert Reader(folder).lost() == []
        for name in (shortened, "log/features/structures/everything/harvest-1/"):
            (folder / name / f"{lines[name].entries:010d}").unlink()
            assert name in Reader(folder).lost()
            report = write_census(filled_from(folder))
            assert [s.log for s in report.shortfalls] == sorted(Reader(folder).lost())

    def test_every_log_can_be_appended_to(self, archive, tmp_path):
        """What is appended to an old archive is read by both readers, with what was there."""
        maker = Maker(tmp_path, filled_from(archive))
        before = {info.key: maker.store.get(info.key).data for info in maker.store.list_objects("")}
        extend(maker)
        after = {info.key: maker.store.get(info.key).data for info in maker.store.list_objects("")}
        assert {key: after[key] for key in before if key.startswith("log/")} == {
            key: data for key, data in before.items() if key.startswith("log/")
        }
        added = sorted(key for key in after.keys() - before.keys() if key.startswith("log/"))
        assert [key.rpartition("/")[0] for key in added] == [
            "log/batches/letters/mail",
            "log/erasures/letters",
            "log/features/letters/words/mail",
            "log/features/structures/everything/harvest-1",
            "log/releases/structures/everything",
            "log/tombstones/letters",
            *("log/tombstones/structures", "log/tombstones/structures"),
        ]
        assert {json.loads(after[key])["spec_version"] for key in added} == {2}
        assert verify(maker.store).findings == ()
        for key, data in after.items():
            path = tmp_path / "copy" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        reader = Reader(tmp_path / "copy")
        for key in added:
            log_name, _, seq = key.removeprefix("log/").rpartition("/")
            assert int(seq) in [entry["seq"] for entry in reader.entries(*log_name.split("/"))]
        assert reader.heads(DATASET, HOOK)["harvest-1"]["release_seq"] == 3
        assert log.heads(maker.store, DATASET, HOOK)["harvest-1"].release_seq == 3

    def test_a_newer_version_is_named_and_not_guessed_at(self, store):
        entry = log.read_log(store, DATASET, HOOK, "harvest-2")[0]
        document = json.loads(Archive(store).blob(entry.manifest))
        document["spec_version"] = 3
        document["shape"] = "of another kind"
        with pytest.raises(NewerVersionError, match=r"spec_version 3.*up to 2"):
            Manifest.decode(json.dumps(document).encode(), "here")
        for decode, digest in (
            (RecordBatch.decode, log.batch_entry(store, DATASET, "harvest-1").digest),
            (HookRelease.decode, None),
        ):
            data = (
                Archive(store).blob(digest)
                if digest
                else log.releases(store, DATASET, HOOK)[0].release.encode()
            )
            newer = data.replace(b'"spec_version":1', b'"spec_version":2')
            with pytest.raises(InvalidInputError, match="spec_version 2"):
                decode(newer)

    def test_a_flipped_byte_is_never_data(self, store):
        damaged = copy(store)
        entry = log.heads(store, DATASET, HOOK)["harvest-2"]
        ref = read.read_manifest(store, entry.manifest).blobs["rows"]
        key = next(i for i in damaged.list_objects("blobs/") if i.key.endswith(ref.digest.hex))
        data = bytearray(damaged.get(key.key).data)
        data[100] ^= 1
        damaged.replace(key.key, bytes(data), key.etag)
        with pytest.raises(CorruptDataError):
            Archive(damaged).features(HOOK).to_arrow()


def extend(maker):
    """One more entry in a log of every kind."""
    batch = log.read_batch(maker.store, DATASET, "harvest-1")
    release = maker.release(HOOK, "1.2")
    maker.runs = 100
    outcomes = {record.id: [{"label": "again"}] for record in batch.records}
    maker.publish(batch, release, outcomes, OLD_COLUMNS, base=4)
    tombstones.withdraw(maker.store, DATASET, ["neu"], "the depositor asked again")
    inbox.discard(maker.store, ["run.broken"])  # while it is there, nothing is deleted,
    write_census(maker.store)  # nor before there is a census
    erase(maker.store, "letters", ["alice"], "asked for")
    tombstones.lift(maker.store, DATASET, ["neu"], "and changed their mind again")


def copy(store):
    other = MemoryStore()
    for info in store.list_objects(""):
        other.create(info.key, store.get(info.key).data)
    return other
