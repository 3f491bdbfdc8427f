"""`medallion dagster` as it is typed: its UI answers, and nothing of it outlives it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SECONDS
from tests.dbt.conftest import Lakehouse

pytestmark = pytest.mark.postgres18_only

SENSORS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { sensors { name } } } } }"


def processes_of(port: int) -> set[int]:
    """Return the processes that inherited this port's number in their environment."""
    mark = f"MEDALLION_TEST_PORT={port}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_dagster_answers_and_leaves_no_process_when_it_is_stopped(
    house: Lakehouse, medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    port = unused_tcp_port
    environment = house.database.environment() | {"MEDALLION_TEST_PORT": str(port)}

    def sensors() -> set[str]:
        try:
            url = f"http://127.0.0.1:{port}/graphql"
            answer = httpx.post(url, json={"query": SENSORS}, timeout=SECONDS)
        except httpx.TransportError:
            return set()
        nodes = answer.json()["data"]["repositoriesOrError"].get("nodes", [])
        return {sensor["name"] for node in nodes for sensor in node["sensors"]}

    try:
        with medallion("dagster", "--port", str(port), **environment) as command:
            command.wait_for(lambda: "alerts" in sensors())
            # The daemon looks too.
            command.wait_for(lambda: "Sensor alerts skipped" in command.said)
            # Beside the command: the UI, the daemon, and at least one process with our code.
            assert len(processes_of(port)) > 3
            command.end(signal.SIGTERM)
            until = time.monotonic() + SECONDS
            while processes_of(port):
                assert time.monotonic() < until, "some process is left"
                time.sleep(0.1)
        assert "Traceback" not in command.said
    finally:
        for process in processes_of(port):
            os.kill(process, signal.SIGKILL)
