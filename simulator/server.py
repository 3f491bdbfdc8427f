"""A WebSocket and REST server on one loopback port that keeps Coinbase's rules of connecting.

What is said on its sockets is left to its feeds, and what it serves (a market or a recording) to
its subclasses.
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
from typing import Any, Generic, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from simulator.faults import Frame, RestFaults
from simulator.frames import error_frame

_HOST = "127.0.0.1"
_POLICY_VIOLATION = 1008
_CLOSE_TIMEOUT = 1.0
# Also the end of an answer that never comes, so longer than clients wait for one.
_OPEN_TIMEOUT = 30.0
# Room for about two chunks of 500 frames, so that a reader never waits for the next one.
_WRITE_LIMIT = 2**18


@dataclass(frozen=True)
class Limits:
    """Coinbase's limits, per client address; times in seconds.

    Rates are documented (docs.cdp.coinbase.com/exchange: rate-limits of websocket-feed and
    rest-api), and so are the 5 seconds and the disconnections; how many bytes are too many,
    waiting to be read or in one client message, is not: those two are guesses. The Advanced Trade
    feed ends a connection after 60 to 90 seconds without a frame (its documentation).
    """

    subscribe_timeout: float = 5.0
    silence_timeout: float = 75.0
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
    """The trades of one product that a perfect client has in the end, both ids included.

    `count` leaves out the ids that the exchange itself does not have.
    """

    first_id: int
    last_id: int
    count: int


@dataclass(frozen=True)
class AdvancedCounts:
    """The counts of `Status` for the Advanced Trade feed; `snapshots` are not in `frames_sent`."""

    snapshots: int = 0
    frames_sent: int = 0
    duplicates: int = 0
    late: int = 0
    malformed: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Status:
    """What `GET /simulator/status` says.

    `finished`: the tape reached its end and every frame was handed to the sockets.
    `market_time`: ISO 8601, UTC; None before the first frame of a recording.
    `trades`: see `Offered`. The counts are of frames as the readers saw them, so a frame sent to
    two readers counts twice. `frames_sent` is all of them but subscriptions, errors, heartbeats
    and `last_matches`; `dropped` ones were not sent and are not part of it. They are of the
    Exchange feed; those of the other stand in `advanced`.
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
    advanced: AdvancedCounts = field(default_factory=AdvancedCounts)


class RefusedError(Exception):
    """A client's message that is answered with an error frame."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message, reason)
        self.frame = error_frame(message, reason)


def read_fields(message: str | bytes) -> dict[str, Any]:
    """Read a client's message, which subscribes or unsubscribes.

    Raises:
        RefusedError: If it does neither, or is no JSON object.
    """
    try:
        fields = json.loads(message)
    except ValueError:
        raise RefusedError("Malformed JSON") from None
    if not isinstance(fields, dict) or fields.get("type") not in {"subscribe", "unsubscribe"}:
        raise RefusedError("Unknown message type", "type has to be subscribe or unsubscribe")
    return fields


def product_ids_in(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the product ids of a client's message or of one of its channels.

    Raises:
        RefusedError: If they are no list of texts.
    """
    listed = fields.get("product_ids", [])
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise RefusedError("Malformed JSON", "product_ids has to be a list of product ids")
    return tuple(listed)


