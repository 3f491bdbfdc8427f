"""The socket under a feed, against a server that sends bytes as the test cuts them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from ingestion.coinbase.connection import (
    MAX_FRAGMENTS,
    MAX_FRAME_BYTES,
    MAX_WAITING_FRAMES,
    BurstConnection,
)

SIZES = [0, 1, 125, 126, 300, 65535, 65536]


def text(size: int, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, b"x" * size, fin).serialize(mask=False)


@asynccontextmanager
async def connected(
    speak: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[BurstConnection]:
    """Connect to a server that is given the answer to the handshake, unsent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        await speak(b"".join(protocol.data_to_send()), writer)
        while protocol.state is State.OPEN and (data := await reader.read(4096)):
            protocol.receive_data(data)
        # The answer to a close.
        writer.write(b"".join(protocol.data_to_send()))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connect(
        f"ws://127.0.0.1:{port}",
        compression=None,
        max_size=MAX_FRAME_BYTES,
        close_timeout=1,
        create_connection=BurstConnection,
    ) as socket:
        assert isinstance(socket, BurstConnection)
        yield socket
    server.close()


async def read(socket: BurstConnection, frames: int) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(10):
        while len(found) < frames:
            found += await socket.burst()
    return found


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000, 10**6])
async def test_frames_arrive_whole_wherever_the_bytes_are_cut(piece: int) -> None:
    sizes = SIZES if piece > 100 else SIZES[:5]
    odd = text(0, Opcode.PING) + text(5, Opcode.PING)
    frames = odd.join(text(size) for size in sizes)
    fragments = text(2, fin=False) + odd + text(3, Opcode.CONT)

    async def speak(answer: bytes, writer: asyncio.StreamWriter) -> None:
        sent = answer + frames + fragments + fragments + text(4)
        for at in range(0, len(sent), piece):
            writer.write(sent[at : at + piece])
            await writer.drain()
            await asyncio.sleep(0)

    async with connected(speak) as socket:
        found = await read(socket, len(sizes) + 3)
        assert [len(frame) for frame in found] == [*sizes, 5, 5, 4]


async def test_what_came_before_the_end_is_returned_before_it() -> None:
    async def speak(answer: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + text(1) + text(2) + text(300)[:200])
        writer.write_eof()

    async with connected(speak) as socket:
        assert [len(frame) for frame in await read(socket, 2)] == [1, 2]
        with pytest.raises(ConnectionClosedError):
            await socket.burst()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(Frame(Opcode.TEXT, b"masked").serialize(mask=True), 1002, id="masked"),
        pytest.param(b"\x91\x00", 1002, id="a bit that means nothing"),
        pytest.param(b"\x83\x00", 1002, id="no such opcode"),
        pytest.param(
            text(0, fin=False) + text(0, Opcode.CONT, fin=False) * MAX_FRAGMENTS,
            1009,
            id="too many fragments",
        ),
        pytest.param(b"\x81\x7f" + (MAX_FRAME_BYTES + 1).to_bytes(8), 1009, id="too long"),
    ],
)
async def test_a_wrong_frame_ends_the_connection(wrong: bytes, code: int) -> None:
    async def speak(answer: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + text(1) + wrong)

    async with connected(speak) as socket:
        assert await read(socket, 1) == [b"x"]
        with pytest.raises(ConnectionClosedError) as ended:
            async with asyncio.timeout(10):
                await socket.burst()
        assert ended.value.sent is not None
        assert ended.value.sent.code == code


async def test_a_socket_that_nobody_reads_is_stopped_until_somebody_does() -> None:
    sent = 0

    async def speak(answer: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(answer)
        while not writer.is_closing():
            writer.write(text(300) * 1000)
            sent += 1000
            await writer.drain()

    async with connected(speak) as socket:
        before = -1
        async with asyncio.timeout(10):
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
        waiting = await socket.burst()
        assert MAX_WAITING_FRAMES < len(waiting) < 2 * MAX_WAITING_FRAMES
        await read(socket, before)


async def test_a_socket_that_nobody_reads_closes_in_order() -> None:
    frames = 2 * MAX_WAITING_FRAMES

    async def speak(answer: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + text(100) * frames)

    async with connected(speak) as socket:
        await asyncio.sleep(0.1)
    assert socket.close_code == 1000
