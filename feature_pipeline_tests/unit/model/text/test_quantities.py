import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.quantities import (
    format_size,
    parse_cpu,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512Mi", 512 * 1024**2),
        ("1Gi", 1024**3),
        ("1.5Gi", 3 * 1024**3 // 2),
        ("2G", 2 * 10**9),
        ("100k", 10**5),
        ("100K", 10**5),
        ("1Ki", 1024),
        ("3Ti", 3 * 1024**4),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "1", "Gi", "-1Gi", "1 Gi", "1gb", "1ki", "0Gi", "٣Gi", "1Gi\n"]
)
def test_what_is_no_size(text):
    with pytest.raises(InvalidInputError, match="write 512Mi"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("0.5s", 0.5)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "1h30m", "0s", "-1s", "1w", "1H"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInputError, match="write 30s"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "cores"), [("2", 2), ("0.5", 0.5), ("500m", 0.5), ("1500m", 1.5)])
def test_cpus(text, cores):
    assert parse_cpu(text) == cores


@pytest.mark.parametrize("text", ["", "0", "0m", "-1", "1.5m", "two", "1e3"])
def test_what_is_no_cpu(text):
    with pytest.raises(InvalidInputError, match=r"write 2, 0\.5 or 500m"):
        parse_cpu(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1, "1B"), (1024, "1Ki"), (1536 * 1024**2, "1.5Gi"), (1023, "1023B")],
)
def test_sizes_for_people(size, text):
    assert format_size(size) == text
