"""The continuous transform: one dbt that stays in memory, and builds when bronze has news.

A dbt process of its own takes 6 to 8 s to start, a Dagster run 30 to 50 s; a kept one takes 1 to
2 s for the whole build.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import asyncpg
import dagster as dg
import structlog
from dagster_dbt.core.dbt_cli_event import DbtCoreCliEventMessage
from dagster_postgres.utils import DagsterPostgresException
from dbt.artifacts.resources.types import NodeType
from dbt.artifacts.schemas.run import RunExecutionResult
from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest
from dbt_common.events.base_types import EventMsg
from dbt_common.events.functions import msg_to_dict
from sqlalchemy.exc import SQLAlchemyError

from orchestration.bronze import Bronze, Connection, look_at
from orchestration.project import DBT_PROJECT, connected, translator
from warehouse.settings import ConnectionInfo, WarehouseError

log = structlog.get_logger(__name__)

TARGET: Final = DBT_PROJECT / "target" / "transform"
ROWS: Final = "rows_written"
ERROR: Final = "error"
ASSET_SECONDS: Final = 60.0
"""Between two times that Dagster is told of an asset: of each build, it would be 1.3 GB a day."""
AGAIN_SECONDS: Final = 1800.0
"""A verdict that stays the same is told so often: the UI shows how old it is."""
RETRY_SECONDS: Final = 30.0
"""A build that failed is tried again after so long, where nothing new comes before."""
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 30.0
"""A look that takes longer has lost its connection."""
FAILED: Final = frozenset({"error", "fail", "runtime error"})

Told: TypeAlias = dg.AssetMaterialization | dg.AssetCheckEvaluation | dg.AssetObservation
# Once it has begun, whatever PostgreSQL says may pass: a restart, a migration, new passwords.
_AWAY: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
# Of SQLite and of PostgreSQL.
_STORAGE_AWAY: Final = (SQLAlchemyError, DagsterPostgresException)


def open_instance() -> dg.DagsterInstance:
    """Open what DAGSTER_HOME leads to.

    Raises:
        WarehouseError: its storage can't be reached.

    """
    try:
        return dg.DagsterInstance.get()
    except _STORAGE_AWAY as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise WarehouseError(
            f"What Dagster remembers can't be reached ({reason}). Correct DAGSTER_POSTGRES_URL, or "
            "unset it to use files."
        ) from None


@dataclass(frozen=True)
class Built:
    """What one build did: what Dagster is told of it, and what failed."""

    seconds: float
    events: list[Told]
    failures: list[str]


class Builder:
    """Runs `dbt build` in this process; the project is read once.

    Raises:
        WarehouseError: the project is wrong.

    """

    def __init__(self, connection: ConnectionInfo) -> None:
        self._connection = connection
        self._options = [
            *("--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)),
            *("--target-path", str(TARGET), "--log-path", str(TARGET)),
        ]
        with connected(connection):
            # Not in part: of a changed test, dbt would forget what its YAML says.
            parsed = dbtRunner().invoke(
                ["--quiet", "--no-partial-parse", "parse", *self._options],
            )
        if not isinstance(parsed.result, Manifest):
            raise WarehouseError(f"dbt can't read its project: {parsed.exception}")
        self._events: list[dict[str, Any]] = []
        self._runner = dbtRunner(manifest=parsed.result, callbacks=[self._note])
        self._manifest = parsed.result.writable_manifest().to_dict(omit_none=False)

    def _note(self, event: EventMsg) -> None:
        if event.info.name in {"LogModelResult", "LogTestResult"}:
            self._events.append(msg_to_dict(event))

    def build(self, *, reference: bool) -> Built:
        """Build every model, or all but the product catalogue; run the checks of what is new."""
        began = time.monotonic()
        self._events.clear()
        selector = "incremental" if reference else "without_reference"
        with connected(self._connection):
            ended = self._runner.invoke(
                ["--quiet", "build", "--selector", selector, *self._options],
            )
        seconds = time.monotonic() - began
        if not isinstance(ended.result, RunExecutionResult):
            return Built(seconds, [], [str(ended.exception)])
        rows = {
            result.node.unique_id: result.adapter_response.get("rows_affected")
            for result in ended.result.results
        }
        events = [told for event in self._events for told in self._told(event, rows)]
        failed = [result for result in ended.result.results if result.status in FAILED]
        # Of a model that fails dagster-dbt tells nothing: there, the run fails.
        events += [
            dg.AssetObservation(
                translator.get_asset_key(self._manifest["nodes"][result.node.unique_id]),
                description="The build failed: what stands here is of an earlier one.",
                metadata={ERROR: str(result.message)},
            )
            for result in failed
            if result.node.resource_type == NodeType.Model
        ]
        failures = [f"{result.node.name}: {result.message}" for result in failed]
        return Built(seconds, events, failures)

    def _told(self, event: dict[str, Any], rows: dict[str, Any]) -> Iterator[Told]:
        """Translate as dagster-dbt does for runs of Dagster: the UI shows both alike."""
        written = rows.get(event["data"]["node_info"]["unique_id"])
        message = DbtCoreCliEventMessage(raw_event=event, event_history_metadata={})
        for told in message.to_default_asset_events(self._manifest, translator):
            assert isinstance(told, Told)  # noqa: S101  (Output is for runs)
            if isinstance(told, dg.AssetMaterialization) and written is not None:
                yield told.with_metadata({**told.metadata, ROWS: written})
            else:
                yield told


class Reporter:
    """Tells Dagster what was built and checked, without a run.

    Each event costs it some 20 ms and 5 kB for ever. So an asset is told of once a minute, with all
    rows that were written since, and a verdict, or the error of a model, when it changes, and again
    now and then.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._untold: dict[dg.AssetKey, dg.AssetMaterialization] = {}
        self._told_at: dict[dg.AssetKey | dg.AssetCheckKey, float] = {}
        self._verdicts: dict[dg.AssetCheckKey, tuple[bool, dg.AssetCheckSeverity]] = {}
        self._errors: dict[dg.AssetKey, tuple[str, float]] = {}

    def report(self, events: Sequence[Told], now: float) -> None:
        """Tell what is due at a time. Where Dagster's storage is away, it hears of it later."""
        for event in events:
            if isinstance(event, dg.AssetMaterialization):
                self._keep(event)
        try:
            for key, written in list(self._untold.items()):
                if now - self._told_at.get(key, -ASSET_SECONDS) >= ASSET_SECONDS:
                    self._instance.report_runless_asset_event(written)
                    self._told_at[key] = now
                    del self._untold[key]
            for event in events:
                if isinstance(event, dg.AssetCheckEvaluation):
                    self._verdict(event, now)
                elif isinstance(event, dg.AssetObservation):
                    self._observation(event, now)
        except _STORAGE_AWAY as error:
            log.warning("dagster_not_told", error=str(error))

    def _keep(self, event: dg.AssetMaterialization) -> None:
        self._errors.pop(event.asset_key, None)
        before = self._untold.get(event.asset_key)
        if before is not None and ROWS in event.metadata and ROWS in before.metadata:
            rows = _rows(before) + _rows(event)
            event = event.with_metadata({**event.metadata, ROWS: rows})
        self._untold[event.asset_key] = event

    def _verdict(self, check: dg.AssetCheckEvaluation, now: float) -> None:
        key, verdict = check.asset_check_key, (check.passed, check.severity)
        told_at = self._told_at.get(key, -AGAIN_SECONDS)
        if self._verdicts.get(key) == verdict and now - told_at < AGAIN_SECONDS:
            return
        self._instance.report_runless_asset_event(check)
        self._verdicts[key] = verdict
        self._told_at[key] = now

    def _observation(self, event: dg.AssetObservation, now: float) -> None:
        if ERROR not in event.metadata:
            self._instance.report_runless_asset_event(event)
            return
        error = str(event.metadata[ERROR].value)
        before, told_at = self._errors.get(event.asset_key, (None, now))
        if error != before or now - told_at >= AGAIN_SECONDS:
            self._instance.report_runless_asset_event(event)
            self._errors[event.asset_key] = error, now


