"""Isolate the records that a hook fails on: decide which records are run together next.

If a hook fails on a part of a batch, it is run over the halves of that part, and so on, until a
part succeeds or is one record. One record among n costs about 2 log2(n) parts. The search starts
nothing itself, and its decisions depend on how parts ended, never on when. So a run that is
repeated over ended attempts asks for the same parts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_FAILURES_PER_LEVEL: Final = 4
"""How many parts may fail per level of halving. One record that the hook fails on costs one; if the
hook fails on many, the search stops before each of them is isolated.
"""
_PROBES: Final = 3
"""Number of records that are run alone before the hook is considered broken."""


@dataclass(frozen=True, slots=True)
class Part:
    """Records that are run together.

    Attributes:
        path: Its origin: part 2 is divided into 2.1 and 2.2; the whole batch's is empty.
        records: Their positions in the batch, ascending.
        memory_bytes: Memory of its first attempt.
    """

    path: str
    records: tuple[int, ...]
    memory_bytes: int

    def divided(self, first: Collection[int], memory_bytes: int) -> "tuple[Part, Part]":
        """Return one part of `first` and one part of the other records."""
        prefix = f"{self.path}." if self.path else ""
        wanted = frozenset(first)
        ours = tuple(record for record in self.records if record in wanted)
        others = tuple(record for record in self.records if record not in wanted)
        return Part(f"{prefix}1", ours, memory_bytes), Part(f"{prefix}2", others, memory_bytes)


def first_parts(
    sizes: Sequence[int],
    memory_bytes: int,
    most_records: int,
    most_bytes: int,
    raised: Mapping[int, int],
) -> list[Part]:
    """Divide a batch into the parts that are run first.

    Args:
        sizes: Bytes of each record's input.
        memory_bytes: Memory of attempts, unless more is known to be needed.
        most_records: Maximum number of records of a part.
        most_bytes: Maximum bytes of a part; a larger record is a part of its own.
        raised: Records on which the hook failed before, with the memory for the first attempt. They
            are parts of their own, the last ones.
    """
    groups: list[list[int]] = []
    size = 0
    for wanted in (lambda n: n not in raised, raised.__contains__):
        begun = False
        for record in filter(wanted, range(len(sizes))):
            is_full = begun and (
                len(groups[-1]) >= most_records or size + sizes[record] > most_bytes
            )
            if is_full or not begun:
                groups.append([])
                begun, size = True, 0
            groups[-1].append(record)
            size += sizes[record]
    paths = [""] if len(groups) == 1 else [str(number) for number in range(1, len(groups) + 1)]
    return [
        Part(path, tuple(group), max(raised.get(record, memory_bytes) for record in group))
        for path, group in zip(paths, groups, strict=True)
    ]


@dataclass
class Isolation:
    """The search over one batch, starting with its first parts.

    A hook that fails on everything is broken, and no record is to blame: if two parts have failed
    and none has succeeded, three of their smallest records are run alone, and if the hook fails on
    these as well the search ends.

    Attributes:
        parts: The first parts.
        sizes: Bytes of each record's input, by position.
        width: How many parts are divided at a time.
        suspects: Records on which the hook failed before: another failure on them says nothing
            about the hook.
        well: Parts that have succeeded.
        culprits: Parts of one record on which the hook failed.
    """

    parts: Sequence[Part]
    sizes: Sequence[int]
    width: int = 1
    suspects: frozenset[int] = frozenset()
    well: list[Part] = field(default_factory=list)
    culprits: list[Part] = field(default_factory=list)
    _untested: list[Part] = field(init=False)
    _failing: list[Part] = field(default_factory=list)
    _divided: list["_Probed"] = field(default_factory=list)
    _failures_left: int = field(init=False)
    _is_probed: bool = False

    def __post_init__(self) -> None:
        self._untested = list(self.parts)
        self._failures_left = sum(
            1 + _FAILURES_PER_LEVEL * (len(part.records) - 1).bit_length() for part in self.parts
        )

    def next_parts(self) -> list[Part]:
        """Return the parts to run now; none once the search has ended."""
        if self.is_hopeless:
            return []
        if self._untested:
            most = len(self._untested)
            if self._is_doubtful and self._is_probed:
                most = _PROBES - self._new_culprits
            now, self._untested = self._untested[:most], self._untested[most:]
            return now
        if not self._failing or self._failures_left <= 0:
            return []
        if self._is_doubtful and not self._is_probed:
            return self._probes()
        chosen, self._failing = self._failing[: self.width], self._failing[self.width :]
        halves: list[Part] = []
        for part in chosen:
            first = part.records[: (len(part.records) + 1) // 2]
            halves += part.divided(first, part.memory_bytes)
        return halves

    def note_well(self, part: Part) -> None:
        """Record that the hook succeeded on the part."""
        self.well.append(part)
        self._note_probe(part, is_well=True)

    def note_failed(self, part: Part, memory_bytes: int) -> None:
        """Record that the hook failed on the part.

        Args:
            part: Was to be run, or had been recorded as successful.
            memory_bytes: Memory of the last attempt: at least as much is needed.
        """
        if part in self.well:
            self.well.remove(part)
        self._failures_left -= 1
        if len(part.records) == 1:
            self.culprits.append(part)
        else:
            self._fails(Part(part.path, part.records, memory_bytes))
        self._note_probe(part, is_well=False)

    @property
    def unresolved(self) -> list[Part]:
        """Parts on which the hook failed and that were not divided further."""
        return [*self._failing, *self._untested]

    @property
    def is_hopeless(self) -> bool:
        """Whether the hook fails on everything."""
        if not (self._is_doubtful and self._is_probed) or self._divided:
            return False
        # Of few records fewer than three can be run alone; then what is left is run as well.
        return not self._untested or self._new_culprits >= _PROBES

    @property
    def is_conclusive(self) -> bool:
        """Whether particular records cause the failures, and not the hook itself."""
        return bool(self.well) or not any(map(self._is_new, (*self.culprits, *self.unresolved)))

    @property
    def _new_culprits(self) -> int:
        return sum(map(self._is_new, self.culprits))

    @property
    def _is_doubtful(self) -> bool:
        """Whether the failures so far may be the hook's fault."""
        failed = [*filter(self._is_new, self._failing), *filter(self._is_new, self.culprits)]
        return len(failed) > 1 and not self.is_conclusive

    def _is_new(self, part: Part) -> bool:
        """Return whether the hook has not failed on the part's records before."""
        return not self.suspects.issuperset(part.records)

    def _fails(self, part: Part) -> None:
        self._failing.append(part)
        self._failing.sort(key=lambda failing: failing.records[0])

    def _probes(self) -> list[Part]:
        """Return the smallest failed records, which are the likeliest to succeed, each alone."""
        self._is_probed = True
        divided = [_Probed([], part) for part in filter(self._is_new, self._failing)]
        for part in divided:
            self._failing.remove(part.rest)
        wanted = _PROBES - len(self.culprits)
        while wanted > 0 and (rests := [each for each in divided if len(each.rest.records) > 1]):
            # in turns: records that lie side by side may have the same flaw
            least = min(rests, key=lambda each: (len(each.probes), self._smallest(each.rest)))
            least.run_alone(self._smallest(least.rest)[1])
            wanted -= 1
        self._failing += [each.rest for each in divided if not each.probes]
        self._divided = [each for each in divided if each.probes]
        return [probe for each in self._divided for probe in each.probes]

    def _note_probe(self, part: Part, *, is_well: bool) -> None:
        for each in list(self._divided):
            if part in each.probes:
                each.probes.remove(part)
                each.is_failing &= is_well
                if not each.probes:
                    self._divided.remove(each)
                    is_divisible = each.is_failing and len(each.rest.records) > 1
                    (self._fails if is_divisible else self._untested.append)(each.rest)

    def _smallest(self, part: Part) -> tuple[int, int]:
        return min((self.sizes[record], record) for record in part.records)


@dataclass
class _Probed:
    """A failed part, some of whose records are run alone.

    Attributes:
        probes: Those whose end is not known yet.
        rest: The other records.
        is_failing: Whether the hook is known to fail on the rest: it failed on the whole part, and
            on no probe of it.
    """

    probes: list[Part]
    rest: Part
    is_failing: bool = True

    def run_alone(self, record: int) -> None:
        """Run one record of the rest alone."""
        probe, self.rest = self.rest.divided((record,), self.rest.memory_bytes)
        self.probes.append(probe)
