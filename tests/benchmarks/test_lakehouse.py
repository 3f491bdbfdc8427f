"""Each part of the benchmark of the lakehouse runs, at a size that says nothing about speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import increment, reads, rebuild, storage
from benchmarks.history import History
from tests.conftest import Server

pytestmark = pytest.mark.postgres18_only

TRADES = 5_000


@pytest.fixture(scope="module")
def history(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REFERENCE", raising=False)
        made = History(server.settings, TRADES, tmp_path_factory.mktemp("target"))
        made.receive()
        made.build()
        yield made
        server.maintain(f"drop database {made.settings.pgdatabase} with (force)")


def test_a_build_of_new_and_late_trades_is_measured(history: History) -> None:
    told = increment.section([history], rounds=1, new=500)
    (late,) = history.fetch(
        "select count(*) as trades from silver.coinbase_trades where source = 'rest'"
    )
    assert late["trades"] == 25
    assert told.count(f"| {TRADES:,} |") == 2


def test_every_query_of_page_and_documents_is_measured(history: History) -> None:
    told = reads.section(history, rounds=1)
    for name in reads.questions().values():
        assert f"| {name} |" in told
        assert f"\n{name}:\n\n```\n" in told


def test_bytes_and_unused_indexes_are_told(history: History) -> None:
    told = storage.section(history, [history.settings])
    assert "| `silver.coinbase_trades` |" in told
    history.fetch("create index on silver.coinbase_trades (side)")
    assert "silver.coinbase_trades btree (side)" in storage.section(history, [history.settings])


def test_a_rebuild_makes_the_candles_that_duckdb_makes(history: History, tmp_path: Path) -> None:
    assert "Without the reference" in rebuild.section(history, tmp_path, rounds=1)
    history.fetch("update gold.ohlc_1d set volume = volume + 1")
    with pytest.raises(SystemExit, match="Candles differ"):
        rebuild.compare(history, rebuild.export(history, tmp_path))
