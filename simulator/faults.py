"""What can go wrong with frames on their way: sent twice, late, not at all, or unreadable ones.

Which frames are hit depends on the seed, the product and the trade id alone. A frame suffers at
most one fault. REST has faults of its own, by the number of the request.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from simulator.market import SECOND

FrameKind = Literal["intact", "duplicate", "late", "malformed", "dropped"]
RestFault = Literal["too_many", "failing", "hanging", "truncated"]
CandleFault = Literal["wrong", "left_out"]


class Outgoing(NamedTuple):
    """A frame about to be sent: its newest trade's id, and its market time."""

    product_id: str
    trade_id: int
    time: int
    payload: bytes


class Frame(NamedTuple):
    """One frame for the readers of a product; one of kind `dropped` is counted but never sent."""

    product_id: str
    payload: bytes
    kind: FrameKind = "intact"
    binary: bool = False


@dataclass(frozen=True)
class Faults:
    """Shares of the frames that suffer each fault, between 0 and 1.

    `duplicates` are sent at once and a second time later; `late` ones are sent only later;
    `dropped` ones are never sent, though REST has their trades; after `malformed` ones an extra,
    unreadable frame follows, now and then one of 1 MB if `giant`. Later is after at most `delay`
    further frames; for late ones after up to `late_by` of market time instead, if it is given.
    Each is late by a time of its own, so late frames come in no order.

    Raises:
        ValueError: If a share is out of range, the shares exceed 1, or a delay is below 1 frame or
            not above 0 seconds.
    """

    duplicates: float = 0.0
    late: float = 0.0
    dropped: float = 0.0
    malformed: float = 0.0
    giant: bool = False
    delay: int = 200
    late_by: timedelta | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.duplicates, self.late, self.dropped, self.malformed)
        if min(shares) < 0 or sum(shares) > 1:
            names = "duplicates, late, dropped, malformed"
            raise ValueError(f"Shares of faults lie in 0 to 1, also together; {names}: {shares}.")
        if self.delay < 1:
            raise ValueError(f"A late frame is at least 1 frame late, not {self.delay}.")
        if self.late_by is not None and self.late_by <= timedelta(0):
            raise ValueError(f"Late frames are late by more than 0 seconds, not {self.late_by}.")

    @property
    def active(self) -> bool:
        """Whether any fault is asked for."""
        return bool(self.duplicates or self.late or self.dropped or self.malformed)


@dataclass(frozen=True)
class RestFaults:
    """Shares of the REST answers that suffer each fault, between 0 and 1.

    `too_many` are 429 with a Retry-After of `retry_after` seconds; `failing` are 500; `hanging`
    come after `hang_seconds`, or never if that is None (the connection is cut after 30 s); of
    `truncated` ones half the JSON is missing. Which requests are hit depends on the seed and the
    number of the request.

    Of the candles, not the answers, `wrong_candles` have a close and a volume one increment of 1e-8
    too high, and `candles_left_out` are not in their answer. Which ones depends on the seed, the
    product and the bucket, so a candle that is asked for again is no better.

    Raises:
        ValueError: If a share is out of range, or the shares of answers or of candles exceed 1.
    """

    too_many: float = 0.0
    failing: float = 0.0
    hanging: float = 0.0
    truncated: float = 0.0
    wrong_candles: float = 0.0
    candles_left_out: float = 0.0
    retry_after: int = 1
    hang_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        answers = {name: share for share, name in self._shares}
        candles = {
            "wrong_candles": self.wrong_candles,
            "candles_left_out": self.candles_left_out,
        }
        for shares in (answers, candles):
            if min(shares.values()) < 0 or sum(shares.values()) > 1:
                told = f"{', '.join(shares)}: {list(shares.values())}"
                raise ValueError(f"Shares of faults lie in 0 to 1, also together; {told}.")

    def of(self, number: int) -> RestFault | None:
        """Return the fault of the request with this number, if it suffers one."""
        luck, _ = _roll(f"{self.seed}/rest/{number}")
        for share, fault in self._shares:
            if luck < share:
                return fault
            luck -= share
        return None

    def of_candle(self, product_id: str, granularity: int, time: int) -> CandleFault | None:
        """Return the fault of a candle of so many seconds from this time on, if it suffers one."""
        luck, _ = _roll(f"{self.seed}/candle/{product_id}/{granularity}/{time}")
        if luck < self.wrong_candles:
            return "wrong"
        return "left_out" if luck < self.wrong_candles + self.candles_left_out else None

    @property
    def _shares(self) -> tuple[tuple[float, RestFault], ...]:
        return (
            (self.too_many, "too_many"),
            (self.failing, "failing"),
            (self.hanging, "hanging"),
            (self.truncated, "truncated"),
        )


