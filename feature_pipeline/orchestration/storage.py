"""Dagster's own storage, in the PostgreSQL that the environment names.

Dagster's `env:` in dagster.yaml says only that a variable is not set; a newcomer needs to hear what
sets it.
"""

from collections.abc import Mapping
from typing import Any, Self

from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from feature_pipeline import settings


class EnvironmentStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` at the address in `DAGSTER_DATABASE_URL`."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing is configured: the address comes from the environment."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """The storage.

        Raises:
            InvalidInputError: The variable is not set, or names another driver.
        """
        return cls(postgres_url=settings.dagster_database_url(), inst_data=inst_data)
