"""What a rebuilding process does in `test_projection_death`, with SIGKILL at a chosen step."""

import os
import signal
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any

from feature_pipeline.archive.store.s3 import S3Store, open_store
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline_tests.fixtures.stores import archive_client


@dataclass(frozen=True)
class Step:
    """A call of a function in the module that calls it: the first is number 0."""

    module: str
    function: str
    call: int = 0
    is_after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} {self.function} {self.call}"


def connect(address: S3Address, prefix: str) -> S3Store:
    client = archive_client(address)
    return open_store(client, address.bucket, prefix)


def rebuild_until(
    address: S3Address, prefix: str, database_url: str, spec: TableSpec, step: Step
) -> None:
    """Load everything; this process is killed at `step`."""
    module = import_module(f"feature_pipeline.projections.{step.module}")
    original = getattr(module, step.function)
    calls = iter(range(1_000_000))

    @wraps(original)
    def fatal(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != step.call:
            return original(*args, **kwargs)
        if step.is_after:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(module, step.function, fatal)
    list(load_batches(connect(address, prefix), Database(database_url), spec))
