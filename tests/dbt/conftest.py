"""What the tests of dbt share: dbt itself, a lakehouse to build, and trades to put into it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest

from tests.candles import Candle
from tests.conftest import ROOT, Database, Server
from warehouse.settings import ConnectionInfo

PROJECT = ROOT / "dbt_project"
SESSION = uuid.UUID(int=1)
CHANNELS = {"exchange_ws": "matches", "advanced_ws": "market_trades", "rest": "trades"}
OF_TRADES = ("coinbase_trades_quarantine", "+daily_kpis", "+trade_completeness", "+top_movers")
# Runs make it, so it differs from rebuild to rebuild.
HISTORY = {"top_movers"}


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "Write the parts of docs/ that are made, in place of comparing them."
    parser.addoption("--write-documents", action="store_true", help=help_)


@dataclass(frozen=True)
class Build:
    """What one invocation of dbt said: a status for each node, by its name."""

    statuses: dict[str, str]
    messages: dict[str, str]

    @property
    def failed(self) -> set[str]:
        return {name for name, status in self.statuses.items() if status in {"fail", "error"}}

    @property
    def warned(self) -> set[str]:
        return {name for name, status in self.statuses.items() if status == "warn"}


class Dbt:
    """Runs dbt in this process; the manifest is parsed once."""

    def __init__(self, server: Server, target: Path, project: Path = PROJECT) -> None:
        database = Database(server.settings.model_copy(update={"pgdatabase": "crypto_dw"}))
        connection = database.info("medallion_transform")
        self.target = target
        self._options = [
            *("--project-dir", str(project), "--profiles-dir", str(project)),
            *("--target-path", str(target), "--log-level-file", "none"),
        ]
        with _environment(connection):
            parsed = dbtRunner().invoke(["--quiet", "parse", *self._options])
        assert isinstance(parsed.result, Manifest), parsed.exception
        self.manifest = parsed.result
        self._runner = dbtRunner(manifest=self.manifest)

    def __call__(self, connection: ConnectionInfo, *arguments: str) -> Build:
        with _environment(connection):
            # Nobody reads its artifacts and events here; they take a sixth of the time.
            quiet = ["--quiet", "--no-write-json", "--log-level", "none"]
            done = self._runner.invoke([*quiet, *arguments, *self._options])
        if done.exception:
            raise done.exception
        results = list(done.result)
        return Build(
            {result.node.name: str(result.status) for result in results},
            {result.node.name: result.message or "" for result in results},
        )


class _environment(pytest.MonkeyPatch):  # noqa: N801  (used as a statement)
    def __init__(self, connection: ConnectionInfo) -> None:
        super().__init__()
        for name, value in connection.environment().items():
            self.setenv(name, value)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.undo()


class Lakehouse:
    """A database with bronze to fill, dbt to build it, and tables to look at."""

    def __init__(self, database: Database, dbt: Dbt) -> None:
        self.database = database
        self._dbt = dbt
        self.transform = database.info("medallion_transform")

    def receive(
        self,
        *frames: dict[str, Any] | str,
        received_at: datetime | None = None,
        source: str = "exchange_ws",
        product_id: str | None = None,
    ) -> None:
        """Append frames to bronze, in this order; `product_id` where they do not name it."""
        self.database.fetch(
            "insert into bronze.coinbase_trades_raw "
            "(received_at, source, channel, session_id, product_id, payload) "
            "select $1, $2, $3, $4, coalesce($5, frame ->> 'product_id'), frame "
            "from unnest($6::jsonb[]) with ordinality as frames (frame, position) "
            "order by position",
            received_at or datetime.now(UTC),
            source,
            CHANNELS[source],
            SESSION,
            product_id,
            [frame if isinstance(frame, str) else json.dumps(frame) for frame in frames],
        )

    def repair(self, *matches: dict[str, Any]) -> None:
        """Append trades to bronze as REST tells them."""
        for frame in matches:
            self.receive(rest_trade(frame), source="rest", product_id=frame["product_id"])

    def answer(
        self, first: datetime, last: datetime, *told: Any, granularity: int = 60, **columns: Any
    ) -> None:
        """Append what the exchange tells when it is asked for its candles from first to last."""
        self.database.fetch(
            "insert into bronze.coinbase_candles_raw "
            "(product_id, granularity, first_bucket, last_bucket, payload) "
            "values ($1, $2, $3, $4, $5)",
            columns.get("product_id", "BTC-USD"),
            granularity,
            first,
            last,
            json.dumps(told, default=float),
            role="medallion_ingest",
        )

    def list_products(self, *products: Any, hour: float = 0) -> None:
        """Append a catalogue of the exchange, of so many hours after yesterday's noon."""
        self.database.fetch(
            "insert into bronze.coinbase_products_raw (received_at, payload) values ($1, $2)",
            NOON + timedelta(hours=hour),
            json.dumps(products),
        )

    def record_gap(
        self, missing: str = "{}", absent: str = "{}", product_id: str = "BTC-USD", **columns: Any
    ) -> None:
        """Record a gap as the ingester does: sets of ids such as `{[4,7)}`."""
        self.database.fetch(
            "insert into bronze.trade_gaps (product_id, first_id, last_id, found_by, missing, "
            "absent, closed_at, found_at, next_try_at) "
            "select $1, lower(ids), upper(ids) - 1, 'jump', missing, absent, "
            "case when isempty(missing) then now() end, $4, $5 "
            "from (values ($2::text::int8multirange, $3::text::int8multirange)) "
            "as gaps (missing, absent), range_merge(missing + absent) as ids",
            product_id,
            missing,
            absent,
            columns.get("found_at", datetime.now(UTC)),
            columns.get("next_try_at", datetime.now(UTC)),
        )

    def dbt(self, *arguments: str) -> Build:
        return self._dbt(self.transform, *arguments)

    def build(self, *arguments: str) -> Build:
        """Run `dbt build` and insist that it passes."""
        build = self.dbt("build", *arguments)
        assert not build.failed, {name: build.messages[name] for name in build.failed}
        return build

    def run(self, *arguments: str) -> None:
        """Build what is made of trades and checked by nobody, which takes a third of the time."""
        run = self.dbt("run", "-s", *OF_TRADES, *arguments)
        assert not run.failed, {name: run.messages[name] for name in run.failed}

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self.database.fetch(query, *arguments)]

    def one(self, query: str, *arguments: Any) -> dict[str, Any]:
        (row,) = self.rows(query, *arguments)
        return row

    def fingerprints(self) -> dict[str, str]:
        """Return a hash over every row of each silver and gold table."""
        tables = self.database.fetch(
            "select schemaname || '.' || tablename as name from pg_tables "
            "where schemaname in ('silver', 'gold') and tablename <> all ($1) order by 1",
            list(HISTORY),
        )
        return {
            table["name"]: self.database.fetch(
                "select count(*) || ' rows ' || coalesce(md5(string_agg(md5(t::text), '' "
                f"order by md5(t::text))), '') as hash from {table['name']} as t"
            )[0]["hash"]
            for table in tables
        }


NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)


def match(trade_id: int, /, **fields: Any) -> dict[str, Any]:
    """Return a valid match; `at` is seconds after yesterday's noon, None leaves a field out."""
    at = fields.pop("at", trade_id % 50)
    frame = {
        "type": "match",
        "trade_id": trade_id,
        "maker_order_id": "5f4bb11b-f065-4025-ad53-2091b10ad2cf",
        "taker_order_id": "66715b57-0167-4ae9-8b2b-75a064a923f4",
        "side": "sell",
        "size": "0.5",
        "price": "100",
        "product_id": "BTC-USD",
        "sequence": trade_id * 7,
        "time": f"{NOON + timedelta(seconds=at):%Y-%m-%dT%H:%M:%S.%fZ}",
    } | fields
    return {name: value for name, value in frame.items() if value is not None}


def product(product_id: str, /, **fields: Any) -> dict[str, Any]:
    """Return a product that is traded, as the exchange lists it."""
    base_currency, _, quote_currency = product_id.partition("-")
    return {
        "id": product_id,
        "base_currency": base_currency,
        "quote_currency": quote_currency,
        "base_increment": "0.00000001",
        "quote_increment": "0.01",
        "display_name": product_id,
        "status": "online",
        "trading_disabled": False,
    } | fields


def advanced_frame(*matches: dict[str, Any]) -> dict[str, Any]:
    """Return the Advanced frame that tells of these matches, which it does newest first."""
    trades = [
        {name: frame[name] for name in ("product_id", "price", "size", "time")}
        | {"trade_id": str(frame["trade_id"]), "side": frame["side"].upper()}
        for frame in matches
    ]
    return {
        "channel": "market_trades",
        "timestamp": "2026-09-30T02:39:54.014999553Z",
        "sequence_num": 22,
        "events": [{"type": "update", "trades": trades[::-1]}],
    }


def exchange_candle(candle: Candle, **wrong: Any) -> list[Any]:
    """Return how the exchange tells of a candle: in its own order, as doubles."""
    told = candle._replace(**wrong)
    at = int(told.bucket.timestamp())
    return [at, told.low, told.high, told.open, told.close, told.volume]


def rest_trade(frame: dict[str, Any]) -> dict[str, Any]:
    """Return how REST tells of this match: without its product, with padded numbers."""
    return {
        "trade_id": frame["trade_id"],
        "side": frame["side"],
        "size": f"{Decimal(frame['size']):.8f}",
        "price": f"{Decimal(frame['price']):.8f}",
        "time": frame["time"],
    }
