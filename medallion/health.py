"""Tells whether a service does its work: exit code 0, or 1 and why not.

It runs in each container again and again, so it imports little.

    python -m medallion.health answers http://127.0.0.1:8501/_stcore/health
    python -m medallion.health listens 127.0.0.1:4000
    python -m medallion.health receives http://127.0.0.1:9464/metrics
    python -m medallion.health transforms
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

PATIENCE_SECONDS = 5
SILENCE_SECONDS = 60
"""A feed sends a heartbeat each second, and is opened anew after SILENCE_SECONDS."""
BUILD_AGE = timedelta(minutes=2)
"""A build takes seconds; a first one, of a long history, counts as new while it runs."""


class UnhealthyError(Exception):
    """The service does not do its work; the message says what is seen of it."""


def answers(url: str) -> str:
    """Return what a URL answers with.

    Raises:
        OSError: nothing, or an error.

    """
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as page:  # noqa: S310  (ours)
        text: str = page.read().decode()
    return text


def listens(address: str) -> None:
    """See that a port is open.

    Raises:
        OSError: it is not.

    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()


def receives(url: str) -> None:
    """See in its metrics that an ingester gets frames.

    Raises:
        OSError: there are no metrics.
        UnhealthyError: it gets none.

    """
    age = re.search(r"(?m)^ingestion_seconds_since_last_frame (\S+)", answers(url))
    if age is None:
        raise UnhealthyError("No frame has come yet.")
    if float(age[1]) > SILENCE_SECONDS:
        raise UnhealthyError(f"The last frame came {float(age[1]):.0f} s ago.")


def transforms() -> None:
    """See that a build has begun since trades have come.

    Raises:
        UnhealthyError: none has.
        WarehouseError: the database is away.

    """
    from orchestration.bronze import look_at_bronze  # noqa: PLC0415  (only here)
    from warehouse.settings import Role, WarehouseSettings  # noqa: PLC0415

    bronze = asyncio.run(look_at_bronze(WarehouseSettings().connection(Role.TRANSFORM)))
    built_at = bronze.built_at
    if bronze.lag and (built_at is None or datetime.now(UTC) - built_at > BUILD_AGE):
        raise UnhealthyError(f"{bronze.lag:,} frames wait, and the last build was at {built_at}.")


CHECKS: dict[str, Callable[..., object]] = {
    check.__name__: check for check in (answers, listens, receives, transforms)
}

if __name__ == "__main__":
    try:
        CHECKS[sys.argv[1]](*sys.argv[2:])
    except Exception as reason:  # noqa: BLE001  (whatever is wrong, it is not healthy)
        sys.exit(str(reason))
