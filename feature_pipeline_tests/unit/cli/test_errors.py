"""How commands end when something outside of them is wrong: with a sentence, not a traceback."""

import errno
import os
from pathlib import Path

import click
import pytest
from obstore import exceptions

from feature_pipeline.archive.store.s3_responses import explained
from feature_pipeline.archive.store.s3_transfer import _shown
from feature_pipeline.cli.commands.projects.demo import next_step
from feature_pipeline.cli.errors import translated_errors


def test_a_file_that_cannot_be_written_is_named():
    message = r"^/proc/nowhere/x: No such file"
    with pytest.raises(click.ClickException, match=message), translated_errors():
        Path("/proc/nowhere/x").write_bytes(b"")


def test_a_full_disk_is_named_with_what_to_do():
    message = r"^No space left on device: free space where output is written or in /\S+, the temp"
    with pytest.raises(click.ClickException, match=message), translated_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_of_the_system_that_names_no_file_is_not_hidden():
    with pytest.raises(OSError, match="broken"), translated_errors():
        raise OSError("broken")


def test_a_stores_answer_is_its_status_and_words():
    """obstore quotes the whole document."""
    answer = exceptions.GenericError(
        "Generic S3 error: Error performing PUT http://127.0.0.1:1/b/k in 5 ms - Server returned"
        " non-2xx status code: 500 Internal Server Error: <?xml version='1.0'?>\n<Error>"
        "<Code>InternalError</Code><Message>We encountered an internal error.</Message>"
        "<Resource>/b/k</Resource></Error>\n\nDebug source:\nGeneric { ... }"
    )
    assert _shown(answer) == (
        "500 InternalError: We encountered an internal error. (a store with a full disk answers"
        " like this: check its free space and its log)"
    )
    assert _shown(exceptions.GenericError("no answer\n\nDebug source: x")) == "no answer"
    assert explained(503) == ""


def test_the_demo_ends_with_the_folder_it_was_given():
    assert "`feature-pipeline dev`" in next_step(None)
    assert "`feature-pipeline dev --folder '/my data'`" in next_step(Path("/my data"))
