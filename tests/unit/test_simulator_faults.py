import json
from collections import Counter
from datetime import UTC, datetime

import pytest

from simulator.faults import MALFORMED, FaultInjector, Faults
from simulator.frames import match_frame
from simulator.market import Market, micros

TAPE = Market(seed=3)["BTC-USD"]
FIRST = TAPE.last_trade_id(micros(datetime(2026, 11, 1, tzinfo=UTC)))
TRADES = list(TAPE.trades(FIRST, FIRST + 3_999))
ALL = Faults(duplicates=0.05, late=0.05, dropped=0.05, malformed=0.05, delay=50, seed=1)


def sent(faults: Faults, chunk: int = 4_000):
    injector = FaultInjector(faults)
    frames = []
    for low in range(0, len(TRADES), chunk):
        frames += injector.apply(TRADES[low : low + chunk])
    return frames + list(injector.flush())


def test_without_faults_each_trade_is_one_frame_in_order():
    assert [frame.payload for frame in sent(Faults())] == [match_frame(t) for t in TRADES]


def test_every_trade_is_sent_intact_unless_dropped():
    frames = sent(ALL)
    intact = {frame.payload for frame in frames if frame.kind in {"match", "late"}}
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


def test_the_faults_do_not_depend_on_the_chunks():
    assert sent(ALL, chunk=7) == sent(ALL)


def test_giant_frames_come_only_if_asked_for():
    assert max(len(frame.payload) for frame in sent(Faults(malformed=0.1))) < 1_000
    assert max(len(frame.payload) for frame in sent(Faults(malformed=0.1, giant=True))) > 1_000_000


def is_valid_trade(payload: bytes) -> bool:
    """What any reader would take for a trade, as generously as can be."""
    try:
        fields = json.loads(payload)
        return (
            int(fields["trade_id"]) > 0
            and 0 < float(fields["price"]) < float("inf")
            and float(fields["size"]) > 0
            and fields["side"] in {"buy", "sell"}
            and bool(datetime.fromisoformat(fields["time"]))
        )
    except (ValueError, KeyError, TypeError):
        return False


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_frame_never_passes_for_a_trade(kind):
    assert is_valid_trade(match_frame(TRADES[0]))
    assert not is_valid_trade(MALFORMED[kind](TRADES[0]))


@pytest.mark.parametrize(
    "wrong", [{"late": -0.1}, {"late": 0.6, "dropped": 0.5}, {"late": 0.1, "delay": 0}]
)
def test_impossible_faults_are_refused(wrong):
    with pytest.raises(ValueError, match="late"):
        Faults(**wrong)
