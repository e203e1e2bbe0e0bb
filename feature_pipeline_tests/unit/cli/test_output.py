"""What commands print is what they were given: no markup, nothing cut in a pipe."""

import io
import json
import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from rich.console import Console

from feature_pipeline.cli import output
from feature_pipeline.cli.commands.archive import read
from feature_pipeline.cli.errors import translated_errors
from feature_pipeline.cli.output import Output, exact
from feature_pipeline.errors import InvalidInputError

SMILES = "c1cc[nH]c1"
DATA = [SMILES, "HIS:A:45", "[/x]", "[bold]x[/]", ":smile:", "https://example.org/[a]", "\\[x]"]
LONG = "log/features/structures/" + "x" * 300 + "/0000000001"


class Pipe:
    """Standard output and standard error in one file, which is no terminal."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self._path, self._file = path, path.open("w+")
        self._patch = patch
        self._made: list[Output] = []

    def output(self, as_json: bool = False) -> Output:
        for name in ("stdout", "stderr"):  # pytest's own until the test begins
            self._patch.setattr(sys, name, self._file)
        self._made.append(Output(as_json))
        return self._made[-1]

    def text(self) -> str:
        self._file.flush()
        return self._path.read_text(encoding="utf-8")

    def close(self) -> None:
        self._file.close()
        for made in self._made:
            made.console.file.close()
            made._errors.file.close()


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path / "printed", monkeypatch)
    yield pipe
    pipe.close()


@pytest.mark.parametrize("text", DATA)
def test_data_is_no_markup_wherever_it_is_printed(pipe: Pipe, text: str) -> None:
    out = pipe.output()
    out.say(text)
    out.table(text, [text], [[text]])
    with out.progress(text, 1) as steps:
        steps.describe(f"{text} again")
        steps.advance()

    lines = pipe.text().splitlines()
    assert lines[0] == text
    assert lines[1] == text
    assert sum(text in line for line in lines) == 5, lines


def test_nothing_is_cut_or_folded_in_a_pipe(pipe: Pipe) -> None:
    out = pipe.output()
    out.say(f"a line of {LONG} words " * 3)
    out.table(LONG, ["verdict", "object", *"abcdefghij"], [["missing", LONG, *[LONG] * 10]])

    lines = pipe.text().splitlines()
    assert lines[0].strip() == (f"a line of {LONG} words " * 3).strip()
    assert lines[1] == LONG
    [row] = [line for line in lines if "missing" in line]
    assert row.count(LONG) == 11


def test_nothing_is_cut_on_a_narrow_terminal(monkeypatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(output, "_console", lambda _: Console(file=text, width=40))

    Output().table("", ["verdict", "object"], [["missing", LONG]])

    cells = [line.split("│")[2].strip() for line in text.getvalue().splitlines() if "│" in line]
    assert "".join(cells) == LONG


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb", r"a\rb"),
        ("a\u202eb", r"a\u202eb"),
    ],
)
def test_a_terminal_does_not_obey_data(pipe: Pipe, text: str, shown: str) -> None:
    out = pipe.output()
    out.say(text)
    out.table(text, [text], [[text]])
    with out.progress(text, 1) as steps:
        steps.describe(text)
    with pytest.raises(click.ClickException) as refused, translated_errors():
        raise InvalidInputError(text)
    with pytest.raises(click.ClickException) as failed, translated_errors():
        raise click.ClickException(text)

    assert text not in pipe.text()
    assert pipe.text().count(shown) == 5
    assert (refused.value.message, failed.value.message) == (shown, shown)


def test_a_wrong_option_is_shown_in_clicks_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, translated_errors():
        raise click.BadParameter("x")
    assert (ended.value.code, capsys.readouterr().err) == (1, "Error: Invalid value: x\n")


def test_a_tab_in_a_cell_is_one(pipe: Pipe) -> None:
    pipe.output().table("", ["x"], [["a\tb"]])
    assert r"a\tb" in pipe.text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.30000000000000004"),
        (123456789.125, "123456789.125"),
        (1234567, "1234567"),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (None, "NULL"),
        (True, "true"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00Z"),
    ],
)
def test_values_of_a_hook_keep_every_digit(value: object, text: str) -> None:
    assert exact(value) == text


def test_json_output_has_no_number_that_json_lacks(pipe: Pipe) -> None:
    pipe.output(as_json=True).result(
        {"a": [math.nan, {"b": math.inf}, (-math.inf, 1.5)], "at": datetime(2026, 1, 1, tzinfo=UTC)}
    )

    def refuse(token: str) -> None:
        raise AssertionError(token)

    assert json.loads(pipe.text(), parse_constant=refuse) == {
        "a": ["NaN", {"b": "Infinity"}, ["-Infinity", 1.5]],
        "at": "2026-01-01T00:00:00Z",
    }


class Terminal(io.StringIO):
    """Standard output that people look at."""

    def isatty(self) -> bool:
        return True


def test_rows_printed_on_a_terminal_are_not_obeyed(monkeypatch):
    """Also those that a program would be given byte by byte."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    with read._sink(None) as file:
        file.write('"id"\n"\x1b[31mé\x1b]0;title\x07","=1"\n'.encode())
    assert sys.stdout.getvalue() == '"id"\n"\\x1b[31mé\\x1b]0;title\\x07","=1"\n'