def _rows(event: dg.AssetMaterialization) -> int:
    value = event.metadata[ROWS].value
    assert isinstance(value, int)  # noqa: S101  (dbt's count of rows)
    return value


class Transform:
    """Builds when bronze has something new, until it is stopped.

    Args:
        connection: the database, as the role that owns silver and gold.
        instance: is told what was built and checked.
        every: seconds from the beginning of a build to that of the next.

    """

    def __init__(
        self, connection: ConnectionInfo, instance: dg.DagsterInstance, every: float
    ) -> None:
        self._info = connection
        self._reporter = Reporter(instance)
        self._every = every
        self._untold: list[Told] = []
        self._reporting: asyncio.Future[None] = asyncio.Future()
        self._reporting.set_result(None)
        self._stop = asyncio.Event()
        self._connection: Connection | None = None
        self._retry_at = 0.0
        """When to build even if nothing is new: at the start, and after a failure."""
        self._catalogue_id: int | None = None
        """The list of products that the last build took in; None where it failed."""
        self.builds = 0

    def stop(self) -> None:
        """Stop; a build that is under way ends first."""
        self._stop.set()

    async def run(self) -> None:
        """Build until `stop` is called.

        Raises:
            WarehouseError: at the start there is no database, or the project is wrong.

        """
        # What can't pass, such as a wrong password, is told at once.
        self._connection = await self._info.connect()
        try:
            await look_at(self._connection)
            builder = await asyncio.to_thread(Builder, self._info)
            log.info("transforming", every=self._every)
            failures = 0
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    bronze = await self._look()
                    if self._is_due(bronze):
                        self._untold += await self._build(builder, bronze.catalogue_id)
                    failures = 0
                    self._report(time.monotonic())
                    wait = began + self._every - time.monotonic()
                except _AWAY as error:
                    wait = min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS)
                    failures = min(failures + 1, 16)
                    self._disconnect()
                    reason = str(error) or type(error).__name__
                    log.warning("database_away", error=reason, retry_in=wait)
                await self._sleep(wait)
        finally:
            self._disconnect()
        await self._reporting
        self._report(math.inf)
        await self._reporting
        log.info("transform_stopped", builds=self.builds)

    async def _look(self) -> Bronze:
        async with asyncio.timeout(LOOK_SECONDS):
            if self._connection is None:
                self._connection = await self._info.open()
                log.info("database_back")
            return await look_at(self._connection)

    def _is_due(self, bronze: Bronze) -> bool:
        return (
            bronze.lag > 0
            or self._catalogue_id not in {None, bronze.catalogue_id}
            or time.monotonic() >= self._retry_at
        )

    async def _build(self, builder: Builder, catalogue_id: int) -> list[Told]:
        # It costs some 0.3 s, and changes hourly at most.
        reference = catalogue_id != self._catalogue_id
        built = await asyncio.to_thread(builder.build, reference=reference)
        self.builds += 1
        self._catalogue_id = None if built.failures else catalogue_id
        self._retry_at = time.monotonic() + RETRY_SECONDS if built.failures else math.inf
        if built.failures:
            log.error("build_failed", failures=built.failures, seconds=round(built.seconds, 2))
        else:
            log.info("built", seconds=round(built.seconds, 2))
        return built.events

    def _report(self, now: float) -> None:
        """Tell Dagster beside the next build: where its storage is away, that takes a while."""
        if self._reporting.done():
            self._reporting.result()
            events, self._untold = self._untold, []
            self._reporting = asyncio.ensure_future(
                asyncio.to_thread(self._reporter.report, events, now)
            )

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._stop.wait()
