"""The project's folder, and the environment in which its commands run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

import feature_pipeline
from feature_pipeline import settings
from feature_pipeline.archive.store.s3 import S3Store, open_store, open_to_read
from feature_pipeline.archive.store.s3_client import client_of
from feature_pipeline.cli.option_values import DEFS
from feature_pipeline.errors import NotFoundError
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline.measure import report_counts


def open_archive(*, is_changed: bool = True) -> S3Store:
    """Open the archive that the environment names.

    Args:
        is_changed: Whether the command may write. Otherwise the role of a reader is enough.
    """
    where = settings.S3Settings.from_environment()
    opened = open_store if is_changed else open_to_read
    return opened(client_of(where), where.bucket, where.prefix)


def definitions_folder() -> Path:
    """Return the folder of definitions from the settings, or else a checkout's.

    Raises:
        NotFoundError: No setting names one, and the working directory is not a checkout.
    """
    folder = settings.defs_folder(Path(DEFS))
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder} here, and {settings.DEFS_FOLDER} is not set:"
            " `feature-pipeline init` makes a project with a folder for hooks"
        )
    return folder


DATA_FOLDER: Final = ".feature_pipeline"
WORKSPACE: Final = "workspace.yaml"
DAGSTER: Final = "dagster.yaml"
TEMPLATES: Final = Path(feature_pipeline.__file__).parent / "templates"
"""The package's own `workspace.yaml` and `dagster.yaml`."""
_WORK_TAG: Final = "feature_pipeline/work"
"""Equal to the tag in `orchestration.run_queue`, whose import would take a second."""


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with `.env`, the data of local servers, and Dagster's two files.

    A checkout has `workspace.yaml` and `dagster.yaml`, and so has a folder that `feature-pipeline
    init` made. In any other folder the package's own are used.
    """

    root: Path

    @classmethod
    def find(cls) -> "Project":
        """Return the project around the working directory.

        That is the nearest folder with both files, else the checkout that this package is installed
        from, else the working directory.
        """
        here = Path.cwd()
        checkout = Path(feature_pipeline.__file__).parent.parent
        for folder in (here, *here.parents, checkout):
            if (folder / WORKSPACE).is_file() and (folder / DAGSTER).is_file():
                return cls(folder)
        return cls(here)

    @property
    def workspace_file(self) -> Path:
        """The workspace file that Dagster loads."""
        return self._file(WORKSPACE)

    @property
    def dotenv(self) -> Path:
        """The file to which `dev` writes the settings."""
        return self.root / ".env"

    @property
    def data_folder(self) -> Path:
        """The folder of the local servers' data, unless the user names another."""
        return self.root / DATA_FOLDER

    def prepare_dagster_home(self, home: Path, cores: int) -> None:
        """Write this project's `dagster.yaml` into `home`, with run limits for this machine.

        As many runs of hooks as there are cores, and as many additional runs as `dagster.yaml`
        allows.
        """
        home.mkdir(parents=True, exist_ok=True)
        text = self._file(DAGSTER).read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        runs = config["concurrency"]["runs"]
        spare = 0
        for limit in runs.get("tag_concurrency_limits", ()):
            if limit["key"] == _WORK_TAG:
                spare = max(runs["max_concurrent_runs"] - limit["limit"], 0)
                limit["limit"] = cores
        runs["max_concurrent_runs"] = cores + spare
        header = "# Written by feature-pipeline from the project's dagster.yaml at every start.\n"
        (home / "dagster.yaml").write_text(
            header + yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
        )

    def load_environment(self) -> None:
        """Add the settings of `.env` to the environment; variables that are set take precedence.

        Settings that belong together come from one source (`settings.add_settings`). Without the
        file the environment is unchanged: a deployment sets it itself.
        """
        try:
            values = load_dotenv(self.dotenv)
        except NotFoundError:
            values = {}
        settings.add_settings(os.environ, values)
        report_counts()

    def _file(self, name: str) -> Path:
        own = self.root / name
        return own if own.is_file() else TEMPLATES / name
