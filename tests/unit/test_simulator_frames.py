import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from simulator import frames
from simulator.market import UNITS, Candle, Trade, micros

RECORDED = (
    Path(__file__).parents[2].parent / "shared" / "data" / "coinbase_exchange_2026-09-30.jsonl"
)

TRADE = Trade("PEPE-USD", 61, "m", "t", "sell", 15 * UNITS // 10, 411, 9, 1_790_733_792_000_070)


def recorded(*types: str) -> list[bytes]:
    if not RECORDED.exists():
        pytest.skip(f"no recorded frames at {RECORDED}")
    lines = RECORDED.read_bytes().splitlines()
    return [line for line in lines if json.loads(line)["type"] in types]


def market_time(text: str) -> int:
    return micros(datetime.fromisoformat(text))


def trade_of(fields: dict) -> Trade:
    """Parse a recorded match independently of the simulator's own rendering."""
    return Trade(
        fields["product_id"],
        fields["trade_id"],
        fields["maker_order_id"],
        fields["taker_order_id"],
        fields["side"],
        int(Decimal(fields["size"]) * UNITS),
        int(Decimal(fields["price"]) * UNITS),
        fields["sequence"],
        market_time(fields["time"]),
        size_padded="." in fields["size"] and fields["size"].endswith("0"),
    )


def test_match_frames_equal_the_recorded_bytes():
    lines = recorded("match", "last_match")
    rendered = [frames.match_frame(trade_of(f), f["type"]) for f in map(json.loads, lines)]
    assert len(lines) == 63
    assert rendered == lines


def test_heartbeat_frames_equal_the_recorded_bytes():
    lines = recorded("heartbeat")
    rendered = [
        frames.heartbeat_frame(
            f["product_id"], f["last_trade_id"], f["sequence"], market_time(f["time"])
        )
        for f in map(json.loads, lines)
    ]
    assert len(lines) == 20
    assert rendered == lines


def test_the_subscriptions_frame_equals_the_recorded_bytes():
    (line,) = recorded("subscriptions")
    channels = {c["name"]: c["product_ids"] for c in json.loads(line)["channels"]}
    assert frames.subscriptions_frame(channels) == line


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (8_342_020_000_000, "83420.2"),
        (UNITS, "1"),
        (11_870, "0.0001187"),
        (411, "0.00000411"),
        (1, "0.00000001"),
        (20_000_000_000 * UNITS, "20000000000"),
        (100 * UNITS, "100"),
    ],
)
def test_decimals_are_trimmed_and_have_no_exponent(units, text):
    assert frames.trimmed(units) == text


def test_rest_pads_price_and_size_to_eight_decimals():
    assert frames.rest_trade(TRADE) == (
        '{"trade_id":61,"side":"sell","size":"1.50000000","price":"0.00000411",'
        '"time":"2026-09-30T02:03:12.000070Z"}'
    )


def test_a_heartbeat_stands_on_the_whole_second():
    frame = json.loads(frames.heartbeat_frame("BTC-USD", 1, 2, TRADE.time))
    assert frame["time"] == "2026-09-30T02:03:12.000000Z"


def test_a_candle_row_has_coinbases_order():
    candle = Candle(60, low=1, high=4, open=2, close=3, volume=UNITS)
    row = "[60,0.00000001,0.00000004,0.00000002,0.00000003,1]"
    assert frames.rest_candle(candle) == row


def test_an_error_frame_names_its_reason():
    assert frames.error_frame("Failed to subscribe", "YFI-USD is delisted") == (
        b'{"type":"error","message":"Failed to subscribe","reason":"YFI-USD is delisted"}'
    )
