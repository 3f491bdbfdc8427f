"""Ways into the test's database while others use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest


@pytest.fixture
async def admin(database: Any) -> AsyncIterator[asyncpg.Connection]:
    """Looks at the rows, and does to the database what outages do."""
    connection = await database.connect("medallion_owner")
    yield connection
    await connection.close()


@pytest.fixture
async def server_admin(database: Any) -> AsyncIterator[asyncpg.Connection]:
    """Reaches the server while the database is closed."""
    connection = await asyncpg.connect(database.dsn("medallion_owner"), database="postgres")
    yield connection
    await connection.close()
