"""`feature-pipeline osa`: work beside an Open Science Archive server."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from feature_pipeline import settings
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.option_values import DEFS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, definitions_folder, open_archive
from feature_pipeline.cli.project_hooks import project_hooks
from feature_pipeline.errors import ConflictError, FeaturePipelineError, InvalidInputError
from feature_pipeline.local.environment import usable_cores
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.quoting import problems
from feature_pipeline.osa.compare import compare_hooks
from feature_pipeline.osa.definitions import (
    FollowedHook,
    find_drift,
    followed_hooks,
    write_definitions,
)
from feature_pipeline.osa.history.importer import MOST_WORKERS, Importer
from feature_pipeline.osa.restore.extra_rows import OnlyThere
from feature_pipeline.osa.settings import OsaSettings, find_settings
from feature_pipeline.osa.sync.follower import Follower, Pass

PASS_SECONDS: Final = 60.0
"""From the beginning of one pass to that of the next."""


def scaffold(
    conventions: Sequence[str],
    hooks: Sequence[str],
    server: str | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline osa scaffold`."""
    Project.find().load_environment()
    folder = definitions_folder() if folder is None else folder
    if server is not None and folder.is_dir() and find_settings(folder) is not None:
        raise ConflictError(
            f"a component below {folder} follows a server already: leave --server out"
        )
    chosen = _settings(conventions, hooks)
    component = None if server is None else _changed(chosen, {"name": server})
    output = Output(as_json)
    written = write_definitions(_followed(chosen), folder, component)
    for path in written:
        output.say(str(path))
    output.say("`dagster definitions validate` checks them.")
    output.say("`feature-pipeline osa plan` compares them with the server later.")
    output.result({"written": [str(path) for path in written]})


def plan(as_json: bool) -> None:
    """Carry out `feature-pipeline osa plan`."""
    Project.find().load_environment()
    output = Output(as_json)
    defined = [hook.definition for hook in project_hooks().usable]
    drift = find_drift(_followed(_settings()), defined)
    for line in map(str, drift):
        output.say(line)
    if not drift:
        output.say("nothing differs")
    output.result(
        {"drift": [{"dataset": d.dataset, "hook": d.hook, "what": d.sentence} for d in drift]}
    )
    if drift:
        raise SystemExit(FINDINGS)


