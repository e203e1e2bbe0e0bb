"""The subprocess runner with bubblewrap: the common suite, and what a confined hook cannot do."""

import os
import socket
from pathlib import Path

import pytest

from feature_pipeline.compute.runner_settings import open_runner, parse_settings
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import RunRequest, Workspace
from feature_pipeline.hooks.runners.bubblewrap import Confinement
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.definition import Limits
from feature_pipeline_tests.contract.hook_runner import HookRunnerTests, Monitor, Run
from feature_pipeline_tests.contract.hostile_hooks import HostileHookTests


@pytest.fixture(scope="module")
def confinement() -> Confinement:
    try:
        return Confinement.find()
    except InvalidInputError as error:
        pytest.skip(f"NO BUBBLEWRAP HERE, so confined hooks are not tested: {error}")


class TestConfinedRunner(HookRunnerTests, HostileHookTests):
    @pytest.fixture
    def runner(self, tmp_path: Path, confinement: Confinement) -> SubprocessRunner:
        work = WorkFolders(tmp_path / "work", "here")
        return SubprocessRunner(work, grace_seconds=1, confinement=confinement)

    def test_it_sees_no_file_but_its_own_and_the_systems(
        self, run: Run, workspace: Workspace, tmp_path: Path
    ):
        secret = tmp_path / "project" / ".env"
        secret.parent.mkdir()
        secret.write_text("KEY=secret\n")
        for link in (workspace.files / "r 1" / "link", workspace.inputs / "link"):
            link.symlink_to(secret)
        result = run(
            "import os, pathlib\n"
            f"for path in ({str(secret)!r}, os.environ['OSA_IN'] + '/link',\n"
            "             os.environ['OSA_FILES'] + '/r 1/link', '/etc/shadow', '/root/.bashrc',\n"
            f"            {__file__!r}):\n"
            "    print(os.path.exists(path))\n"
        )
        assert result.failure is None, result.failure
        assert result.log.read_text().split() == ["False"] * 6

    def test_it_writes_nowhere_but_in_its_output_and_scratch(self, run: Run, workspace: Workspace):
        result = run(
            "import os, pathlib, sys, tempfile\n"
            "output = os.environ['OSA_OUT']\n"
            "for folder in ('/', '/usr', '/etc', '/dev', os.environ['OSA_IN'],\n"
            "               os.environ['OSA_FILES'], os.path.dirname(sys.executable),\n"
            "               '/tmp', '/dev/shm', tempfile.gettempdir(), pathlib.Path.home(),\n"
            "               os.getcwd(), output):\n"
            "    try:\n"
            "        (pathlib.Path(folder) / 'x').write_text('x')\n"
            "        print('written')\n"
            "    except OSError:\n"
            "        print('refused')\n"
        )
        assert result.failure is None, result.failure
        assert result.log.read_text().split() == ["refused"] * 7 + ["written"] * 6
        assert (workspace.output / "x").read_text() == "x"

    def test_what_it_writes_beside_its_output_is_not_there(self, run: Run, workspace: Workspace):
        result = run(
            "import os, pathlib\n"
            "try:\n"
            "    (pathlib.Path(os.environ['OSA_OUT']).parent / 'x').write_text('x')\n"
            "except OSError:\n"
            "    pass  # it is below a folder of the hook's own, or it is not\n"
        )
        assert result.failure is None, result.failure
        assert not (workspace.output.parent / "x").exists()

    def test_processes_of_a_pool_can_share(self, run: Run):
        result = run(
            "import multiprocessing\n"
            "if __name__ == '__main__':\n"
            "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
            "        print(sum(pool.map(abs, range(-9, 1))))\n"
            "        pool.close()\n"
            "        pool.join()\n"
        )
        assert result.failure is None, result.failure
        assert result.log.read_text().split() == ["45"]

    def test_it_has_no_network(self, run: Run, tmp_path: Path):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as by_path,
            socket.socket(socket.AF_UNIX) as by_name,
        ):
            path = str(tmp_path / "s")
            by_path.bind(path)
            by_path.listen()
            name = f"\0{tmp_path.name}-{os.getpid()}"
            by_name.bind(name)
            by_name.listen()
            result = run(
                "import socket\n"
                f"for family, address in ((socket.AF_INET, {server.getsockname()!r}),\n"
                f"                        (socket.AF_UNIX, {path!r}),\n"
                f"                        (socket.AF_UNIX, {name!r}),\n"
                "                        (socket.AF_INET, ('192.0.2.1', 80))):\n"
                "    with socket.socket(family) as s:\n"
                "        s.settimeout(30)\n"
                "        try:\n"
                "            s.connect(address)\n"
                "            print('connected')\n"
                "        except OSError as error:\n"
                "            print('refused')\n"
            )
        assert result.failure is None, result.failure
        assert result.log.read_text().split() == ["refused"] * 4

    def test_it_sees_no_process_but_its_own(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY", "secret")
        result = run(
            "import os, pathlib\n"
            "numbers = [name for name in os.listdir('/proc') if name.isdigit()]\n"
            "print(len(numbers))\n"
            "print(any(b'secret' in pathlib.Path('/proc', n, 'environ').read_bytes()\n"
            "          for n in numbers))\n"
        )
        assert result.failure is None, result.failure
        count, has_secret = result.log.read_text().split()
        assert int(count) <= 3
        assert has_secret == "False"

    def test_it_has_no_capability(self, run: Run):
        result = run("print(open('/proc/self/status').read())\n")
        status = dict(
            line.split(":\t") for line in result.log.read_text().splitlines() if ":\t" in line
        )
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"

    def test_a_program_without_an_interpreter(self, run: Run):
        script = b"#!/nowhere/interpreter\n"
        result = run("", command=("./tool",), modules={"tool": script})
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "it cannot be started: bwrap: execvp" in result.failure.reason

    def test_a_kill_from_outside_is_reported(self, run: Run):
        result = run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert result.exit_code == 137
        assert "SIGKILL" in result.failure.reason

    def test_further_folders_are_readable(
        self, tmp_path: Path, workspace: Workspace, confinement: Confinement, memory_store
    ):
        models = tmp_path / "models"
        models.mkdir()
        (models / "weights").write_text("learnt")
        config = {"kind": "subprocess", "confined": True, "readable": [str(models)]}
        runner = open_runner(parse_settings(config), memory_store)
        source = f"print(open({str(models / 'weights')!r}).read())\n".encode()
        (workspace.code / "hook.py").write_bytes(source)
        release = self.release_of({"hook.py": source}, ("python", "hook.py"))
        result = runner.run(RunRequest("r", release, Limits(), workspace), Monitor())
        assert result.failure is None, result.failure
        assert result.log.read_text() == "learnt\n"


class TestSettings:
    def test_bubblewrap_is_not_there(self, monkeypatch: pytest.MonkeyPatch, memory_store):
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(InvalidInputError, match="install bubblewrap"):
            open_runner(parse_settings({"kind": "subprocess", "confined": True}), memory_store)

    def test_the_kernel_refuses(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        program = tmp_path / "bwrap"
        program.write_text(
            "#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2\nexit 1\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(InvalidInputError, match="No permissions to create a namespace; allow"):
            Confinement.find()

    def test_it_is_tried_once_in_a_process(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """Sensors ask for the runner at each of their ticks."""
        program, trials = tmp_path / "bwrap", tmp_path / "trials"
        program.write_text(f"#!/bin/sh\necho tried >> {trials}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert Confinement.find() == Confinement.find() == Confinement(str(program))
        assert trials.read_text() == "tried\n"

    @pytest.mark.parametrize("path", ["models", "/nowhere/at/all"])
    def test_a_readable_path_that_is_none(self, path: str):
        with pytest.raises(InvalidInputError, match=f"readable '{path}' must be the absolute path"):
            Confinement.find([path])
