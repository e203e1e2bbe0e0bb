"""The package and a reader made from docs/format.md agree on whatever can be said."""

from hypothesis import given, settings

from feature_pipeline.archive.encode import Content, encode_outcomes, encode_rows
from feature_pipeline_tests.compat.independent_reader import Digests, Reader
from feature_pipeline_tests.properties.test_archive_content import artifacts


class FromMemory(Reader):
    """Reads blobs that were never stored, by name."""

    def __init__(self, stored: dict[str, bytes]) -> None:
        self._stored = stored

    def blob(self, digest: str, size: int | None = None) -> bytes:
        return self._stored[digest]


@given(artifacts())
@settings(max_examples=60, deadline=None)
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
    found = reader.digests(manifest)
    assert found == Digests(str(content.content_digest), str(content.rows_digest))
