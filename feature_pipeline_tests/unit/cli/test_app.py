"""Every command in the list has its two modules, and what it declares is what it carries out."""

import inspect
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from feature_pipeline.cli import commands, options
from feature_pipeline.cli.app import FOLDERS, main


def test_each_command_has_a_module_in_the_folder_of_its_section() -> None:
    """They are imported by name when they are used, so a name without a module shows only then."""
    root = Path(commands.__file__).parent
    folders = {
        file.stem.replace("_", "-"): file.parent.relative_to(root).as_posix()
        for file in root.glob("*/[!_]*.py")
    }
    assert folders == FOLDERS


def test_each_section_has_a_module_of_options() -> None:
    modules = {file.stem for file in Path(options.__file__).parent.glob("[!_]*.py")}
    assert modules == set(FOLDERS.values())


def _declared() -> Iterator[tuple[str, click.Command]]:
    """Each command, and each of a group of commands, with the name of its module."""
    for name, folder in FOLDERS.items():
        command = main.get_command(click.Context(main), name)
        module = f"{folder}.{name.replace('-', '_')}"
        if isinstance(command, click.Group):
            yield from ((module, each) for each in command.commands.values())
        else:
            yield module, command


@pytest.mark.parametrize(
    ("module", "command"), [pytest.param(*each, id=each[1].name) for each in _declared()]
)
def test_the_options_are_the_arguments_of_what_carries_the_command_out(
    module: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No type checker compares them: click passes them by name."""
    work = import_module(f"feature_pipeline.cli.commands.{module}")
    name = command.callback.__name__
    function: Callable[..., Any] = getattr(work, name)
    declared = {parameter.name: None for parameter in command.params}
    inspect.signature(function).bind(**declared)

    passed: list[dict[str, Any]] = []
    monkeypatch.setattr(work, name, lambda **arguments: passed.append(arguments))
    command.callback(**declared)
    assert passed == [declared]


@pytest.mark.parametrize("name", ["", *FOLDERS])
def test_wrong_use_is_an_error_and_no_finding(name: str) -> None:
    """A scheduler takes 2 for a difference or damage."""
    ended = CliRunner().invoke(main, [*name.split(), "--no-such-option"])
    assert ended.exit_code == 1
    assert "Error: No such option" in ended.output


def test_a_command_that_does_not_exist_is_named() -> None:
    ended = CliRunner().invoke(main, ["no-such-command"])
    assert ended.exit_code == 1
    assert "No such command 'no-such-command'" in ended.output


def test_libpqs_variables_are_gone_before_a_command_has_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that goes while another thread reads the environment ended `demo` with a KeyError."""
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    present: list[bool] = []

    @click.command()
    def look_around() -> None:
        present.append("PGSERVICE" in os.environ)

    monkeypatch.setattr(main, "get_command", lambda ctx, name: look_around)
    CliRunner().invoke(main, ["look-around"], catch_exceptions=False)
    assert present == [False]
