"""What building, keeping and reading the tables costs as history grows.

    .venv/bin/python -m benchmarks.lakehouse [--full]

Increments on histories of several lengths; on the longest, a rebuild beside the reference and
DuckDB, bytes per trade, the use of each index, and each query that page and BI tools ask.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import increment, reads, rebuild, storage
from benchmarks.history import Connection, History
from benchmarks.measure import environment, load, machine, options, tell, warehouse
from medallion.status import read_status
from orchestration.candles import due_candles
from warehouse.settings import Role, WarehouseSettings

SHORT: Final = (10_000, 100_000, 500_000)
FULL: Final = (100_000, 1_000_000, 10_000_000)
ROUNDS: Final = 5
REBUILDS: Final = 3


def histories(server: WarehouseSettings, lengths: Sequence[int], folder: Path) -> list[History]:
    """Make databases with so many trades, and build them."""
    made = [History(server, trades, folder) for trades in lengths]
    for history in made:
        tell(f"a history of {history.trades:,}")
        history.receive()
        history.build()
    # What it does would count as work of whatever is measured meanwhile.
    made[0].ask(_without_autovacuum)
    return made


async def _without_autovacuum(connection: Connection) -> None:
    await connection.execute("alter system set autovacuum to off")
    await connection.execute("select pg_reload_conf()")


def run_whole(server: WarehouseSettings) -> WarehouseSettings:
    """Let the demo ingest, repair and build twice, from its start and from where it stopped."""
    demo = server.model_copy(update={"pgdatabase": "demo"})
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "medallion", "demo"],
            env=environment(demo),
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return demo


def main() -> None:
    """Measure once."""
    lengths = FULL if options(__doc__).parse_args().full else SHORT
    load_before = load()
    with warehouse() as server, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        built = histories(server, lengths, folder)
        longest = built[-1]
        sections = [
            increment.section(built, ROUNDS),
            reads.section(longest, ROUNDS),
        ]
        built[0].dbt("build", "--selector", "full")
        # What is asked hourly, and by `medallion status`.
        asyncio.run(due_candles(longest.settings.connection(Role.TRANSFORM)))
        asyncio.run(read_status(longest.settings.connection(Role.TRANSFORM)))
        databases = [*(history.settings for history in built), run_whole(server)]
        sections.append(storage.section(longest, databases))
        # Last, for it makes the tables and their indexes anew.
        sections.append(rebuild.section(longest, folder, REBUILDS))
        sections.append(machine(server, load_before))
    print("\n\n".join(sections))


if __name__ == "__main__":
    main()
