"""The `.env` file: what is written is what Dagster and we read."""

import stat
from pathlib import Path

import pytest
from dagster._core.secrets.env_file import get_env_var_dict
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.local.environment import load_dotenv, write_dotenv

VALUES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=40
).filter(lambda text: "${" not in text)


@given(values=st.lists(VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_by_us_and_by_dagsters_parser(
    values: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("env") / ".env"
    env = {f"NAME_{number}": value for number, value in enumerate(values)}
    write_dotenv(path, env)
    assert load_dotenv(path) == env
    assert dict(dotenv_values(path)) == env


def test_the_shell_takes_precedence_over_what_is_written_as_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own commands prefer the file to the shell, unless the file's line prevents it."""
    path = tmp_path / ".env"
    write_dotenv(path, {"A_FOLDER": "/it's here", "B_FOLDER": "/in}side"}, as_defaults=True)
    for values in (load_dotenv(path), get_env_var_dict(str(tmp_path))):
        assert values == {"A_FOLDER": "/it's here", "B_FOLDER": "/in}side"}
    monkeypatch.setenv("A_FOLDER", "/elsewhere")
    for values in (load_dotenv(path), get_env_var_dict(str(tmp_path))):
        assert values["A_FOLDER"] == "/elsewhere"


def test_what_dagster_expands_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".env"
    path.write_text("BASE=/base\nFOLDER='${BASE}/hooks'\nPORT=${OWN_PORT:-80}\nUNSET=${NOWHERE}\n")
    monkeypatch.setenv("BASE", "/shell")
    monkeypatch.setenv("OWN_PORT", "81")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert load_dotenv(path) == get_env_var_dict(str(tmp_path))
    assert load_dotenv(path)["PORT"] == "81"


def test_the_file_is_for_its_owner_only_even_where_one_was_open(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o644)
    write_dotenv(path, {"A": "2"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_lines_stay_and_ours_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nexport MINE='kept'  # why\nA=old")
    write_dotenv(path, {"A": "new"})
    write_dotenv(path, {"A": "newer"})
    text = path.read_text()
    assert text.count("# mine\nexport MINE='kept'  # why\n") == 1
    assert text.count("Written by") == 1
    assert load_dotenv(path) == {"A": "newer", "MINE": "kept"}


@pytest.mark.parametrize("value", ["a\nB=2", "a\rb", "a\0b", "${HOME}"])
def test_a_value_that_the_file_cannot_represent_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / ".env"
    with pytest.raises(InvalidInputError, match="SECRET"):
        write_dotenv(path, {"SECRET": value})
    assert not path.exists()


def test_a_refused_value_is_not_shown(tmp_path: Path) -> None:
    """The variables hold passwords, and error messages are logged."""
    with pytest.raises(InvalidInputError) as caught:
        write_dotenv(tmp_path / ".env", {"SECRET": "hunter2\n"})
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="feature-pipeline dev"):
        load_dotenv(tmp_path / ".env")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\nB='not closed\n")
    with pytest.raises(InvalidInputError, match="line 2"):
        load_dotenv(path)
