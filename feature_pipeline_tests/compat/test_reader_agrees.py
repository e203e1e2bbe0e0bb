"""The package and a reader made from docs/format.md agree on whatever can be said."""

from hypothesis import given, settings

from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.hooks.action_digests import record_action
from feature_pipeline.model.records import Record, RecordBatch, RecordFile, Source
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.model.text.json_text import parse_document
from feature_pipeline_tests.compat.independent_reader import Digests, Reader
from feature_pipeline_tests.properties.test_archive_content import artifacts


class FromMemory(Reader):
    """Reads blobs that were never stored, by name."""

    def __init__(self, stored: dict[str, bytes]) -> None:
        self._stored = stored

    def blob(self, digest: str, size: int | None = None) -> bytes:
        return self._stored[digest]


@given(artifacts())
@settings(max_examples=60)
def test_digests_agree(artifact):
    columns, outcomes = artifact
    reader = FromMemory(
        {"rows": encode_rows(columns, outcomes), "outcomes": encode_outcomes(outcomes)}
    )
    manifest = {
        "columns": [column.model_dump(mode="json") for column in columns],
        "blobs": {name: {"digest": name, "size": None} for name in ("rows", "outcomes")},
    }
    content = Content.of(columns, outcomes)
    digests = reader.digests(manifest)
    assert digests == Digests(str(content.content_digest), str(content.rows_digest))


METADATA = b'{"a":[1.10,1e-400,-0,{"b":12345678901234567891}],"c":2.0,"d":0.1234567890123456789}'


def test_actions_agree_on_numbers_as_they_were_written():
    """A reader that rounds them computes the action of another question."""
    metadata = parse_document(METADATA)
    file = RecordFile(name="x.pdb", digest=f"sha256:{'0' * 64}", size=1)
    record = Record.model_validate(
        {"id": "10.5281/zenodo.1", "metadata": metadata, "files": (file,)}
    )
    batch = RecordBatch.create("structures", "b", Source.IMPORT, (record,))
    release = HookRelease.of(
        ReleaseDocument.model_validate(
            {"dataset": "d", "hook": "h", "version": "1", "command": ("x",), "config": metadata}
        )
    )
    assert HookRelease.decode(release.encode()) == release
    reader = FromMemory({})
    stored_batch, stored_release = reader.decoded(batch.encode()), reader.decoded(release.encode())
    assert METADATA in batch.encode()
    assert METADATA in release.encode()
    assert reader.action(stored_batch, stored_release, record.id) == str(
        record_action(release, record, {})
    )
