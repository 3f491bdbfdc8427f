"""What can go wrong with frames on their way: sent twice, late, not at all, or unreadable ones.

Which trades are hit depends on the seed, the product and the trade id alone. A trade suffers at
most one fault.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

from simulator.frames import match_frame
from simulator.market import Trade

FrameKind = Literal["match", "duplicate", "late", "malformed", "dropped"]


class Frame(NamedTuple):
    """One frame for the readers of a product; one of kind `dropped` is counted but never sent."""

    product_id: str
    payload: bytes
    kind: FrameKind = "match"
    binary: bool = False


@dataclass(frozen=True)
class Faults:
    """Shares of the trades that suffer each fault, between 0 and 1.

    `duplicates` are sent at once and a second time later; `late` ones are sent only later, after
    at most `delay` further trades; `dropped` ones are never sent, though REST has them; after
    `malformed` ones an extra, unreadable frame follows, now and then one of 1 MB if `giant`.

    Raises:
        ValueError: If a share is out of range, the shares exceed 1, or the delay is below 1.
    """

    duplicates: float = 0.0
    late: float = 0.0
    dropped: float = 0.0
    malformed: float = 0.0
    giant: bool = False
    delay: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.duplicates, self.late, self.dropped, self.malformed)
        if min(shares) < 0 or sum(shares) > 1:
            names = "duplicates, late, dropped, malformed"
            raise ValueError(f"Shares of faults lie in 0 to 1, also together; {names}: {shares}.")
        if self.delay < 1:
            raise ValueError(f"A late frame is at least 1 trade late, not {self.delay}.")

    @property
    def active(self) -> bool:
        """Whether any fault is asked for."""
        return bool(self.duplicates or self.late or self.dropped or self.malformed)


def _changed(**changes: object) -> Callable[[Trade], bytes]:
    """Build match frames with some values replaced by bad ones."""
    return lambda trade: json.dumps(json.loads(match_frame(trade)) | changes).encode()


def _without(key: str) -> Callable[[Trade], bytes]:
    def build(trade: Trade) -> bytes:
        fields = json.loads(match_frame(trade))
        del fields[key]
        return json.dumps(fields).encode()

    return build


NOT_UTF8 = "not_utf8"
GIANT = "giant"

MALFORMED: dict[str, Callable[[Trade], bytes]] = {
    "cut_off": lambda trade: match_frame(trade)[:90],
    "not_json": lambda _: b"upstream connect error or disconnect/reset before headers",
    "empty": lambda _: b"",
    "array": lambda trade: b"[" + match_frame(trade) + b"]",
    "number": lambda trade: str(trade.trade_id).encode(),
    "no_fields": lambda _: b'{"type":"match"}',
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
    NOT_UTF8: lambda trade: match_frame(trade).replace(b'"side":"', b'"side":"\xff\xfe'),
    GIANT: _changed(price="abc", note="x" * 1_000_000),
}
"""Unreadable frames by what is wrong with them; none can ever pass for a valid trade.

A text frame that is not UTF-8 would make the client close the connection (RFC 6455, 8.1), so
that one is sent as a binary frame.
"""


class FaultInjector:
    """Turns trades into frames, some of them faulty. Keeps the frames that are to come later."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._kinds = tuple(kind for kind in MALFORMED if faults.giant or kind != GIANT)
        self._held: list[tuple[int, int, Frame]] = []
        self._trades = 0

    def apply(self, trades: Iterable[Trade]) -> Iterator[Frame]:
        """Yield the frames that go out with these trades."""
        if not self._faults.active:
            yield from (Frame(trade.product_id, match_frame(trade)) for trade in trades)
            return
        for trade in trades:
            self._trades += 1
            yield from self._frames(trade)
            while self._held and self._held[0][0] <= self._trades:
                yield heapq.heappop(self._held)[2]

    def flush(self) -> Iterator[Frame]:
        """Yield all frames still held back."""
        while self._held:
            yield heapq.heappop(self._held)[2]

    def _frames(self, trade: Trade) -> Iterator[Frame]:
        faults, product_id = self._faults, trade.product_id
        luck, choice = _roll(faults.seed, product_id, trade.trade_id)
        due = self._trades + 1 + choice % faults.delay
        frame = Frame(product_id, match_frame(trade))
        if luck < faults.dropped:
            yield frame._replace(kind="dropped")
            return
        luck -= faults.dropped
        if luck < faults.late:
            heapq.heappush(self._held, (due, self._trades, frame._replace(kind="late")))
            return
        luck -= faults.late
        yield frame
        if luck < faults.duplicates:
            heapq.heappush(self._held, (due, self._trades, frame._replace(kind="duplicate")))
        elif luck < faults.duplicates + faults.malformed:
            kind = self._kinds[choice % len(self._kinds)]
            yield Frame(product_id, MALFORMED[kind](trade), "malformed", binary=kind == NOT_UTF8)


def _roll(seed: int, product_id: str, trade_id: int) -> tuple[float, int]:
    """Return a trade's luck, in [0, 1), and a further random number."""
    digest = blake2b(f"{seed}/{product_id}/{trade_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little") / 2**32, int.from_bytes(digest[4:], "little")
