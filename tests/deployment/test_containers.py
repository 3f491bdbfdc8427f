"""The stack of docker-compose.yml, each service as in its container, but without an engine.

Command, environment, user, volumes, read-only root and health check are those of the file, and
bubblewrap makes the place. Substituted are hosts, ports, and where the image has the project. The
database is the tests' own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, SECONDS, Database, Server
from tests.deployment.conftest import Resolve
from warehouse.embedded import BINARIES
from warehouse.settings import Role

pytestmark = [pytest.mark.postgres18_only, pytest.mark.timeout(600)]

START_SECONDS = 150
"""How long the file lets a service begin: its start_period, and a check after it."""

PORTS = ("3000", "4000", "8501", "9464")
HOSTS = re.compile(r"^(dagster-code(?=:)|0\.0\.0\.0$)")

LOCATIONS = (
    "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"
)


def image_environment() -> dict[str, str]:
    """Return what the last stage of the Dockerfile sets."""
    stage = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    lines = re.findall(r"(?m)^ENV ((?:.*\\\n)*.*)$", stage)
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(lines)))


class Containers:
    """Runs what the services run.

    Args:
        services: as docker-compose resolves them.
        folder: holds the volumes and the logs.
        ports: which port stands here for one of the file.

    """

    def __init__(self, services: dict[str, Any], folder: Path, ports: dict[str, str]) -> None:
        self.services = services
        self.ports = ports
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        entrypoint = ("python", "-m", "medallion")
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                self._inside(name, [*entrypoint, *self.services[name]["command"]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_healthy(self, name: str) -> None:
        kind, *check = self.services[name]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            check = ["sh", "-c", check[0].replace("$$", "$")]
        until = time.monotonic() + START_SECONDS
        while (done := self._run(name, check)).returncode:
            ended = name in self._running and self._running[name].poll() is not None
            assert not ended, self.said(name)
            assert time.monotonic() < until, done.stderr + self.said(name)
            time.sleep(0.5)

    def wait_until_completed(self, name: str) -> None:
        assert self._running.pop(name).wait(SECONDS) == 0, self.said(name)

    def said(self, name: str) -> str:
        log = self._folder / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def end(self) -> None:
        for process in self._running.values():
            # Takes along all that runs in it.
            process.kill()
            process.wait()

    def _run(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(name, command), capture_output=True, text=True, check=False
        )

    def _inside(self, name: str, command: list[str]) -> list[str]:
        service = self.services[name]
        user = service["user"].replace("postgres", "999")
        place = [
            *("bwrap", "--unshare-pid", "--die-with-parent", "--clearenv"),
            *("--unshare-user", "--uid", user, "--gid", user, "--cap-drop", *service["cap_drop"]),
            *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
            *("--tmpfs", "/var/lib", "--tmpfs", "/run"),
        ]
        for mount in service["tmpfs"]:
            path = self._here(mount.partition(":")[0])
            # The project may lie in a folder that a tmpfs hides.
            project = ["--ro-bind", str(ROOT), str(ROOT)] if path == "/tmp" else []  # noqa: S108
            place += ["--perms", "1777", "--tmpfs", path, *project]
        for mount in service.get("volumes", []):
            volume, path, _ = mount.split(":")
            (self._folder / volume).mkdir(exist_ok=True)
            place += ["--bind", str(self._folder / volume), path]
        assert service["read_only"]
        place += ["--remount-ro", "/var/lib", "--remount-ro", "/run"]
        own = {
            key: str(value) for key, value in service["environment"].items() if value is not None
        }
        image = image_environment() if "build" in service else {"PGPORT": "5432"}
        variables = {
            key: value if key.endswith("PASSWORD") else self._here(value)
            for key, value in (image | own).items()
        }
        variables["PGHOST"] = "127.0.0.1"
        variables["PATH"] = f"{sys.prefix}/bin:{BINARIES}:/usr/bin:/bin"
        for key, value in variables.items():
            place += ["--setenv", key, value]
        return [*place, *map(self._here, command)]

    def _here(self, text: str) -> str:
        text = HOSTS.sub("127.0.0.1", re.sub("^/app(?=/|$)", str(ROOT), text))
        return re.sub(r"(?<!\d)\d{4}(?!\d)", lambda port: self.ports.get(port[0], port[0]), text)


@pytest.fixture
def containers(
    server: Server,
    resolve: Resolve,
    medallion: Callable[..., Any],
    unused_tcp_port_factory: Callable[[], int],
    tmp_path: Path,
) -> Iterator[Containers]:
    """Resolve the file for a simulated exchange and the tests' server, which has no database."""
    try:
        trial = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"]
        subprocess.run(trial, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no bubblewrap (bwrap)")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"bubblewrap can't make a place: {error.stderr.strip()}")
    server.maintain("drop database if exists crypto_dw with (force)")
    exchange = unused_tcp_port_factory()
    credentials = server.settings.model_copy(update={"pgdatabase": "crypto_dw"})
    passwords = {
        f"{role.value.upper()}_PASSWORD": credentials.connection(role).password
        for role in (Role.INGEST, Role.TRANSFORM, Role.READER, Role.ARCHIVE)
    }
    done = resolve(
        {
            "PGPASSWORD": credentials.connection(Role.ADMIN).password,
            **passwords,
            "COINBASE_WS_URL": f"ws://127.0.0.1:{exchange}",
            "COINBASE_REST_URL": f"http://127.0.0.1:{exchange}",
        }
    )
    assert done.returncode == 0, done.stderr
    database_port = str(credentials.connection(Role.ADMIN).port)
    ports = {port: str(unused_tcp_port_factory()) for port in PORTS} | {"5432": database_port}
    with ExitStack() as stack:
        command = stack.enter_context(
            medallion("simulate", "--port", str(exchange), "--speed", "60")
        )
        command.wait_for(lambda: "ws://" in command.said)
        made = Containers(yaml.safe_load(done.stdout)["services"], tmp_path, ports)
        # The Dockerfile makes it, too.
        (ROOT / "dbt_project" / "target").mkdir(exist_ok=True)
        stack.callback(made.end)
        yield made


def test_the_stack_brings_trades_to_gold_and_is_healthy_throughout(
    containers: Containers, server: Server
) -> None:
    containers.wait_until_healthy("postgres")
    containers.start("migrate")
    containers.wait_until_completed("migrate")
    for name in ("ingest", "transform", "dagster-code", "dashboard"):
        containers.start(name)
    containers.wait_until_healthy("dagster-code")
    for name in ("dagster-webserver", "dagster-daemon"):
        containers.start(name)
    for name in ("ingest", "dashboard", "dagster-webserver", "dagster-daemon", "transform"):
        containers.wait_until_healthy(name)

    database = Database(server.settings.model_copy(update={"pgdatabase": "crypto_dw"}))
    until = time.monotonic() + SECONDS
    while not database.fetch("select from pg_tables where tablename = 'ohlc_1d'") or not (
        database.fetch("select from gold.ohlc_1d", role="medallion_reader")
    ):
        assert time.monotonic() < until, containers.said("transform")
        time.sleep(0.5)
    # The UI has the definitions from the container with the passwords.
    url = f"http://127.0.0.1:{containers.ports['3000']}/graphql"
    answer = httpx.post(url, json={"query": LOCATIONS}, timeout=SECONDS).json()
    assert answer["data"]["repositoriesOrError"]["nodes"] == [{"location": {"name": "medallion"}}]
    for name in ("ingest", "transform", "dagster-code", "dagster-webserver", "dagster-daemon"):
        assert "Traceback" not in containers.said(name)
