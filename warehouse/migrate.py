"""Brings the database to the newest migration, and gives the roles their passwords."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import asyncpg
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import encrypt_password

from warehouse import citus
from warehouse.settings import (
    ConnectionInfo,
    NoDatabaseError,
    Role,
    WarehouseError,
    WarehouseSettings,
)

MIGRATIONS = Path(__file__).parent / "migrations"
OLDEST_SERVER = 150000


async def migrate(settings: WarehouseSettings) -> list[str]:
    """Make the database if there is none, apply what is new, and return its migrations' names.

    Raises:
        WarehouseError: the server is away or too old, the database is newer than this code, or a
            migration failed.

    """
    admin = settings.connection(Role.ADMIN)
    await _prepare_server(settings)
    command = [_dbmate(), "--migrations-dir", str(MIGRATIONS), "--no-dump-schema", "up"]
    # The URL holds the password: it goes by the environment, which `ps` does not show. dbmate also
    # takes settings from there, and from a .env in the current folder: neither is meant for it.
    environment = {name: value for name, value in os.environ.items() if "DBMATE" not in name}
    done = subprocess.run(  # noqa: ASYNC221  (nothing else runs while migrating)
        command,
        env={**environment, "DATABASE_URL": admin.url()},
        cwd=MIGRATIONS,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = (done.stderr or done.stdout).replace(admin.password or "\0", "***").strip()
        raise WarehouseError(f"A migration failed; nothing of it was kept. dbmate says: {told}")
    connection = await admin.connect()
    try:
        if await citus.is_citus(connection):
            await citus.distribute(connection)
    finally:
        await connection.close()
    _give_passwords(admin, settings.passwords())
    return re.findall(r"^Applied: (\S+)", done.stdout, flags=re.MULTILINE)


async def refuse_other_versions(info: ConnectionInfo) -> None:
    """Refuse a database that is older or newer than this code, where it can be asked.

    Who writes must also start while the database is away: no answer refuses nothing.

    Raises:
        WarehouseError: the database is of another version.

    """
    try:
        connection = await info.open()
    except (OSError, TimeoutError, asyncpg.PostgresError):
        # The writer says of it what there is to say, and knows what may pass.
        return
    try:
        applied = await _applied(connection)
    finally:
        await connection.close()
    _refuse_newer(applied, info.database)
    if _ours() - applied:
        raise WarehouseError(
            f"The database {info.database!r} is older than this medallion. Run `medallion migrate`."
        )


def _give_passwords(admin: ConnectionInfo, passwords: Mapping[Role, str]) -> None:
    with (
        closing(psycopg2.connect(admin.url())) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        for role, password in passwords.items():
            # Hashed here, as psql does: a server may log what it is told.
            hashed = encrypt_password(password, role.value, connection, "scram-sha-256")
            statement = sql.SQL("alter role {} login password {}")
            cursor.execute(statement.format(sql.Identifier(role.value), sql.Literal(hashed)))


async def _prepare_server(settings: WarehouseSettings) -> None:
    """Refuse a server that is too old and a database that is newer; make roles for Citus."""
    admin = settings.connection(Role.ADMIN)
    try:
        connection = await admin.connect()
    except NoDatabaseError:
        return
    try:
        version = connection.get_server_version()
        if version.major * 10000 < OLDEST_SERVER:
            raise WarehouseError(
                f"PostgreSQL {version.major} on {admin.host}:{admin.port} is too old: "
                "medallion needs 15 or newer."
            )
        if await citus.is_citus(connection):
            await citus.let_roles_in(connection)
        applied = await _applied(connection)
    finally:
        await connection.close()
    _refuse_newer(applied, admin.database)


async def _applied(connection: citus.Connection) -> set[str]:
    try:
        rows = await connection.fetch("select version from public.schema_migrations")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        # A migration lets the ingester look; a database without it is older.
        return set()
    return {row["version"] for row in rows}


def _refuse_newer(applied: set[str], database: str) -> None:
    newer = sorted(applied - _ours())
    if newer:
        raise WarehouseError(
            f"The database {database!r} has migrations that this medallion does not know "
            f"({', '.join(newer)}): it was made by a newer one. Update medallion."
        )


def _ours() -> set[str]:
    return {path.name.split("_", 1)[0] for path in MIGRATIONS.glob("*.sql")}


def _dbmate() -> str:
    scripts = Path(sysconfig.get_path("scripts"))
    found = shutil.which("dbmate", path=str(scripts)) or shutil.which("dbmate")
    if found:
        return found
    how = (
        "`scoop install dbmate` or `npm install --global dbmate`"
        if sys.platform == "win32"
        else "`uv pip sync requirements.lock`"
    )
    raise WarehouseError(f"dbmate, which applies the migrations, is not installed: run {how}.")
