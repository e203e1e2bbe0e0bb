"""The files that hooks left, for people who read the archive."""

from dataclasses import replace
from pathlib import Path

import pytest

from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.query.features import Features
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

NAME = "features.jsonl"


@pytest.fixture
def archive() -> FeatureArchive:
    return FeatureArchive((Column(name="label", type="string"),))


@pytest.fixture
def raw(tmp_path: Path):
    """A raw file of the usual name that holds a text of its own."""

    def write(text: str, name: str = NAME) -> dict[str, Path]:
        path = tmp_path / Digest.of(text.encode()).hex
        path.write_text(text)
        return {name: path}

    return write


def answer(record_id: str, carried_from: Digest | None = None) -> Outcome:
    return replace(Outcome(record_id, Status.PASSED, rows=(("x",),)), carried_from=carried_from)


def read(archive: FeatureArchive) -> Features:
    return Archive(archive.store).features("pockets")


def test_raw_is_there_after_rows_were_derived_again(archive, raw) -> None:
    """Changed columns make a manifest without files: every outcome is carried over."""
    archive.submit("b1", ["r1", "r2"])
    computed = archive.accept("b1", [answer("r1"), answer("r2")], raw("the hook's own"))
    origin = computed.manifest
    archive.columns = (*archive.columns, Column(name="note", type="string"))
    again = [replace(answer(r, origin), rows=(("x", None),)) for r in ("r1", "r2")]
    archive.accept("b1", again)

    features = read(archive)

    assert features.raw_names("b1") == [NAME]
    assert features.raw("b1", NAME) == b"the hook's own"
    assert features.raw_sources("b1") == {origin: [NAME]}
    with pytest.raises(NotFoundError, match=r"no hook run wrote 'errors.jsonl'.*features.jsonl"):
        features.raw("b1", "errors.jsonl")


def test_the_own_file_precedes_those_of_carried_outcomes(archive, raw) -> None:
    archive.submit("b1", ["r1", "r2"])
    first = archive.accept("b1", [answer("r1"), answer("r2")], raw("of both"))
    second = archive.accept("b1", [answer("r1", first.manifest), answer("r2")], raw("of r2"))

    features = read(archive)

    assert features.raw("b1", NAME) == b"of r2"
    assert features.raw("b1", NAME, manifest=str(first.manifest)) == b"of both"
    assert list(features.raw_sources("b1")) == [second.manifest, first.manifest]


def test_one_of_several_earlier_files_is_chosen_by_name(archive, raw) -> None:
    archive.submit("b1", ["r1", "r2"])
    first = archive.accept("b1", [answer("r1"), answer("r2")], raw("of both"))
    second = archive.accept("b1", [answer("r1", first.manifest), answer("r2")], raw("of r2"))
    archive.accept("b1", [answer("r1", first.manifest), answer("r2", second.manifest)])

    features = read(archive)

    with pytest.raises(InvalidInputError, match=f"2 hook runs.*{first.manifest}"):
        features.raw("b1", NAME)
    assert features.raw("b1", NAME, manifest=first.manifest) == b"of both"
    assert features.raw("b1", NAME, manifest=second.manifest) == b"of r2"
    stranger = Digest.of(b"another")
    with pytest.raises(NotFoundError, match=f"manifest {stranger} has no raw files"):
        features.raw("b1", NAME, manifest=stranger)
