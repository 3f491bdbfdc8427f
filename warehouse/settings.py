"""Where the database is and who connects to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import asyncpg
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CONNECT_SECONDS = 10

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


class WarehouseError(Exception):
    """Something about the database that its user can put right; the message says how."""


class NoDatabaseError(WarehouseError):
    """The server is there, the database is not."""


class ArchiveError(Exception):
    """A day could not be archived or restored. It is where it was; the message says what to do."""


class Role(StrEnum):
    """Who connects. Each stage of the way has a role that may do just what the stage needs."""

    ADMIN = "admin"
    """Migrates: PGUSER, or the superuser of the embedded server."""
    INGEST = "medallion_ingest"
    """Appends to bronze."""
    TRANSFORM = "medallion_transform"
    """Reads bronze; owns silver, gold and ops."""
    READER = "medallion_reader"
    """Reads gold and the history of runs and checks: BI tools."""
    ARCHIVE = "medallion_archive"
    """Moves days of bronze to the archive and back; no other role may drop any."""


LOGIN_ROLES = (Role.INGEST, Role.TRANSFORM, Role.READER, Role.ARCHIVE)


@dataclass(frozen=True)
class ConnectionInfo:
    """One way into the database: address, user and password."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    sslmode: SslMode = "prefer"

    def environment(self) -> dict[str, str]:
        """Return it as the variables that libpq, psql, dbt's profile and BI tools read."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.database,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGSSLMODE": self.sslmode,
        }

    def url(self) -> str:
        """Return it as a postgres:// URL, password included: for environments, never for argv."""
        # Go's driver behind dbmate knows no `prefer`.
        loopback = self.host in {"127.0.0.1", "::1", "localhost"}
        sslmode = self.sslmode
        if sslmode in {"prefer", "allow"}:
            sslmode = "disable" if loopback else "require"
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        return (
            f"postgres://{quote(self.user, safe='')}:{quote(self.password, safe='')}"
            f"@{host}:{self.port}/{quote(self.database, safe='')}?sslmode={sslmode}"
        )

    async def open(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open a connection, for callers that judge asyncpg's errors themselves."""
        return await asyncpg.connect(
            host=self.host,
            port=self.port,
            database=self.database,
            user=self.user,
            password=self.password,
            ssl=self.sslmode,
            timeout=CONNECT_SECONDS,
        )

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open a connection.

        Raises:
            WarehouseError: the server can't be reached, or refuses this user or database.

        """
        try:
            return await self.open()
        except asyncpg.InvalidCatalogNameError:
            raise NoDatabaseError(
                f"There is no database {self.database!r} on {self.host}:{self.port}. "
                "Run `medallion migrate` to make it, or set PGDATABASE to another name."
            ) from None
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise WarehouseError(
                f"PostgreSQL on {self.host}:{self.port} refused user {self.user!r}: {error}. "
                "Check PGUSER and PGPASSWORD, or run `medallion migrate` if the role is new."
            ) from None
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
            reason = str(error) or type(error).__name__
            raise WarehouseError(
                f"PostgreSQL can't be reached on {self.host}:{self.port} ({reason}). "
                "Start it (`medallion postgres start` for the embedded one), "
                "or correct PGHOST and PGPORT."
            ) from None
        except asyncpg.PostgresError as error:
            raise WarehouseError(
                f"PostgreSQL on {self.host}:{self.port} opens no connection to the database "
                f"{self.database!r}: {error}. Check PGDATABASE."
            ) from None


class WarehouseSettings(BaseSettings):
    """The database's settings, from the environment and from `.env` in the project's folder."""

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env", env_ignore_empty=True, extra="ignore"
    )

    pghost: str | None = Field(
        default=None, description="a server of your own; unset: the embedded one"
    )
    pgport: int | None = Field(
        default=None, ge=1, le=65535, description="the server's port, from 1 to 65535"
    )
    pgdatabase: str = Field(
        default="crypto_dw", min_length=1, max_length=63, description="a database's name"
    )
    pguser: str = Field(default="postgres", description="who connects to a server of your own")
    pgpassword: SecretStr = Field(default=SecretStr(""), description="the password of PGUSER")
    pgsslmode: SslMode = Field(
        default="prefer",
        description="one of disable, allow, prefer, require, verify-ca, verify-full",
    )
    medallion_ingest_password: SecretStr | None = Field(
        default=None, description="the password that medallion_ingest gets and uses"
    )
    medallion_transform_password: SecretStr | None = Field(
        default=None, description="the password that medallion_transform gets and uses"
    )
    medallion_reader_password: SecretStr | None = Field(
        default=None, description="the password that medallion_reader gets and uses"
    )
    medallion_archive_password: SecretStr | None = Field(
        default=None, description="the password that medallion_archive gets and uses"
    )
    medallion_home: Path = Field(
        default=PROJECT_ROOT / ".medallion", description="a folder for the embedded server"
    )
    medallion_bronze_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="days that bronze keeps before today, from 1 to 36500; unset: for ever",
    )
    medallion_archive_url: str = Field(
        default=".medallion/archive",
        min_length=1,
        description="a folder, or a URL that fsspec knows, for example s3://bucket/medallion",
    )

    @field_validator("medallion_home")
    @classmethod
    def _from_the_project(cls, home: Path) -> Path:
        """Take a relative folder from the project's, whichever the current one is."""
        return (PROJECT_ROOT / home.expanduser()).resolve()

    @field_validator("medallion_archive_url")
    @classmethod
    def _folder_or_url(cls, url: str) -> str:
        """Take a relative folder from the project's; the database remembers whole addresses."""
        if "://" not in url:
            return (PROJECT_ROOT / Path(url).expanduser()).as_posix()
        if "@" in urlsplit(url).netloc:
            raise ValueError(
                "it holds a user name or a password, which would be stored with each file; give "
                "them as the environment variables of its file system"
            )
        return url.rstrip("/")

    @property
    def embedded(self) -> bool:
        """Whether the embedded server is used: PGHOST is unset, or `medallion env` set it."""
        if self.pghost is None:
            return True
        if not self.credentials_file.exists():
            return False
        return (self.pghost, self.pgport) == ("127.0.0.1", self._credentials()["port"])

    @property
    def credentials_file(self) -> Path:
        """Port and passwords of the embedded server (mode 0600)."""
        return self.medallion_home / "credentials.json"

    def passwords(self) -> dict[Role, str]:
        """Return the passwords that `medallion migrate` gives to the login roles."""
        if self.embedded:
            stored: dict[str, str] = self._credentials()["passwords"]
            return {role: stored[role] for role in LOGIN_ROLES if role in stored}
        given = {
            Role.INGEST: self.medallion_ingest_password,
            Role.TRANSFORM: self.medallion_transform_password,
            Role.READER: self.medallion_reader_password,
            Role.ARCHIVE: self.medallion_archive_password,
        }
        return {role: secret.get_secret_value() for role, secret in given.items() if secret}

    def connection(self, role: Role) -> ConnectionInfo:
        """Return how `role` connects.

        On a server of your own (PGHOST), a role without a password of its own setting connects as
        PGUSER: a container is given only the user that it needs.

        Raises:
            WarehouseError: there is no embedded server yet, or it is from before this role.
        """
        if self.embedded:
            credentials = self._credentials()
            if role not in credentials["passwords"]:
                raise WarehouseError(f"{role} is new here. Run `medallion migrate` to make it.")
            user = "postgres" if role is Role.ADMIN else role.value
            return ConnectionInfo(
                host="127.0.0.1",
                port=credentials["port"],
                database=self.pgdatabase,
                user=user,
                password=credentials["passwords"][role.value],
                sslmode="disable",
            )
        password = self.passwords().get(role)
        return ConnectionInfo(
            host=self.pghost or "",
            port=self.pgport or 5432,
            database=self.pgdatabase,
            user=self.pguser if password is None else role.value,
            password=self.pgpassword.get_secret_value() if password is None else password,
            sslmode=self.pgsslmode,
        )

    def _credentials(self) -> dict[str, Any]:
        try:
            return read_credentials(self.credentials_file)
        except FileNotFoundError:
            raise WarehouseError(
                "There is no database yet. Run `medallion demo` to see everything run, or "
                "`medallion postgres start` and `medallion migrate`; or set PGHOST to use a "
                "PostgreSQL of your own."
            ) from None


def read_credentials(file: Path) -> dict[str, Any]:
    """Read the port and passwords of the embedded server.

    Raises:
        FileNotFoundError: there is no such file.
        WarehouseError: it is no longer what was written.

    """
    try:
        credentials: dict[str, Any] = json.loads(file.read_text())
        str(credentials["passwords"][Role.ADMIN])
        int(credentials["port"])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WarehouseError(
            f"{file}, which holds the passwords of the embedded server, can't be read "
            f"({error.strerror}). It belongs to whoever started the server; MEDALLION_HOME names "
            "another folder."
        ) from None
    except (ValueError, TypeError, KeyError):
        raise WarehouseError(
            f"{file}, which holds the passwords of the embedded server, is damaged. Put it back, "
            f"or stop the server, remove {file.parent} and begin anew."
        ) from None
    return credentials
