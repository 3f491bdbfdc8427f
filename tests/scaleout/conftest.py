"""A Citus cluster of one's own, and a lakehouse on it: MEDALLION_CITUS_URL says where."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from tests.conftest import SECONDS, Database, Server
from tests.faults.world import QUICK, SHORT, World
from warehouse.migrate import migrate
from warehouse.settings import ConnectionInfo, WarehouseSettings

if TYPE_CHECKING:
    from tests.dbt.conftest import Dbt, Lakehouse

CITUS_URL = "MEDALLION_CITUS_URL"
OURS = "tests of medallion"
"""The comment of the database that the tests may drop."""

VERSIONS = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Tell which versions the suite has run on."""
    if VERSIONS in config.stash:
        terminalreporter.write_line(config.stash[VERSIONS])


@dataclass(frozen=True)
class Worker:
    """A worker of the cluster, which can be killed where it runs on this machine."""

    info: ConnectionInfo
    data: Path

    def kill(self) -> list[str]:
        """Kill the server and return the command that it ran by."""
        if not (self.data / "postmaster.pid").exists():
            pytest.skip(f"the worker's folder {self.data} is not on this machine")
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        os.kill(pid, signal.SIGKILL)
        return command

    def start(self, command: list[str]) -> None:
        """Start it again as it was, once nothing of the killed server is left."""
        owner = self.data.stat()
        until = time.monotonic() + SECONDS
        while not self._answers():
            assert time.monotonic() < until
            # In a session of its own: it outlives the tests.
            subprocess.run(
                ["setsid", "--fork", *command],  # noqa: S607  (wherever it is)
                check=True,
                user=owner.st_uid,
                group=owner.st_gid,
                extra_groups=[],
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(1)

    def _answers(self) -> bool:
        async def ask() -> None:
            await (await self.info.open()).close()

        try:
            asyncio.run(ask())
        except (OSError, asyncpg.PostgresError):
            return False
        return True


@dataclass(frozen=True)
class Citus:
    """A coordinator and its workers."""

    settings: WarehouseSettings
    coordinator: ConnectionInfo
    address: tuple[str, int]
    """Of the coordinator, as the workers know it."""
    workers: tuple[Worker, ...]

    def fresh_database(self) -> Database:
        """Make the tests' database anew on every node, and migrate it."""
        asyncio.run(self._make_database())
        settings = self.settings.model_copy(update={"pgdatabase": "crypto_dw"})
        asyncio.run(migrate(settings))
        return Database(settings)

    async def _make_database(self) -> None:
        nodes = [self.coordinator, *(worker.info for worker in self.workers)]
        for node in nodes:
            await self._drop(node)
        for node in reversed(nodes):
            await _run(
                node, "create database crypto_dw", f"comment on database crypto_dw is '{OURS}'"
            )
            await _run(_in_database(node), "create extension citus")
        join = [f"select citus_set_coordinator_host('{self.address[0]}', {self.address[1]})"]
        join += [
            f"select citus_add_node('{worker.info.host}', {worker.info.port})"
            for worker in self.workers
        ]
        await _run(_in_database(self.coordinator), *join)

    async def _drop(self, node: ConnectionInfo) -> None:
        connection = await node.open()
        try:
            found = await connection.fetch(
                "select shobj_description(oid, 'pg_database') as comment from pg_database "
                "where datname = 'crypto_dw'"
            )
        finally:
            await connection.close()
        if found and found[0]["comment"] != OURS:
            pytest.fail(f"{node.host}:{node.port} has a database crypto_dw that is not the tests'.")
        if found:
            await _run(node, "drop database crypto_dw with (force)")


async def _run(node: ConnectionInfo, *statements: str) -> None:
    connection = await node.open()
    try:
        # Each node's database is made by itself.
        await connection.execute("set citus.enable_ddl_propagation = off")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _in_database(node: ConnectionInfo) -> ConnectionInfo:
    return replace(node, database="crypto_dw")


@pytest.fixture(scope="session")
def citus(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Citus:
    """The cluster of MEDALLION_CITUS_URL: any database of it with Citus and its workers."""
    url = os.environ.get(CITUS_URL)
    if url is None:
        pytest.skip(f"{CITUS_URL} is unset: it takes the URL of a superuser on a coordinator")
    parts = urlsplit(url)
    database, user = parts.path[1:] or "postgres", unquote(parts.username or "postgres")
    password = unquote(parts.password or "")
    host, port = parts.hostname or "127.0.0.1", parts.port or 5432
    coordinator = ConnectionInfo(host, port, database, user, password)

    async def look() -> tuple[list[asyncpg.Record], list[str]]:
        connection = await coordinator.open()
        try:
            nodes = await connection.fetch(
                "select nodename, nodeport, groupid from pg_dist_node "
                "where noderole = 'primary' order by groupid"
            )
            versions = await connection.fetchrow("select citus_version(), version()")
        finally:
            await connection.close()
        assert versions is not None
        return nodes, [cast("str", value).split(" on ")[0] for value in versions]

    async def worker(node: asyncpg.Record) -> Worker:
        info = ConnectionInfo(node["nodename"], node["nodeport"], database, user, password)
        connection = await info.open()
        try:
            return Worker(info, Path(await connection.fetchval("show data_directory")))
        finally:
            await connection.close()

    nodes, versions = asyncio.run(look())
    request.config.stash[VERSIONS] = f"{', '.join(versions)}; {len(nodes) - 1} workers"
    passwords = {
        f"medallion_{role}_password": secrets.token_urlsafe(12)
        for role in ("ingest", "transform", "reader", "archive")
    }
    settings = WarehouseSettings(
        medallion_home=tmp_path_factory.mktemp("home"),
        pghost=host,
        pgport=port,
        pguser=user,
        pgpassword=password,
        **passwords,
    )
    return Citus(
        settings,
        coordinator,
        (nodes[0]["nodename"], nodes[0]["nodeport"]),
        tuple(asyncio.run(worker(node)) for node in nodes[1:]),
    )


@pytest.fixture(scope="session")
def citus_dbt(citus: Citus, tmp_path_factory: pytest.TempPathFactory) -> Dbt:
    """dbt in this process."""
    from tests.dbt.conftest import Dbt  # noqa: PLC0415  (takes seconds to import)

    return Dbt(cast("Server", citus), tmp_path_factory.mktemp("target"))


@pytest.fixture
def spread(citus: Citus, citus_dbt: Dbt) -> Lakehouse:
    """A fresh database on the cluster, with dbt to build it."""
    from tests.dbt.conftest import Lakehouse  # noqa: PLC0415  (takes seconds to import)

    return Lakehouse(citus.fresh_database(), citus_dbt)


@pytest.fixture
def world(
    spread: Lakehouse, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    """An exchange and ingesters in front of the cluster."""
    for name, value in QUICK.items():
        monkeypatch.setattr(name, value)
    return World(SHORT, server, spread, tmp_path)
