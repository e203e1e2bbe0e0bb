import shutil
from pathlib import Path

import dagster as dg
import pytest

from feature_pipeline.errors import InvalidInputError

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "DAGSTER_DATABASE_URL is not set: `feature-pipeline dev` starts local servers"),
        ("postgresql://u:p@h/d", r"begins with 'postgresql': write postgresql\+psycopg2://"),
    ],
)
def test_without_a_database_the_error_names_the_variable(monkeypatch, tmp_path, url, message):
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.delenv("DAGSTER_DATABASE_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    with (
        pytest.raises(InvalidInputError, match=message),
        dg.DagsterInstance.from_config(str(tmp_path)),
    ):
        pass
