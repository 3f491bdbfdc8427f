from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ingestion.coinbase.wire import (
    Message,
    UnreadableFrameError,
    decode,
    refusal,
    subscribe,
    subscribed_products,
    trade_number,
)

RECORDED = Path(__file__).parents[3] / "shared/data/coinbase_exchange_2026-09-30.jsonl"


@pytest.fixture
def recorded() -> list[bytes]:
    if not RECORDED.exists():
        pytest.skip(f"no recorded frames: {RECORDED} is absent")
    return RECORDED.read_bytes().splitlines()


def test_recorded_frames_decode_with_all_their_fields(recorded: list[bytes]) -> None:
    messages = [decode(frame) for frame in recorded]

    assert Counter(message.kind for message in messages) == {
        "match": 61,
        "last_match": 2,
        "heartbeat": 20,
        "subscriptions": 1,
    }
    for frame, message in zip(recorded, messages, strict=True):
        document = json.loads(frame)
        assert message.product_id == document.get("product_id")
        assert message.trade_id == document.get("trade_id")
        assert message.last_trade_id == document.get("last_trade_id")


def test_recorded_subscriptions_confirm_both_products(recorded: list[bytes]) -> None:
    assert subscribed_products(recorded[0]) == {"BTC-USD", "ETH-USD"}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b'{"type":"match"}', Message(kind="match")),
        (
            b'{"type":"match","product_id":5,"trade_id":"7"}',
            Message(kind="match", product_id=5, trade_id="7"),
        ),
        (
            b'{"type":"match","product_id":{"a":1},"trade_id":[1]}',
            Message(kind="match", product_id={"a": 1}, trade_id=[1]),
        ),
        (b'{"type":["match"]}', Message(kind=["match"])),
        (b"{}", Message()),
        (b'{"type":"match","trade_id":1e999}', Message(kind="match", trade_id="1e999")),
        (
            b'{"type":"match","trade_id":' + b"9" * 5000 + b"}",
            Message(kind="match", trade_id="9" * 5000),
        ),
        (b'{"type":"match","product_id":"\\ud800"}', Message(kind="match")),
        (b'{"type":"match","x":"\\ud800"}', Message(kind="match")),
        (b'{"type":"match","x":' + b"[" * 5000 + b"]" * 5000 + b"}", Message(kind="match")),
    ],
)
def test_an_object_decodes_whatever_its_values(frame: bytes, message: Message) -> None:
    assert decode(frame) == message


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "not JSON: "),
        (b"hello", "not JSON: "),
        (b'{"type":"match"', "not JSON: "),
        (b'{"type":"match","price":NaN}', "not JSON: NaN is no JSON number"),
        (b'{"type":"match","price":-Infinity}', "not JSON: -Infinity is no JSON number"),
        (b"[1", "not JSON: "),
        (b"[1]", "JSON but no object"),
        (b"null", "JSON but no object"),
        (b'"match"', "JSON but no object"),
        (b"\xff\xfe{}", "not UTF-8: invalid start byte at byte 0"),
        (b'{"type":"match","product_id":"\xff"}', "not UTF-8: invalid start byte at byte 30"),
        (b"[" * 5000 + b"]" * 5000, "JSON but no object, or not JSON: nested too deep"),
    ],
)
def test_what_is_no_json_object_is_named(frame: bytes, reason: str) -> None:
    with pytest.raises(UnreadableFrameError) as caught:
        decode(frame)

    assert str(caught.value).startswith(reason)


def test_subscription_names_the_products_in_each_channel() -> None:
    assert json.loads(subscribe(("BTC-USD", "ETH-USD"))) == {
        "type": "subscribe",
        "channels": [
            {"name": "matches", "product_ids": ["BTC-USD", "ETH-USD"]},
            {"name": "heartbeat", "product_ids": ["BTC-USD", "ETH-USD"]},
        ],
    }


@pytest.mark.parametrize(
    ("frame", "products"),
    [
        (b'{"type":"subscriptions","channels":[]}', frozenset()),
        (
            b'{"type":"subscriptions","channels":[{"name":"heartbeat","product_ids":["A-B"]}]}',
            set(),
        ),
        (b'{"type":"subscriptions","channels":{}}', None),
    ],
)
def test_only_the_trade_channel_confirms_a_product(frame: bytes, products: object) -> None:
    assert subscribed_products(frame) == products


def test_refusal_names_whole_product_ids_only() -> None:
    told = refusal(
        b'{"type":"error","message":"Failed to subscribe","reason":"YFI-USD is delisted"}'
    )

    assert told.names("YFI-USD")
    assert not told.names("FI-USD")
    assert not told.names("YFI-US")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (7, 7),
        ("7", 7),
        ("9" * 19, int("9" * 19)),
        ("9" * 20, None),
        ("7.0", None),
        ("", None),
        ("\u0667", None),
        (7.0, None),
        (True, None),
        (None, None),
        ([7], None),
    ],
)
def test_trade_id_is_a_number_or_its_text(value: object, number: int | None) -> None:
    assert trade_number(value) == number
