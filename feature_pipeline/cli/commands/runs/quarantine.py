"""`feature-pipeline quarantine`: list entries that could not be accepted, and retry them."""

from feature_pipeline.archive import accept
from feature_pipeline.archive.format.documents import instant_text
from feature_pipeline.archive.logs.inbox import discard, readable_quarantined
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.counted import counted


def quarantine(
    ids: tuple[str, ...], requeue: bool, is_discarded: bool, is_all: bool, as_json: bool
) -> None:
    """Carry out `feature-pipeline quarantine`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive(is_changed=requeue or is_discarded)
    readable = readable_quarantined(store)
    quarantined, damage = list(readable.intact.values()), readable.damage
    if requeue and is_discarded:
        raise InvalidInputError("--requeue and --discard exclude each other: give only one")
    if (requeue or is_discarded) and bool(ids) == is_all:
        raise InvalidInputError("name the entries, or give --all")
    known = [*readable.intact, *(damage if is_discarded or not requeue else ())]
    chosen = known if is_all else list(ids)
    if unknown := sorted(set(chosen) - set(known)):
        raise InvalidInputError(f"{unknown[0]!r} is not in the quarantine")
    if requeue:
        accept.requeue(store, chosen)
        output.say(
            f"{counted(len(chosen), 'entry')} put back into the inbox; the sensor accepts them"
            " within seconds"
        )
    elif is_discarded:
        discard(store, chosen)
        output.say(
            f"{counted(len(chosen), 'entry')} discarded; `feature-pipeline gc` deletes what only"
            " they named"
        )
    else:
        shown = [entry for entry in quarantined if not chosen or entry.id in chosen]
        for entry in shown:
            output.say(f"{entry.id}\n  since {instant_text(entry.quarantined_at)}: {entry.reason}")
        for entry_id, one in damage.items():
            if not chosen or entry_id in chosen:
                output.say(f"{entry_id}\n  cannot be read: {one.error}")
        output.say(f"{counted(len(shown), 'entry')} in the quarantine")
    output.result(
        {
            "requeued": chosen if requeue else [],
            "discarded": chosen if is_discarded else [],
            "quarantined": [
                {
                    "id": entry.id,
                    "reason": entry.reason,
                    "left_at": instant_text(entry.left_at),
                    "quarantined_at": instant_text(entry.quarantined_at),
                    "entry": entry.entry,
                }
                for entry in readable_quarantined(store).intact.values()
            ],
            "damaged": {entry_id: str(one.error) for entry_id, one in damage.items()},
        }
    )
    if damage and not (requeue or is_discarded):
        raise SystemExit(FINDINGS)
