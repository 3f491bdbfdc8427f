"""What the benchmarks share: a database of their own, CPU seconds, rounds, medians, a table.

CPU and memory are read from /proc, so they are measured on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

from warehouse.embedded import EmbeddedServer
from warehouse.migrate import migrate
from warehouse.settings import Role, WarehouseSettings

T = TypeVar("T")

LAST_LINES: Final = 20
"""Of a command that failed, so much of what it said is shown."""


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of what every benchmark takes, described by its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--full", action="store_true", help="the large sizes: takes far longer")
    return parser


def tell(progress: str) -> None:
    """Print progress: standard output is for the section alone."""
    print(progress, file=sys.stderr, flush=True)


@contextmanager
def warehouse() -> Iterator[WarehouseSettings]:
    """Lend a migrated database on a new embedded server, whatever `.env` says, with fsync on."""
    home = Path(tempfile.mkdtemp(prefix="medallion-"))
    settings = WarehouseSettings(
        _env_file=None,  # type: ignore[call-arg]  # Known to pydantic-settings alone.
        pghost=None,
        pgport=None,
        medallion_home=home,
    )
    embedded = EmbeddedServer.of(settings)
    embedded.start()
    try:
        asyncio.run(migrate(settings))
        yield settings
    finally:
        embedded.stop()
        shutil.rmtree(home)


def environment(settings: WarehouseSettings) -> dict[str, str]:
    """Return what leads a command to this database, whatever `.env` says."""
    admin = settings.connection(Role.ADMIN)
    return {
        "MEDALLION_HOME": str(settings.medallion_home),
        "PGHOST": admin.host,
        "PGPORT": str(admin.port),
        "PGDATABASE": admin.database,
        "SPOOL_DIR": str(settings.medallion_home / "spool"),
    }


@contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the context lasts; it has to be there at its end, and to end well."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                process.wait()
            else:
                raise SystemExit(_failed(command, process, said.fileno()))
        finally:
            process.kill()
            process.wait()


def _failed(command: Sequence[str], process: subprocess.Popen[bytes], said: int) -> str:
    size = os.fstat(said).st_size
    lines = os.pread(said, size, 0).decode(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"{' '.join(command)} ended with {process.returncode}. It said:", *lines])


def postgres_pid(settings: WarehouseSettings) -> int:
    """Return the process of the embedded server: its backends are its children."""
    written = EmbeddedServer.of(settings).data / "postmaster.pid"
    return int(written.read_text().splitlines()[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that it started, those that ended included."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # Ended since the folder was read.
            # What follows the name, which may hold anything (proc_pid_stat(5)): the state, the
            # parent, …, and the times, its own and those of children that ended.
            fields = stat.read_text().rpartition(")")[2].split()
            found = int(stat.parent.name)
            ticks[found] = sum(map(int, fields[11:15]))
            children[int(fields[1])].append(found)
    family, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        family += ticks[one]
        waiting += children[one]
    return family / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds (RSS)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure contenders in turn, so that a machine with moods meets all of them alike."""
    measured: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        # To and fro: none always comes behind the same other.
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            result = contenders[name]()
            measured[name].append(result)
            tell(f"round {number} of {rounds}, {name}: {result}")
    return measured


def middle(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median of values, and between which ends they lie."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column names, the others hold numbers."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rules, *rows])


def load() -> float:
    """Return how many processes wanted a core, on average of the last minute."""
    return os.getloadavg()[0]


def machine(settings: WarehouseSettings, load_before: float) -> str:
    """Return what was measured on, and how busy it was before and at the end, in two sentences."""

    async def ask() -> tuple[str, str]:
        connection = await settings.connection(Role.ADMIN).connect()
        try:
            postgres = await connection.fetchval("show server_version")
            fsync = await connection.fetchval("show fsync")
        finally:
            await connection.close()
        return postgres, fsync

    postgres, fsync = asyncio.run(ask())
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("asyncpg", "websockets", "dbt-core")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, "
        f"{gigabytes:.0f} GB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, PostgreSQL {postgres} with fsync {fsync}, "
        f"{packages}. The load was {load_before:.1f} before, and {load():.1f} at the end, "
        "the benchmark's own included."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
