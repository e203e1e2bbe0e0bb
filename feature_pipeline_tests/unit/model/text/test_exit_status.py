"""`exit_reason` says how a process ended, in one form for shells' statuses and Popen's."""

import re

import pytest

from feature_pipeline.model.text.exit_status import exit_reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (3, "it ended with status 3"),
        (143, "SIGTERM ended it (status 143)"),
        (-15, "SIGTERM ended it (status 143)"),
        (137, "SIGKILL ended it, from outside: perhaps the machine ran out of memory"),
        (-9, "SIGKILL ended it, from outside: perhaps the machine ran out of memory"),
        (255, "it ended with status 255"),
    ],
)
def test_an_exit_status_in_words(status, reason):
    assert exit_reason(status) == reason
    assert exit_reason(status, "PostgreSQL") == re.sub(r"\bit\b", "PostgreSQL", reason)
