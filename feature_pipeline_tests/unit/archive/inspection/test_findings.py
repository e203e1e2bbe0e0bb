"""What names a blob does not depend on the order in which threads come upon it."""

from itertools import permutations

from feature_pipeline.archive.inspection.findings import ObjectKind, Reached, Reference
from feature_pipeline.model.digest import Digest

EMPTY = Digest.of(b"")


def test_of_several_documents_that_name_a_blob_the_first_by_name_is_kept() -> None:
    references = [
        Reference(kind, EMPTY, 0, named_by)
        for kind, named_by in (
            (ObjectKind.HOOK_LOG, "b2 (entry 1)"),
            (ObjectKind.RAW, "b1 (entry 2)"),
            (ObjectKind.HOOK_LOG, "b1 (entry 2)"),
        )
    ]
    kept = set()
    for order in permutations(references):
        reached = Reached()
        for reference in order:
            reached.add(reference)
        kept.add(reached.references[EMPTY, 0])
    assert len(kept) == 1
    assert kept.pop().named_by == "b1 (entry 2)"
