"""`feature-pipeline dev`: it ends what it started, and loads definitions that have changed."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from feature_pipeline.cli.commands.projects import dev as dev_module
from feature_pipeline.cli.commands.projects.dev import DefinitionsWatch
from feature_pipeline.errors import StoreUnavailableError


class Dagster:
    """Processes that only note whether they run; once they do, standard output is closed."""

    url = "http://127.0.0.1:3000"

    def __init__(self) -> None:
        self.is_running = self.was_started = self.is_away = False
        self.reloads = 0

    def start(self) -> None:
        self.is_running = self.was_started = True

    def stop(self) -> None:
        self.is_running = False

    def reload(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
        self.reloads += 1

    def say(self, text: str) -> None:
        if self.is_running:
            raise BrokenPipeError


def test_dagster_is_stopped_when_the_reader_of_its_output_is_gone(monkeypatch, tmp_path):
    @contextmanager
    def no_servers(*arguments: object):
        yield SimpleNamespace()

    dagster = Dagster()
    project = SimpleNamespace(root=tmp_path, workspace_file=tmp_path, dotenv=tmp_path / ".env")
    monkeypatch.setattr(dev_module.Project, "find", lambda: project)
    monkeypatch.setattr(dev_module, "local_servers", no_servers)
    monkeypatch.setattr(dev_module, "DagsterProcesses", lambda *_: dagster)
    monkeypatch.setattr(dev_module, "Output", lambda: dagster)
    monkeypatch.setattr(dev_module.signal, "signal", lambda *arguments: None)
    with pytest.raises(BrokenPipeError):
        dev_module.dev(tmp_path)
    assert dagster.was_started
    assert not dagster.is_running


class TestDefinitions:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "defs" / "one").mkdir(parents=True)
        (tmp_path / "defs" / "one" / "defs.yaml").write_text("a: 1")
        return tmp_path / "defs"

    @pytest.mark.parametrize("change", ["edit", "add", "rename", "delete", "replace folder"])
    def test_a_change_is_loaded_once_it_has_ended(self, folder, change):
        dagster, messages = Dagster(), []
        watch = DefinitionsWatch(folder, dagster, messages.append)
        watch.look()
        assert dagster.reloads == 0
        file = folder / "one" / "defs.yaml"
        if change == "edit":
            file.write_text("a: 12")
        elif change == "add":
            (folder / "one" / "hook.py").write_text("")
        elif change == "rename":
            (folder / "one").rename(folder / "two")
        elif change == "delete":
            file.unlink()
        else:
            folder.rename(folder.with_name("old"))
        watch.look()
        assert dagster.reloads == 0  # it may not have ended
        for _ in range(3):
            watch.look()
        assert dagster.reloads == 1
        assert messages == ["Definitions have changed, and are loaded again."]

    def test_a_folder_that_comes_back_is_loaded(self, folder):
        dagster = Dagster()
        watch = DefinitionsWatch(folder, dagster, lambda _: None)
        folder.rename(folder.with_name("old"))
        watch.look()
        watch.look()
        folder.with_name("old").rename(folder)
        watch.look()
        watch.look()
        assert dagster.reloads == 2

    def test_what_is_undone_before_it_is_loaded_is_not(self, folder):
        dagster = Dagster()
        watch = DefinitionsWatch(folder, dagster, lambda _: None)
        (folder / "two").write_text("")
        watch.look()
        (folder / "two").unlink()
        watch.look()
        watch.look()
        assert dagster.reloads == 0

    def test_what_python_and_editors_leave_is_no_change(self, folder):
        dagster = Dagster()
        watch = DefinitionsWatch(folder, dagster, lambda _: None)
        (folder / "one" / "__pycache__").mkdir()
        (folder / "one" / "__pycache__" / "hook.pyc").write_text("")
        (folder / "one" / ".defs.yaml.swp").write_text("")
        watch.look()
        watch.look()
        assert dagster.reloads == 0

    def test_it_is_loaded_when_the_webserver_answers_again(self, folder):
        dagster = Dagster()
        watch = DefinitionsWatch(folder, dagster, lambda _: None)
        (folder / "two").write_text("")
        dagster.is_away = True
        for _ in range(3):
            watch.look()
        dagster.is_away = False
        watch.look()
        watch.look()
        assert dagster.reloads == 1
