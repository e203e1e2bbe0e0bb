"""The code servers of a workspace: one for each code location, for the UI and the daemon together.

Dagster's webserver and daemon would each start their own, and the daemon another one every minute.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from feature_pipeline.errors import InvalidInputError

HOST: Final = "127.0.0.1"
_STARTUP_SECONDS: Final = "600"
_HEARTBEAT_SECONDS: Final = "120"
"""Time after which a server whose parent was killed ends, once its runs have ended."""
_KINDS: Final = {
    "python_module": ("module_name", "--module-name"),
    "python_package": ("package_name", "--package-name"),
    "python_file": ("relative_path", "--python-file"),
}
"""Kind of a workspace's entry: its field for what is loaded, and the command's option for that."""


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """An entry of a workspace for which Dagster starts a code server.

    Attributes:
        name: As the UI shows it.
        python: The interpreter that loads it.
        options: What is loaded, as options of `dagster code-server start`.
    """

    name: str
    python: str
    options: tuple[str, ...]

    def command(self, port: int) -> tuple[str, ...]:
        """Return the command of its code server, which answers once the code was loaded."""
        return (
            *(self.python, "-m", "dagster", "code-server", "start"),
            *("--host", HOST, "--port", str(port), "--location-name", self.name),
            *("--startup-timeout", _STARTUP_SECONDS, "--heartbeat-ttl", _HEARTBEAT_SECONDS),
            *("--use-python-environment-entry-point", *self.options),
        )

    def entry(self, port: int) -> dict[str, Any]:
        """Return the workspace's entry that names the running server."""
        return {"grpc_server": {"host": HOST, "port": port, "location_name": self.name}}


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace file, taken apart.

    Attributes:
        locations: The code locations that need a code server.
        others: Entries that stay as they are, such as servers that run elsewhere.
    """

    locations: tuple[CodeLocation, ...]
    others: tuple[Any, ...]

    @classmethod
    def read(cls, path: Path) -> "Workspace":
        """Read a workspace file.

        Raises:
            InvalidInputError: It is not YAML, or not a workspace.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            entries = content["load_from"]
            split = [_location(entry, path.parent) for entry in entries]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{path} is not a workspace of Dagster ({type(error).__name__}: {error}); it lists"
                " code locations below `load_from`"
            ) from error
        others = (entry for entry, known in zip(entries, split, strict=True) if known is None)
        return cls(tuple(each for each in split if each is not None), tuple(others))

    def write(self, path: Path, ports: Mapping[str, int]) -> None:
        """Write the workspace in which each code location is a server at its port.

        Args:
            ports: By the name of the code location.
        """
        served = [location.entry(ports[location.name]) for location in self.locations]
        text = yaml.safe_dump({"load_from": [*served, *self.others]}, sort_keys=False)
        path.write_text(text, encoding="utf-8")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with this machine's loopback left out of gRPC's proxies."""
    excepted = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    return {**environment, "no_grpc_proxy": ",".join(filter(None, (excepted, HOST)))}


def _location(entry: Mapping[str, Any], folder: Path) -> CodeLocation | None:
    """Return what an entry loads; None if Dagster need not, or we do not know how, to start it."""
    (kind,) = entry
    if kind not in _KINDS:
        return None
    field, option = _KINDS[kind]
    given = entry[kind]
    settings: Mapping[str, Any] = {field: given} if isinstance(given, str) else given
    target = str(settings[field])
    attribute = settings.get("attribute")
    name = Path(target).name if kind == "python_file" else target
    working = settings.get("working_directory")
    if kind == "python_file":  # paths of such an entry are the file's
        target = str(folder / target)
        working = folder / (working or ".") if isinstance(given, Mapping) else working
    options = [option, target]
    if attribute:
        options += ["--attribute", attribute]
    if working:
        options += ["--working-directory", str(working)]
    return CodeLocation(
        name=settings.get("location_name") or (f"{name}:{attribute}" if attribute else name),
        python=os.path.expanduser(settings.get("executable_path") or sys.executable),  # noqa: PTH111
        options=tuple(options),
    )