def sync(once: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline osa sync`."""
    Project.find().load_environment()
    output = Output(as_json)
    chosen = _settings()
    follower = Follower(
        store=open_archive(),
        server=chosen.server(),
        storage=chosen.open_storage(),
        settings=chosen,
        definitions={
            (hook.definition.dataset, hook.definition.name): hook.definition
            for hook in project_hooks().usable
        },
    )
    while True:
        began = time.monotonic()
        result = follower.follow(is_patient=not once)
        for line in _lines(result):
            output.say(line)
        if once:
            break
        time.sleep(max(0.0, PASS_SECONDS - (time.monotonic() - began)))
    output.result(
        {
            "submitted": result.submitted,
            "published": result.published,
            "unchanged": result.unchanged,
            "waiting": result.waiting,
            "unreadable": result.unreadable,
            "undefined": result.undefined,
        }
    )
    if result.unreadable:
        raise SystemExit(FINDINGS)


def _lines(result: Pass) -> list[str]:
    """Return the lines about a pass, without outputs that were taken before."""
    return [
        *result.notes,
        *(
            f"{name} is not defined here: `feature-pipeline osa scaffold` writes its definition"
            for name in result.undefined
        ),
        *(f"published {name}" for name in result.published),
        *(f"waiting {name}: {reason}" for name, reason in result.waiting.items()),
        *(f"cannot be taken: {name}: {reason}" for name, reason in result.unreadable.items()),
        result.summary(),
    ]


def import_rows(
    hooks: Sequence[str],
    is_dry: bool,
    without_storage: bool,
    keeps_ids: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline osa import`."""
    Project.find().load_environment()
    output = Output(as_json)
    chosen = _settings(hooks=hooks)
    importer = Importer(
        store=open_archive(),
        server=chosen.server(),
        storage=None if without_storage else chosen.open_storage(),
        settings=chosen,
        definitions={
            (hook.definition.dataset, hook.definition.name): hook.definition
            for hook in project_hooks().usable
        },
        keeps_ids=keeps_ids,
        workers=workers or min(MOST_WORKERS, usable_cores()),
        open_store=open_archive,
    )
    result = importer.run(is_dry=is_dry)
    for name in result.undefined:
        output.say(
            f"{name} is not defined here: `feature-pipeline osa scaffold` writes its definition"
        )
    for each in result.hooks:
        for line in each.lines(is_dry=is_dry):
            output.say(line)
    output.result(
        {"undefined": result.undefined, "hooks": [each.to_json() for each in result.hooks]}
    )
    if not is_dry and not result.is_complete:
        raise SystemExit(FINDINGS)


def compare(hooks: Sequence[str], as_json: bool) -> None:
    """Carry out `feature-pipeline osa compare`."""
    Project.find().load_environment()
    output = Output(as_json)
    chosen = _settings(hooks=hooks)
    compared = []
    for each in compare_hooks(open_archive(), chosen.server(), _followed(chosen)):
        compared.append(each)
        for line in each.lines():
            output.say(line)
    output.result({"hooks": [each.to_json() for each in compared]})
    if not all(each.is_equal for each in compared):
        raise SystemExit(FINDINGS)


def restore(
    hooks: Sequence[str],
    is_all: bool,
    is_dry_run: bool,
    only_there: str,
    drop_old: bool,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline osa restore`."""
    from feature_pipeline.osa.restore.result import State
    from feature_pipeline.osa.restore.tables import drop_replaced, restore_tables

    if bool(hooks) == is_all:
        raise InvalidInputError("name the hooks whose tables are restored, or write --all")
    Project.find().load_environment()
    output = Output(as_json)
    chosen = _settings()
    server = chosen.restore_server()
    if drop_old:
        dropped = drop_replaced(server, chosen, hooks)
        output.say("\n".join(f"dropped {name}" for name in dropped) or "there is no replaced table")
        output.result({"dropped": dropped})
        return
    definitions = {
        (hook.definition.dataset, hook.definition.name): hook.definition
        for hook in project_hooks().usable
    }
    restored = []
    for each in restore_tables(
        open_archive(),
        server,
        chosen,
        definitions,
        hooks,
        only_there=OnlyThere(only_there),
        is_dry_run=is_dry_run,
    ):
        restored.append(each)
        for line in each.lines():
            output.say(line)
    output.result({"tables": [each.to_json() for each in restored]})
    if any(each.state is State.DIFFERS for each in restored):
        raise SystemExit(FINDINGS)


def drift_lines(definition: HookDefinition) -> list[str]:
    """Return a line for each difference between a hook computed elsewhere and the server's.

    If the server cannot be read, the line says why: a table can be planned without it.
    """
    try:
        drift = [
            each
            for each in find_drift(_followed(_settings()), [definition])
            if (each.dataset, each.hook) == (definition.dataset, definition.name)
        ]
    except FeaturePipelineError as error:
        return [f"  not compared with the server that computes it: {error}"]
    return [f"  differs from the server: {each.sentence}" for each in drift]


def _settings(conventions: Sequence[str] = (), hooks: Sequence[str] = ()) -> OsaSettings:
    """Return the settings of the project's component, or of the environment, with options.

    Raises:
        InvalidInputError: An option or the component's file is wrong.
    """
    folder = settings.defs_folder(Path(DEFS))
    declared = (find_settings(folder) if folder.is_dir() else None) or OsaSettings()
    changes: dict[str, object] = {}
    if conventions:
        named = [each.partition("=") for each in conventions]
        plain = OsaSettings()
        changes["conventions"] = {
            name: dataset if sign else plain.dataset(name) for name, sign, dataset in named
        }
    if hooks:
        changes["hooks"] = tuple(hooks)
    return _changed(declared, changes)


def _changed(declared: OsaSettings, changes: Mapping[str, object]) -> OsaSettings:
    try:
        return OsaSettings.model_validate({**declared.model_dump(), **changes})
    except ValidationError as error:
        raise InvalidInputError(f"the server's settings: {problems(error)}") from error


def _followed(chosen: OsaSettings) -> list[FollowedHook]:
    with chosen.server().session() as reader:
        return followed_hooks(reader.definitions(), chosen)
