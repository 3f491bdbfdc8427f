"""The product catalogue fetched into bronze from a real server, which answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ingestion.catalogue import Fetched, fetch_catalogue
from tests.conftest import Database
from tests.integration.test_ingestion_rest import answer, client, serving

GOOD = b'{"id":"BTC-USD","base_currency":"BTC","base_increment":"0.00000001"}'


async def fetch(database: Database, *bodies: bytes) -> Fetched:
    """Fetch from a server that gives these answers, one after the other."""
    connection = await database.connect("medallion_ingest")
    answers = (answer("200 OK", body) for body in bodies)
    try:
        async with serving(*answers) as server, client(server) as rest:
            return await fetch_catalogue(rest, connection)
    finally:
        await connection.close()


async def saved(database: Database, table: str, column: str) -> list[Any]:
    connection = await database.connect("medallion_transform")
    rows = await connection.fetch(f"select {column} as saved from bronze.{table} order by 1")
    await connection.close()
    return [row["saved"] for row in rows]


@pytest.mark.parametrize(
    "no_catalogue",
    [b"<html>", b"{}", b"[]", b"[7, null]", b'[{"id": 5}]', b'[{"message":"x"}]', b"[" + GOOD],
)
async def test_an_answer_that_names_no_product_is_asked_for_again(
    database: Database, no_catalogue: bytes
) -> None:
    assert await fetch(database, no_catalogue, b"[" + GOOD + b"]") == Fetched(1, 0)
    (payload,) = await saved(database, "coinbase_products_raw", "payload")
    assert json.loads(payload) == [json.loads(GOOD)]


async def test_an_odd_product_is_kept_as_it_came_beside_the_others(database: Database) -> None:
    odd = b'[7,{"id":null},{"id":"ETH-USD","base_increment":["x"],"status":5},' + GOOD + b"]"
    assert await fetch(database, odd) == Fetched(4, 0)
    (payload,) = await saved(database, "coinbase_products_raw", "payload")
    assert json.loads(payload) == json.loads(odd)


@pytest.mark.parametrize("refused", [rb'{"id":"X-USD","note":"\u0000"}', b'{"id":"X-USD\xff"}'])
async def test_a_product_that_jsonb_refuses_is_set_aside_and_the_others_are_not(
    database: Database, refused: bytes
) -> None:
    assert await fetch(database, b"[" + refused + b"," + GOOD + b"]") == Fetched(1, 1)
    (payload,) = await saved(database, "coinbase_products_raw", "payload")
    assert json.loads(payload) == [json.loads(GOOD)]
    assert await saved(database, "coinbase_frames_rejected", "frame") == [refused]


def test_the_command_brings_the_products_of_the_simulator(
    database: Database, medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    url = f"ws://127.0.0.1:{unused_tcp_port}"
    with medallion("simulate", "--port", str(unused_tcp_port)) as simulator:
        simulator.wait_for(lambda: "ws://" in simulator.said)
        for _ in range(2):
            command = ("products", "--source", url)
            with medallion(*command, **database.environment()) as products:
                assert products.end() == 0, products.said
            assert "13 products saved" in products.said
    counts = database.fetch(
        "select jsonb_array_length(payload) as products, payload #>> '{0,id}' as first "
        "from bronze.coinbase_products_raw"
    )
    assert [tuple(row) for row in counts] == [(13, "BTC-USD")] * 2
