"""The products of the exchange, as it lists them now, brought to bronze."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import structlog

from ingestion.bronze import REJECTED_COLUMNS, Connection, RejectedRow
from ingestion.coinbase.rest import RestClient
from ingestion.repair import SOURCE

log = structlog.get_logger(__name__)

# As bytes: what is no UTF-8 is for PostgreSQL to refuse.
_JSONB = "convert_from({}, 'UTF8')::jsonb"
_SAVE = f"""
    insert into bronze.coinbase_products_raw (received_at, payload)
    values ($1, {_JSONB.format("$2::bytea")})
"""  # noqa: S608
_REFUSED = (asyncpg.DataError, asyncpg.ProgramLimitExceededError)


@dataclass(frozen=True)
class Fetched:
    """How many products were saved, and how many PostgreSQL refused, which were set aside."""

    products: int
    refused: int


async def fetch_catalogue(rest: RestClient, connection: Connection) -> Fetched:
    """Ask for the list of products, and append it to bronze.

    Raises:
        RestRefusedError: the exchange doesn't tell.

    """
    products = await rest.catalogue()
    received_at = datetime.now(UTC)
    try:
        await connection.execute(_SAVE, received_at, _list_of(products))
    except _REFUSED:
        return await _save_apart(connection, received_at, products)
    return Fetched(len(products), 0)


async def _save_apart(
    connection: Connection, received_at: datetime, products: list[bytes]
) -> Fetched:
    """Save the products that jsonb takes, and set the others aside."""
    session_id = uuid4()
    taken, refused = [], []
    for product in products:
        try:
            await connection.execute(f"select {_JSONB.format('$1::bytea')}", product)
        except _REFUSED as error:
            refused.append(RejectedRow(received_at, SOURCE, session_id, product, str(error)))
        else:
            taken.append(product)
    async with connection.transaction():
        await connection.copy_records_to_table(
            "coinbase_frames_rejected",
            schema_name="bronze",
            columns=REJECTED_COLUMNS,
            records=refused,
        )
        if taken:
            await connection.execute(_SAVE, received_at, _list_of(taken))
    log.warning("products_refused", products=len(refused), first=refused[0].error)
    return Fetched(len(taken), len(refused))


def _list_of(products: list[bytes]) -> bytes:
    return b"[" + b",".join(products) + b"]"
