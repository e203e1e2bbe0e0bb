"""What is shown of a hook's log, and what is kept."""

import io

from feature_pipeline.hooks.runners.shared.log_file import CappedLog
from feature_pipeline.hooks.runners.shared.log_stream import LogStream


def test_control_characters_are_kept_and_not_obeyed():
    file, lines = io.BytesIO(), []
    stream = LogStream(CappedLog(file), lines.append)
    written = b"\x1b[31mred\x1b[0m\ttab \x9b2J \x00 \xff\nnext\n"
    stream.feed(written)
    stream.note("a file named \x1b]0;title\x07")
    stream.finish()
    shown = "\\x1b[31mred\\x1b[0m\ttab \ufffd2J \ufffd \ufffd"
    ours = "[feature_pipeline] a file named \\x1b]0;title\\x07"
    assert lines == [shown, "next", ours]
    assert stream.tail() == (shown, "next", ours)
    assert file.getvalue().startswith(written)
