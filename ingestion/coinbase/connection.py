"""A WebSocket connection that hands on, at once, all frames that one read of the socket brought."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.frames import DATA_OPCODES, CloseCode, Frame
from websockets.protocol import Event, State

MAX_FRAME_BYTES: Final = 16 * 2**20
"""Frames are under 300 bytes, a snapshot under 20 KB (FEED.md); 16 MiB lets anything odd through to
bronze, and still keeps one frame from filling the memory."""
MAX_WAITING_FRAMES: Final = 4096
"""One read of a busy socket (256 KiB) brings 900 frames: with fewer places, each read would stop
and restart the socket."""
MAX_FRAGMENTS: Final = 4096
"""So many parts may one message come in, as `websockets` has it: empty ones are never too long."""

_WHOLE_TEXT: Final = 0x81
"""How a text frame begins that is a whole message (RFC 6455, 5.2): nearly all of them."""
_LONGER: Final = 126
"""In place of the length: it follows in two bytes, or in eight for the next number."""
_MASKED: Final = 0x80
"""The bit in front of the length that a server may not set."""


class BurstConnection(ClientConnection):
    """Reads whole text frames past `websockets`, and leaves everything else to it.

    `websockets` reads a frame piece by piece through generators, makes an object of it, and hands
    it on through a queue: half of what a trade cost the ingester (docs/performance.md). Pings,
    closing, fragments and whatever is wrong still go its way, frame by frame.

    `burst` takes the place of `recv`, which finds nothing here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The beginning of the handshake's answer, then of a frame: the end is still coming.
        self._rest = b""
        self._is_answered = False
        self._frames: list[bytes] = []
        self._fragments: list[bytes] = []
        self._news = asyncio.Event()
        self._is_paused = False

    async def burst(self) -> list[bytes]:
        """Return the frames that have come since the last call, at least one.

        Raises:
            ConnectionClosed: the connection has ended, and all that it brought was returned.

        """
        while not self._frames:
            if self.state is State.CLOSED:
                raise self.protocol.close_exc
            self._news.clear()
            await self._news.wait()
        frames, self._frames = self._frames, []
        self._resume()
        return frames

    async def close(self, *args: Any, **kwargs: Any) -> None:
        """Close the connection; the exchange's answer is read, whatever waits before it."""
        self._resume()
        await super().close(*args, **kwargs)

    def data_received(self, data: bytes) -> None:
        """Take what one read of the socket brought."""
        data, self._rest = self._rest + data, b""
        if not self._is_answered:
            # Not a byte more: `websockets` would begin to read the frame behind it.
            answer, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = answer
                return
            self._is_answered = True
            super().data_received(answer + end)
        if self.state is State.OPEN:
            self._rest = data[self._take_frames(data) :]
        elif data:
            super().data_received(data)
        if self._frames:
            self._news.set()
            # While it closes, the answer waits behind frames that nobody wants any more.
            is_full = len(self._frames) > MAX_WAITING_FRAMES and self.state is State.OPEN
            if is_full and not self._is_paused:
                self._is_paused = True
                self.transport.pause_reading()

    def process_event(self, event: Event) -> None:
        """Take what `websockets` has read: the handshake, or a frame that is not a whole text."""
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        self._fragments.append(bytes(event.data))
        if len(self._fragments) > MAX_FRAGMENTS:
            self._fragments.clear()
            self.protocol.fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments")
            self.send_data()
        elif event.fin:
            self._frames.append(b"".join(self._fragments))
            self._fragments.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake up who waits for frames: no more will come."""
        super().connection_lost(exc)
        self._news.set()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()

    def _take_frames(self, data: bytes) -> int:
        """Take the whole frames in data; return where one begins that is not whole."""
        at, size, take = 0, len(data), self._frames.append
        while at + 2 <= size:
            begin, length = at + 2, data[at + 1]
            if length >= _LONGER:
                begin += 2 if length == _LONGER else 8
                length = int.from_bytes(data[at + 2 : begin])
            if data[at + 1] & _MASKED or length > MAX_FRAME_BYTES:
                # It ends the connection.
                super().data_received(data[at:])
                return size
            end = begin + length
            if end > size:
                break
            if data[at] == _WHOLE_TEXT:
                take(data[begin:end])
            else:
                super().data_received(data[at:end])
            at = end
        return at
