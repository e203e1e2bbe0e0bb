"""Every kind of object is damaged, under every command; a third of the damages, for time.

All of them: `python -m feature_pipeline_tests.faults.damage_matrix`.
"""

from collections.abc import Iterator

import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline_tests.faults.damage_matrix import (
    ON_TABLES,
    Command,
    Matrix,
    no_waiting,
    run_all,
)
from feature_pipeline_tests.faults.damaged_archive import (
    KINDS_OF_LAYOUT,
    NOT_OBJECTS,
    Damage,
    Kind,
)
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

IN_CI = (Damage.DELETED, Damage.COPIED, Damage.REPLACED, Damage.OLDER)
OF_TABLES = (
    Kind.ROWS,
    Kind.MANIFEST,
    Kind.FEATURE_ENTRY,
    Kind.BATCH_ENTRY,
    Kind.BATCH,
    Kind.TOMBSTONE,
    Kind.RELEASE_ENTRY,
    Kind.RAW,
)
"""What loads read, and one that they do not."""


@pytest.fixture(scope="module")
def matrix(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresAddress
) -> Iterator[Matrix]:
    url = postgres_server.create_database()
    with no_waiting():
        yield Matrix.make(tmp_path_factory.mktemp("damage"), url)
    postgres_server.drop_database(url)


def test_every_prefix_of_the_layout_has_a_kind() -> None:
    """A new kind of object needs a line here, and an object in the scene."""
    prefixes = {
        value
        for name, value in vars(layout).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    assert prefixes - NOT_OBJECTS == KINDS_OF_LAYOUT.keys()
    assert {kind for kinds in KINDS_OF_LAYOUT.values() for kind in kinds} == set(Kind)


@pytest.mark.parametrize("kind", list(Kind), ids=str)
def test_every_command_is_right_or_names_the_object(matrix: Matrix, kind: Kind) -> None:
    commands = [command for command in Command if command not in ON_TABLES]
    results, problems = run_all(matrix, [kind], commands, IN_CI)
    assert problems == []
    assert sum(map(len, results.values())) >= len(commands)


@pytest.mark.postgres
@pytest.mark.parametrize("kind", OF_TABLES, ids=str)
def test_tables_keep_their_rows(matrix: Matrix, kind: Kind) -> None:
    _, problems = run_all(matrix, [kind], list(ON_TABLES), (Damage.DELETED,))
    assert problems == []


@pytest.mark.postgres
@pytest.mark.parametrize(
    "kind", [Kind.ROWS, Kind.OUTCOMES, Kind.FEATURE_ENTRY, Kind.BATCH_ENTRY], ids=str
)
def test_an_empty_table_has_no_older_rows(matrix: Matrix, kind: Kind) -> None:
    _, problems = run_all(matrix, [kind], [Command.RECOVER], (Damage.COPIED,))
    assert problems == []


def test_an_object_of_each_kind_is_stored_where_the_layout_has_it(matrix: Matrix) -> None:
    for prefix, kinds in KINDS_OF_LAYOUT.items():
        for kind in kinds:
            assert matrix.scene.objects[kind].startswith(prefix), kind