def _trade_in(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the trade that a frame is, or the newest of those it carries."""
    trade: dict[str, Any] = fields["events"][0]["trades"][0] if "events" in fields else fields
    return trade


def _changed(**changes: object) -> Callable[[bytes], bytes]:
    """Replace some values of a trade by bad ones."""

    def build(payload: bytes) -> bytes:
        fields = json.loads(payload)
        _trade_in(fields).update(changes)
        return json.dumps(fields).encode()

    return build


def _without(key: str) -> Callable[[bytes], bytes]:
    def build(payload: bytes) -> bytes:
        fields = json.loads(payload)
        del _trade_in(fields)[key]
        return json.dumps(fields).encode()

    return build


def _first_field(payload: bytes) -> bytes:
    """Keep only what says which kind of frame it is."""
    return payload.partition(b",")[0] + b"}"


NOT_UTF8 = "not_utf8"
GIANT = "giant"

MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "cut_off": lambda payload: payload[:90],
    "not_json": lambda _: b"upstream connect error or disconnect/reset before headers",
    "empty": lambda _: b"",
    "array": lambda payload: b"[" + payload + b"]",
    "number": lambda _: b"1100253488",
    "no_fields": _first_field,
    "nul_escape": _changed(side="sell\0"),
    "price_text": _changed(price="abc"),
    "price_empty": _changed(price=""),
    "price_negative": _changed(price="-1.5"),
    "price_zero": _changed(price="0"),
    "price_nan": _changed(price="NaN"),
    "price_nan_token": _changed(price=float("nan")),
    "price_infinite": _changed(price="Infinity"),
    "size_missing": _without("size"),
    "numbers_for_text": _changed(price=83420.2, size=0),
    "side_missing": _without("side"),
    "side_unknown": _changed(side="hold"),
    "time_missing": _without("time"),
    "time_impossible": _changed(time="2026-02-30T25:61:61.000000Z"),
    "trade_id_text": _changed(trade_id="abc"),
    "trade_id_null": _changed(trade_id=None),
    NOT_UTF8: lambda payload: payload.replace(b'"side":"', b'"side":"\xff\xfe'),
    GIANT: _changed(price="abc", note="x" * 1_000_000),
}
"""Frames made unreadable, by what is wrong with them; none can ever pass for a valid trade.

Of a frame with many trades, a bad value stands in one; the others are as they were. A text frame
that is not UTF-8 would make the client close the connection (RFC 6455, 8.1), so that one is sent
as a binary frame.
"""


class FaultInjector:
    """Makes some frames faulty, and keeps those that are to come later.

    Injectors with the same faults but another `salt` hit other frames.
    """

    def __init__(self, faults: Faults, salt: str = "") -> None:
        self._faults = faults
        self._key = f"{faults.seed}/{salt}"
        self._kinds = tuple(kind for kind in MALFORMED if faults.giant or kind != GIANT)
        # By the number of the frame that they follow, and by market time.
        self._held: list[tuple[int, int, Frame]] = []
        self._held_by_time: list[tuple[int, int, Frame]] = []
        self._passed = 0

    def apply(self, frames: Iterable[Outgoing]) -> Iterator[Frame]:
        """Yield the frames that go out with these ones."""
        if not self._faults.active:
            yield from (Frame(frame.product_id, frame.payload) for frame in frames)
            return
        for frame in frames:
            self._passed += 1
            yield from self._frames(frame)
            yield from _released(self._held, self._passed)
            yield from _released(self._held_by_time, frame.time)

    def flush(self) -> Iterator[Frame]:
        """Yield all frames still held back."""
        for held in (self._held, self._held_by_time):
            while held:
                yield heapq.heappop(held)[2]

    def _frames(self, outgoing: Outgoing) -> Iterator[Frame]:
        faults, product_id = self._faults, outgoing.product_id
        luck, choice = _roll(f"{self._key}{product_id}/{outgoing.trade_id}")
        due = self._passed + 1 + choice % faults.delay
        frame = Frame(product_id, outgoing.payload)
        if luck < faults.dropped:
            yield frame._replace(kind="dropped")
            return
        luck -= faults.dropped
        if luck < faults.late:
            late = frame._replace(kind="late")
            if faults.late_by is None:
                heapq.heappush(self._held, (due, self._passed, late))
            else:
                wait = choice * int(faults.late_by.total_seconds() * SECOND) >> 32
                heapq.heappush(self._held_by_time, (outgoing.time + wait, self._passed, late))
            return
        luck -= faults.late
        yield frame
        if luck < faults.duplicates:
            heapq.heappush(self._held, (due, self._passed, frame._replace(kind="duplicate")))
        elif luck < faults.duplicates + faults.malformed:
            kind = self._kinds[choice % len(self._kinds)]
            payload = MALFORMED[kind](outgoing.payload)
            yield Frame(product_id, payload, "malformed", binary=kind == NOT_UTF8)


def _released(held: list[tuple[int, int, Frame]], until: int) -> Iterator[Frame]:
    while held and held[0][0] <= until:
        yield heapq.heappop(held)[2]


def _roll(key: str) -> tuple[float, int]:
    """Return a key's luck, in [0, 1), and a further random number below 2**32."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little") / 2**32, int.from_bytes(digest[4:], "little")
