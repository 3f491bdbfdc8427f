"""Dagster's own settings, and the folder where it keeps what it remembers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from warehouse.settings import PROJECT_ROOT, WarehouseError, WarehouseSettings

INSTANCE: Final = Path(__file__).with_name("dagster.yaml")
POSTGRES_STORAGE: Final = """
storage:
  postgres:
    postgres_url:
      env: DAGSTER_POSTGRES_URL
"""


class OrchestrationSettings(BaseSettings):
    """Where Dagster remembers runs, events and schedules, and who is told of problems."""

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        # All are secrets, and Dagster's UI shows the errors of a sensor.
        hide_input_in_errors=True,
    )

    dagster_postgres_url: SecretStr | None = Field(
        default=None,
        description="a postgresql:// URL of a database for Dagster alone; unset: SQLite files",
    )
    slack_webhook_url: SecretStr | None = Field(
        default=None, description="the http:// or https:// URL of an incoming webhook of Slack"
    )
    alert_urls: SecretStr | None = Field(
        default=None, description="URLs of Apprise separated by spaces, for example ntfys://topic"
    )

    @field_validator("dagster_postgres_url")
    @classmethod
    def _url_is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme not in {"postgresql", "postgres"} or not parts.path.strip("/"):
                raise ValueError("it is no postgresql:// URL with a database")
        return url

    @field_validator("slack_webhook_url")
    @classmethod
    def _url_is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("it is no http:// or https:// URL")
        return url

    @field_validator("alert_urls")
    @classmethod
    def _apprise_knows_each(cls, urls: SecretStr | None) -> SecretStr | None:
        from apprise import Apprise  # noqa: PLC0415  (--help is quick)

        for number, url in enumerate(_split(urls), start=1):
            if Apprise.instantiate(url) is None:
                raise ValueError(f"URL {number} in it is none that Apprise can use")
        return urls

    def alert_targets(self) -> list[str]:
        """Return the single URLs of ALERT_URLS."""
        return _split(self.alert_urls)


def _split(urls: SecretStr | None) -> list[str]:
    if urls is None:
        return []
    # A comma may be part of a URL, but not with another URL after it.
    return re.split(r"[,\s]+(?=\w+://)", urls.get_secret_value().strip())


def prepare_home() -> Path:
    """Lay Dagster's configuration where it looks for it, and lead this process there.

    Returns:
        The folder, which is DAGSTER_HOME from now on.

    Raises:
        WarehouseError: it can't be written.

    """
    home = WarehouseSettings().medallion_home / "dagster"
    configuration = INSTANCE.read_text()
    url = OrchestrationSettings().dagster_postgres_url
    if url is not None:
        configuration += POSTGRES_STORAGE
        os.environ["DAGSTER_POSTGRES_URL"] = url.get_secret_value()
    _write(home / "dagster.yaml", configuration)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def prepare_workspace(home: Path, host: str, port: int) -> Path:
    """Write where the definitions are served, under the name that they have everywhere.

    What is remembered of a sensor or a schedule hangs on that name.
    """
    file = home / "workspace.yaml"
    server = {"host": host, "port": port, "location_name": "medallion"}
    # JSON is YAML.
    _write(file, json.dumps({"load_from": [{"grpc_server": server}]}))
    return file


def _write(file: Path, text: str) -> None:
    # At one stroke: several commands may start together.
    written = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text)
        written.replace(file)
    except OSError as error:
        raise WarehouseError(
            f"Dagster can't keep what it remembers in {file.parent} ({error}). Set MEDALLION_HOME "
            "to a folder that can be written."
        ) from None
