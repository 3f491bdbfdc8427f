"""Whose trades a database holds."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from warehouse.settings import ConnectionInfo, WarehouseError


async def refuse_another_market(ingest: ConnectionInfo, url: str) -> None:
    """Keep simulated and real trades apart: they share product names and trade ids.

    Args:
        ingest: the database, as the role that writes bronze.
        url: the feed that is to be recorded.

    Raises:
        WarehouseError: the database holds trades of another market.

    """
    wanted = _market_of(url)
    connection = await ingest.connect()
    try:
        urls = await connection.fetch(
            "select distinct url from bronze.feed_sessions where source <> 'rest'"
        )
    finally:
        await connection.close()
    others = {_market_of(row["url"]) for row in urls} - {wanted}
    if others:
        raise WarehouseError(
            f"The database {ingest.database!r} holds trades from {', '.join(sorted(others))}; "
            f"those from {wanted} must not be mixed in. Give them a database of their own: set "
            f"PGDATABASE, for example to {ingest.database}_2."
        )


def _market_of(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or url
    if host.endswith(".coinbase.com"):
        # Its two feeds show one market; its sandbox makes trades up.
        return "Coinbase's sandbox" if ".sandbox." in host else "Coinbase"
    if host != "127.0.0.1":
        return host
    if parts.path.startswith("/recordings/"):
        return f"the recording {unquote(parts.path.removeprefix('/recordings/'))}"
    return "the simulated exchange"
