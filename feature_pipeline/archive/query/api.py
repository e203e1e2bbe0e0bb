"""The read-only API of the archive: features, outcomes and raw bytes, without Dagster.

Reading writes nothing, so credentials that may only get and list are enough.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from feature_pipeline import settings
from feature_pipeline.archive import blobs
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import Readable
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.query import history
from feature_pipeline.archive.query.features import Features, Outcomes, Selection
from feature_pipeline.archive.query.history import AsOf as AsOf
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.s3 import open_to_read
from feature_pipeline.archive.store.s3_client import client_of
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted


@dataclass(frozen=True, slots=True)
class ArchivedHook:
    """A hook that the archive knows."""

    dataset: str
    name: str
    versions: tuple[str, ...]
    """Versions of its releases, in the order of registration."""


class Archive:
    """An archive in S3, read only.

    Args:
        store: Any store; `Archive.open` opens one by its address.
    """

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    @classmethod
    def open(
        cls, url: str | None = None, *, environment: Mapping[str, str | None] | None = None
    ) -> Self:
        """Open the archive at `url`, or the one that the environment names.

        Args:
            url: `s3://bucket/prefix`. Without it, the bucket and prefix are those of the
                `FEATURE_PIPELINE_S3_*` variables. These give endpoint and region in any case.
            environment: Variables to read instead of the process's own, including AWS credentials:
                `dotenv_values(".env")`.

        Raises:
            InvalidInputError: `url` is not such an address, or no bucket is named.
            NotFoundError: There is no such bucket.
            StoreUnavailableError: The store refused, or could not be reached.
        """
        non_empty = None if environment is None else {k: v for k, v in environment.items() if v}
        where = (
            settings.S3Settings.from_environment(non_empty)
            if url is None
            else _address(url, non_empty)
        )
        return cls(open_to_read(client_of(where), where.bucket, where.prefix))

    def __repr__(self) -> str:
        return f"Archive({self.store.identity!r})"

    def datasets(self) -> list[str]:
        """Return every dataset, sorted."""
        return log.datasets(self.store)

    def hooks(self, dataset: str | None = None) -> list[ArchivedHook]:
        """Return every hook of the dataset, or of all, whether or not it ever had a table."""
        names = [
            (each, hook)
            for each in (self.datasets() if dataset is None else [dataset])
            for hook in log.hooks(self.store, each)
        ]
        return [
            ArchivedHook(
                each,
                hook,
                tuple(e.release.document.version for e in log.releases(self.store, each, hook)),
            )
            for each, hook in names
        ]

    def batches(self, dataset: str | None = None) -> list[BatchEntry]:
        """Return every batch of the dataset, or of all, in the order of submission."""
        entries = [
            entry
            for each in (self.datasets() if dataset is None else [dataset])
            for entry in log.batches(self.store, each).values()
        ]
        return sorted(entries, key=lambda entry: entry.order)

    def features(
        self,
        name: str,
        *,
        dataset: str | None = None,
        batches: Collection[str] | None = None,
        as_of: AsOf | None = None,
        every_batch: bool = False,
        skip_damaged: bool = False,
    ) -> Features:
        """Return the rows of a hook's current artifacts.

        Args:
            name: The hook's name.
            dataset: Needed only if hooks of two datasets have this name.
            batches: Read only these; by default all that have an artifact.
            as_of: Read what was current then: at a time, or at a seq of each batch's log.
            every_batch: A record that is in several batches belongs to the one submitted last, as
                in tables. True returns its rows in each of them, and needs no memory of the records
                seen (about 100 bytes each).
            skip_damaged: Leave out damaged and lost batches, and their records in earlier batches.
                `damage` of the result names them. Otherwise the first one raises.

        Raises:
            NotFoundError: No such hook, or a named batch had no current artifact then.
            InvalidInputError: Hooks of several datasets have this name.
            CorruptDataError: A log is damaged.
        """
        if isinstance(batches, str):
            raise InvalidInputError(f"batches is the string {batches!r}: give a list of keys")
        chosen = self._dataset_of(name, dataset)
        readable = self._heads(chosen, name, as_of, batches)
        heads = readable.intact
        if absent := sorted(set(batches or ()) - heads.keys() - readable.damage.keys()):
            raise NotFoundError(
                f"hook {name!r} of dataset {chosen!r} has no current artifact for batch"
                f" {absent[0]!r}"
                + (f" and {counted(len(absent) - 1, 'other')}" if len(absent) > 1 else "")
                + ("" if as_of is None else f" as of {as_of}")
            )
        submitted = log.readable_batches(self.store, chosen, batches, known_logs(self.store))
        damage = {b: one.error for b, one in readable.damage.items()}
        for batch in heads.keys() - submitted.intact.keys():
            known = submitted.damage.get(batch)
            damage[batch] = known.error if known else CorruptDataError(_no_entry(chosen, batch))
        if damage and not skip_damaged:
            raise damage[min(damage)]
        entries = sorted(submitted.intact.values(), key=lambda entry: entry.order, reverse=True)
        mine = heads.keys() | damage.keys()
        order = [
            *sorted(mine - submitted.intact.keys()),
            *(entry.batch for entry in entries if entry.batch in mine),
        ]
        return Features(
            Selection(
                self.store,
                chosen,
                name,
                heads,
                every_batch,
                order,
                skips_damaged=skip_damaged,
                damage={batch: str(error) for batch, error in sorted(damage.items())},
            )
        )

    def outcomes(
        self,
        name: str,
        *,
        dataset: str | None = None,
        batches: Collection[str] | None = None,
        as_of: AsOf | None = None,
        every_batch: bool = False,
        skip_damaged: bool = False,
    ) -> Outcomes:
        """Return the outcome of every record under a hook; arguments as for `features`."""
        return self.features(
            name,
            dataset=dataset,
            batches=batches,
            as_of=as_of,
            every_batch=every_batch,
            skip_damaged=skip_damaged,
        ).outcomes()

    def blob(self, digest: Digest | str) -> bytes:
        """Return the bytes with this digest, checked.

        Raises:
            NotFoundError: There is no such blob.
            CorruptDataError: Other bytes are stored under its name.
        """
        wanted = Digest.parse(digest) if isinstance(digest, str) else digest
        return blobs.read_blob(self.store, wanted)

    def _dataset_of(self, hook: str, dataset: str | None) -> str:
        searched = self.datasets() if dataset is None else [dataset]
        known = {each: log.hooks(self.store, each) for each in searched}
        datasets = [each for each, hooks in known.items() if hook in hooks]
        if not datasets:
            names = ", ".join(f"{each}/{h}" for each, hooks in known.items() for h in hooks)
            raise NotFoundError(
                f"no hook {hook!r} in {self.store.identity}; it has {names or 'none'}"
            )
        if len(datasets) > 1:
            raise InvalidInputError(
                f"hook {hook!r} is in datasets {', '.join(datasets)}: choose one with dataset="
            )
        return datasets[0]

    def _heads(
        self, dataset: str, hook: str, as_of: AsOf | None, batches: Collection[str] | None
    ) -> Readable[FeatureEntry]:
        known = known_logs(self.store)
        if as_of is None:
            return log.readable_heads(self.store, dataset, hook, batches, known)
        return history.readable_heads_as_of(self.store, dataset, hook, as_of, batches, known)


def _no_entry(dataset: str, batch: str) -> str:
    return (
        f"batch {batch!r} is not in the log of batches of {dataset!r}, and the hook's log has"
        " entries about it: the batch's own entry is lost"
    )


def _address(url: str, environment: Mapping[str, str] | None) -> settings.S3Settings:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise InvalidInputError(f"{url!r} is not the address of an archive: s3://bucket/prefix")
    return settings.S3Settings.at(parts.netloc, parts.path.strip("/"), environment)
