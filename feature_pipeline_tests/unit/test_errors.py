"""The tree is part of the interface: handlers are written against its classes and kinds."""

import pickle

import pytest

from feature_pipeline import errors
from feature_pipeline.errors import ErrorKind, FeaturePipelineError, NotFoundError

TREE = {
    "InvalidInputError": ("invalid_input", ValueError),
    "NotFoundError": ("not_found", KeyError),
    "ConflictError": ("conflict", None),
    "CorruptDataError": ("corrupt_data", None),
    "StoreUnavailableError": ("store_unavailable", None),
    "OutcomeUnknownError": ("outcome_unknown", None),
    "ProjectionError": ("projection", None),
    "RuntimeFailure": ("runtime_failure", None),
}
CLASSES = sorted(
    # Tests have classes of their own.
    (
        e
        for e in FeaturePipelineError.__subclasses__()
        if e.__module__.startswith("feature_pipeline.")
    ),
    key=lambda error: error.__name__,
)


def test_the_tree_is_this_one_and_flat():
    assert {error.__name__ for error in CLASSES} == set(TREE)
    for error in CLASSES:
        kind, builtin = TREE[error.__name__]
        bases = (FeaturePipelineError, builtin) if builtin else (FeaturePipelineError,)
        assert error.__bases__ == bases
        assert error.kind == kind
        assert error.__module__ == errors.__name__
        for refinement in error.__subclasses__():
            # handlers know the categories: a part may tell cases apart only within one
            assert refinement.kind is error.kind


def test_every_kind_has_one_class():
    assert sorted(ErrorKind) == sorted(error.kind for error in CLASSES)


def test_the_modules_picture_names_every_class():
    assert errors.__doc__ is not None
    for name, (_, builtin) in TREE.items():
        assert f"── {name}" + (f" ({builtin.__name__})" if builtin else "") in errors.__doc__


@pytest.mark.parametrize("error", CLASSES)
def test_the_message_is_what_people_see(error):
    """KeyError would show the repr of it, and pickling is how it leaves a worker process."""
    raised = error("batch 'x':\nnot there")
    assert str(raised) == "batch 'x':\nnot there"
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again)) == (error, str(raised))


def test_a_not_found_error_without_message_can_be_shown():
    assert str(NotFoundError()) == ""
