from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.continuity import Gap, GapWatch, TradeIdTracker

BTC, ETH = "BTC-USD", "ETH-USD"


def seen(*trade_ids: int) -> TradeIdTracker:
    tracker = TradeIdTracker()
    for trade_id in trade_ids:
        tracker.observe(BTC, trade_id)
    return tracker


def ids(gaps: list[Gap]) -> list[int]:
    return [trade_id for gap in gaps for trade_id in range(gap.first, gap.last + 1)]


@given(st.lists(st.integers(0, 60), min_size=1))
def test_missing_is_what_was_not_seen_in_any_order_with_any_duplicates(order: list[int]) -> None:
    tracker = seen(*order)

    expected = sorted(set(range(order[0], max(order) + 1)) - set(order))
    gaps = tracker.missing(BTC)
    assert ids(gaps) == expected
    assert tracker.missing_trades() == {BTC: len(expected)}
    assert all(a.last + 1 < b.first for a, b in pairwise(gaps))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40))), st.integers(0, 40), st.integers(0, 40)
)
def test_missing_with_heartbeats_is_what_was_announced_or_passed_and_not_seen(
    events: list[tuple[bool, int]], low: int, high: int
) -> None:
    tracker = TradeIdTracker()
    trades: set[int] = set()
    for is_trade, number in events:
        if is_trade:
            tracker.observe(BTC, number)
            trades.add(number)
        else:
            tracker.observe_last(BTC, number)

    if not events:
        assert tracker.missing(BTC) == []
        return
    (_, first), top = events[0], max(number for _, number in events)
    missing = set(range(first + 1, top + 1)) - trades
    assert ids(tracker.missing(BTC)) == sorted(missing)
    assert tracker.missing_trades() == {BTC: len(missing)}
    within = tracker.missing_within(Gap(BTC, low, high))
    assert ids(within) == sorted(missing & set(range(low, high + 1)))


@given(st.permutations(range(10, 30)))
def test_all_trades_in_any_order_leave_nothing_missing(order: list[int]) -> None:
    tracker = TradeIdTracker()
    tracker.resume(BTC, 9)
    for trade_id in order:
        tracker.observe(BTC, trade_id)

    assert tracker.missing(BTC) == []


def test_a_jump_returns_the_gap_in_front_of_the_trade() -> None:
    tracker = seen(10)

    assert tracker.observe(BTC, 11) is None
    assert tracker.observe(BTC, 15) == Gap(BTC, 12, 14)
    assert len(Gap(BTC, 12, 14)) == 3


def test_a_late_trade_splits_its_gap() -> None:
    tracker = seen(10, 15)

    assert tracker.observe(BTC, 12) is None
    assert tracker.missing(BTC) == [Gap(BTC, 11, 11), Gap(BTC, 13, 14)]


def test_products_are_numbered_apart() -> None:
    tracker = seen(10)

    assert tracker.observe(ETH, 500) is None
    assert tracker.observe(ETH, 502) == Gap(ETH, 501, 501)
    assert tracker.missing(BTC) == []


def test_heartbeat_ahead_tells_the_tail_until_it_comes() -> None:
    tracker = seen(10)

    assert tracker.observe_last(BTC, 10) is None
    assert tracker.observe_last(BTC, 12) == Gap(BTC, 11, 12)
    assert tracker.missing(BTC) == [Gap(BTC, 11, 12)]
    tracker.observe(BTC, 11)
    tracker.observe(BTC, 12)
    assert tracker.missing(BTC) == []


def test_heartbeat_of_zero_means_unknown() -> None:
    tracker = TradeIdTracker()

    assert tracker.observe_last(BTC, 0) is None
    assert tracker.observe(BTC, 500) is None


def test_first_heartbeat_begins_the_tracking() -> None:
    tracker = TradeIdTracker()
    tracker.observe_last(BTC, 10)

    assert tracker.observe(BTC, 12) == Gap(BTC, 11, 11)


def test_resume_finds_the_gap_across_a_restart() -> None:
    tracker = TradeIdTracker()
    tracker.resume(BTC, 10)

    assert tracker.observe(BTC, 13) == Gap(BTC, 11, 12)
    with pytest.raises(ValueError, match="resume before observing"):
        tracker.resume(BTC, 10)


def test_a_gap_is_told_once_and_only_after_its_grace() -> None:
    tracker = seen(10)
    watch = GapWatch(tracker, grace=5)
    gap = tracker.observe(BTC, 15)
    assert gap is not None
    watch.add(gap, now=100)
    tracker.observe(BTC, 12)

    assert watch.standing(now=104.9) == []
    assert watch.standing(now=105) == [Gap(BTC, 11, 11), Gap(BTC, 13, 14)]
    assert watch.standing(now=200) == []


def test_a_gap_closed_within_its_grace_is_never_told() -> None:
    tracker = seen(10)
    watch = GapWatch(tracker, grace=5)
    gap = tracker.observe(BTC, 12)
    assert gap is not None
    watch.add(gap, now=100)
    tracker.observe(BTC, 11)

    assert watch.standing(now=200) == []


def test_a_tail_announced_again_and_again_is_told_once() -> None:
    tracker = seen(10)
    watch = GapWatch(tracker, grace=5)
    for now, newest in [(100, 12), (101, 12), (102, 13)]:
        tail = tracker.observe_last(BTC, newest)
        assert tail is not None
        watch.add(tail, now=now)

    assert watch.standing(now=106) == [Gap(BTC, 11, 12)]
    assert watch.standing(now=107) == [Gap(BTC, 13, 13)]
