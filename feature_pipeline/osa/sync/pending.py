"""What of the server is to be looked at in a pass: new hook runs, and outputs that may change.

The cost follows what is new: the database is asked for hook runs that the memory does not know, by
their ids, which follow from run, batch and hook. Outputs of unfinished runs are looked at again, a
number of them in each pass. An ended run is looked at a last time after the server would have given
a claimed batch to another worker, and is then closed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.records import check_batch_key
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.server.database import (
    Convention,
    Definitions,
    HookRun,
    IngestRun,
    Reader,
    ValidatedDeposition,
)
from feature_pipeline.osa.server.ids import (
    deposition_folder,
    deposition_key,
    hook_run_id,
    ingest_key,
    local_id,
)
from feature_pipeline.osa.server.storage import Place, batch_place, deposition_place
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline.osa.sync.taken_outputs import IngestMemory, StoredMemory, Taken, hours_since

LOOKS_A_PASS: Final = 100
"""How many taken outputs of unfinished runs are looked at again per pass."""
LAST_LOOKS_A_PASS: Final = 1_000
"""The same for ended runs, whose outputs are looked at once more."""
REDELIVERY_HOURS: Final = 2.0
"""After this time the server gives a batch that a worker has claimed to another one."""
UNREADABLE_HOURS: Final = 1.0
"""How long a sensor's passes leave out what could not be taken."""


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """A batch of the server, with the outputs to look at."""

    convention: Convention
    dataset: str
    key: str
    place: Place
    origin: IngestRun | ValidatedDeposition
    index: int
    """Of the batch in its ingest run; 0 for a deposition."""
    taken: Mapping[str, Taken | None]
    """By hook, what is remembered of its output; None if it was not taken."""
    runs: Mapping[str, HookRun]
    """By hook, as far as it is known before `run.json` is read."""

    def name(self, hook: str) -> str:
        """The name of one of its outputs."""
        return f"{self.key}/{hook}"


