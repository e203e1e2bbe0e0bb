"""Persistence of feature assets: `handle_output` publishes and accepts, `load_input` reads."""

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.assets.features import (
    DEFINITION_METADATA,
    ComputedFeatures,
    is_cancelled,
)
from feature_pipeline.orchestration.events.metadata import (
    artifact_metadata,
    attempts_table,
    failure_metadata,
    preview,
)
from feature_pipeline.orchestration.resources import ArchiveResource

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from feature_pipeline.compute.execute import Execution
    from feature_pipeline.compute.plan import ComputePlan

logger = logging.getLogger(__name__)

ALLOW_MISSING = "allow_missing_partitions"
"""Metadata of an input, as of Dagster's own IO managers: batches without features are skipped."""


class FeaturePartitions(Mapping[str, "pa.Table"]):
    """Artifacts of one hook by batch, read from S3 on demand.

    Annotate a downstream input with this class to choose which batches to read.
    """

    def __init__(
        self,
        store: BlobStore,
        dataset: str,
        hook: str,
        batches: Sequence[str],
        heads: Mapping[str, FeatureEntry] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            store: The archive.
            dataset: The hook's dataset.
            hook: The hook.
            batches: The batches, in order.
            heads: Current log entries that are known already; looked up by default.
        """
        self.store = store
        self.dataset = dataset
        self.hook = hook
        self._batches = list(batches)
        self._heads = heads or {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, batch: str) -> "pa.Table":
        if batch not in self._batches:
            raise NotFoundError(f"batch {batch!r} is not among this input's partitions")
        return read.read_rows(self.store, self.manifest(batch))

    def manifest(self, batch: str) -> Manifest:
        """Return the manifest of the batch's current artifact.

        Raises:
            NotFoundError: The batch has no current artifact.
        """
        head = self._heads.get(batch) or log.head(self.store, self.dataset, self.hook, batch)
        if head is None:
            raise self._missing([batch])
        return read.manifest_of(self.store, head)

    def with_heads(self, *, allow_missing: bool) -> "FeaturePartitions":
        """Return the same partitions with their current heads, without those that have none.

        Raises:
            NotFoundError: Some have none, and that is not allowed; the message names all of them.
        """
        heads = log.heads(self.store, self.dataset, self.hook, self._batches)
        missing = [batch for batch in self._batches if batch not in heads]
        if missing and not allow_missing:
            raise self._missing(missing)
        present = [batch for batch in self._batches if batch in heads]
        return FeaturePartitions(self.store, self.dataset, self.hook, present, heads)

    def _missing(self, batches: Sequence[str]) -> NotFoundError:
        named = ", ".join(map(repr, batches))
        subject = f"batch {named}" if len(batches) == 1 else f"{len(batches)} batches: {named}"
        return NotFoundError(
            f"hook {self.hook!r} has no current artifact for {subject}; materialize"
            f" {self.dataset}/features/{self.hook} for them, or give the input"
            f' metadata={{"{ALLOW_MISSING}": True}} to skip them'
        )

    def to_pandas(self, batch: str) -> "pd.DataFrame":
        """Return one batch's rows, with Arrow dtypes: 64-bit integers beside NULL stay exact."""
        from feature_pipeline.archive.query.frames import to_pandas

        return to_pandas(self[batch])


class FeatureIOManager(dg.ConfigurableIOManager):
    """Stores feature assets in the archive; a partition's data version is its content digest."""

    archive: dg.ResourceDependency[ArchiveResource]

    def handle_output(self, context: dg.OutputContext, obj: ComputedFeatures) -> None:
        """Publish and accept the artifact, unless the archive already has an equal one.

        Raises:
            Failure: The hook run failed; its output and log are in the archive.
            ConflictError: A newer release has become current meanwhile, or this run was cancelled.
        """
        if not isinstance(obj, ComputedFeatures):
            raise InvalidInputError(
                f"{context.asset_key.to_user_string()} returned {type(obj).__name__}: this IO"
                " manager stores the output of hooks; configure another IO manager for other assets"
            )
        store = self.archive.store()
        try:
            if obj.execution is None:
                self._report(context, store, obj, _current(obj.plan))
            else:
                self._publish(context, store, obj, obj.execution)
        except (StoreUnavailableError, OutcomeUnknownError) as error:
            if obj.workspace is None:
                raise
            folder, obj.workspace = obj.workspace.detach(), None
            raise type(error)(
                f"{error}; the hook's output is in {folder} on {socket.gethostname()}: run the"
                " partition again once the archive answers, or store the files of its folder out/"
                " with `feature-pipeline publish`"
            ) from error
        finally:
            if obj.claim is not None:
                obj.claim.release()
            if obj.workspace is not None:
                obj.workspace.cleanup()

    def _is_cancelled(self, context: dg.OutputContext, run_id: str) -> bool:
        try:
            return is_cancelled(context.step_context.instance, run_id)
        except Exception as error:  # noqa: BLE001 - whatever Dagster's storage raises
            # Not by Dagster's log, which is where it cannot write. The output is announced all the
            # same: that needs no orchestrator.
            logger.warning("cannot determine whether run %s was cancelled: %s", run_id, error)
            return False

    def _publish(
        self, context: dg.OutputContext, store: BlobStore, obj: ComputedFeatures, done: "Execution"
    ) -> None:
        from feature_pipeline.compute.execute import log_tail
        from feature_pipeline.compute.publish_run import publish_with_retry

        plan = obj.plan
        stored_run = publish_with_retry(
            store,
            done,
            obj.request_id,
            context.log.warning,
            lambda: self._is_cancelled(context, obj.request_id),
        )
        published, entry, failure = stored_run.published, stored_run.entry, done.artifact.failure
        if obj.workspace is not None:
            obj.workspace.forget_attempts()
        if failure is not None:
            raise dg.Failure(
                description=(
                    f"hook run {entry.completion} failed: {failure.kind}: {failure.reason};"
                    f" its output and log are in manifest {published.manifest_digest}"
                ),
                metadata={
                    **failure_metadata(done.hook_run, failure, log_tail(done.artifact.log)),
                    "manifest": str(published.manifest_digest),
                },
                allow_retries=False,
            )
        if entry.verdict is Verdict.CURRENT:
            self._report(context, store, obj, (entry.manifest, published.manifest))
            return
        head = log.head(store, plan.definition.dataset, plan.definition.name, plan.batch.key)
        is_answer = head is not None and head.release == entry.release
        if head is None or not is_answer or self._is_cancelled(context, obj.request_id):
            raise ConflictError(
                f"hook run {entry.completion} of batch {plan.batch.key!r} is {entry.verdict}: a"
                " newer release is current, or this run was cancelled. Its output is stored as"
                " history; materialize the partition again to report the current artifact"
            )
        # Another deployment has asked the same, and its answer was published later.
        context.log.warning(
            "hook run %s of batch %r is superseded by a result of the same release that was"
            " published later: that one is reported, and this one is stored as history",
            entry.completion,
            plan.batch.key,
        )
        current = head.manifest, read.manifest_of(store, head)
        self._report(context, store, obj, current, is_own=False)

    def _report(
        self,
        context: dg.OutputContext,
        store: BlobStore,
        obj: ComputedFeatures,
        current: tuple[Digest, Manifest],
        *,
        is_own: bool = True,
    ) -> None:
        from feature_pipeline.compute.execute import reasons_of

        digest, manifest = current
        # Only here is the content known; the step's own context carries it to the event.
        context.step_context.set_data_version(
            context.asset_key, dg.DataVersion(str(manifest.content_digest))
        )
        uri = f"{self.archive.uri}/{layout.blob(digest)}"
        metadata: dict[str, Any] = dict(artifact_metadata(self.archive.uri, digest, manifest, uri))
        for subject, count in reasons_of(obj.plan).items():
            metadata[subject] = dg.MetadataValue.int(count)
        metadata["written"] = dg.MetadataValue.bool(obj.execution is not None)
        if obj.execution is not None and obj.execution.hook_run is not None:
            metadata.update(attempts_table(obj.execution.hook_run))
        if obj.show_preview and is_own:
            outcomes = (
                obj.execution.artifact.outcomes
                if obj.execution is not None
                else tuple(obj.plan.carried.values())
            )
            metadata.update(preview(manifest.columns, outcomes))
        context.add_output_metadata(metadata)

    def load_input(self, context: dg.InputContext) -> object:
        """Return the upstream partitions' current artifacts in the annotated form.

        `pd.DataFrame` and `pa.Table` have the rows of all partitions, with a `batch` column;
        `dict[str, pd.DataFrame]` maps batches to rows; `FeaturePartitions` reads lazily.

        Raises:
            NotFoundError: Batches have no current artifact, and the input's metadata do not have
                `allow_missing_partitions`. `FeaturePartitions` raises it for a batch that is read.
        """
        import pandas as pd
        import pyarrow as pa

        from feature_pipeline.archive.query.frames import to_pandas

        upstream = (
            context.upstream_output.asset_key if context.upstream_output else context.asset_key
        )
        dataset, _, hook = upstream.path
        batches = list(context.asset_partition_keys)
        partitions = FeaturePartitions(self.archive.store(), dataset, hook, batches)
        wanted = context.dagster_type.typing_type
        is_dict = wanted in (dict, Any) or getattr(wanted, "__origin__", None) is dict
        if not is_dict and wanted not in (FeaturePartitions, pa.Table, pd.DataFrame):
            raise InvalidInputError(
                f"input {context.name!r} of {upstream.to_user_string()} is annotated {wanted!r};"
                " annotate it pd.DataFrame, dict[str, pd.DataFrame], pa.Table or FeaturePartitions"
            )
        allow_missing = bool(context.definition_metadata.get(ALLOW_MISSING, False))
        if wanted is not FeaturePartitions or allow_missing:
            partitions = partitions.with_heads(allow_missing=allow_missing)
        if skipped := len(batches) - len(partitions):
            context.log.warning(
                "%d of %d batches have no features and are skipped", skipped, len(batches)
            )
        if wanted is FeaturePartitions:
            return partitions
        if is_dict:
            return {batch: partitions.to_pandas(batch) for batch in partitions}
        table = _concatenated(partitions, _declared_columns(context))
        return table if wanted is pa.Table else to_pandas(table)


def _declared_columns(context: dg.InputContext) -> Sequence[Column]:
    """Return the upstream asset's declared columns; none if Dagster does not pass its metadata."""
    metadata = context.upstream_output.definition_metadata if context.upstream_output else {}
    declared = metadata.get(DEFINITION_METADATA)
    if not isinstance(declared, dg.JsonMetadataValue):
        return ()
    return HookDefinition.model_validate(declared.value).feature.columns


def _concatenated(partitions: FeaturePartitions, declared: Sequence[Column]) -> "pa.Table":
    """Return the rows of all partitions; of none, an empty table of the declared columns."""
    import pyarrow as pa

    from feature_pipeline.archive.format.encode import rows_schema

    if not partitions:
        return rows_schema(declared).append(pa.field("batch", pa.string())).empty_table()
    tables = []
    for batch in partitions:
        rows = partitions[batch]
        tables.append(rows.append_column("batch", pa.array([batch] * len(rows), pa.string())))
    # Batches may have been written under different columns: absent ones are NULL.
    return pa.concat_tables(tables, promote_options="permissive")


def _current(plan: "ComputePlan") -> tuple[Digest, Manifest]:
    if plan.previous is None or plan.previous_digest is None:
        raise InvalidInputError(f"batch {plan.batch.key!r} has no current artifact")
    return plan.previous_digest, plan.previous
