"""One server of each kind for all tests, and a fresh migrated database for each test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import structlog

from ingestion.settings import IngestionSettings
from medallion.dbt import install_packages
from orchestration.settings import OrchestrationSettings
from warehouse.embedded import BINARIES, EmbeddedServer
from warehouse.migrate import migrate
from warehouse.settings import ConnectionInfo, Role, WarehouseSettings

if TYPE_CHECKING:
    from tests.dbt.conftest import Dbt, Lakehouse

ROOT = Path(__file__).resolve().parents[1]
SYSTEM_BINARIES = Path("/usr/lib/postgresql/15/bin")
TEMPLATE = "medallion_template"
SETTINGS = (WarehouseSettings, IngestionSettings, OrchestrationSettings)
SECONDS = 120
"""How long a test waits for anything; a process that is still there then is killed."""
ROLE_NAMES = {"medallion_owner": Role.ADMIN, "postgres": Role.ADMIN} | {
    role.value: role for role in Role
}


def pytest_configure(config: pytest.Config) -> None:
    """Put dbt's packages in place once, ahead of the workers that read them."""
    # A shell has its background jobs ignore it, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        install_packages()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Keep the developer's own environment and `.env` out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        ours = {name for kind in SETTINGS for name in kind.model_fields}
        for name in list(os.environ):
            if name.startswith("PG") or name.lower() in ours:
                patch.delenv(name)
        for kind in SETTINGS:
            patch.setitem(kind.model_config, "env_file", None)
        yield


@pytest.fixture(autouse=True)
def _spool_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test, nor any process that it starts, save what waits in another's spool."""
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """Let no test log to what another took for standard error: that is closed by then."""
    yield
    structlog.reset_defaults()


@dataclass
class Command:
    """A running `medallion` command, and what it has said on standard error."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return " ".join(self.log.read_text().split())

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended early: {self.said}"
            assert time.monotonic() < until, f"waited too long: {self.said}"
            time.sleep(0.05)

    def wait_for_event(self, name: str, times: int = 1) -> None:
        self.wait_for(lambda: [e["event"] for e in self.events()].count(name) >= times)

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture
def medallion(tmp_path: Path) -> Callable[..., Any]:
    """Start commands with the given environment, and nothing of the developer's."""

    @contextmanager
    def start(*arguments: str, **variables: str) -> Iterator[Command]:
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        log = tmp_path / f"{time.monotonic_ns()}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "medallion", *arguments],
                env={**kept, **variables},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        try:
            yield Command(process, log)
        finally:
            process.kill()
            process.wait()

    return start


@dataclass(frozen=True)
class Database:
    """A database of a test: named alike in all tests, for dbt writes the name into its manifest."""

    settings: WarehouseSettings

    @property
    def name(self) -> str:
        return self.settings.pgdatabase

    @property
    def host(self) -> str:
        return self.info("admin").host

    @property
    def port(self) -> int:
        return self.info("admin").port

    def environment(self) -> dict[str, str]:
        """Return what leads a process here, whatever a developer's `.env` says."""
        return {
            "MEDALLION_HOME": str(self.settings.medallion_home),
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.name,
        }

    def password(self, role: str) -> str:
        return self.info(role).password

    def info(self, role: str) -> ConnectionInfo:
        return self.settings.connection(ROLE_NAMES[role])

    def dsn(self, role: str) -> str:
        return self.info(role).url()

    async def connect(self, role: str) -> asyncpg.Connection[asyncpg.Record]:
        return await self.info(role).connect()

    def fetch(self, query: str, *arguments: Any, role: str = "admin") -> list[asyncpg.Record]:
        """Run one query from a test that is not asynchronous."""

        async def run() -> list[asyncpg.Record]:
            connection = await self.connect(role)
            try:
                return await connection.fetch(query, *arguments)
            finally:
                await connection.close()

        return asyncio.run(run())

    def execute(self, script: str, role: str = "admin") -> None:
        async def run() -> None:
            connection = await self.connect(role)
            try:
                await connection.execute(script)
            finally:
                await connection.close()

        asyncio.run(run())