@dataclass(eq=False)
class Reader:
    """A client's socket.

    `channels`: what it is subscribed to, product ids by channel, in that order. `written_at`: when
    a frame was last written, on the event loop's clock.
    """

    connection: ServerConnection
    channels: dict[str, dict[str, None]] = field(default_factory=dict)
    written_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def products(self, channel: str) -> dict[str, None]:
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
        data = b"".join(protocol.data_to_send())
        if data:
            self.written_at = asyncio.get_running_loop().time()
        self.connection.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read most of what it was sent, or is gone."""
        with contextlib.suppress(OSError):
            await self.connection.drain()


Spawn = Callable[[Coroutine[object, object, None]], None]
AnyReader = TypeVar("AnyReader", bound=Reader)


class Feed(ABC, Generic[AnyReader]):
    """One of the feeds of a server: its open sockets, and what is said on them.

    Set `silent` and the sockets stay open while nothing at all is sent on them.
    """

    def __init__(self, limits: Limits, spawn: Spawn) -> None:
        self.limits = limits
        self.silent = False
        self.readers: list[AnyReader] = []
        self.counts: Counter[str] = Counter()
        self._spawn = spawn

    # What a subclass says.

    @abstractmethod
    def welcome(self, connection: ServerConnection) -> AnyReader:
        """Return the reader behind a new connection."""

    @abstractmethod
    def obey(self, reader: AnyReader, message: str | bytes) -> None:
        """Do what a client's message asks for.

        Raises:
            RefusedError: If it is none Coinbase would accept.
        """

    @abstractmethod
    def beat(self) -> None:
        """Send what is due once in a heartbeat interval."""

    # Connection faults.

    async def drop_connections(self) -> None:
        """Cut every socket's TCP connection without a closing handshake."""
        for reader in self.readers:
            reader.connection.transport.abort()
        await asyncio.gather(*(reader.connection.wait_closed() for reader in self.readers))

    async def close_connections(self, code: int = 1001, reason: str = "") -> None:
        """Close every socket with a code and a reason, as RFC 6455 has it."""
        await asyncio.gather(*(reader.connection.close(code, reason) for reader in self.readers))

    def disconnect_slow_readers(self) -> None:
        """Disconnect the readers that leave too much unread."""
        for reader in self.readers:
            if reader.unread_bytes > self.limits.unread_bytes and reader.channels:
                reader.channels.clear()
                self._spawn(self._refuse(reader, "ErrSlowConsume"))

    # Sending.

    def wanted(self, channel: str) -> list[str]:
        """Return the products somebody gets on a channel; none while the feed is silent."""
        readers = [] if self.silent else [reader for reader in self.readers if reader.open]
        return list({p: None for reader in readers for p in reader.products(channel)})

    def send(self, reader: AnyReader, frames: Iterable[bytes]) -> None:
        """Send text frames to a reader, unless the feed is silent."""
        if not self.silent:
            reader.write(Frame("", payload) for payload in frames)

    def send_counted(self, reader: AnyReader, frames: Iterable[Frame]) -> None:
        """Send frames that may be faulty, count them, and keep back the dropped ones."""
        sent = [] if self.silent else list(frames)
        self.counts.update(frame.kind for frame in sent)
        reader.write(frame for frame in sent if frame.kind != "dropped")

    async def drain(self) -> None:
        """Wait until every client has read most of what it was sent, or is gone."""
        for reader in tuple(self.readers):
            await reader.drain()

    # Listening.

    async def serve(self, connection: ServerConnection) -> None:
        """Listen to a client until its connection ends."""
        reader = self.welcome(connection)
        self.readers.append(reader)
        try:
            await self._listen(reader)
        except ConnectionClosed:
            return  # the client left, which it may
        finally:
            self.readers.remove(reader)

    async def _listen(self, reader: AnyReader) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.subscribe_timeout
        allowed = self.limits.client_messages_per_second
        bucket = TokenBucket(allowed, allowed)
        while True:
            try:
                async with asyncio.timeout_at(None if reader.channels else deadline):
                    message = await reader.connection.recv()
            except TimeoutError:
                await self._refuse(reader, "No subscribe message in time")
                return
            if not bucket.take(loop.time()):
                await self._refuse(reader, "ErrSlowRead")
                return
            try:
                self.obey(reader, message)
            except RefusedError as refused:
                self.send(reader, [refused.frame])

    async def _refuse(self, reader: AnyReader, message: str) -> None:
        """Tell a reader why it is disconnected, and do it."""
        self.send(reader, [error_frame(message)])
        await reader.connection.close(_POLICY_VIOLATION, message)


