"""Serves recorded Coinbase Exchange frames, untouched, through the same kind of socket."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from websockets.http11 import Response

from simulator.exchange_feed import ExchangeFeed
from simulator.server import FeedServer, Limits, Offered, Reader, Status, not_found

_CHUNK = 500


@dataclass(frozen=True)
class RecordedFrame:
    """A recorded frame: its bytes and what they say."""

    payload: bytes
    kind: str
    product_id: str
    trade_id: int | None
    time: str


@dataclass(frozen=True)
class Recording:
    """The `last_match`, `match` and `heartbeat` frames of a file, in order."""

    name: str
    frames: tuple[RecordedFrame, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSONL file that holds one frame a line.

        Raises:
            ValueError: If the file can't be read, holds something else than Exchange frames, or
                has no trade in it; the message says what to do.
        """
        wanted = "Give a JSONL file with one Coinbase Exchange frame a line."
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ValueError(f"Can't read {path}: {error.strerror}. {wanted}") from error
        frames = []
        for number, line in enumerate(lines, start=1):
            fields = _object(line)
            if fields is None:
                raise ValueError(f"Line {number} of {path} is not a JSON object. {wanted}")
            if "channel" in fields:
                raise ValueError(
                    f"Line {number} of {path} is a frame of Coinbase's Advanced Trade feed. "
                    "Only recordings of the Exchange feed (ws-feed.exchange.coinbase.com, channels "
                    "matches and heartbeat) can be served."
                )
            if fields.get("type") not in {"last_match", "match", "heartbeat"}:
                continue
            try:
                kind = fields["type"]
                trade_id = None if kind == "heartbeat" else int(fields["trade_id"])
                frame = RecordedFrame(line, kind, fields["product_id"], trade_id, fields["time"])
            except (KeyError, TypeError, ValueError):
                what = f"a {fields['type']} frame without product, time or trade id"
                raise ValueError(f"Line {number} of {path} is {what}. {wanted}") from None
            frames.append(frame)
        if not any(frame.trade_id for frame in frames):
            raise ValueError(f"{path} holds no trade. {wanted}")
        return cls(path.name, tuple(frames))

    @property
    def url_path(self) -> str:
        """The path of its socket."""
        return f"/recordings/{quote(self.name)}"

    @property
    def products(self) -> tuple[str, ...]:
        """The ids of the products it holds, in the order of their first frames."""
        return tuple(dict.fromkeys(frame.product_id for frame in self.frames))


class RecordingServer(FeedServer):
    """Plays a recording from its beginning to every reader that subscribes.

    After the last frame each product's last heartbeat is repeated once a second.
    """

    def __init__(self, recording: Recording, port: int = 0, limits: Limits | None = None) -> None:
        super().__init__(port, limits)
        self.feed = ExchangeFeed(self.limits, self.spawn, self)
        self.feeds = (self.feed,)
        self.recording = recording
        self._played: dict[str, None] = {}
        self._playing = 0
        self._market_time: str | None = None
        self._heartbeats: dict[str, bytes] = {}

    @property
    def ws_url(self) -> str:
        """The address of the recording's socket."""
        return super().ws_url + self.recording.url_path

    def feed_at(self, path: str) -> ExchangeFeed | None:
        """Only the recording's own path has a socket."""
        return self.feed if path == self.recording.url_path else None

    def refusal(self, product_id: str) -> str | None:
        """Refuse the products that were not recorded."""
        held = product_id in self.recording.products
        return None if held else f"{product_id} is not a valid product"

    def subscribed(self, reader: Reader, product_ids: Sequence[str]) -> None:
        """Begin to play the products just subscribed to."""
        if product_ids:
            self._played.update(dict.fromkeys(product_ids))
            self._playing += 1
            self.spawn(self._play(reader, set(product_ids)))

    def heartbeat(self, product_id: str) -> bytes | None:
        """Return the product's last heartbeat played, once all is played."""
        return None if self._playing else self._heartbeats.get(product_id)

    async def respond(self, path: Sequence[str], query: Mapping[str, str]) -> Response:
        """Answer that there is nothing: a recording has no REST side but its status."""
        del path, query
        return not_found()

    def status(self) -> Status:
        """Return the distinct trades recorded of the products played, and the frames sent."""
        trades = {}
        for product_id in self._played:
            ids = {f.trade_id for f in self.recording.frames if f.product_id == product_id}
            numbers = [trade_id for trade_id in ids if trade_id is not None]
            if numbers:
                trades[product_id] = Offered(min(numbers), max(numbers), len(numbers))
        return Status(
            finished=bool(self._played) and not self._playing,
            market_time=self._market_time,
            trades=trades,
            last_matches=self.feed.counts["last_match"],
            frames_sent=self.feed.counts["match"],
            duplicates=0,
            late=0,
            malformed=0,
            dropped=0,
        )

    async def _play(self, reader: Reader, product_ids: set[str]) -> None:
        own = [frame for frame in self.recording.frames if frame.product_id in product_ids]
        try:
            for low in range(0, len(own), _CHUNK):
                self._send_recorded(reader, own[low : low + _CHUNK])
                await reader.drain()
                await asyncio.sleep(0)
        finally:
            self._playing -= 1

    def _send_recorded(self, reader: Reader, frames: Sequence[RecordedFrame]) -> None:
        audible = reader.products("heartbeat")
        sent = [f for f in frames if f.kind != "heartbeat" or f.product_id in audible]
        self.feed.send(reader, [frame.payload for frame in sent])
        self.feed.counts.update(frame.kind for frame in sent)
        self._heartbeats |= {f.product_id: f.payload for f in frames if f.kind == "heartbeat"}
        self._market_time = frames[-1].time


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, an empty one for an empty line, None if it is none."""
    try:
        value = json.loads(line or b"{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
