import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from simulator.faults import MALFORMED, FaultInjector, Faults, Outgoing, RestFaults
from simulator.frames import advanced_frame, market_trades_event, match_frame
from simulator.market import SECOND, Market, micros

TAPE = Market(seed=3)["BTC-USD"]
FIRST = TAPE.last_trade_id(micros(datetime(2026, 11, 1, tzinfo=UTC)))
TRADES = list(TAPE.trades(FIRST, FIRST + 3_999))
ALL = Faults(duplicates=0.05, late=0.05, dropped=0.05, malformed=0.05, delay=50, seed=1)


MATCHES = [Outgoing(t.product_id, t.trade_id, t.time, match_frame(t)) for t in TRADES]


def sent(faults: Faults, chunk: int = 4_000, salt: str = ""):
    injector = FaultInjector(faults, salt)
    frames = []
    for low in range(0, len(MATCHES), chunk):
        frames += injector.apply(MATCHES[low : low + chunk])
    return frames + list(injector.flush())


def test_without_faults_each_trade_is_one_frame_in_order():
    assert [frame.payload for frame in sent(Faults())] == [match_frame(t) for t in TRADES]


def test_every_trade_is_sent_intact_unless_dropped():
    frames = sent(ALL)
    intact = {frame.payload for frame in frames if frame.kind in {"intact", "late"}}
    dropped = {frame.payload for frame in frames if frame.kind == "dropped"}
    assert intact | dropped == {match_frame(trade) for trade in TRADES}
    assert not intact & dropped


@pytest.mark.parametrize("kind", ["duplicate", "late", "dropped", "malformed"])
def test_each_fault_hits_about_its_share(kind):
    assert 140 < Counter(frame.kind for frame in sent(ALL))[kind] < 260


def test_a_duplicate_follows_its_original():
    seen = set()
    for frame in sent(ALL):
        assert frame.kind != "duplicate" or frame.payload in seen
        seen.add(frame.payload)


def test_late_frames_are_out_of_order():
    ids = [json.loads(frame.payload)["trade_id"] for frame in sent(Faults(late=0.05))]
    assert ids != sorted(ids)
    assert sorted(ids) == [trade.trade_id for trade in TRADES]


def test_a_late_frame_is_late_by_at_most_the_delay():
    newest = FIRST
    for frame in sent(Faults(late=0.05, delay=50))[:3_900]:
        trade_id = json.loads(frame.payload)["trade_id"]
        assert newest - trade_id <= 51
        newest = max(newest, trade_id)


def test_late_frames_by_market_time_come_within_it_and_in_no_order():
    time = {frame.payload: frame.time for frame in MATCHES}
    span, now, late = 600 * SECOND, 0, []
    for frame in sent(Faults(late=0.05, late_by=timedelta(seconds=600)), chunk=70):
        if frame.kind == "late":
            late.append(time[frame.payload])
            wait = now - late[-1]
            assert wait <= span + longest_pause() or now == MATCHES[-1].time
        else:
            now = time[frame.payload]
    assert len(late) > 140
    backwards = sum(b < a for a, b in pairwise(late))
    assert backwards > len(late) / 4


def longest_pause() -> int:
    return max(b.time - a.time for a, b in pairwise(MATCHES))


def test_another_salt_hits_other_frames():
    dropped = [
        {
            frame.payload
            for frame in sent(Faults(dropped=0.05), salt=salt)
            if frame.kind == "dropped"
        }
        for salt in ("", "advanced/")
    ]
    assert len(dropped[0] & dropped[1]) < 40 < min(map(len, dropped))


def test_the_faults_do_not_depend_on_the_chunks():
    assert sent(ALL, chunk=7) == sent(ALL)


def test_giant_frames_come_only_if_asked_for():
    assert max(len(frame.payload) for frame in sent(Faults(malformed=0.1))) < 1_000
    assert max(len(frame.payload) for frame in sent(Faults(malformed=0.1, giant=True))) > 1_000_000


def is_valid_trade(payload: bytes) -> bool:
    """What any reader would take for a trade, as generously as can be."""
    try:
        fields = json.loads(payload)
        if "channel" in fields:
            fields = fields["events"][0]["trades"][0]
        return (
            int(fields["trade_id"]) > 0
            and 0 < float(fields["price"]) < float("inf")
            and float(fields["size"]) > 0
            and fields["side"].lower() in {"buy", "sell"}
            and bool(datetime.fromisoformat(fields["time"]))
        )
    except (ValueError, KeyError, TypeError):
        return False


def update(*trades) -> bytes:
    return advanced_frame("market_trades", 0, 0, market_trades_event("update", trades))


@pytest.mark.parametrize(
    "payload", [match_frame(TRADES[0]), update(TRADES[0])], ids=["match", "update"]
)
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_frame_never_passes_for_a_trade(kind, payload):
    assert is_valid_trade(payload)
    assert not is_valid_trade(MALFORMED[kind](payload))


def test_a_bad_value_leaves_the_other_trades_of_a_frame_as_they_were():
    before = json.loads(update(*TRADES[:3]))["events"][0]["trades"]
    after = json.loads(MALFORMED["price_text"](update(*TRADES[:3])))["events"][0]["trades"]
    assert after[0] == before[0] | {"price": "abc"}
    assert after[1:] == before[1:]


@pytest.mark.parametrize(
    "wrong", [{"late": -0.1}, {"late": 0.6, "dropped": 0.5}, {"late": 0.1, "delay": 0}]
)
def test_impossible_faults_are_refused(wrong):
    with pytest.raises(ValueError, match="late"):
        Faults(**wrong)


def test_late_by_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Faults(late=0.1, late_by=timedelta(0))


# REST


def test_each_rest_fault_hits_about_its_share():
    faults = RestFaults(too_many=0.1, failing=0.1, hanging=0.1, truncated=0.1)
    counts = Counter(faults.of(number) for number in range(2_000))
    assert set(counts) == {"too_many", "failing", "hanging", "truncated", None}
    assert all(140 < counts[kind] < 260 for kind in counts if kind)


def test_another_seed_spoils_other_answers():
    hit = [[RestFaults(failing=0.5, seed=seed).of(n) for n in range(50)] for seed in (1, 1, 2)]
    assert hit[0] == hit[1] != hit[2]


def test_impossible_rest_faults_are_refused():
    with pytest.raises(ValueError, match="hanging"):
        RestFaults(failing=0.6, hanging=0.5)
    with pytest.raises(ValueError, match="candles_left_out"):
        RestFaults(wrong_candles=0.6, candles_left_out=0.5)


def test_each_candle_fault_hits_about_its_share_and_the_same_candles_again():
    faults = RestFaults(wrong_candles=0.1, candles_left_out=0.1)
    hit = [
        [faults.of_candle("BTC-USD", granularity, 60 * n) for n in range(2_000)]
        for granularity in (60, 60, 3600)
    ]
    assert hit[0] == hit[1] != hit[2]
    counts = Counter(hit[0])
    assert set(counts) == {"wrong", "left_out", None}
    assert all(140 < counts[kind] < 260 for kind in counts if kind)
