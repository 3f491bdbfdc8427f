"""No password is printed, logged, or shown by `ps`."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Database
from warehouse.embedded import EmbeddedServer
from warehouse.settings import WarehouseSettings

PROC = Path("/proc")
LOG_ALL = (
    "alter system set log_statement = 'all'",
    "alter system set log_connections = 'on'",
    "select pg_reload_conf()",
)
WRONG = "the-wrong-password"


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collect meanwhile, as `ps` does, what each process of this machine was started with."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for file in PROC.glob("[0-9]*/cmdline"):
                # It has ended.
                with suppress(FileNotFoundError, ProcessLookupError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


@pytest.fixture
def embedded() -> Iterator[EmbeddedServer]:
    """A server that does not exist yet."""
    # Not pytest's own folder: see `running_server`.
    home = Path(tempfile.mkdtemp(prefix="medallion-"))
    server = EmbeddedServer.of(WarehouseSettings(medallion_home=home))
    yield server
    server.stop()
    shutil.rmtree(home)


@pytest.mark.skipif(not (PROC / "self" / "cmdline").exists(), reason="there is no /proc")
def test_no_password_is_printed_logged_or_shown_by_ps(
    embedded: EmbeddedServer, medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    home = embedded.home
    here = {"MEDALLION_HOME": str(home), "SPOOL_DIR": str(home / "spool")}
    url = f"ws://127.0.0.1:{unused_tcp_port}"
    said: list[str] = []

    def run(code: int, *arguments: str, **variables: str) -> None:
        with medallion(*arguments, **variables) as command:
            assert command.end() == code, command.said
            said.append(command.said)

    with watched() as seen:
        port = embedded.start()
        postgres = Database(WarehouseSettings(medallion_home=home, pgdatabase="postgres"))
        for statement in LOG_ALL:
            postgres.execute(statement)
        run(0, "migrate", **here)
        with (
            medallion("simulate", "--port", str(unused_tcp_port)),
            medallion("ingest", "--source", url, **here) as ingest,
            medallion("transform", **here) as transform,
        ):
            transform.wait_for_event("transforming")
            transform.wait_for_event("built")
            for command in (ingest, transform):
                assert command.end(signal.SIGTERM) == 0
                said.append(command.said)
        run(0, "archive", MEDALLION_BRONZE_DAYS="1", **here)

        # Away from the credentials, as with a server of one's own.
        wrong = {"MEDALLION_HOME": str(home / "elsewhere"), "PGHOST": "127.0.0.1"}
        wrong |= {"PGPORT": str(port), "PGPASSWORD": WRONG, "MEDALLION_INGEST_PASSWORD": WRONG}
        run(2, "migrate", **wrong)
        run(2, "ingest", "--source", url, **wrong)

    credentials = json.loads(embedded.credentials_file.read_text())
    passwords = [*credentials["passwords"].values(), WRONG]
    logs = [*home.rglob("*.log"), ROOT / "dbt_project" / "target" / "transform" / "dbt.log"]
    texts = [*said, *(log.read_text() for log in logs)]
    assert [text for text in texts if any(password in text for password in passwords)] == []
    assert any("alter role" in text for text in texts)
    assert [line for line in seen if any(password in line for password in passwords)] == []
    for program in ("initdb", "dbmate", "medallion ingest", "medallion transform"):
        assert any(program in line for line in seen), program
