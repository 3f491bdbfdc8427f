"""The two versions of the fault suite, its world, and the table of what became of the trades."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.faults.world import LONG, SHORT, Figures, Outcome, World, compared

OUTCOMES = pytest.StashKey[list[Outcome]]()

Ending = Callable[[], Awaitable[None]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="Faults as long as they are promised to be outlasted."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of a long run, in Markdown."""
    outcomes = config.stash.get(OUTCOMES, [])
    if not (outcomes and is_long(config)):
        return
    terminalreporter.section("faults")
    lines = [
        "| fault | trades/s | offered | in silver | missing | duplicates | seconds to complete |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {it.fault} | {it.rate:,} | {it.offered:,} | {it.in_silver:,} | {it.missing:,} | "
        f"{it.duplicates:,} | {it.seconds:.1f} |"
        for it in outcomes
    ]
    for line in lines:
        terminalreporter.write_line(line)


def is_long(config: pytest.Config) -> bool:
    # Where pytest was not pointed here, it doesn't know the option.
    return bool(config.getoption("--long", default=False))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    return LONG if is_long(pytestconfig) else SHORT


@pytest.fixture(scope="module")
def durable_server(server: Server) -> Iterator[Server]:
    """The tests' server, which waits for its disk here as it does at its users'."""
    server.maintain("alter system reset fsync", "select pg_reload_conf()")
    yield server
    server.maintain("alter system set fsync = off", "select pg_reload_conf()")


@pytest.fixture
def world(
    figures: Figures,
    durable_server: Server,
    lakehouse: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """A fresh database and all around it; PostgreSQL runs again afterwards."""
    for name, value in figures.constants.items():
        monkeypatch.setattr(name, value)
    world = World(figures, durable_server, lakehouse, tmp_path)
    yield world
    asyncio.run(world.start_postgres())


@pytest.fixture
def every_trade_is_in_silver_exactly_once(world: World, request: pytest.FixtureRequest) -> Ending:
    """Build silver and compare it with the exchange's own list; what came of it is tabled."""
    values = request.node.callspec.id.split("-")
    words = [request.node.originalname.removeprefix("test_"), *values]
    fault = " ".join(word for word in words if word != "postgres18").replace("_", " ")

    async def ending() -> None:
        await asyncio.to_thread(world.build_silver)
        request.config.stash[OUTCOMES].append(await asyncio.to_thread(compared, world, fault))

    return ending
