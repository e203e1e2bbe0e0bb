"""`feature-pipeline dev`: it ends what it started."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from feature_pipeline.cli.commands import dev as dev_module


class Dagster:
    """Processes that only note whether they run; once they do, standard output is closed."""

    url = "http://127.0.0.1:3000"
    is_running = False

    def __init__(self, *arguments: object) -> None:
        pass

    def start(self) -> None:
        Dagster.is_running = True

    def stop(self) -> None:
        Dagster.is_running = False


class Output:
    def say(self, text: str) -> None:
        if Dagster.is_running:
            raise BrokenPipeError


def test_dagster_is_stopped_when_the_reader_of_its_output_is_gone(monkeypatch, tmp_path):
    @contextmanager
    def no_servers(*arguments: object):
        yield SimpleNamespace()

    project = SimpleNamespace(root=tmp_path, workspace_file=tmp_path, dotenv=tmp_path / ".env")
    monkeypatch.setattr(dev_module.Project, "find", lambda: project)
    monkeypatch.setattr(dev_module, "local_servers", no_servers)
    monkeypatch.setattr(dev_module, "DagsterProcesses", Dagster)
    monkeypatch.setattr(dev_module, "Output", Output)
    monkeypatch.setattr(dev_module.signal, "signal", lambda *arguments: None)
    with pytest.raises(BrokenPipeError):
        dev_module.dev(tmp_path)
    assert not Dagster.is_running