@dataclass(frozen=True, eq=False)
class Server:
    settings: WarehouseSettings
    embedded: EmbeddedServer

    def maintain(self, *statements: str) -> None:
        info = replace(self.settings.connection(Role.ADMIN), database="postgres")

        async def run() -> None:
            connection = await info.connect()
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def fresh_database(self, template: str = TEMPLATE) -> Database:
        """Make the tests' database anew, as a copy of another."""
        self.maintain(
            "drop database if exists crypto_dw with (force)",
            f"create database crypto_dw template {template}",
            # What a migration says of its database is not copied with it.
            "alter database crypto_dw set timezone to 'UTC'",
            "alter database crypto_dw set jit to off",
            "revoke all on database crypto_dw from public",
            "grant connect on database crypto_dw "
            "to medallion_owner, medallion_ingest, medallion_transform, medallion_reader, "
            "medallion_archive",
            "grant temporary on database crypto_dw to medallion_transform",
        )
        return Database(self.settings.model_copy(update={"pgdatabase": "crypto_dw"}))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what touches the database on each PostgreSQL that is here; dbt's scenarios on one."""
    if "server" not in metafunc.fixturenames:
        return
    servers = [pytest.param(BINARIES, id="postgres18")]
    one_is_enough = metafunc.definition.get_closest_marker("postgres18_only")
    if not one_is_enough:
        missing = not (SYSTEM_BINARIES / "initdb").exists()
        skip = pytest.mark.skipif(missing, reason=f"no PostgreSQL 15 in {SYSTEM_BINARIES}")
        servers.append(pytest.param(SYSTEM_BINARIES, id="postgres15", marks=skip))
    metafunc.parametrize("server", servers, indirect=True, scope="session")


@contextmanager
def running_server(binaries: Path) -> Iterator[Server]:
    # Not pytest's own folder: each pytest on the machine closes that to other users again.
    home = Path(tempfile.mkdtemp(prefix="medallion-"))
    settings = WarehouseSettings(medallion_home=home, pgdatabase=TEMPLATE)
    embedded = EmbeddedServer(home, settings.credentials_file, binaries=binaries)
    embedded.start()
    try:
        asyncio.run(migrate(settings))
        running = Server(settings, embedded)
        # Nothing here survives the machine, so nothing waits for its disk.
        running.maintain("alter system set fsync = off", "select pg_reload_conf()")
        yield running
    finally:
        embedded.stop()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[Path], Server]]:
    """Start each PostgreSQL when it is first asked for, and keep it.

    A fixture with parameters would be made anew, file by file, and dbt's manifest with it.
    """
    with ExitStack() as stack:
        yield cache(lambda binaries: stack.enter_context(running_server(binaries)))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, servers: Callable[[Path], Server]) -> Server:
    """A PostgreSQL of each supported kind that is here, with a migrated template database."""
    return servers(request.param)


@pytest.fixture
def database(server: Server) -> Database:
    """A fresh migrated database."""
    return server.fresh_database()


@pytest.fixture(scope="session")
def dbts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Server], Dbt]:
    """Make dbt for a server when it is first asked for, and keep it."""
    from tests.dbt.conftest import Dbt  # noqa: PLC0415  (takes seconds to import)

    return cache(lambda server: Dbt(server, tmp_path_factory.mktemp("target")))


@pytest.fixture(scope="session")
def dbt(server: Server, dbts: Callable[[Server], Dbt]) -> Dbt:
    """dbt in this process, with one manifest for all tests of a server."""
    return dbts(server)


@pytest.fixture
def lakehouse(database: Database, dbt: Dbt) -> Lakehouse:
    """A fresh database, with dbt to build it."""
    from tests.dbt.conftest import Lakehouse  # noqa: PLC0415  (takes seconds to import)

    return Lakehouse(database, dbt)


@pytest.fixture(scope="session")
def recorded_frames() -> Callable[[str], list[bytes]]:
    """Read a file of recorded frames from `../shared/data`, or skip where it is not there."""

    def read(name: str) -> list[bytes]:
        path = ROOT.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"no recorded frames: {path.parent} is not there")
        return path.read_bytes().splitlines()

    return read


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command for a tmpfs")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a tmpfs can't be mounted: {error.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607  (wherever it is)
