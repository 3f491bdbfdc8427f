"""Dagster's own settings, and the folder where it keeps what it remembers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from warehouse.settings import PROJECT_ROOT, WarehouseSettings

INSTANCE: Final = Path(__file__).with_name("dagster.yaml")
POSTGRES_STORAGE: Final = """
storage:
  postgres:
    postgres_url:
      env: DAGSTER_POSTGRES_URL
"""


class OrchestrationSettings(BaseSettings):
    """Where Dagster remembers runs, events and schedules."""

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env", env_ignore_empty=True, extra="ignore"
    )

    dagster_postgres_url: SecretStr | None = Field(
        default=None,
        description="a postgresql:// URL of a database for Dagster alone; unset: SQLite files",
    )


def prepare_home() -> Path:
    """Lay Dagster's configuration where it looks for it, and lead this process there.

    Returns:
        The folder, which is DAGSTER_HOME from now on.

    """
    home = WarehouseSettings().medallion_home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    configuration = INSTANCE.read_text()
    url = OrchestrationSettings().dagster_postgres_url
    if url is not None:
        configuration += POSTGRES_STORAGE
        os.environ["DAGSTER_POSTGRES_URL"] = url.get_secret_value()
    # At one stroke: `medallion transform` and `medallion dagster` may start together.
    written = home / f"dagster.yaml.{os.getpid()}"
    written.write_text(configuration)
    written.replace(home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home
