"""The exchange's own candles, which ours are held against: fetched over REST into bronze."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import structlog

from ingestion.bronze import COMMAND_SECONDS, REJECTED_COLUMNS, Connect, Connection, open_bronze
from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.errors import LedgerAwayError
from ingestion.repair import SOURCE

log = structlog.get_logger(__name__)

_SAVE: Final = """
    insert into bronze.coinbase_candles_raw (
        product_id, granularity, first_bucket, last_bucket, payload
    )
    values ($1, $2, $3, $4, $5)
"""


@dataclass(frozen=True)
class CandleRange:
    """Candles of a product: their length in seconds, and where the first and the last begin."""

    product_id: str
    granularity: int
    first: datetime
    last: datetime


@dataclass
class Fetched:
    """What became of the ranges that were asked for."""

    answers: int = 0
    """So many are in bronze."""
    refused: int = 0
    """So many the exchange or the database refused; the log says why."""


async def fetch_candles(
    connect: Connect,
    rest: RestClient,
    wanted: Sequence[CandleRange],
    on_progress: Callable[[float, float], None] = lambda *_: None,
) -> Fetched:
    """Ask the exchange for candles, range by range, and save each answer as it came.

    A product that it refuses once is not asked for again in this run.

    Args:
        connect: opens a connection as a role that may write to bronze.
        rest: asks the exchange.
        wanted: what to ask for, each of at most 300 candles.
        on_progress: told how many of these are done, and of how many.

    Raises:
        LedgerAwayError: the database is away; what came before is saved.

    """
    fetched = Fetched()
    session_id = uuid4()
    unknown: set[str] = set()
    connection: Connection | None = None
    try:
        connection = await open_bronze(connect)
        for number, each in enumerate(wanted):
            on_progress(number, len(wanted))
            if each.product_id in unknown:
                continue
            try:
                answer = await rest.candles(
                    each.product_id, each.granularity, each.first, each.last
                )
            except RestRefusedError as error:
                log.warning("candles_refused", product_id=each.product_id, reason=str(error))
                fetched.refused += 1
                unknown.add(each.product_id)
                continue
            if await _save(connection, each, answer, session_id):
                fetched.answers += 1
            else:
                fetched.refused += 1
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        told = str(error) or type(error).__name__
        if isinstance(error, asyncpg.UndefinedTableError):
            told = f"{told}: run `medallion migrate`"
        raise LedgerAwayError(f"Candles of the exchange can't be saved: {told}") from error
    finally:
        if connection is not None:
            connection.terminate()
    return fetched


async def _save(
    connection: Connection, asked: CandleRange, answer: bytes, session_id: UUID
) -> bool:
    """Save an answer; one that jsonb can't hold is set aside as the bytes that came."""
    try:
        await connection.execute(
            _SAVE,
            asked.product_id,
            asked.granularity,
            asked.first,
            asked.last,
            answer,
            timeout=COMMAND_SECONDS,
        )
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        log.warning("candles_rejected", product_id=asked.product_id, reason=str(error))
        await connection.copy_records_to_table(
            "coinbase_frames_rejected",
            schema_name="bronze",
            columns=REJECTED_COLUMNS,
            records=[(datetime.now(UTC), SOURCE, session_id, answer, str(error))],
        )
        return False
    return True
