from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ingestion.continuity import (
    MAX_ID,
    MOST_SKIPPED,
    GapWatch,
    IdRange,
    TradeIdTracker,
    clip,
    contains,
    count,
    intersect,
    subtract,
)

BTC, ETH = "BTC-USD", "ETH-USD"

RANGES = st.lists(st.integers(1, 60), unique=True).map(lambda ids: ranges(set(ids)))


def ranges(ids: set[int]) -> list[IdRange]:
    """Return ids as ranges in ascending order."""
    firsts = sorted(trade_id for trade_id in ids if trade_id - 1 not in ids)
    lasts = sorted(trade_id for trade_id in ids if trade_id + 1 not in ids)
    return [IdRange(first, last) for first, last in zip(firsts, lasts, strict=True)]


def ids(parts: list[IdRange]) -> set[int]:
    return {trade_id for first, last in parts for trade_id in range(first, last + 1)}


def seen(*trade_ids: int) -> TradeIdTracker:
    tracker = TradeIdTracker()
    for trade_id in trade_ids:
        tracker.observe(BTC, trade_id)
    return tracker


@given(RANGES, st.integers(0, 60), st.integers(0, 60))
def test_ranges_are_sets_of_ids(parts: list[IdRange], low: int, high: int) -> None:
    assert count(parts) == len(ids(parts))
    assert ids(clip(parts, low, high)) == ids(parts) & set(range(low, high + 1))
    assert contains(parts, low) == (low in ids(parts))


@given(st.lists(st.integers(1, 60), min_size=1))
def test_missing_is_what_was_not_seen_in_any_order_with_any_duplicates(order: list[int]) -> None:
    tracker = seen(*order)

    missing = tracker.missing(BTC)
    assert ids(missing) == set(range(order[0], max(order) + 1)) - set(order)
    assert tracker.missing_trades() == {BTC: count(missing)}
    assert all(low.last + 1 < high.first for low, high in pairwise(missing))
    # What is accounted for is the rest.
    accounted_for = tracker.accounted_for().get(BTC, [])
    tracked = set(range(order[0], max(order) + 1)) & set(order)
    assert ids(accounted_for) == (tracked if len(set(order)) > 1 else set())


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40))), st.integers(0, 40))
def test_missing_with_heartbeats_is_what_was_announced_or_passed_and_not_seen(
    events: list[tuple[bool, int]], limit: int
) -> None:
    tracker = TradeIdTracker()
    trades: set[int] = set()
    for is_trade, number in events:
        if is_trade:
            tracker.observe(BTC, number)
            trades.add(number)
        else:
            tracker.announce(BTC, number)

    if not events:
        assert tracker.missing(BTC) == []
        assert tracker.last_missing(BTC) is None
        return
    (began, first), top = events[0], max(number for _, number in events)
    # A heartbeat begins behind itself, unless the first trade to come is from before it.
    if not began and trades:
        at = next(at for at, (is_trade, _) in enumerate(events) if is_trade)
        earliest = events[at][1]
        if earliest <= max(number for _, number in events[:at]):
            first = min(first, earliest)
    missing = set(range(first + 1, top + 1)) - trades
    assert ids(tracker.missing(BTC)) == missing
    assert tracker.missing_trades() == {BTC: len(missing)}
    assert tracker.last_missing(BTC) == (max(missing) if missing else None)
    assert ids(tracker.missing(BTC, limit)) == {number for number in missing if number <= limit}


@given(st.lists(st.integers(1, 40), min_size=1), RANGES)
def test_what_is_forgotten_counts_as_seen(order: list[int], recorded: list[IdRange]) -> None:
    tracker = seen(*order)
    before, accounted_for = ids(tracker.missing(BTC)), ids(tracker.accounted_for().get(BTC, []))
    recorded = ranges(ids(recorded) & before)

    tracker.forget(BTC, recorded)

    assert ids(tracker.missing(BTC)) == before - ids(recorded)
    assert tracker.missing_trades() == {BTC: len(before - ids(recorded))}
    assert ids(tracker.accounted_for().get(BTC, [])) == accounted_for | ids(recorded)


