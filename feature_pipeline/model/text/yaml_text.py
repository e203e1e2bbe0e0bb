"""Check that YAML text is unambiguous and bounded.

Dagster reads YAML 1.1; editors and other programs read YAML 1.2. A scalar that the two read
differently is refused with its line, so that `1e-5` is never text and `010` never 8. Aliases are
counted before anything expands them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.quoting import quoted

MAX_CHARACTERS: Final = 1_000_000
MAX_VALUES: Final = 100_000
"""Maximum number of keys and values of a document, counting those of aliases at every use."""
MAX_DEPTH: Final = 64

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUE_OR_FALSE: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL: Final = re.compile(r"null|Null|NULL|~|")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_BASED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAY_DIFFER: Final = frozenset("-+.0123456789yYnNoO")
"""First characters of scalars that the two versions may read differently."""
_MAX_DIGITS: Final = 400
"""Longer numbers are the same in both versions, or are refused where they are used."""
_SHOWN: Final = 40


class InvalidYamlError(InvalidInputError):
    """The text is refused; `line` is the place, counted from 1."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def check_yaml(text: str, *, strict: bool = True) -> None:
    """Check that the text is small enough, and each of its scalars means the same in 1.1 and 1.2.

    Nothing is expanded or nested on the way: time and memory grow with the text alone.

    Args:
        text: One or more documents.
        strict: Also refuse ambiguous scalars and duplicate keys.

    Raises:
        InvalidYamlError: With the line and what would be right.
        yaml.YAMLError: It is not YAML.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidYamlError(
            f"{len(text):,} characters: at most {MAX_CHARACTERS:,}; put data into a file of `code`",
            1,
        )
    _Check(strict).read(yaml.parse(text, Loader=_LOADER))


def dump_yaml(value: object) -> str:
    """Write a value as YAML that means the same in 1.1 and 1.2."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


@dataclass(slots=True)
class _Open:
    """A mapping or list that has not ended yet."""

    anchor: str | None
    is_mapping: bool
    line: int
    values: int = 1
    at_key: bool = True
    keys: set[str] = field(default_factory=set)


class _Check:
    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._open: list[_Open] = []
        self._sizes: dict[str, int | None] = {}
        self._values = 0

    def read(self, events: Iterator[yaml.Event]) -> None:
        for event in events:
            line = 1 if event.start_mark is None else event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._sizes = {}
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
                self._add(1, event.anchor, line)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(str(event.anchor), line)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(self._open) >= MAX_DEPTH:
                    raise InvalidYamlError(f"nested deeper than {MAX_DEPTH}", line)
                if event.anchor is not None:
                    self._sizes[event.anchor] = None
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                self._open.append(_Open(event.anchor, is_mapping, line))
            elif isinstance(event, yaml.CollectionEndEvent):
                closed = self._open.pop()
                self._add(closed.values, closed.anchor, closed.line)

    def _alias(self, anchor: str, line: int) -> None:
        if anchor not in self._sizes:
            raise InvalidYamlError(f"*{anchor} is used before &{anchor} is defined", line)
        size = self._sizes[anchor]
        if size is None:
            raise InvalidYamlError(f"*{anchor} is inside the value that it names", line)
        self._add(size, None, line)

    def _add(self, size: int, anchor: str | None, line: int) -> None:
        """Count a finished value with its parent."""
        if anchor is not None:
            self._sizes[anchor] = size
        parent = self._open[-1] if self._open else None
        if parent is None:
            self._values += size
            total = self._values
        else:
            parent.values += size
            parent.at_key = not parent.at_key
            total = parent.values
        if total > MAX_VALUES:
            raise InvalidYamlError(
                f"more than {MAX_VALUES:,} values once aliases are expanded: write fewer aliases"
                " of aliases",
                line,
            )

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if not self._strict:
            return
        parent = self._open[-1] if self._open else None
        if parent is not None and parent.is_mapping and parent.at_key:
            if event.value in parent.keys:
                raise InvalidYamlError(f"{quoted(repr(event.value), _SHOWN)} occurs twice", line)
            parent.keys.add(event.value)
        # A quoted or tagged scalar has its meaning from that.
        if event.implicit[0] and (reason := _two_meanings(event.value)) is not None:
            raise InvalidYamlError(reason, line)


def _two_meanings(text: str) -> str | None:
    """Return how 1.1 and 1.2 read a plain scalar and what to write; None if they agree."""
    if text[:1] not in _MAY_DIFFER or len(text) > _MAX_DIGITS:
        return None
    old, new = _read_1_1(text), _read_1_2(text)
    if type(old) is type(new) and (old == new or _are_nan(old, new)):
        return None
    numbers = [value for value in (old, new) if isinstance(value, int | float)]
    words = {_written(value) for value in numbers} - {text}
    choices = [*sorted(words), f"'{text}' in quotes"]
    return (
        f"{text} is {_described(old)} by YAML 1.1, which Dagster reads, and {_described(new)} by"
        f" YAML 1.2: write {', '.join(choices[:-1])} or {choices[-1]}"
    )


def _read_1_1(text: str) -> object:
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    if tag == "tag:yaml.org,2002:timestamp":  # Dagster reads dates as text
        return text
    node = yaml.ScalarNode(tag, text)
    try:
        return _RESOLVER.construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        return text


def _read_1_2(text: str) -> object:
    """Return the core schema of YAML 1.2.2, section 10.3.2."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE_OR_FALSE.fullmatch(text):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _are_nan(*values: object) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)


def _described(value: object) -> str:
    if isinstance(value, bool):
        return _written(value)
    return "text" if isinstance(value, str) else f"the number {_written(value)}"


def _written(value: object) -> str:
    return str(yaml.safe_dump(value)).partition("\n")[0]


_RESOLVER: Final[Any] = yaml.SafeLoader("")


class _Dumper(yaml.SafeDumper):
    """Quotes texts that are text in only one of the two versions."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if "\n" not in text and not isinstance(_read_1_2(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
