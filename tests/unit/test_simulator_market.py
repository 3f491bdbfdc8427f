from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.market import (
    DAY,
    DEFAULT_PRODUCT_IDS,
    EPOCH,
    PRODUCTS,
    SECOND,
    Market,
    candle_of,
    micros,
)

NOON = micros(datetime(2026, 11, 23, 12, tzinfo=UTC))
MARKET = Market(seed=7)

times = st.integers(EPOCH - 300 * DAY, EPOCH + 900 * DAY)
product_ids = st.sampled_from(sorted(p.id for p in PRODUCTS.values() if p.online))


def some_trades(product_id: str, count: int = 5_000):
    tape = MARKET[product_id]
    first = tape.last_trade_id(NOON)
    return list(tape.trades(first, first + count - 1))


@settings(max_examples=60, deadline=None)
@given(product_ids, times)
def test_last_trade_id_is_the_newest_at_or_before_the_time(product_id, at):
    tape = MARKET[product_id]
    last = tape.last_trade_id(at)
    assert tape.trade(last).time <= at < tape.trade(last + 1).time


@settings(max_examples=60, deadline=None)
@given(product_ids, times)
def test_a_trade_is_the_same_whenever_and_in_whatever_order_it_is_asked(product_id, at):
    first = MARKET[product_id].last_trade_id(at)
    expected = list(MARKET[product_id].trades(first, first + 150))
    again = Market(seed=7)[product_id]
    assert [again.trade(first + i) for i in reversed(range(151))] == expected[::-1]


def test_another_seed_is_another_market():
    trade_id = MARKET["BTC-USD"].last_trade_id(NOON)
    assert Market(seed=8)["BTC-USD"].trade(trade_id) != MARKET["BTC-USD"].trade(trade_id)


@pytest.mark.parametrize("product_id", DEFAULT_PRODUCT_IDS)
def test_trade_ids_have_no_gap(product_id):
    trades = some_trades(product_id)
    ids = [trade.trade_id for trade in trades]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


@pytest.mark.parametrize("product_id", DEFAULT_PRODUCT_IDS)
def test_time_never_falls_in_id_order(product_id):
    trades = some_trades(product_id)
    assert all(a.time <= b.time for a, b in pairwise(trades))


@pytest.mark.parametrize("product_id", DEFAULT_PRODUCT_IDS)
def test_sequence_rises_and_jumps(product_id):
    steps = {b.sequence - a.sequence for a, b in pairwise(some_trades(product_id))}
    assert min(steps) > 0
    assert max(steps) > 100


def test_a_heartbeat_sequence_lies_between_those_of_trades():
    tape = MARKET["ETH-USD"]
    for at in range(NOON, NOON + 300 * SECOND, SECOND):
        last = tape.last_trade_id(at)
        assert tape.trade(last).sequence < tape.sequence(at) < tape.trade(last + 1).sequence


@pytest.mark.parametrize("product_id", DEFAULT_PRODUCT_IDS)
def test_prices_and_sizes_are_multiples_of_their_increments(product_id):
    product = PRODUCTS[product_id]
    for trade in some_trades(product_id):
        assert trade.price > 0
        assert trade.size > 0
        assert trade.price % product.quote_increment == 0
        assert trade.size % product.base_increment == 0
        assert trade.size <= product.max_size


def test_a_taker_order_sweeps_up_to_twelve_makers_in_one_microsecond():
    orders = {}
    for trade in some_trades("BTC-USD"):
        orders.setdefault(trade.taker_order_id, []).append(trade)
    assert max(map(len, orders.values())) == 12
    assert all(len({(t.time, t.side) for t in order}) == 1 for order in orders.values())


def test_a_sell_maker_means_the_price_ticks_up():
    orders = {}
    for trade in some_trades("BTC-USD"):
        orders.setdefault((trade.taker_order_id, trade.side), []).append(trade.price)
    for (_, side), prices in orders.items():
        assert prices == sorted(prices, reverse=side == "buy")


def test_the_default_products_make_over_300_000_trades_in_any_24_hours():
    for hour in range(0, 48, 5):
        begin = NOON + hour * 3600 * SECOND
        made = sum(
            MARKET[product_id].last_trade_id(begin + DAY) - MARKET[product_id].last_trade_id(begin)
            for product_id in DEFAULT_PRODUCT_IDS
        )
        assert 300_000 <= made <= 360_000


