"""What a cluster gives and costs: COPY, an increment and a rebuild, on plain PostgreSQL and Citus.

    PGHOST=… PGPASSWORD=… .venv/bin/python -m benchmarks.citus --trades 5000000

PGHOST names a coordinator, PGDATABASE an empty database there with Citus and its workers
(docs/scaling.md). Plain is a new embedded server in a temporary folder. Both get the same trades.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from benchmarks.models import Models
from ingestion.bronze import TRADE_COLUMNS, TradeRow, open_bronze
from warehouse.embedded import EmbeddedServer
from warehouse.migrate import migrate
from warehouse.settings import Role, WarehouseSettings

PRODUCTS: Final = [f"COIN{number}-USD" for number in range(50)]
BATCH: Final = 5_000
INCREMENT: Final = 5_000
SESSION: Final = uuid.UUID(int=1)
START: Final = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
PERIOD: Final = timedelta(days=10)


def batches(first: int, trades: int, all_trades: int) -> Iterator[list[TradeRow]]:
    """Yield trades that fill ten days evenly, product after product."""
    for begin in range(first, first + trades, BATCH):
        rows: list[TradeRow] = []
        for number in range(begin, min(begin + BATCH, first + trades)):
            trade_id, product = divmod(number, len(PRODUCTS))
            at = START + PERIOD * number / all_trades
            frame = {
                "type": "match",
                "trade_id": trade_id + 1,
                "maker_order_id": "5f4bb11b-f065-4025-ad53-2091b10ad2cf",
                "taker_order_id": "66715b57-0167-4ae9-8b2b-75a064a923f4",
                "side": "sell" if trade_id % 2 else "buy",
                "size": "0.01",
                "price": str(100 + trade_id % 7),
                "product_id": PRODUCTS[product],
                "sequence": number,
                "time": f"{at:%Y-%m-%dT%H:%M:%S.%fZ}",
            }
            raw = json.dumps(frame).encode()
            now = datetime.now(UTC)
            rows.append((now, "exchange_ws", "matches", SESSION, PRODUCTS[product], raw))
        yield rows


async def copy(settings: WarehouseSettings, first: int, trades: int, all_trades: int) -> float:
    """Write trades as the ingester does, and return the seconds that the database took."""
    connection = await open_bronze(settings.connection(Role.INGEST).open)
    seconds = 0.0
    for rows in batches(first, trades, all_trades):
        began = time.monotonic()
        await connection.copy_records_to_table(
            "coinbase_trades_raw", schema_name="bronze", columns=TRADE_COLUMNS, records=rows
        )
        seconds += time.monotonic() - began
    await connection.close()
    return seconds


def seconds(models: Models, *arguments: str) -> float:
    """Build every model, without its checks, and return how long it took."""
    began = time.monotonic()
    models(*arguments)
    return time.monotonic() - began


def measure(name: str, settings: WarehouseSettings, trades: int, folder: Path) -> str:
    """Fill a database, build it, and return a row of the table."""
    asyncio.run(migrate(settings))
    all_trades = trades + INCREMENT
    copied = asyncio.run(copy(settings, 0, trades, all_trades))
    models = Models(settings, folder / name)
    seconds(models, "run")
    asyncio.run(copy(settings, trades, INCREMENT, all_trades))
    increment = seconds(models, "run")
    rebuild = seconds(models, "run", "--full-refresh")
    return f"| {name} | {trades / copied:,.0f} | {increment:.1f} | {rebuild:.1f} |"


def main() -> None:
    """Measure both in one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trades", type=int, default=5_000_000, help="trades in bronze")
    trades = parser.parse_args().trades
    settings = WarehouseSettings()
    if settings.embedded:
        raise SystemExit("Set PGHOST to a coordinator of Citus: plain PostgreSQL comes by itself.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plain = WarehouseSettings(
            _env_file=None,  # type: ignore[call-arg]  # Known to pydantic-settings alone.
            pghost=None,
            pgport=None,
            medallion_home=folder / "home",
        )
        server = EmbeddedServer.of(plain)
        server.start()
        try:
            rows = [
                measure("plain", plain, trades, folder),
                measure("Citus", settings, trades, folder),
            ]
        finally:
            server.stop()
    print(f"{trades:,} trades of {len(PRODUCTS)} products, increments of {INCREMENT:,}")
    print("| | COPY, rows/s | increment, s | rebuild, s |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
