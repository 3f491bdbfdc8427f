"""`medallion up`: every service on this machine, started, watched and stopped from one terminal.

`services` is what runs; docker-compose.yml runs the same commands, each in a container of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from types import FrameType
from typing import Any, Final

from rich.console import Console

from medallion.errors import FailedError
from medallion.market import refuse_another_market
from warehouse.embedded import EmbeddedServer
from warehouse.settings import PROJECT_ROOT, Role, WarehouseError, WarehouseSettings

FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""What ran for so long and ends is started again after the first wait, not a longer one."""
LOOK_SECONDS: Final = 0.5
DATABASE_LOOK_SECONDS: Final = 2.0
OWN: Final = "medallion"
DATABASE: Final = "postgres"
COLOURS: Final = (36, 32, 33, 35, 34, 96, 92, 93)
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Service:
    """One command, and what it has to do with the others.

    Args:
        name: what it is called here and in docker-compose.yml.
        command: the arguments of `medallion`.
        port: where it listens on 127.0.0.1; it is ready when the port is open.
        page: what a person finds there, if anything.
        after: services that must be ready before it, and end after it.

    """

    name: str
    command: tuple[str, ...]
    port: int | None = None
    page: str | None = None
    after: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}"


MIGRATE: Final = Service("migrate", ("migrate",))
"""Ends before any other begins."""


def services(dagster_port: int, dashboard_port: int, code_port: int) -> list[Service]:
    """Return what runs, whatever the source."""
    code = f"127.0.0.1:{code_port}"
    return [
        Service("ingest", ("ingest",)),
        Service("transform", ("transform",)),
        Service("dagster-code", ("dagster", "code", "--port", str(code_port)), port=code_port),
        Service(
            "dagster-webserver",
            ("dagster", "webserver", "--port", str(dagster_port), "--code", code),
            port=dagster_port,
            page="Dagster",
            after=("dagster-code",),
        ),
        Service("dagster-daemon", ("dagster", "daemon", "--code", code), after=("dagster-code",)),
        Service(
            "dashboard",
            ("dashboard", "--port", str(dashboard_port)),
            port=dashboard_port,
            page="Market page",
        ),
    ]


def with_simulator(ordinary: Sequence[Service], port: int) -> list[Service]:
    """Return the same with a simulated exchange, which outlives whoever asks it."""
    name = "simulator"
    asks = {"ingest", "dagster-code"}
    return [
        Service(name, ("simulate", "--port", str(port)), port=port),
        *(
            replace(service, after=(*service.after, name)) if service.name in asks else service
            for service in ordinary
        ),
    ]


