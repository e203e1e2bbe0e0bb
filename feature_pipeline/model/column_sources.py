"""Match written columns to declared ones when declarations change.

Columns are renamed, added and dropped, and artifacts stay as they were written.

A declared ("wanted") column is matched to the written column

1. that has its name, if both name a former name in common;
2. else that has the first of its former names that was written;
3. else that was renamed from its name: the rename was reverted;
4. else that has its name.

So a declared rename takes precedence over an equal name: under `a, b` and then `b` renamed from
`a`, the values of `b` are those of `a`, and the former `b` is dropped. If one written column
matches two wanted ones, it is matched to neither, because no declaration decides which of the two
it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column


class UnclearColumnError(InvalidInputError):
    """A written column may be either of two wanted ones; the message names them."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The written column of each wanted one."""

    sources: tuple[Column | None, ...]
    """For each wanted column, in order, the written one; None if there is none."""
    unclear: Mapping[str, tuple[str, ...]]
    """By name of a written column that matches several wanted ones, their names."""

    def refusals(self) -> list[str]:
        """Return why rows cannot be read, per unclear written column."""
        return [
            f"column {name!r}, as it was written, may be {' or '.join(map(repr, names))} as"
            " declared now: materialize the features again, which computes them under the present"
            " columns"
            for name, names in self.unclear.items()
        ]


def pair_columns(written: Sequence[Column], wanted: Sequence[Column]) -> Pairs:
    """Match the written columns to the wanted ones, whatever their types."""
    by_name = {column.name: column for column in written}
    successors = {former: column for column in written for former in column.former_names}
    sources = [_find_source(by_name, successors, column) for column in wanted]
    claims: dict[str, list[str]] = {}
    for column, source in zip(wanted, sources, strict=True):
        if source is not None:
            claims.setdefault(source.name, []).append(column.name)
    unclear = {name: tuple(names) for name, names in claims.items() if len(names) > 1}
    clear = (None if s is None or s.name in unclear else s for s in sources)
    return Pairs(tuple(clear), unclear)


def _find_source(
    by_name: Mapping[str, Column], successors: Mapping[str, Column], wanted: Column
) -> Column | None:
    same = by_name.get(wanted.name)
    if same is not None and not set(same.former_names).isdisjoint(wanted.former_names):
        return same
    former = next((by_name[name] for name in wanted.former_names if name in by_name), None)
    return former or successors.get(wanted.name) or same


def contradictions(
    declarations: Mapping[str, Sequence[Column]], wanted: Sequence[Column]
) -> dict[str, str]:
    """Find batches that cannot be read together, because a column would mix meanings.

    A declaration contains only the names before it. After `a, b`, and `b` renamed from `a`, and `b`
    without that note, the last one is by its name the first one's `b`; according to the second one
    it is `a`.

    Args:
        declarations: By batch, the columns that it was written with.
        wanted: The declaration under which all of them are read.

    Returns:
        By batch, why it cannot be read together with the others.
    """
    batches: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for batch, columns in declarations.items():
        batches.setdefault(tuple(keys.names for keys in own_keys(columns)), []).append(batch)
    examples = [declarations[group[0]] for group in batches.values()]
    return {
        batch: reason
        for example, group in zip(examples, batches.values(), strict=True)
        if (reason := _contradiction(example, examples, wanted)) is not None
        for batch in group
    }


def _contradiction(
    written: Sequence[Column], others: Sequence[Sequence[Column]], wanted: Sequence[Column]
) -> str | None:
    """Return why rows of one declaration cannot be combined with those of the others."""
    direct = pair_columns(written, wanted).sources
    for other in others:
        between = pair_columns(written, other).sources
        steps = {column.name: source for column, source in zip(other, between, strict=True)}
        by_way = pair_columns(other, wanted).sources
        for column, source, passed in zip(wanted, direct, by_way, strict=True):
            step = None if passed is None else steps[passed.name]
            # A declaration that says of a rename counts; one that has only the same name does not.
            if (
                passed is not None
                and source is not None
                and step is not None
                and step.name not in (passed.name, source.name)
            ):
                return (
                    f"column {column.name!r} is what was written as {source.name!r} by its names,"
                    f" and {step.name!r} by the declaration of other batches, which wrote"
                    f" {passed.name!r}: complete its renamed_from, convert these releases by an"
                    " upcaster, or materialize the features again"
                )
    return None


@dataclass(frozen=True, slots=True)
class RawKeys:
    """The keys of a hook's raw output that contain the values of a column."""

    names: tuple[str, ...]
    """The name and the former names of the column as it was declared when the hook ran."""
    undeclared: tuple[str, ...] = ()
    """Keys that were not a column's then; used if none of `names` is present."""

    @property
    def all(self) -> tuple[str, ...]:
        """Return every key, in order of precedence."""
        return (*self.names, *self.undeclared)


def own_keys(columns: Sequence[Column]) -> tuple[RawKeys, ...]:
    """Return the keys that a hook writes under these columns."""
    return tuple(RawKeys((column.name, *column.former_names)) for column in columns)


def raw_keys(written: Sequence[Column], wanted: Sequence[Column]) -> tuple[RawKeys, ...]:
    """Return the keys of the wanted columns in raw output that was written under other columns.

    Raises:
        UnclearColumnError: A written column may be either of two wanted ones.
    """
    pairs = pair_columns(written, wanted)
    if pairs.unclear:
        raise UnclearColumnError("; ".join(pairs.refusals()))
    names = dict(zip((column.name for column in written), own_keys(written), strict=True))
    declared = {name for keys in names.values() for name in keys.names}
    return tuple(
        RawKeys(
            () if source is None else names[source.name].names,
            tuple(name for name in own.names if name not in declared),
        )
        for source, own in zip(pairs.sources, own_keys(wanted), strict=True)
    )
