"""A WebSocket and REST server on one loopback port that keeps Coinbase's rules of connecting.

What it serves (a market or a recording) is left to its subclasses.
"""

import asyncio
import contextlib
import json
import signal
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from types import FrameType, TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from simulator.faults import Frame
from simulator.frames import Channel, error_frame, subscriptions_frame

_CHANNELS: tuple[Channel, ...] = ("matches", "heartbeat")
_HOST = "127.0.0.1"
_POLICY_VIOLATION = 1008
_CLOSE_TIMEOUT = 1.0
# Room for about two chunks of 500 frames, so that a reader never waits for the next one.
_WRITE_LIMIT = 2**18


@dataclass(frozen=True)
class Limits:
    """Coinbase's limits, per client address; times in seconds.

    Rates are documented (docs.cdp.coinbase.com/exchange: rate-limits of websocket-feed and
    rest-api), and so are the 5 seconds and the disconnections; how many bytes are too many,
    waiting to be read or in one client message, is not: those two are guesses.
    """

    subscribe_timeout: float = 5.0
    heartbeat_interval: float = 1.0
    client_messages_per_second: int = 100
    client_message_bytes: int = 8_192
    connections_per_second: float = 8
    connections_burst: int = 20
    requests_per_second: float = 10
    requests_burst: int = 15
    unread_bytes: int = 8_000_000


@dataclass
class TokenBucket:
    """Allows `per_second` calls on average and `burst` at once."""

    per_second: float
    burst: int
    _used: float = 0.0
    _at: float = 0.0

    def take(self, now: float) -> bool:
        """Use one token if there is one; `now` in seconds on any rising clock."""
        self._used = max(0.0, self._used - (now - self._at) * self.per_second)
        self._at = now
        if self._used + 1 > self.burst:
            return False
        self._used += 1
        return True


@dataclass(frozen=True)
class Offered:
    """The trades of one product that a perfect client has in the end, both ids included."""

    first_id: int
    last_id: int
    count: int


@dataclass(frozen=True)
class Status:
    """What `GET /simulator/status` says.

    `finished`: the tape reached its end and every frame was handed to the sockets.
    `market_time`: ISO 8601, UTC; None before the first frame of a recording.
    `trades`: see `Offered`. The counts are of frames as the readers saw them, so a frame sent to
    two readers counts twice. `frames_sent` is all of them but subscriptions, errors, heartbeats
    and `last_matches`; `dropped` ones were not sent and are not part of it.
    """

    finished: bool
    market_time: str | None
    trades: Mapping[str, Offered]
    last_matches: int
    frames_sent: int
    duplicates: int
    late: int
    malformed: int
    dropped: int


class RefusedError(Exception):
    """A client's message that is answered with an error frame."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message, reason)
        self.frame = error_frame(message, reason)


@dataclass(frozen=True)
class ClientMessage:
    """A subscribe or unsubscribe message: product ids by channel."""

    type: Literal["subscribe", "unsubscribe"]
    channels: Mapping[Channel, tuple[str, ...]]


def parse_client_message(message: str | bytes) -> ClientMessage:
    """Read a client's message; product ids stand in the channel objects, at the root, or in both.

    Raises:
        RefusedError: If it is none Coinbase would accept. The reasons "No channels provided" and
            "You need to specify at least one product ID" are Coinbase's (issue trackers of
            Krypto-trading-bot, coinbasepro-python); the wording of the others is ours.
    """
    try:
        fields = json.loads(message)
    except ValueError:
        raise RefusedError("Malformed JSON") from None
    if not isinstance(fields, dict) or fields.get("type") not in {"subscribe", "unsubscribe"}:
        raise RefusedError("Unknown message type", "type has to be subscribe or unsubscribe")
    failed = f"Failed to {fields['type']}"
    root_ids = _texts(fields.get("product_ids", []))
    listed = fields.get("channels")
    if not isinstance(listed, list) or not listed:
        raise RefusedError(failed, "No channels provided")
    channels: dict[Channel, tuple[str, ...]] = {}
    for entry in listed:
        channel = entry if isinstance(entry, dict) else {"name": entry}
        name = next((known for known in _CHANNELS if known == channel.get("name")), None)
        if name is None:
            raise RefusedError(failed, f"{channel.get('name')} is not a channel of this simulator")
        product_ids = (*root_ids, *_texts(channel.get("product_ids", [])))
        if not product_ids and fields["type"] == "subscribe":
            reason = f"You need to specify at least one product ID for channel {name}"
            raise RefusedError(failed, reason)
        channels[name] = (*channels.get(name, ()), *product_ids)
    return ClientMessage(fields["type"], channels)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RefusedError("Malformed JSON", "product_ids has to be a list of product ids")
    return tuple(value)


@dataclass(eq=False)
class Reader:
    """A client's socket, and the product ids it is subscribed to by channel, in that order."""

    connection: ServerConnection
    channels: dict[Channel, dict[str, None]] = field(default_factory=dict)

    def products(self, channel: Channel) -> dict[str, None]:
        """Return the product ids the reader gets on a channel."""
        return self.channels.get(channel, {})

    @property
    def open(self) -> bool:
        """Whether frames can be sent: a socket that is closing has no use for them."""
        return self.connection.state is State.OPEN

    @property
    def unread_bytes(self) -> int:
        """What waits in this process because the client does not read it."""
        return self.connection.transport.get_write_buffer_size()

    def write(self, frames: Iterable[Frame]) -> None:
        """Hand frames to the socket, all in one write: one a frame takes three times as long."""
        if not self.open:
            return
        protocol = self.connection.protocol
        for frame in frames:
            if frame.binary:
                protocol.send_binary(frame.payload)
            else:
                protocol.send_text(frame.payload)
        self.connection.transport.write(b"".join(protocol.data_to_send()))

    async def drain(self) -> None:
        """Wait until the client has read most of what it was sent, or is gone."""
        with contextlib.suppress(OSError):
            await self.connection.drain()