@given(RANGES.filter(bool), st.lists(st.integers(1, 80)), st.lists(st.integers(1, 80)))
def test_resuming_early_or_late_misses_the_same_trades(
    covered: list[IdRange], early: list[int], late: list[int]
) -> None:
    # Trades of this run are newer than those of earlier ones, but for a few that came late.
    newest = covered[-1].last
    early, late = [newest + number for number in early], [newest + number for number in late]
    at_once, later = TradeIdTracker(), TradeIdTracker()

    at_once.resume(BTC, covered)
    for trade_id in early:
        at_once.observe(BTC, trade_id)
        later.observe(BTC, trade_id)
    later.resume(BTC, covered)
    for trade_id in early + late:
        at_once.observe(BTC, trade_id)
        later.observe(BTC, trade_id)

    expected = set(range(covered[0].first, max([newest, *early, *late]) + 1))
    expected -= ids(covered) | set(early) | set(late)
    assert ids(at_once.missing(BTC)) == expected
    # Only an id below the first one seen can't be told from one that came before.
    lower = {trade_id for trade_id in late if early and trade_id < early[0]}
    assert ids(later.missing(BTC)) == expected - lower
    assert at_once.accounted_for()[BTC][0].first == covered[0].first


@given(RANGES, RANGES)
def test_ids_of_both(these: list[IdRange], those: list[IdRange]) -> None:
    assert ids(intersect(these, those)) == ids(these) & ids(those)


@given(st.lists(st.integers(1, 40), min_size=1), st.lists(st.integers(1, 45)))
def test_a_trade_that_is_lost_again_is_missing(order: list[int], lost: list[int]) -> None:
    tracker = seen(*order)
    for trade_id in lost:
        tracker.lose(BTC, trade_id)

    tracked = set(range(order[0], max(order) + 1))
    assert ids(tracker.missing(BTC)) == (tracked - set(order)) | (set(lost) & tracked)
    assert tracker.missing_trades() == {BTC: count(tracker.missing(BTC))}
    accounted_for = tracked & set(order) - set(lost)
    if len(set(order)) == 1:
        # One trade alone may be anything.
        accounted_for = set()
    assert ids(tracker.accounted_for().get(BTC, [])) == accounted_for


def test_a_jump_is_told_by_the_trade_behind_it() -> None:
    tracker = seen(10)

    assert not tracker.observe(BTC, 11)
    assert tracker.observe(BTC, 15)
    assert tracker.missing(BTC) == [IdRange(12, 14)]
    assert tracker.highest(BTC) == 15


def test_a_late_trade_splits_its_gap() -> None:
    tracker = seen(10, 15)

    assert not tracker.observe(BTC, 12)
    assert tracker.missing(BTC) == [IdRange(11, 11), IdRange(13, 14)]


def test_products_are_numbered_apart() -> None:
    tracker = seen(10)

    assert not tracker.observe(ETH, 500)
    assert tracker.observe(ETH, 502)
    assert tracker.missing(BTC) == []


def test_heartbeat_ahead_tells_the_tail_until_it_comes() -> None:
    tracker = seen(10)

    assert not tracker.announce(BTC, 10)
    assert tracker.announce(BTC, 12)
    assert tracker.missing(BTC) == [IdRange(11, 12)]
    tracker.observe(BTC, 11)
    tracker.observe(BTC, 12)
    assert tracker.missing(BTC) == []


def test_heartbeat_of_zero_means_unknown() -> None:
    tracker = TradeIdTracker()

    assert not tracker.announce(BTC, 0)
    assert not tracker.observe(BTC, 500)


def test_a_trade_announced_before_any_was_seen_is_not_accounted_for() -> None:
    tracker = TradeIdTracker()
    tracker.announce(BTC, 10)

    assert tracker.accounted_for() == {}
    assert tracker.observe(BTC, 12)
    assert tracker.missing(BTC) == [IdRange(11, 11)]
    assert tracker.accounted_for() == {BTC: [IdRange(12, 12)]}


def test_a_trade_below_the_first_announced_one_begins_the_tracking() -> None:
    tracker = TradeIdTracker()
    tracker.announce(BTC, 20)

    assert tracker.observe(BTC, 10)
    tracker.observe(BTC, 12)
    assert tracker.missing(BTC) == [IdRange(11, 11), IdRange(13, 20)]
    assert tracker.accounted_for() == {BTC: [IdRange(10, 10), IdRange(12, 12)]}


def test_a_tail_that_is_forgotten_is_no_jump_for_the_next_trade() -> None:
    tracker = seen(10)
    tracker.announce(BTC, 12)
    tracker.forget(BTC, [IdRange(11, 12)])

    assert tracker.missing(BTC) == []
    assert not tracker.observe(BTC, 13)