def test_extreme_prices_and_sizes_occur():
    trades = some_trades("BONK-USD", 20_000)
    assert min(trade.price for trade in trades) < 10**2  # below 1e-6
    assert max(trade.size for trade in trades) > 10**10 * 10**8


def test_merged_trades_are_in_time_order_and_in_id_order_per_product():
    trades = MARKET.between(DEFAULT_PRODUCT_IDS, NOON, NOON + 600 * SECOND)
    assert all(a.time <= b.time for a, b in pairwise(trades))
    for product_id in DEFAULT_PRODUCT_IDS:
        ids = [trade.trade_id for trade in trades if trade.product_id == product_id]
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_adjoining_spans_share_no_trade_and_lose_none():
    cut, end = NOON + 61 * SECOND, NOON + 120 * SECOND
    parts = [MARKET.between(["BTC-USD"], *span) for span in ((NOON, cut), (cut, end))]
    assert parts[0] + parts[1] == MARKET.between(["BTC-USD"], NOON, end)


def test_no_trade_id_below_one():
    with pytest.raises(ValueError, match="begin at 1"):
        MARKET["BTC-USD"].trade(0)


def test_a_product_without_trades_yet_has_last_trade_id_zero():
    assert MARKET["BTC-USD"].last_trade_id(0 - 40_000 * DAY) == 0


# Absent ids


def with_absent(*offsets: int):
    """Return a tape, its newest id at noon, and a tape that lacks some of the ids around that."""
    newest = MARKET["BTC-USD"].last_trade_id(NOON)
    absent = {"BTC-USD": [newest + offset for offset in offsets]}
    return MARKET["BTC-USD"], newest, Market(seed=7, absent=absent)["BTC-USD"]


def test_absent_ids_have_no_trade_and_their_neighbours_stay():
    whole, newest, tape = with_absent(-100, -70, -69, -2)
    expected = [
        trade
        for trade in whole.trades(newest - 200, newest)
        if trade.trade_id - newest not in {-100, -70, -69, -2}
    ]
    assert list(tape.trades(newest - 200, newest)) == expected
    assert list(tape.newest_first(newest, newest - 200)) == expected[::-1]
    assert tape.count(newest - 200, newest) == len(expected) == 197
    with pytest.raises(ValueError, match="absent"):
        tape.trade(newest - 2)


def test_an_absent_id_is_never_the_newest():
    _, newest, tape = with_absent(0, -1)
    assert tape.last_trade_id(NOON) == newest - 2


def test_absent_ids_leave_the_sequence_of_heartbeats_as_it_was():
    whole, _, tape = with_absent(*range(-200, 1))
    assert tape.sequence(NOON) == whole.sequence(NOON)


# Listings and delistings

NEW = replace(PRODUCTS["BTC-USD"], id="NEW-USD")


@pytest.mark.parametrize("at", [NOON, NOON + 1, EPOCH - DAY, EPOCH])
def test_a_listed_product_begins_with_trade_1_then(at):
    market = Market(seed=7)
    market.list_product(NEW, at)
    tape = market["NEW-USD"]
    assert tape.last_trade_id(at) == 0
    assert at < tape.trade(1).time < at + 600 * SECOND
    assert market.between(["NEW-USD"], at, at + 600 * SECOND)[0].trade_id == 1


def test_a_product_is_listed_once():
    with pytest.raises(ValueError, match="BTC-USD already"):
        Market().list_product(PRODUCTS["BTC-USD"], NOON)


def test_a_delisted_product_trades_no_more_and_keeps_its_trades():
    market = Market(seed=7)
    newest = market["BTC-USD"].last_trade_id(NOON)
    market.delist("BTC-USD", NOON)
    assert not market.products["BTC-USD"].online
    assert market["BTC-USD"].last_trade_id(NOON + DAY) == newest
    assert market.between(["BTC-USD"], NOON - 600 * SECOND, NOON + DAY)[-1].trade_id == newest


def test_a_candle_opens_with_the_first_trade_and_closes_with_the_last():
    trades = some_trades("BTC-USD", 50)
    candle = candle_of(60, trades)
    assert (candle.open, candle.close) == (trades[0].price, trades[-1].price)
    assert candle.low <= min(candle.open, candle.close)
    assert candle.high >= max(candle.open, candle.close)
    assert candle.volume == sum(trade.size for trade in trades)


def test_a_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        micros(datetime(2026, 1, 1))
