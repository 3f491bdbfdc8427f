"""Days of bronze go to the archive and come back, whatever is killed or damaged on the way."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import fsspec
import pyarrow.parquet
import pytest
from fsspec.implementations.local import LocalFileSystem

from ingestion.continuity import IdRange
from ingestion.gaps import GapLedger
from tests.conftest import ROOT
from tests.dbt.conftest import NOON, Lakehouse, advanced_frame, match
from warehouse.archive import Moved, open_archive
from warehouse.settings import ArchiveError, WarehouseError, WarehouseSettings

YESTERDAY = NOON.date()
LONG_AGO = NOON - timedelta(days=40)
BRONZE = (
    "select count(*) as rows, md5(string_agg(raw::text, '|' order by bronze_id)) as hash "
    "from bronze.coinbase_trades_raw as raw"
)


class House:
    """A lakehouse with an archive in a folder of the test."""

    def __init__(self, lakehouse: Lakehouse, folder: Path) -> None:
        self.lakehouse = lakehouse
        self.folder = folder / "crypto_dw" / "coinbase_trades_raw"
        self.database = lakehouse.database
        self.settings = self.database.settings.model_copy(
            update={"medallion_archive_url": str(folder)}
        )
        self.environment = {**self.database.environment(), "MEDALLION_ARCHIVE_URL": str(folder)}
        self.progress: list[tuple[float, float]] = []

    def _tell(self, done: float, due: float) -> None:
        self.progress.append((done, due))

    def archive(self, day: date = YESTERDAY, settings: WarehouseSettings | None = None) -> Moved:
        async def run() -> Moved:
            async with open_archive(settings or self.settings, self._tell) as archive:
                return await archive.archive(day)

        return asyncio.run(run())

    def restore(self, day: date = YESTERDAY, product: str | None = None) -> Moved:
        async def run() -> Moved:
            async with open_archive(self.settings, self._tell) as archive:
                return await archive.restore(day, product)

        return asyncio.run(run())

    def due(self, keep_days: int = 1) -> list[date]:
        async def run() -> list[date]:
            async with open_archive(self.settings) as archive:
                return await archive.due(keep_days)

        return asyncio.run(run())

    def why_not(self, day: date = YESTERDAY, keep_days: int | None = None) -> str | None:
        async def run() -> str | None:
            async with open_archive(self.settings) as archive:
                return await archive.why_not(day, keep_days)

        return asyncio.run(run())

    def bronze(self) -> dict[str, Any]:
        return self.lakehouse.one(BRONZE)

    def statuses(self) -> dict[str, str]:
        return {
            Path(row["url"]).name: row["status"]
            for row in self.lakehouse.rows("select url, status from bronze.archive_files")
        }

    @contextmanager
    def holding(self, statement: str) -> Iterator[None]:
        """Hold the locks of a statement meanwhile."""
        with asyncio.Runner() as runner:
            connection = runner.run(self.database.connect("admin"))
            runner.run(connection.execute(f"begin; {statement}"))
            yield
            runner.run(connection.close())


@pytest.fixture
def house(lakehouse: Lakehouse, tmp_path: Path) -> House:
    return House(lakehouse, tmp_path / "archive")


@pytest.fixture
def full_house(house: House) -> House:
    """Yesterday has trades of two products, transformed and checked."""
    trades = [match(n, product_id=p) for n in range(1, 4) for p in ("BTC-USD", "ETH-USD")]
    house.lakehouse.receive(*trades, received_at=NOON)
    house.lakehouse.build()
    return house


def test_what_was_archived_comes_back_to_the_last_digit(house: House) -> None:
    lakehouse = house.lakehouse
    odd = ["../../etc/passwd", "", "btc-usd", "X" * 300, "ÄÖ\n-USD"]
    frames = [
        match(1, price="100.50", size="1e-7"),
        match(2, product_id="ETH-USD", note='é \\ " \u2028'),
        *(match(3, product_id=name) for name in odd),
    ]
    lakehouse.receive(*frames, received_at=NOON)
    lakehouse.receive(match(2), match(3), received_at=LONG_AGO, source="exchange_ws")
    lakehouse.receive(
        advanced_frame(match(4), match(5)), received_at=LONG_AGO, source="advanced_ws"
    )
    lakehouse.build()
    bronze, built = house.bronze(), lakehouse.fingerprints()
    connect = house.database.info("medallion_ingest").open

    async def left_off() -> Any:
        ledger = GapLedger(connect)
        try:
            await ledger.cover({"BTC-USD": [IdRange(1, 5)]}, bronze_id=bronze["rows"])
            return await ledger.left_off(["BTC-USD"])
        finally:
            ledger.close()

    before = asyncio.run(left_off())
    assert house.due(keep_days=0) == [LONG_AGO.date(), YESTERDAY]
    assert house.due(keep_days=1) == [LONG_AGO.date()]
    for day in house.due(keep_days=0):
        house.archive(day)

    assert house.bronze()["rows"] == 0
    names = {path.name for path in house.folder.rglob("*") if path.is_file()}
    assert {"BTC-USD.parquet", "ETH-USD.parquet", "_no_product.parquet"} < names
    assert len(names) == 8
    assert set(house.statuses().values()) == {"dropped"}
    assert asyncio.run(left_off()) == before
    lakehouse.receive(match(6))
    lakehouse.build()
    lakehouse.build("--selector", "full")

    for day in (LONG_AGO.date(), YESTERDAY):
        assert house.restore(day).files
        assert house.restore(day).files == 0
    today = "where received_at < current_date"
    assert lakehouse.one(f"{BRONZE} {today}") == bronze
    step_by_step = lakehouse.fingerprints()
    assert step_by_step != built
    lakehouse.build("--full-refresh")
    assert lakehouse.fingerprints() == step_by_step
    assert house.due(keep_days=1) == []


@pytest.mark.postgres18_only
def test_how_far_it_is_is_told_to_the_end(full_house: House) -> None:
    full_house.archive()
    full_house.restore()
    assert full_house.progress == [(6, 6), (6, 6)]


@pytest.mark.postgres18_only
def test_silver_is_not_made_anew_of_what_bronze_no_longer_has(full_house: House) -> None:
    lakehouse = full_house.lakehouse
    full_house.archive()
    lakehouse.receive(match(4))
    lakehouse.build()
    built = lakehouse.fingerprints()
    for selection in ([], ["-s", "coinbase_trades_quarantine"]):
        refused = lakehouse.dbt("run", "--full-refresh", *selection)
        told = "".join(refused.messages.values())
        assert f"no longer holds 1 archived days from {YESTERDAY}" in told
        assert "medallion restore --day" in told
        assert lakehouse.fingerprints() == built
    lakehouse.build("-s", "gold", "--full-refresh")
    assert lakehouse.fingerprints() == built
    lakehouse.build("--full-refresh", "--vars", "{without_archived_days: true}")
    assert lakehouse.one("select count(*) as n from silver.coinbase_trades") == {"n": 1}


@pytest.mark.postgres18_only
@pytest.mark.parametrize(
    ("blocked_by", "left"),
    [
        ("lock table bronze.archive_files in share mode", {}),
        ("lock table bronze.coinbase_trades_raw in access share mode",
         {"BTC-USD.parquet": "verified", "ETH-USD.parquet": "verified"}),
    ],
    ids=["after a file is written", "before the day is dropped"],
)  # fmt: skip
def test_an_archive_that_is_killed_loses_nothing_and_is_finished_by_the_next(
    full_house: House, medallion: Callable[..., Any], blocked_by: str, left: dict[str, str]
) -> None:
    bronze = full_house.bronze()
    arguments = ("archive", "--day", str(YESTERDAY))
    with full_house.holding(blocked_by), medallion(*arguments, **full_house.environment) as command:
        command.wait_for(lambda: waits_for_a_lock(full_house))
        command.end(signal.SIGKILL)
        assert full_house.bronze() == bronze
        assert full_house.statuses() == left
    with medallion(*arguments, **full_house.environment) as command:
        assert command.end() == 0, command.said
    assert full_house.bronze()["rows"] == 0
    assert {path.name for path in full_house.folder.rglob("*.*")} == set(full_house.statuses())
    full_house.restore()
    assert full_house.bronze() == bronze


@pytest.mark.postgres18_only
def test_a_restore_that_is_killed_is_finished_by_the_next(
    full_house: House, medallion: Callable[..., Any]
) -> None:
    bronze = full_house.bronze()
    full_house.archive()
    arguments = ("restore", "--day", str(YESTERDAY))
    with (
        full_house.holding("lock table bronze.archive_files in share mode"),
        medallion(*arguments, **full_house.environment) as command,
    ):
        command.wait_for(lambda: waits_for_a_lock(full_house))
        command.end(signal.SIGKILL)
    with medallion(*arguments, **full_house.environment) as command:
        assert command.end() == 0, command.said
    assert full_house.bronze() == bronze
    # Of a restored day nothing is lost either.
    full_house.archive()
    assert full_house.restore(product="ETH-USD").rows == 3
    assert full_house.restore().rows == 3
    assert full_house.bronze() == bronze


def waits_for_a_lock(house: House) -> bool:
    return bool(
        house.lakehouse.rows(
            "select from pg_stat_activity where usename = 'medallion_archive' "
            "and wait_event_type = 'Lock'"
        )
    )


class RottenDisk(LocalFileSystem):
    """Keeps a file that can be read, with another byte in one of its rows."""

    protocol = "rotten"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        table = pyarrow.parquet.read_table(path1)
        payloads = [text.replace("0.5", "0.6", 1) for text in table["payload"].to_pylist()]
        rotten = table.set_column(6, "payload", pyarrow.array(payloads))
        pyarrow.parquet.write_table(rotten, path2)


def cut(whole: str, part: str) -> None:
    content = Path(whole).read_bytes()
    Path(part).write_bytes(content[: len(content) // 2])


@pytest.mark.postgres18_only
def test_a_file_that_is_not_what_was_written_is_noticed_and_nothing_is_dropped(
    full_house: House, tmp_path: Path
) -> None:
    bronze = full_house.bronze()
    fsspec.register_implementation("rotten", RottenDisk, clobber=True)
    rotten = full_house.settings.model_copy(
        update={"medallion_archive_url": f"rotten://{tmp_path}/rotten"}
    )
    with pytest.raises(ArchiveError, match=r"BTC-USD\.parquet holds 3 rows"):
        full_house.archive(settings=rotten)
    assert full_house.bronze() == bronze
    assert set(full_house.statuses().values()) == {"exported"}
    # On a disk that works, it is written anew.
    full_house.archive()

    file = str(next(full_house.folder.rglob("ETH-USD.parquet")))
    for spoil, told in ((RottenDisk().mv, "holds 3 rows"), (cut, "can't be read")):
        spoil(file, file)
        with pytest.raises(ArchiveError, match=rf"ETH-USD\.parquet {told}"):
            full_house.restore()
        assert full_house.bronze()["rows"] == 0
    assert full_house.restore(product="BTC-USD").rows == 3


@pytest.mark.postgres18_only
def test_frames_that_come_after_their_day_was_dropped_have_a_file_of_their_own(
    full_house: House,
) -> None:
    full_house.archive()
    full_house.lakehouse.receive(match(9), received_at=NOON)
    full_house.lakehouse.build()
    bronze = full_house.bronze()
    assert full_house.due(keep_days=0) == [YESTERDAY]
    assert full_house.archive().rows == 1
    assert full_house.statuses().keys() == {
        "BTC-USD.parquet", "ETH-USD.parquet", "BTC-USD.1.parquet"
    }  # fmt: skip
    assert full_house.restore(product="BTC-USD").rows == 4
    # What is restored in part and archived again leaves the rest as it is.
    assert full_house.archive().rows == 4
    assert full_house.restore().rows == 7
    assert full_house.bronze()["rows"] == 6 + bronze["rows"]


@pytest.mark.postgres18_only
def test_a_day_stays_until_it_is_over_old_enough_transformed_and_checked(
    full_house: House, medallion: Callable[..., Any]
) -> None:
    today = YESTERDAY + timedelta(days=1)
    assert full_house.why_not(today) == f"{today} is not over."
    assert "MEDALLION_BRONZE_DAYS keeps" in (full_house.why_not(keep_days=1) or "")
    assert full_house.why_not() is None
    full_house.lakehouse.receive(match(4), received_at=NOON)
    assert "dbt build" in (full_house.why_not() or "")
    with pytest.raises(ArchiveError, match="has not transformed and checked"):
        full_house.archive()
    full_house.lakehouse.dbt("run")
    # Transformed, and not yet checked against bronze.
    assert "dbt build" in (full_house.why_not() or "")
    assert full_house.bronze()["rows"] == 7
    with medallion("archive", **full_house.environment) as command:
        assert command.end() == 2
    assert "MEDALLION_BRONZE_DAYS is not set, so bronze is kept for ever" in command.said


@pytest.mark.postgres18_only
def test_the_files_of_another_database_are_not_overwritten(full_house: House) -> None:
    foreign = full_house.folder / f"day={YESTERDAY}" / "ETH-USD.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("of another")
    with pytest.raises(ArchiveError, match="this database did not write it"):
        full_house.archive()
    assert foreign.read_text() == "of another"
    with pytest.raises(WarehouseError, match=r"Nothing of .* is archived"):
        full_house.restore()


async def test_a_day_that_is_not_in_verified_files_is_not_dropped(database: Any) -> None:
    ingester, archiver = (
        await database.connect("medallion_ingest"),
        await database.connect("medallion_archive"),
    )
    await ingester.execute(
        "insert into bronze.coinbase_trades_raw "
        "(received_at, source, channel, session_id, payload) "
        "values ($1, 'rest', 'trades', gen_random_uuid(), '{}')",
        NOON,
    )
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="verified files have 0"):
        await archiver.execute("select bronze.drop_day($1)", YESTERDAY)
    await ingester.close()
    await archiver.close()


@pytest.mark.postgres18_only
def test_archive_and_database_are_queried_together_as_the_document_says(full_house: House) -> None:
    full_house.archive()
    full_house.restore(product="ETH-USD")
    full_house.lakehouse.receive(match(4))
    [program] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "archive.md").read_text(), re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **full_house.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.replace("│", " ").splitlines()]
    today = YESTERDAY + timedelta(days=1)
    assert [line[:3] for line in lines if line and line[0].startswith("20")] == [
        [str(YESTERDAY), "BTC-USD", "3"],
        [str(YESTERDAY), "ETH-USD", "3"],
        [str(today), "BTC-USD", "1"],
    ]
