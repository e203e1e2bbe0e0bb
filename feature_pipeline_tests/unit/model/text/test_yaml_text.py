"""YAML has one meaning for every reader, and its size is bounded before it is expanded."""

import pytest
import yaml

from feature_pipeline.model.text.yaml_text import InvalidYamlError, check_yaml, dump_yaml

BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("scalar", "choices"),
    [
        ("1e-5", "write 1.0e-05 or '1e-5' in quotes"),
        ("-.5", "write -0.5 or '-.5' in quotes"),
        ("1.5e3", "write 1500.0 or '1.5e3' in quotes"),
        ("010", "write 10, 8 or '010' in quotes"),
        ("08", "write 8 or '08' in quotes"),
        ("0o17", "write 15 or '0o17' in quotes"),
        ("0b11", "write 3 or '0b11' in quotes"),
        ("1_000", "write 1000 or '1_000' in quotes"),
        ("12:30:45", "write 45045 or '12:30:45' in quotes"),
        ("yes", "write true or 'yes' in quotes"),
        ("Off", "write false or 'Off' in quotes"),
    ],
)
def test_a_scalar_with_two_meanings_is_refused(scalar: str, choices: str) -> None:
    for text in (f"# first line\nvalue: {scalar}\n", f"\n- [1, {scalar}]", f"\n{scalar}: 1"):
        with pytest.raises(InvalidYamlError) as refused:
            check_yaml(text)
        assert refused.value.line == 2
        assert refused.value.reason.startswith(f"{scalar} is ")
        assert refused.value.reason.endswith(choices)


@pytest.mark.parametrize(
    "scalar",
    [
        "1.0e-5",
        "0.10",
        "10",
        "+1",
        "0x1F",
        ".5",
        "1.",
        ".inf",
        "-.inf",
        ".nan",
        "true",
        "False",
        "null",
        "~",
        "2026-01-31",
        "12",
        "y",
        "nothing",
        "'yes'",
        '"010"',
        "1ubi",
    ],
)
def test_a_scalar_with_one_meaning_is_taken(scalar: str) -> None:
    check_yaml(f"value: {scalar}\n")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BOMB, 5, "more than 100,000 values once aliases are expanded"),
        ("a: 1\nb: &b [1, *b]", 2, "is inside the value that it names"),
        ("a: 1\nb: *c", 2, "c is used before &c is defined"),
        ("a: 1\nb: " + "[" * 100, 2, "nested deeper than 64"),
        ("x" * 1_000_001, 1, "at most 1,000,000"),
        ("a: 1\nb: {c: 1, c: 2}", 2, "'c' occurs twice"),
    ],
)
def test_yaml_is_bounded(text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidYamlError, match=words) as refused:
        check_yaml(text)
    assert refused.value.line == line


def test_aliases_are_taken() -> None:
    check_yaml("limits: &small {cpu: 1}\nmore:\n  <<: *small\n  memory: 1Gi\n---\na: &small 1\n")


def test_what_is_written_means_the_same_to_every_reader() -> None:
    value = {"texts": ["1e-5", "010", "yes", "1_000", "~", "a\nb"], "on": [1e-5, 8, True, None]}
    text = dump_yaml(value)
    check_yaml(text)
    assert yaml.safe_load(text) == value
