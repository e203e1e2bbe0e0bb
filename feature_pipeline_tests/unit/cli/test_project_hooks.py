"""What commands say of a hook whose definition cannot be used."""

import pytest

from feature_pipeline.cli.project_hooks import ProjectHooks
from feature_pipeline.errors import InvalidInputError, NotFoundError

SENTENCE = "defs/pockets/defs.yaml:12: feature.cardinality: Input should be 'one' or 'many'"


@pytest.mark.parametrize("dataset", [None, "structures"])
def test_a_wrong_definition_is_one_sentence_with_file_and_line(dataset: str | None) -> None:
    """`plan`, `publish` and the others printed a hundred lines of traceback."""
    hooks = ProjectHooks([], {"structures/features/pockets": SENTENCE})
    with pytest.raises(InvalidInputError) as raised:
        hooks.find("pockets", dataset)
    assert str(raised.value) == f"hook 'pockets' cannot be used: {SENTENCE}"
    assert hooks.wrong_lines() == [f"structures/features/pockets cannot be used: {SENTENCE}"]


def test_a_hook_of_another_name_is_not_there() -> None:
    hooks = ProjectHooks([], {"structures/features/pockets": SENTENCE})
    for name, dataset in (("sockets", None), ("kets", None), ("pockets", "other")):
        with pytest.raises(NotFoundError, match="defined are none"):
            hooks.find(name, dataset)