@dataclass
class Pending:
    """The state of the database at the beginning of a pass, and the outputs to read in it."""

    deployed: Definitions
    now: datetime
    batches: list[PendingBatch]
    undefined: list[str]
    nameless: dict[str, str]
    """Ids of what cannot be a batch here, with the reason."""
    ended: dict[str, tuple[str, ...]]
    """Runs whose outputs change no more, with their hooks."""
    expected: dict[str, int]
    """How many outputs such a run has if every hook ran over each of its batches."""

    @classmethod
    def of(
        cls,
        reader: Reader,
        settings: OsaSettings,
        stored: StoredMemory,
        definitions: Mapping[tuple[str, str], HookDefinition],
        is_patient: bool,
    ) -> "Pending":
        """Return the batches and depositions of the server that a pass must read.

        Args:
            reader: The snapshot of the database.
            settings: The conventions and hooks to follow.
            stored: Which outputs earlier passes have taken.
            definitions: The hooks of this project, by dataset and name.
            is_patient: Whether to skip outputs that could not be taken within the last hour.
        """
        deployed, now = reader.definitions(), reader.now()
        conventions = {c.id: c for c in deployed.conventions.values() if settings.follows(c.id)}
        hooks: dict[str, tuple[str, ...]] = {}
        undefined: list[str] = []
        for convention in conventions.values():
            dataset = settings.dataset(convention.id)
            followed = [h for h in dict.fromkeys(convention.hooks) if settings.follows_hook(h)]
            hooks[convention.id] = tuple(h for h in followed if (dataset, h) in definitions)
            undefined += [f"{dataset}/{h}" for h in followed if (dataset, h) not in definitions]
        snapshot = cls(deployed, now, [], undefined, {}, {}, {})
        left_out = {
            name
            for name, each in stored.memory.unreadable.items()
            if is_patient and hours_since(each.tried_at, now) < UNREADABLE_HOURS
        }
        runs = reader.ingest_runs(conventions)
        snapshot._add_ingests(reader, runs, conventions, hooks, settings, stored, left_out)
        for deposition in reader.validated_depositions(conventions):
            convention = conventions[deposition.convention]
            wanted = hooks[convention.id]
            dataset = settings.dataset(convention.id)
            try:
                snapshot._add_deposition(deposition, convention, wanted, dataset, stored, left_out)
            except InvalidInputError as error:
                snapshot.nameless[quoted(deposition.srn)] = str(error)
        # what is new comes first, in case that there is no time for all of it
        snapshot.batches.sort(key=lambda batch: None not in batch.taken.values())
        return snapshot

    def _add_ingests(
        self,
        reader: Reader,
        runs: list[IngestRun],
        conventions: Mapping[str, Convention],
        hooks: Mapping[str, tuple[str, ...]],
        settings: OsaSettings,
        stored: StoredMemory,
        left_out: set[str],
    ) -> None:
        nothing = IngestMemory()
        asked: dict[str, tuple[IngestRun, int, str]] = {}
        again: dict[str, tuple[IngestRun, int, str]] = {}
        for run in runs:
            memory = stored.memory.ingests.get(run.id, nothing)
            wanted = hooks[run.convention]
            if memory.closed is not None and set(wanted) <= set(memory.closed):
                continue
            if self._has_ended(run):
                self.ended[run.id] = wanted
                self.expected[run.id] = run.batches_ingested * len(wanted)
            for index in range(run.batches_ingested):
                for hook in wanted:
                    key = f"{index}/{hook}"
                    one = run, index, hook
                    if (output := memory.outputs.get(key)) is not None:
                        if not output.is_final:
                            again[f"{run.id}/{key}"] = one
                    elif f"{ingest_key(run.id, index)}/{hook}" not in left_out:
                        asked[hook_run_id(run.id, index, hook)] = one
        committed = reader.hook_runs(asked)
        chosen = {run_id: asked[run_id] for run_id in committed}
        looks = [one for one in again.values() if one[0].id in self.ended][:LAST_LOOKS_A_PASS]
        looks += self._in_turn(
            {n: one for n, one in again.items() if one[0].id not in self.ended}, stored
        )
        repeated = {
            hook_run_id(run.id, index, hook): (run, index, hook) for run, index, hook in looks
        }
        committed |= reader.hook_runs(repeated)
        grouped: dict[tuple[str, int], dict[str, HookRun]] = {}
        origins: dict[str, IngestRun] = {}
        for run_id, (run, index, hook) in (chosen | repeated).items():
            if run_id in committed:
                origins[run.id] = run
                grouped.setdefault((run.id, index), {})[hook] = committed[run_id]
        order = {run.id: number for number, run in enumerate(runs)}
        for (run_name, index), of_hooks in sorted(
            grouped.items(), key=lambda item: (order[item[0][0]], item[0][1])
        ):
            run = origins[run_name]
            outputs = stored.memory.ingests.get(run_name, nothing).outputs
            key = ingest_key(run_name, index)
            try:
                place = batch_place(run_name, index)
                check_batch_key(key)
            except InvalidInputError as error:
                self.nameless[quoted(run_name)] = str(error)
                continue
            self.batches.append(
                PendingBatch(
                    convention=conventions[run.convention],
                    dataset=settings.dataset(run.convention),
                    key=key,
                    place=place,
                    origin=run,
                    index=index,
                    taken={hook: outputs.get(f"{index}/{hook}") for hook in of_hooks},
                    runs=of_hooks,
                )
            )

    def _has_ended(self, run: IngestRun) -> bool:
        """Return whether the run has ended, and no worker can still have one of its batches."""
        return (
            run.has_ended
            and run.completed_at is not None
            and hours_since(run.completed_at, self.now) > REDELIVERY_HOURS
        )

    def _in_turn(
        self, again: Mapping[str, tuple[IngestRun, int, str]], stored: StoredMemory
    ) -> list[tuple[IngestRun, int, str]]:
        """Return the next outputs to look at again, and remember where to continue."""
        names = sorted(again)
        if len(names) <= LOOKS_A_PASS:
            stored.memory = stored.memory.model_copy(update={"looked_at": ""})
            return list(again.values())
        after = [name for name in names if name > stored.memory.looked_at]
        turn = (after + names)[:LOOKS_A_PASS]
        stored.memory = stored.memory.model_copy(update={"looked_at": turn[-1]})
        return [again[name] for name in turn]

    def _add_deposition(
        self,
        deposition: ValidatedDeposition,
        convention: Convention,
        wanted: tuple[str, ...],
        dataset: str,
        stored: StoredMemory,
        left_out: set[str],
    ) -> None:
        memory = stored.memory.depositions.get(deposition.srn)
        if (
            memory is not None
            and memory.updated_at == deposition.updated_at
            and set(wanted) <= set(memory.hooks)
        ):
            return
        key = deposition_key(local_id(deposition.srn))
        outputs = {} if memory is None else memory.outputs
        taken = {hook: outputs.get(hook) for hook in wanted if f"{key}/{hook}" not in left_out}
        if taken:
            self.batches.append(
                PendingBatch(
                    convention=convention,
                    dataset=dataset,
                    key=key,
                    place=deposition_place(deposition_folder(deposition.srn)),
                    origin=deposition,
                    index=0,
                    taken=taken,
                    runs={},
                )
            )

    def close(self, stored: StoredMemory) -> None:
        """Forget the outputs of ended runs that were all taken and will not change."""
        for run, hooks in self.ended.items():
            outputs = stored.memory.ingest(run).outputs
            final = [k for k, o in outputs.items() if o.is_final and k.partition("/")[2] in hooks]
            if len(final) == self.expected[run]:
                stored.memory.ingests[run] = IngestMemory(closed=hooks)
