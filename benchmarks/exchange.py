"""A feed that sends matches as fast as they are taken, from a process of its own.

Each chunk of frames is one format and one write to the socket, past the framing of `websockets`: a
trade costs this process a fraction of what it costs any reader, so it is never what is waited for.
"""

from __future__ import annotations

import json
import multiprocessing
import struct
import threading
from itertools import count
from multiprocessing.connection import Connection
from typing import Final, Self

from websockets.sync.server import Server, ServerConnection, serve

FIRST_ID: Final = 1_000_000_000
"""Of ten digits, as the ids of 2026, so that all frames are of one length."""
TRADES_PER_CHUNK: Final = 10
"""Of each product; with 50 products a chunk is about what one read of a socket brings."""
START_SECONDS: Final = 30.0
_SPAWN: Final = multiprocessing.get_context("spawn")


class Exchange:
    """Listens while the context lasts, and sends once `begin` is called.

    It sends the trades of the products that a client asks for, in order and without a gap, until
    the client is gone.
    """

    def __enter__(self) -> Self:
        self._ours, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        self.url = f"ws://127.0.0.1:{self._told()}"
        """Where it listens."""
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    def begin(self, connections: int) -> None:
        """Wait until so many connections have subscribed, and send from then on."""
        for _ in range(connections):
            self._told()
        self._ours.send("begin")

    def _told(self) -> object:
        if not self._ours.poll(START_SECONDS):
            raise SystemExit(f"Nothing subscribed to {self._process.name} in {START_SECONDS:g} s.")
        return self._ours.recv()


def _serve(parent: Connection) -> None:
    begin = threading.Event()

    def send(client: ServerConnection) -> None:
        products = _asked_for(json.loads(client.recv()))
        channels = [{"name": "matches", "product_ids": products}]
        client.send(json.dumps({"type": "subscriptions", "channels": channels}))
        chunk = _chunk(products)
        parent.send("subscribed")
        begin.wait()
        try:
            for first in count(FIRST_ID, TRADES_PER_CHUNK):
                ids = (first + trade for trade in range(TRADES_PER_CHUNK) for _ in products)
                client.socket.sendall(chunk % tuple(ids))
        except OSError:
            return  # The client is gone.

    # No pings: they would come between the frames.
    server: Server
    with serve(send, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        parent.send(server.socket.getsockname()[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        parent.recv()
        begin.set()
        parent.recv()


def _asked_for(subscription: dict[str, list[dict[str, list[str]]]]) -> list[str]:
    """Return the products of a subscribe message, which may name them outside of its channels."""
    inside = subscription["channels"][0]
    return inside["product_ids"] if isinstance(inside, dict) else subscription["product_ids"]


def _chunk(products: list[str]) -> bytes:
    """Return the frames of a chunk as they go over the socket, with a %d for each trade id."""
    frames = []
    for trade in range(TRADES_PER_CHUNK):
        for product_id in products:
            match = {
                "type": "match",
                "trade_id": "%d",
                "maker_order_id": "5f4bb11b-f065-4025-ad53-2091b10ad2cf",
                "taker_order_id": "66715b57-0167-4ae9-8b2b-75a064a923f4",
                "side": "sell" if trade % 2 else "buy",
                "size": f"0.0{trade + 1}370659",
                "price": f"26{trade}1.33",
                "product_id": product_id,
                "sequence": 103492697192 + trade,
                "time": f"2026-11-25T02:03:12.25718{trade}Z",
            }
            payload = json.dumps(match, separators=(",", ":")).replace('"%d"', "%d").encode()
            length = len(payload % FIRST_ID)
            # A text frame that is whole, with its length in two bytes (RFC 6455, 5.2).
            header = struct.pack("!BBH", 0x81, 126, length)
            frames.append(header.replace(b"%", b"%%") + payload)
    return b"".join(frames)