class FeedServer(ABC):
    """Serves sockets and REST on 127.0.0.1 while its `async with` block runs.

    Set `silent` and the sockets stay open while nothing at all is sent on them.
    """

    def __init__(self, port: int = 0, limits: Limits | None = None) -> None:
        self.port = port
        self.limits = limits or Limits()
        self.silent = False
        self.readers: list[Reader] = []
        self.counts: Counter[str] = Counter()
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._requests: dict[str, TokenBucket] = {}
        self._connections: dict[str, TokenBucket] = {}

    # What a subclass serves.

    @abstractmethod
    def accepts_path(self, path: str) -> bool:
        """Whether a socket may be opened at this path."""

    @abstractmethod
    def refusal(self, product_id: str) -> str | None:
        """Return why a product can't be subscribed to, or None if it can."""

    @abstractmethod
    def subscribed(self, reader: Reader, product_ids: Sequence[str]) -> None:
        """Begin to serve products that a reader has just added to its `matches` channel."""

    @abstractmethod
    def heartbeat(self, product_id: str) -> bytes | None:
        """Return the product's heartbeat frame of this moment, if it has one."""

    @abstractmethod
    async def respond(self, path: Sequence[str], query: Mapping[str, str]) -> Response:
        """Answer a GET request; the path comes in parts."""

    @abstractmethod
    def status(self) -> Status:
        """Return what has been offered and sent so far."""

    # Addresses and connection faults.

    @property
    def ws_url(self) -> str:
        """The address for sockets."""
        return f"ws://{_HOST}:{self.port}"

    @property
    def rest_url(self) -> str:
        """The address for REST requests, without a closing slash."""
        return f"http://{_HOST}:{self.port}"

    async def drop_connections(self) -> None:
        """Cut every socket's TCP connection without a closing handshake."""
        for reader in self.readers:
            reader.connection.transport.abort()
        await asyncio.gather(*(reader.connection.wait_closed() for reader in self.readers))

    async def close_connections(self, code: int = 1001, reason: str = "") -> None:
        """Close every socket with a code and a reason, as RFC 6455 has it."""
        await asyncio.gather(*(reader.connection.close(code, reason) for reader in self.readers))

    # Life.

    async def __aenter__(self) -> Self:
        # Ahead of the task group, which would wrap the error of a port that is taken.
        listener = socket.create_server((_HOST, self.port))
        self.port = listener.getsockname()[1]
        async with contextlib.AsyncExitStack() as stack:
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            await stack.enter_async_context(
                serve(
                    self._serve_socket,
                    sock=listener,
                    process_request=self._process_request,
                    compression=None,
                    ping_interval=None,
                    close_timeout=_CLOSE_TIMEOUT,
                    max_size=self.limits.client_message_bytes,
                    write_limit=_WRITE_LIMIT,
                )
            )
            self.spawn(self._beat())
            stack.callback(self._cancel_tasks)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if isinstance(exc, asyncio.CancelledError):  # perhaps the task group's own
            return await self._stack.__aexit__(exc_type, exc, traceback)
        await self._stack.aclose()  # so that an error of the block leaves it as it is, ungrouped
        return None

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run a coroutine until it ends or the server does; its failure ends the server."""
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _cancel_tasks(self) -> None:
        for task in self._running:
            task.cancel()

    # Sockets.

    def send(self, reader: Reader, frames: Iterable[bytes]) -> None:
        """Send text frames to a reader, unless the server is silent."""
        if not self.silent:
            reader.write(Frame("", payload) for payload in frames)

    async def refuse(self, reader: Reader, message: str) -> None:
        """Tell a reader why it is disconnected, and do it."""
        self.send(reader, [error_frame(message)])
        await reader.connection.close(_POLICY_VIOLATION, message)

    async def _serve_socket(self, connection: ServerConnection) -> None:
        reader = Reader(connection)
        self.readers.append(reader)
        try:
            await self._listen(reader)
        except ConnectionClosed:
            return  # the client left, which it may
        finally:
            self.readers.remove(reader)

    async def _listen(self, reader: Reader) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.subscribe_timeout
        allowed = self.limits.client_messages_per_second
        bucket = TokenBucket(allowed, allowed)
        while True:
            try:
                async with asyncio.timeout_at(None if reader.channels else deadline):
                    message = await reader.connection.recv()
            except TimeoutError:
                await self.refuse(reader, "No subscribe message in time")
                return
            if not bucket.take(loop.time()):
                await self.refuse(reader, "ErrSlowRead")
                return
            try:
                self._obey(reader, parse_client_message(message))
            except RefusedError as refused:
                self.send(reader, [refused.frame])

    def _obey(self, reader: Reader, message: ClientMessage) -> None:
        if message.type == "unsubscribe":
            for channel, product_ids in message.channels.items():
                products = reader.channels.get(channel, {})
                for product_id in product_ids or tuple(products):
                    products.pop(product_id, None)
            listed = {name: products for name, products in reader.channels.items() if products}
            self.send(reader, [subscriptions_frame(listed)])
            return
        asked = {product_id for ids in message.channels.values() for product_id in ids}
        refused = {product_id: self.refusal(product_id) for product_id in sorted(asked)}
        for reason in filter(None, refused.values()):
            self.send(reader, [error_frame("Failed to subscribe", reason)])
        before = reader.products("matches").copy()
        for channel, product_ids in message.channels.items():
            accepted = [product_id for product_id in product_ids if refused[product_id] is None]
            if accepted:
                reader.channels.setdefault(channel, {}).update(dict.fromkeys(accepted))
        if reader.channels:
            self.send(reader, [subscriptions_frame(reader.channels)])
        self.subscribed(reader, [p for p in reader.products("matches") if p not in before])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.limits.heartbeat_interval)
            for reader in self.readers:
                frames = map(self.heartbeat, reader.products("heartbeat"))
                self.send(reader, filter(None, frames))

    # REST.

    async def _process_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        now = asyncio.get_running_loop().time()
        address = connection.remote_address[0]
        url = urlsplit(request.path)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if not self.accepts_path(url.path):
                return not_found()
            rate, burst = self.limits.connections_per_second, self.limits.connections_burst
            bucket = self._connections.setdefault(address, TokenBucket(rate, burst))
            return None if bucket.take(now) else too_many_requests()
        path = url.path.strip("/").split("/")
        if path == ["simulator", "status"]:
            return json_response(json.dumps(asdict(self.status())))
        rate, burst = self.limits.requests_per_second, self.limits.requests_burst
        if not self._requests.setdefault(address, TokenBucket(rate, burst)).take(now):
            return too_many_requests()
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            return await self.respond(path, query)
        except BadRequestError as error:
            return json_response(json.dumps({"message": str(error)}), HTTPStatus.BAD_REQUEST)


class BadRequestError(Exception):
    """A REST request that is answered with status 400 and this message."""


def json_response(
    body: str, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON answer; the connection closes after it."""
    content = body.encode()
    fixed = {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(content)),
        "Connection": "close",
    }
    return Response(status.value, status.phrase, Headers({**fixed, **(headers or {})}), content)


def not_found() -> Response:
    """Return Coinbase's answer to a path or product it does not know."""
    return json_response('{"message":"NotFound"}', HTTPStatus.NOT_FOUND)


def too_many_requests() -> Response:
    """Return Coinbase's answer to a client that asks too often."""
    body = '{"message":"Public rate limit exceeded"}'
    return json_response(body, HTTPStatus.TOO_MANY_REQUESTS)


Served = TypeVar("Served", bound=FeedServer)


async def run(server: Served, on_ready: Callable[[Served], None]) -> None:
    """Serve until SIGINT or SIGTERM (on Windows also Ctrl-Break); `on_ready` runs when it listens.

    Call from the main thread, as Python delivers signals only there.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        async with server:
            on_ready(server)
            await stop.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