def test_one_id_out_of_all_proportion_is_not_believed() -> None:
    tracker = seen(9, 10, 10**17, 10**17, 11, 13)

    assert tracker.missing(BTC) == [IdRange(12, 12)]
    assert not tracker.announce(BTC, 10**17)
    assert tracker.missing(BTC) == [IdRange(12, 12)]


def test_a_second_id_bears_out_a_great_leap() -> None:
    leap = 11 + MOST_SKIPPED
    tracker = seen(9, 10, leap, leap, leap + 1)

    assert tracker.highest(BTC) == leap + 1
    assert tracker.missing(BTC) == [IdRange(11, leap)]


def test_what_is_no_trade_id_of_silver_is_never_believed() -> None:
    tracker = seen(9, 10, MAX_ID + 1, MAX_ID + 2, 2**70, 2**70 + 1, -5, 0, 11)
    assert tracker.missing(BTC) == []
    assert tracker.highest(BTC) == 11
    assert not seen(2**70, 0, -1).observe(BTC, 5)


def test_a_first_id_out_of_all_proportion_is_taken_back() -> None:
    for first in (10**17, 1):
        tracker = seen(first, first, 10**9, 10**9 + 1, 10**9 + 3)
        assert tracker.missing(BTC) == [IdRange(10**9 + 2, 10**9 + 2)]
        assert tracker.accounted_for()[BTC][0].first == 10**9


def test_a_trade_that_was_not_kept_is_missing_also_when_it_was_the_first() -> None:
    tracker = TradeIdTracker()
    assert tracker.miss(BTC, 10)
    assert tracker.miss(BTC, 11)
    assert tracker.observe(BTC, 13)
    assert tracker.missing(BTC) == [IdRange(10, 12)]


def test_what_is_no_product_is_not_followed() -> None:
    tracker = TradeIdTracker()
    for name in ("BTC\0USD", "\ud800", "btc-usd", "BTC", "X" * 3000 + "-USD", ""):
        for trade_id in (1, 2, 5):
            assert not tracker.observe(name, trade_id)
        assert not tracker.announce(name, 9)
        assert not tracker.miss(name, 10)
        tracker.lose(name, 2)
    assert tracker.missing_trades() == {}
    assert tracker.accounted_for() == {}


@given(RANGES, RANGES)
def test_ids_of_one_and_not_the_other(these: list[IdRange], those: list[IdRange]) -> None:
    assert ids(subtract(these, those)) == ids(these) - ids(those)


def test_a_gap_is_told_only_after_its_grace_and_until_it_is_recorded() -> None:
    tracker = seen(10, 15)
    watch = GapWatch(tracker, grace=5)
    watch.add(BTC, now=100)
    tracker.observe(BTC, 12)

    assert watch.standing(now=104.9) == {}
    standing = [IdRange(11, 11), IdRange(13, 14)]
    assert watch.standing(now=105) == {BTC: standing}
    assert watch.standing(now=106) == {BTC: standing}
    tracker.forget(BTC, standing)
    assert watch.standing(now=200) == {}


def test_a_gap_closed_within_its_grace_is_never_told() -> None:
    tracker = seen(10, 12)
    watch = GapWatch(tracker, grace=5)
    watch.add(BTC, now=100)
    tracker.observe(BTC, 11)

    assert watch.standing(now=200) == {}


def test_each_trade_has_its_own_grace() -> None:
    tracker = seen(10)
    watch = GapWatch(tracker, grace=5)
    for now, newest in [(100, 12), (101.5, 14), (103, 16)]:
        tracker.announce(BTC, newest)
        watch.add(BTC, now=now)

    assert watch.standing(now=105) == {BTC: [IdRange(11, 12)]}
    assert watch.standing(now=107) == {BTC: [IdRange(11, 14)]}
    assert watch.standing(now=108) == {BTC: [IdRange(11, 16)]}


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60).map(sorted))
def test_many_gaps_are_told_a_second_late_at_most(found_at: list[float]) -> None:
    tracker = seen(1)
    watch = GapWatch(tracker, grace=5)
    for number, now in enumerate(found_at):
        tracker.observe(BTC, 2 * number + 3)
        watch.add(BTC, now=now)

    for now in range(40):
        told = ids(watch.standing(now=float(now)).get(BTC, []))
        due = {2 * number + 2 for number, at in enumerate(found_at) if at + 6 <= now}
        too_early = {2 * number + 2 for number, at in enumerate(found_at) if at + 5 > now}
        assert due <= told
        assert not told & too_early
