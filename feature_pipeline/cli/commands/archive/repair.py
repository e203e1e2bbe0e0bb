"""`feature-pipeline repair`: plan the repair of the archive, and carry it out."""

import getpass
from collections.abc import Sequence

import click

from feature_pipeline.archive.inspection.findings import Finding, Scope
from feature_pipeline.archive.inspection.verify import verify as verify_archive
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.logs.losses import Loss
from feature_pipeline.archive.maintenance.accept_loss import accept_losses, plan_losses
from feature_pipeline.archive.maintenance.compare_databases import Knowledge
from feature_pipeline.archive.maintenance.loss_entries import remove_given_up
from feature_pipeline.archive.maintenance.repair import (
    ProjectRelease,
    RepairPlan,
    Sources,
    Step,
    append_again,
    carry_out,
    find_appendable,
    find_unfinished,
    plan_repair,
)
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.commands.archive.verify import find_dataset, progress_of
from feature_pipeline.cli.databases import query_databases
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import project_hooks
from feature_pipeline.errors import FeaturePipelineError, InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted

_ROUNDS = 10
"""A restored object may name further objects, which the next round handles."""


def repair(
    dataset: str | None,
    hook: str | None,
    batch: str | None,
    second_url: str | None,
    yes: bool,
    accept_loss: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline repair`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive(is_changed=yes)
    scope = Scope(find_dataset(store, hook, dataset, batch), hook, batch)
    second = None if second_url is None else Archive.open(second_url).store
    known = query_databases(output, scope.dataset)
    sources = _sources(output, second, known)
    if accept_loss and not reason:
        raise InvalidInputError("--accept-loss needs --reason, which is stored permanently")
    names = [scope.dataset] if scope.dataset else log.datasets(store)
    unfinished = _finish_accepting(output, store, names, known, is_confirmed=yes)
    tried: set[tuple[str, str]] = set()
    done: list[Step] = []
    failed: dict[str, str] = {}
    for _ in range(_ROUNDS):
        plan = plan_repair(store, _findings(store, scope, known, output), sources)
        new = [step for step in plan.steps if (step.finding.key, step.action.value) not in tried]
        if not yes or not new:
            break
        tried.update((step.finding.key, step.action.value) for step in new)
        with output.progress("repairing", len(new)) as steps:
            problems = carry_out(RepairPlan(tuple(new), ()), lambda _: steps.advance())
        failed.update({problem.finding.key: problem.remedy for problem in problems})
        done += [step for step in new if step.finding.key not in failed]
    _show(output, plan, done, failed, is_plan=not yes)
    given_up: list[str] = []
    if accept_loss:
        given_up = _accept(output, store, plan, known, tried, reason, is_confirmed=yes)
        plan = plan_repair(store, _findings(store, scope, known, output), sources)
        if given_up and not (plan.steps or plan.remainders):
            output.say("no problem is left")
    output.result(
        {
            **plan.to_json(),
            "unfinished": unfinished,
            "done": [{"key": step.finding.key, "action": step.action.value} for step in done],
            "failed": failed,
            "given_up": given_up,
        }
    )
    if plan.steps or plan.remainders or unfinished:
        raise SystemExit(FINDINGS)


def _finish_accepting(
    output: Output,
    store: BlobStore,
    datasets: Sequence[str],
    known: Knowledge,
    *,
    is_confirmed: bool,
) -> list[str]:
    """Complete acceptances of losses that were interrupted.

    Returns:
        A line for each artifact that is still to be appended, if that is not confirmed.
    """
    unfinished: list[str] = []
    for name in datasets:
        if is_confirmed:
            remove_given_up(store, name)
        losses = find_unfinished(store, name)
        if is_confirmed:
            _append_again(output, store, losses, known)
            continue
        for one in find_appendable(store, losses, known.entries):
            manifest = one.manifest
            where = f"hook {manifest.hook}, batch {manifest.batch}"
            digest = Digest.of(manifest.encode())
            unfinished.append(f"{where}: artifact {digest.short} must be appended again")
    for line in unfinished:
        output.say(f"{line}: accepting a loss was interrupted; --yes completes it")
    return unfinished


def _append_again(
    output: Output, store: BlobStore, losses: Sequence[Loss], known: Knowledge
) -> None:
    for entry in append_again(store, losses, known.entries):
        output.warn(f"{entry.log_prefix} has the artifact {entry.manifest.short} again")


def _accept(
    output: Output,
    store: BlobStore,
    plan: RepairPlan,
    known: Knowledge,
    tried: set[tuple[str, str]],
    reason: str,
    *,
    is_confirmed: bool,
) -> list[str]:
    """Name what is given up, ask for confirmation, and give it up; return one line per log."""
    left = [s for s in plan.steps if (s.finding.key, s.action.value) not in tried]
    if left:
        raise click.ClickException(
            f"{counted(len(left), 'object')} can be restored: run this command with --yes first,"
            " then accept the loss of the rest"
        )
    findings = [r.finding for r in plan.remainders] + [s.finding for s in plan.steps]
    losses = plan_losses(store, findings)
    if not losses:
        output.warn("no log entry is lost, corrupt or missing: nothing is given up")
        return []
    for loss in losses:
        output.warn(f"{loss.log} keeps {loss.entries} of {counted(loss.known_entries, 'entry')}")
    if not is_confirmed:
        click.confirm("Give up the others permanently?", abort=True, err=True)
    accepted = accept_losses(store, losses, by=getpass.getuser(), reason=reason)
    _append_again(output, store, losses, known)
    output.warn(
        "Run `feature-pipeline rebuild` for the tables, and the job `reconcile` for Dagster"
    )
    return [str(one) for one in accepted]


def _findings(store: BlobStore, scope: Scope, known: Knowledge, output: Output) -> list[Finding]:
    with progress_of(output, "verifying") as progress:
        # Without a census: a plan writes nothing.
        report = verify_archive(store, scope, progress=progress, writes_census=False)
    return list(known.add_lost(report, store).findings)


def _sources(output: Output, second: BlobStore | None, known: Knowledge) -> Sources:
    from feature_pipeline.compute.redecode import decode_batch_again

    def derive(store: BlobStore, entry: FeatureEntry) -> object:
        return decode_batch_again(store, entry)

    releases: list[ProjectRelease] = []
    try:
        for hook in project_hooks().usable:
            release = hook.definition.hook_release(hook.folder)
            releases.append(ProjectRelease(release, hook.definition.code_files(hook.folder)))
    except FeaturePipelineError as error:
        output.warn(f"the project's releases are not used: {error}")
    return Sources(
        second=second,
        entries=known.entries,
        batches=known.batches,
        submitted_at=known.submitted_at,
        releases=releases,
        derive=derive,
    )


def _show(
    output: Output, plan: RepairPlan, done: list[Step], failed: dict[str, str], *, is_plan: bool
) -> None:
    for title, steps in (
        ("restored", done),
        ("can be restored" if is_plan else "not restored", list(plan.steps)),
    ):
        if steps:
            output.table(
                f"{counted(len(steps), 'object')} {title}",
                ["state", "what", "key", "how", "proof"],
                [
                    [s.finding.state.value, s.finding.kind.value, s.finding.key, s.action, s.proof]
                    for s in steps
                ],
            )
    output.problems("objects could not be restored", failed)
    if plan.remainders:
        output.table(
            f"{counted(len(plan.remainders), 'object')} cannot be restored from these sources",
            ["state", "what", "key", "needed by", "what to do"],
            [
                [
                    r.finding.state.value,
                    r.finding.kind.value,
                    r.finding.key,
                    r.finding.named_by,
                    r.remedy,
                ]
                for r in plan.remainders
            ],
        )
    if not (plan.steps or plan.remainders):
        output.say("no problem found" if not done else "no problem is left")
    elif is_plan and plan.steps:
        output.say("Nothing was written. `feature-pipeline repair --yes` carries it out")
