"""Answers of servers that are almost S3's."""

from datetime import UTC, datetime
from typing import Any

import pytest

from feature_pipeline.archive.store import s3_transfer
from feature_pipeline.archive.store.s3_responses import object_info
from feature_pipeline.errors import InvalidInputError

AN_INSTANT = datetime(2026, 1, 2, tzinfo=UTC)
COMPLETE = {"ContentLength": 1, "LastModified": AN_INSTANT, "ETag": '"1"'}


@pytest.mark.parametrize("lacking", sorted(COMPLETE))
def test_what_an_answer_lacks_is_named(lacking: str) -> None:
    """JuiceFS's gateway gives no ETag with HEAD; `check-store` is to say so, not to fail."""
    assert object_info("a/b", COMPLETE).etag == '"1"'
    answer = {name: value for name, value in COMPLETE.items() if name != lacking}
    with pytest.raises(InvalidInputError, match=f"a/b has no {lacking}: .*check-store"):
        object_info("a/b", answer)


def test_an_object_without_an_etag_is_not_compared_with_none() -> None:
    meta: dict[str, Any] = {"size": 1, "last_modified": AN_INSTANT, "e_tag": None}
    with pytest.raises(InvalidInputError, match="a/b has no e_tag"):
        s3_transfer._info("a/b", meta)
