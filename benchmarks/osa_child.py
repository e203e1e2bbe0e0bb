"""The process of `benchmarks.osa_history` that imports or restores."""

import contextlib
import cProfile
import json
import sys
import time
from functools import partial

from benchmarks.processes import ChildrenPeak, open_s3, peak_memory, processor_seconds
from feature_pipeline.osa.definitions import followed_hooks
from feature_pipeline.osa.history.importer import Importer
from feature_pipeline.osa.restore.tables import restore_tables
from feature_pipeline.osa.server.database import Server
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline.projections.catalog.database import Database

HOOK, CONVENTION = "pockets", "pdb-structures"


def child(arguments: str) -> None:
    """A process of its own that imports or restores; prints rows, seconds, and memory in bytes."""
    parsed = json.loads(arguments)
    settings = OsaSettings(conventions={CONVENTION: "structures"}, hooks=(HOOK,))
    server = Server(Database(parsed["url"]))
    with server.session() as reader:
        followed = followed_hooks(reader.definitions(), settings)
    definitions = {(f.definition.dataset, f.definition.name): f.definition for f in followed}
    store = open_s3(parsed["s3"], parsed["prefix"])
    before = peak_memory()
    children = ChildrenPeak()
    profile = cProfile.Profile(time.thread_time) if parsed["profile"] else contextlib.nullcontext()
    began, processor = time.perf_counter(), processor_seconds()
    with profile, children:
        if parsed["is_restore"]:
            (restored,) = restore_tables(store, server, settings, definitions, [HOOK])
        else:
            importer = Importer(store, server, None, settings, definitions)
            importer.workers = parsed["workers"]
            importer.open_store = partial(open_s3, parsed["s3"], parsed["prefix"])
            result = importer.run()
    seconds, processor = time.perf_counter() - began, processor_seconds() - processor
    if isinstance(profile, cProfile.Profile):
        profile.dump_stats(parsed["profile"])
    if parsed["is_restore"]:
        counts = [restored.rows, restored.new_ids]
    else:
        assert result.is_complete, result
        (hook,) = result.hooks
        counts = [hook.new_rows, hook.proven_rows]
    print(json.dumps([*counts, seconds, processor, before, peak_memory(), children.bytes]))


if __name__ == "__main__":
    child(sys.argv[1])
