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


def advanced(recorded_frames, channel: str) -> list[tuple[bytes, dict, dict]]:
    """Return recorded frames of a channel: the bytes, what they say, and their only event."""
    lines = recorded_frames("coinbase_advanced_2026-09-30.jsonl")
    frames_ = [(line, json.loads(line)) for line in lines]
    return [(line, f, f["events"][0]) for line, f in frames_ if f["channel"] == channel]


def nanoseconds(text: str) -> int:
    """Parse a time to all of its nine digits, which datetime would cut."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return market_time(whole + "Z") * 1000 + int(fraction.ljust(9, "0"))


def rendered(frame: dict, event: str) -> bytes:
    time = nanoseconds(frame["timestamp"])
    return frames.advanced_frame(frame["channel"], time, frame["sequence_num"], event)


def advanced_trade(fields: dict) -> Trade:
    return Trade(
        fields["product_id"],
        int(fields["trade_id"]),
        "",
        "",
        fields["side"].lower(),
        int(Decimal(fields["size"]) * UNITS),
        int(Decimal(fields["price"]) * UNITS),
        0,
        market_time(fields["time"]),
    )


def test_market_trades_frames_equal_the_recorded_bytes(recorded_frames):
    recorded_ = advanced(recorded_frames, "market_trades")
    assert len(recorded_) == 28
    for line, frame, event in recorded_:
        trades = map(advanced_trade, event["trades"])
        assert rendered(frame, frames.market_trades_event(event["type"], trades)) == line


def test_heartbeats_frames_equal_the_recorded_bytes(recorded_frames):
    recorded_ = advanced(recorded_frames, "heartbeats")
    assert len(recorded_) == 6
    for line, frame, event in recorded_:
        day, time, _, _, running = event["current_time"].split(" ")
        current = nanoseconds(f"{day}T{time}Z")
        since = int(running.removeprefix("m=+").replace(".", ""))
        text = frames.heartbeats_event(current, since, event["heartbeat_counter"])
        assert rendered(frame, text) == line


def test_subscriptions_of_the_advanced_feed_equal_the_recorded_bytes(recorded_frames):
    recorded_ = advanced(recorded_frames, "subscriptions")
    assert len(recorded_) == 3
    for line, frame, event in recorded_:
        backwards = dict(reversed(event["subscriptions"].items()))
        assert rendered(frame, frames.subscriptions_event(backwards)) == line


@pytest.mark.parametrize(
    ("micros_", "text"),
    [(257_184, ".257184Z"), (198_450, ".19845Z"), (100_000, ".100Z"), (0, ".000Z")],
)
def test_times_of_the_advanced_feed_have_three_to_six_decimals(micros_, text):
    assert frames.trimmed_iso(1_790_733_792_000_000 + micros_) == "2026-09-30T02:03:12" + text


def test_a_rest_row_has_the_values_of_a_rest_trade():
    row = frames.rest_row(TRADE)
    assert row.pop("product_id") == "PEPE-USD"
    assert row == json.loads(frames.rest_trade(TRADE))


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


def test_a_candle_is_made_of_doubles():
    candle = Candle(60, low=1, high=8_300_000_000_000, open=2, close=3, volume=1234567890112345678)
    row = "[60,0.00000001,83000,0.00000002,0.00000003,12345678901.123457]"
    assert frames.rest_candle(candle) == row