class FeedServer(ABC):
    """Serves sockets and REST on 127.0.0.1 while its `async with` block runs.

    `feeds` are set by the subclass. `rest_faults` may be set while it runs; `rest_spoilt` counts
    the answers that suffered each of them.
    """

    feeds: Sequence[Feed[Any]]

    def __init__(self, port: int = 0, limits: Limits | None = None) -> None:
        self.port = port
        self.limits = limits or Limits()
        self.rest_faults = RestFaults()
        self.rest_spoilt: Counter[str] = Counter()
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._requests: dict[str, TokenBucket] = {}
        self._connections: dict[str, TokenBucket] = {}
        self._asked = 0
        self._hanging: set[ServerConnection] = set()

    # What a subclass serves.

    @abstractmethod
    def feed_at(self, path: str) -> Feed[Any] | None:
        """Return the feed whose sockets are at this path, if there may be one."""

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

    @property
    def addresses(self) -> dict[str, str]:
        """All addresses, by what is there."""
        return {"WebSocket": self.ws_url, "REST": self.rest_url}

    @property
    def silent(self) -> bool:
        """Whether all feeds are silent; set it to silence all, or none."""
        return all(feed.silent for feed in self.feeds)

    @silent.setter
    def silent(self, silent: bool) -> None:
        for feed in self.feeds:
            feed.silent = silent

    async def drop_connections(self) -> None:
        """Cut the sockets of all feeds without a closing handshake."""
        await asyncio.gather(*(feed.drop_connections() for feed in self.feeds))

    async def close_connections(self, code: int = 1001, reason: str = "") -> None:
        """Close the sockets of all feeds with a code and a reason, as RFC 6455 has it."""
        await asyncio.gather(*(feed.close_connections(code, reason) for feed in self.feeds))

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
                    open_timeout=_OPEN_TIMEOUT,
                    close_timeout=_CLOSE_TIMEOUT,
                    max_size=self.limits.client_message_bytes,
                    write_limit=_WRITE_LIMIT,
                )
            )
            self.spawn(self._beat())
            stack.callback(self._cancel_tasks)
            stack.callback(self._cut_hanging)
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

    def _cut_hanging(self) -> None:
        for connection in self._hanging:
            connection.transport.abort()

    # Sockets.

    async def _serve_socket(self, connection: ServerConnection) -> None:
        feed = self._feed_of(connection.request)
        if feed is not None:
            await feed.serve(connection)

    def _feed_of(self, request: Request | None) -> Feed[Any] | None:
        return self.feed_at(urlsplit(request.path).path) if request else None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.limits.heartbeat_interval)
            for feed in self.feeds:
                feed.beat()

    # REST.

    async def _process_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        now = asyncio.get_running_loop().time()
        address = connection.remote_address[0]
        url = urlsplit(request.path)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if self._feed_of(request) is None:
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
        return await self._answer(connection, path, query)

    async def _answer(
        self, connection: ServerConnection, path: Sequence[str], query: Mapping[str, str]
    ) -> Response:
        """Answer a request, or do to it what `rest_faults` has in store for it."""
        fault = self.rest_faults.of(self._asked)
        self._asked += 1
        if fault:
            self.rest_spoilt[fault] += 1
        match fault:
            case "too_many":
                return too_many_requests({"Retry-After": str(self.rest_faults.retry_after)})
            case "failing":
                body = '{"message":"Internal Server Error"}'
                return json_response(body, HTTPStatus.INTERNAL_SERVER_ERROR)
            case "hanging":
                await self._hang(connection)
        try:
            response = await self.respond(path, query)
        except BadRequestError as error:
            return json_response(json.dumps({"message": str(error)}), HTTPStatus.BAD_REQUEST)
        if fault == "truncated":
            return json_response(response.body[: len(response.body) // 2].decode())
        return response

    async def _hang(self, connection: ServerConnection) -> None:
        """Wait for as long as a hanging answer takes, or until the client gives up."""
        self._hanging.add(connection)
        try:
            async with asyncio.timeout(self.rest_faults.hang_seconds):
                await connection.wait_closed()
        except TimeoutError:
            return
        finally:
            self._hanging.remove(connection)


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


def too_many_requests(headers: Mapping[str, str] | None = None) -> Response:
    """Return Coinbase's answer to a client that asks too often."""
    body = '{"message":"Public rate limit exceeded"}'
    return json_response(body, HTTPStatus.TOO_MANY_REQUESTS, headers)


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
