"""Sizes, durations and processor counts in the notation of definitions."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.quoting import quoted

_BYTES: Final = {
    suffix: base**power
    for base, suffixes in ((1000, "KMGT"), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, suffix in enumerate(suffixes, 1)
} | {"k": 1000}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST_BYTES: Final = 1 << 60
"""Eight times as much, to which a run's memory is raised, still is an integer of 64 bits."""
_MOST_SECONDS: Final = 36_500 * 86_400
_MOST_CORES: Final = 1_000_000
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([KMGT]i?|k)", re.ASCII)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_CPU: Final = re.compile(r"\d+m|\d+(?:\.\d+)?", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `512Mi` (1024-based) or `2G` (1000-based).

    Raises:
        InvalidInputError: `text` is anything else, less than a byte or more than 2^60.
    """
    match = _SIZE.fullmatch(text)
    size = float(match[1]) * _BYTES[match[2]] if match else 0.0
    if not 1 <= size <= _MOST_BYTES:
        raise InvalidInputError(
            f"{quoted(text)!r} is not a size of 1 byte to 1024 Pi: write 512Mi, 1Gi or 2G"
        )
    return int(size)


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `30s`, `10m`, `2h` or `1d`.

    Raises:
        InvalidInputError: `text` is anything else, zero, or more than a century.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise InvalidInputError(
            f"{quoted(text)!r} is not a duration of at most 36500d: write 30s, 10m or 2h"
        )
    return seconds


def parse_cpu(text: str) -> float:
    """Return the cores of `2`, `0.5` or `500m` (thousandths).

    Raises:
        InvalidInputError: `text` is anything else, zero, or more than a million.
    """
    cores = 0.0
    if _CPU.fullmatch(text):
        cores = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    if not 0 < cores <= _MOST_CORES:
        raise InvalidInputError(
            f"{quoted(text)!r} is not a number of at most {_MOST_CORES:,} cores: write 2, 0.5 or"
            " 500m"
        )
    return cores


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` in the largest 1024-based unit that keeps three digits: `1.5Gi`."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "Ki", "Mi", "Gi", "Ti"):
        if value < 1024 or unit == "Ti":
            break
        value /= 1024
    return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def _as_written(value: object) -> object:
    # YAML reads a bare `2` or `0.5` as a number
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _check_size(text: str) -> str:
    parse_size(text)
    return text


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


def _check_cpu(text: str) -> str:
    parse_cpu(text)
    return text


# `dg check yaml` looks at the file before YAML's numbers become text.
_WRITTEN: Final = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})

Size = Annotated[str, BeforeValidator(_as_written), AfterValidator(_check_size), _WRITTEN]
Duration = Annotated[str, BeforeValidator(_as_written), AfterValidator(_check_duration), _WRITTEN]
Cpu = Annotated[str, BeforeValidator(_as_written), AfterValidator(_check_cpu), _WRITTEN]
