"""Drives a checkout of the reference implementation, where a folder of one is given.

It is sairaghu538/coinbase-streaming-pipeline on GitHub and no part of this project: the environment
variable REFERENCE names the folder, and without it, what compares with it is left out. Its own
scripts run as they are, in a database of its own on the same server.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from warehouse.settings import ConnectionInfo, Role, WarehouseSettings

DATABASE: Final = "reference"
ABSENT: Final = "Without the reference: set REFERENCE to the folder of a checkout of it."

# Its ingester stores the hash and the time that it reads from each frame. No script of its
# transform reads them, but they take their room in its rows and indexes.
_AS_ITS_ROWS: Final = """
    select received_at, 'matches', payload, encode(sha256(payload::text::bytea), 'hex'),
        (payload ->> 'time')::timestamptz
    from bronze.coinbase_trades_raw
    where source = 'exchange_ws'
    order by bronze_id
"""
_COLUMNS: Final = ["ingest_ts", "channel", "payload", "payload_hash", "event_ts"]


@dataclass(frozen=True)
class Reference:
    """A checkout, and the database that it works in.

    Args:
        folder: the checkout.
        info: its database; its scripts know nothing of roles, so its owner is a superuser.

    """

    folder: Path
    info: ConnectionInfo

    @property
    def ingester(self) -> list[str]:
        """The command that records trades."""
        return [sys.executable, str(self.folder / "src" / "ingest" / "coinbase_ws_to_bronze.py")]

    def transform(self) -> None:
        """Run the SQL of its transform as its flow does: each script in one transaction."""
        scripts = self.folder / "src" / "transform"
        asyncio.run(self._execute(scripts / "bronze_to_silver.sql", scripts / "silver_to_gold.sql"))

    def take(self, bronze: ConnectionInfo) -> int:
        """Copy the trades of our bronze into its own, and return how many.

        Its key is trade_id alone: of two products' trades with one id, it takes only the first.
        """
        return asyncio.run(self._take(bronze))

    async def _take(self, bronze: ConnectionInfo) -> int:
        ours, its = await bronze.connect(), await self.info.connect()
        # One chunk is read while another is written.
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

        async def read() -> None:
            await ours.copy_from_query(_AS_ITS_ROWS, output=chunks.put)
            await chunks.put(None)

        async def write() -> str:
            return await its.copy_to_table(
                "coinbase_trades_raw", schema_name="bronze", columns=_COLUMNS, source=each()
            )

        async def each() -> AsyncIterator[bytes]:
            while (chunk := await chunks.get()) is not None:
                yield chunk

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(read())
                writing = tasks.create_task(write())
        finally:
            await ours.close()
            await its.close()
        # As PostgreSQL tells it: COPY 5000.
        return int(writing.result().split()[1])

    async def _execute(self, *scripts: Path) -> None:
        connection = await self.info.connect()
        try:
            for script in scripts:
                # Several statements at once are one transaction.
                await connection.execute(script.read_text())
        finally:
            await connection.close()


def given(settings: WarehouseSettings) -> Reference | None:
    """Return the reference with its tables in a new database; None where no checkout is given."""
    named = os.environ.get("REFERENCE")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    tables = sorted((folder / "sql").glob("*.sql"))
    if not tables:
        raise SystemExit(
            f"REFERENCE is {named!r}, which is no checkout of it: it has no sql/*.sql."
        )
    admin = settings.connection(Role.ADMIN)
    reference = Reference(folder, replace(admin, database=DATABASE))

    async def make() -> None:
        connection = await admin.connect()
        try:
            await connection.execute(f"create database {DATABASE}")
        finally:
            await connection.close()
        await reference._execute(*tables)

    asyncio.run(make())
    return reference