class Stack:
    """Runs services until it is told to stop, and starts again whichever ends before that.

    Args:
        settings: the database.
        services: what runs.
        variables: what each finds in its environment, beside what is in ours.
        feed: the URL of what is recorded.
        console: where their lines go.

    """

    def __init__(
        self,
        settings: WarehouseSettings,
        services: Sequence[Service],
        variables: Mapping[str, str],
        feed: str,
        console: Console,
    ) -> None:
        self._settings = settings
        self._services = services
        self._feed = feed
        self._console = console
        self._colourful = console.is_terminal and not console.no_color
        names = [OWN, DATABASE, MIGRATE.name, *(service.name for service in services)]
        self._width = max(map(len, names))
        self._colours = dict(zip(names, cycle(COLOURS), strict=False))
        self._environment = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
        if self._colourful:
            self._environment["FORCE_COLOR"] = "1"
            self._environment["COLUMNS"] = str(max(console.width - self._width - 3, 40))
        self._stop = asyncio.Event()
        self._ready = {service.name: asyncio.Event() for service in services}
        self._gone = {service.name: asyncio.Event() for service in services}
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> None:
        """Run until stopped: Ctrl-C, SIGTERM, or the end of the terminal.

        Raises:
            WarehouseError: the database can't be used for this.
            FailedError: it could not be migrated.

        """
        with self._signals():
            if not self._settings.embedded:
                await self._run_services()
                return
            server = EmbeddedServer.of(self._settings)
            # One that runs already is somebody else's to stop.
            ours = not await asyncio.to_thread(server.is_running)
            port = await asyncio.to_thread(server.start)
            self._say(DATABASE, f"Listens on 127.0.0.1:{port}.")
            unneeded = asyncio.Event()
            watching = asyncio.create_task(self._keep_database(server, unneeded))
            try:
                await self._run_services()
            finally:
                unneeded.set()
                if await watching or ours:
                    await asyncio.to_thread(server.stop)
                    self._say(DATABASE, "Stopped.")

    async def _run_services(self) -> None:
        code = await self._run(MIGRATE)
        if self._stop.is_set():
            return
        if code:
            raise FailedError("The database could not be migrated: what stands above says why.")
        await refuse_another_market(self._settings.connection(Role.INGEST), self._feed)
        self._show_addresses()
        async with asyncio.TaskGroup() as tasks:
            for service in self._services:
                tasks.create_task(self._keep(service))

    def _show_addresses(self) -> None:
        connection = self._settings.connection(Role.READER)
        rows = [
            ("PostgreSQL", f"{connection.host}:{connection.port}, {connection.database}"),
            ("Feed", self._feed),
            *((service.page, service.address) for service in self._services if service.page),
        ]
        for what, where in rows:
            self._say(OWN, f"{what:12}{where}")
        self._say(OWN, "Ctrl-C stops all of it.")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def told(_number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._end)

        numbers = [signal.SIGINT, signal.SIGTERM]
        # Windows has none; under nohup, the end of the terminal is to be outlived.
        hangup = getattr(signal, "SIGHUP", None)
        if hangup and signal.getsignal(hangup) is not signal.SIG_IGN:
            numbers.append(hangup)
        before = {number: signal.signal(number, told) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self) -> None:
        """Stop in order at the first signal, and kill what is left at the next."""
        if self._stop.is_set():
            for process in self._processes.values():
                _kill(process)
        else:
            self._stop.set()
            self._say(OWN, "Stopping; what has come is saved first. Ctrl-C again ends it at once.")

    async def _keep(self, service: Service) -> None:
        """Run a service, and again whenever it ends."""
        wait = FIRST_WAIT_SECONDS
        try:
            for name in service.after:
                await self._unless_stopped(self._ready[name].wait())
            while not self._stop.is_set():
                began = time.monotonic()
                code = await self._run(service)
                if self._stop.is_set():
                    self._say(service.name, f"{_ending(code)}.")
                    break
                if time.monotonic() - began > STEADY_SECONDS:
                    wait = FIRST_WAIT_SECONDS
                self._say(service.name, f"{_ending(code)}. Starts again in {wait:.0f} s.", bad=True)
                await self._unless_stopped(asyncio.sleep(wait))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        finally:
            self._gone[service.name].set()

    async def _run(self, service: Service) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "medallion", *service.command),
            env=self._environment,
            cwd=PROJECT_ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which stops the others in their order.
            start_new_session=True,
        )
        self._processes[service.name] = process
        lines = asyncio.create_task(self._show(service.name, process))
        ready = asyncio.create_task(self._tell_ready(service))
        ended = asyncio.create_task(process.wait())
        unneeded = asyncio.create_task(self._stopped_and_unneeded(service))
        try:
            await asyncio.wait({ended, unneeded}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
            return await ended
        finally:
            # As with a container: what it started ends with it.
            _kill(process)
            del self._processes[service.name]
            ready.cancel()
            unneeded.cancel()
            await asyncio.wait({lines}, timeout=LOOK_SECONDS)
            lines.cancel()

    async def _stopped_and_unneeded(self, service: Service) -> None:
        await self._stop.wait()
        for other in self._services:
            if service.name in other.after:
                await self._gone[other.name].wait()

    async def _show(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  (a pipe)
        rest = b""
        while chunk := await process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._say(name, line.decode(errors="replace"))
        if rest:
            self._say(name, rest.decode(errors="replace"))

    async def _tell_ready(self, service: Service) -> None:
        if service.port is not None:
            await _opened(service.port)
        if service.name in self._ready:
            self._ready[service.name].set()
        if service.page:
            self._say(service.name, f"{service.page} is ready: {service.address}")

    async def _keep_database(self, server: EmbeddedServer, unneeded: asyncio.Event) -> bool:
        """Start the server again whenever it ends; return whether that was ever done."""
        started = False
        while not unneeded.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(unneeded.wait(), DATABASE_LOOK_SECONDS)
                break
            if await asyncio.to_thread(server.is_running):
                continue
            self._say(DATABASE, f"Ended: {server.log} says why. Starts again.", bad=True)
            try:
                await asyncio.to_thread(server.start)
                started = True
            except WarehouseError as error:
                self._say(DATABASE, str(error), bad=True)
        return started

    async def _unless_stopped(self, awaited: Coroutine[Any, Any, object]) -> None:
        """Wait for something, or for the stop."""
        tasks = {asyncio.create_task(awaited), asyncio.create_task(self._stop.wait())}
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    def _say(self, name: str, text: str, *, bad: bool = False) -> None:
        for line in text.rstrip().split("\n"):
            told = f"{name:{self._width}} | "
            if self._colourful:
                told = f"\x1b[{self._colours[name]}m{told}\x1b[0m"
                told += f"\x1b[31m{line}\x1b[0m" if bad else line
            else:
                told += _ESCAPES.sub("", line)
            # The terminal may be gone; all is stopped in order nevertheless.
            with suppress(OSError):
                self._console.file.write(told + "\n")
                self._console.file.flush()


def _ending(code: int) -> str:
    if code < 0:
        return f"Ended by {signal.Signals(-code).name}"
    return f"Ended with exit code {code}"


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


async def _opened(port: int) -> None:
    """Wait until somebody listens on a port of 127.0.0.1."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(LOOK_SECONDS)
        else:
            writer.close()
            return
