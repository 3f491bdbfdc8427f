"""`medallion ingest` as its user runs it: a process, its signals, exit codes and messages."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.postgres18_only


@pytest.fixture
def ingest(medallion: Callable[..., Any], database: Any) -> Callable[..., Any]:
    """Start `medallion ingest` on the test's database."""

    def start(url: str, **variables: str) -> Any:
        here = database.environment()
        return medallion("ingest", **{**here, "COINBASE_WS_URL": url, **variables})

    return start


@pytest.fixture
def simulator(medallion: Callable[..., Any], unused_tcp_port: int) -> Callable[[], Any]:
    """Start the simulated exchange, on the same port each time; yields its URL."""

    @contextmanager
    def start() -> Iterator[str]:
        arguments = ("--port", str(unused_tcp_port), "--speed", "100")
        with medallion("simulate", *arguments) as command:
            command.wait_for(lambda: "ws://" in command.said)
            yield f"ws://127.0.0.1:{unused_tcp_port}"

    return start


def rows(database: Any) -> int:
    count: int = database.fetch("select count(*) from bronze.coinbase_trades_raw")[0][0]
    return count


def counts(said: str) -> list[int]:
    """Return trades, rows, rejected frames and reconnects of the summary."""
    summary = re.search(
        r"Stopped\. ([\d,]+) trades received, ([\d,]+) rows in bronze, "
        r"([\d,]+) frames rejected, ([\d,]+) reconnects",
        said,
    )
    assert summary is not None, said
    return [int(number.replace(",", "")) for number in summary.groups()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_all_and_exits_with_a_summary(
    database: Any,
    ingest: Callable[..., Any],
    simulator: Callable[[], Any],
    number: signal.Signals,
) -> None:
    # The interval leaves all of it to the drain.
    with simulator() as url, ingest(url, FLUSH_INTERVAL_SECONDS="60") as command:
        command.wait_for_event("subscribed")
        time.sleep(1)
        code = command.end(number)

    trades, saved, rejected, reconnects = counts(command.said)
    assert (code, rejected, reconnects) == (0, 0, 0)
    assert trades == saved == rows(database) > 0
    [session] = database.fetch("select trades, end_reason from bronze.feed_sessions")
    assert tuple(session) == (trades, "stopped")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("insert into public.schema_migrations values ('20991231000000')", "Update medallion"),
        (
            "delete from public.schema_migrations where version = '20261125000001'",
            "Run `medallion migrate`",
        ),
        # So it is before the migration that lets the ingester look.
        ("revoke usage on schema public from medallion_ingest", "Run `medallion migrate`"),
    ],
)
def test_a_database_of_another_version_is_refused(
    database: Any, ingest: Callable[..., Any], change: str, told: str
) -> None:
    database.execute(change)
    with ingest("ws://127.0.0.1:1") as command:
        assert command.end() == 2
    assert told in command.said


def test_a_restart_of_postgres_loses_nothing(
    database: Any, server: Any, ingest: Callable[..., Any], simulator: Callable[[], Any]
) -> None:
    with simulator() as url, ingest(url) as command:
        command.wait_for(lambda: rows(database) > 0)
        server.embedded.stop()
        try:
            command.wait_for_event("bronze_unreachable", times=3)
        finally:
            server.embedded.start()
        command.wait_for_event("bronze_back")
        code = command.end(signal.SIGTERM)

    trades, saved, _rejected, reconnects = counts(command.said)
    assert (code, reconnects) == (0, 0)
    assert trades == saved
    [(distinct,)] = database.fetch(
        "select count(distinct (product_id, payload ->> 'trade_id')) "
        "from bronze.coinbase_trades_raw"
    )
    # Only what was on its way when the server stopped may be there twice.
    assert distinct == trades <= rows(database)


def test_a_restart_of_the_exchange_is_a_new_session(
    database: Any, ingest: Callable[..., Any], simulator: Callable[[], Any], unused_tcp_port: int
) -> None:
    with ingest(f"ws://127.0.0.1:{unused_tcp_port}") as command:
        for run in (1, 2):
            with simulator():
                command.wait_for_event("subscribed", times=run)
                time.sleep(0.5)
        code = command.end(signal.SIGTERM)

    trades, saved, _rejected, reconnects = counts(command.said)
    assert (code, reconnects) == (0, 1)
    sessions = database.fetch(
        "select trades, (select count(*) from bronze.coinbase_trades_raw as t "
        "where t.session_id = s.session_id) from bronze.feed_sessions as s "
        "where ended_at is not null"
    )
    assert len(sessions) == 2
    assert all(received == stored > 0 for received, stored in sessions)
    assert trades == saved == rows(database)


def assert_in_order(database: Any) -> None:
    """See that bronze got the trades as they came; what was sent again comes a second time."""
    found: dict[str, dict[int, None]] = {}
    for product_id, trade_id in database.fetch(
        "select product_id, (payload ->> 'trade_id')::bigint "
        "from bronze.coinbase_trades_raw order by bronze_id"
    ):
        found.setdefault(product_id, {})[trade_id] = None
    assert found
    for trade_ids in found.values():
        assert list(trade_ids) == sorted(trade_ids)


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


SMALL_MEMORY = {"BATCH_SIZE": "10", "MAX_BUFFERED_FRAMES": "50", "FLUSH_INTERVAL_SECONDS": "0.05"}


def test_stopping_without_postgres_leaves_frames_that_the_next_run_saves(
    database: Any, server: Any, ingest: Callable[..., Any], simulator: Callable[[], Any]
) -> None:
    with simulator() as url:
        with ingest(url, DRAIN_SECONDS="0.5", **SMALL_MEMORY) as command:
            command.wait_for(lambda: rows(database) > 0)
            server.embedded.stop()
            try:
                command.wait_for_event("spilling")
                command.wait_for_event("bronze_unreachable", times=3)
                code = command.end(signal.SIGTERM)
            finally:
                server.embedded.start()
        trades, saved, _rejected, _reconnects = counts(command.said)
        waiting = re.search(
            r"([\d,]+) frames wait in the spool: the next `medallion ingest` saves them\.",
            command.said,
        )
        assert waiting is not None, command.said
        left = int(waiting[1].replace(",", ""))
        assert (code, saved + left) == (0, trades)
        assert left > 50

        with ingest(url) as again:
            again.wait_for_event("spool_drained")
            assert again.end(signal.SIGTERM) == 0

    newly, saved_again, _rejected, _reconnects = counts(again.said)
    assert saved_again == newly + left
    assert_in_order(database)


def test_a_killed_ingester_leaves_a_spool_that_the_next_one_drains_in_order(
    database: Any,
    server: Any,
    ingest: Callable[..., Any],
    simulator: Callable[[], Any],
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port = unused_tcp_port_factory()
    with simulator() as url:
        with ingest(url, METRICS_PORT=str(port), **SMALL_MEMORY) as command:
            command.wait_for(lambda: rows(database) > 0)
            server.embedded.stop()
            try:
                command.wait_for_event("spilling")
                command.wait_for(lambda: metrics(port)["ingestion_spooled_frames"] > 200)
                spooled = metrics(port)["ingestion_spooled_frames"]
                command.process.kill()
                command.process.wait()
            finally:
                server.embedded.start()
        saved_before = rows(database)
        # As a kill within a write would leave it.
        [segment] = (tmp_path / "spool" / "crypto_dw" / "1").glob("*.spool")
        segment.write_bytes(segment.read_bytes()[:-5])

        with ingest(url) as again:
            again.wait_for_event("spool_drained")
            code = again.end(signal.SIGTERM)

    [found] = [event for event in again.events() if event["event"] == "spool_found"]
    assert found["frames"] >= spooled - 1
    assert [e["event"] for e in again.events()].count("spool_tail_cut") == 1
    newly, saved, _rejected, _reconnects = counts(again.said)
    assert (code, saved) == (0, newly + found["frames"])
    assert rows(database) == saved_before + saved
    assert_in_order(database)
    assert list((tmp_path / "spool" / "crypto_dw" / "1").glob("*.spool")) == []


def test_a_spool_of_another_version_exits_with_2(
    ingest: Callable[..., Any], tmp_path: Path
) -> None:
    segment = tmp_path / "spool" / "crypto_dw" / "1" / "1000000000.spool"
    segment.parent.mkdir(parents=True)
    segment.write_bytes(b"medallion spool 2\nsomething")

    with ingest("ws://127.0.0.1:1") as command:
        code = command.end()

    assert code == 2
    assert "spool version 2, and this one reads 1" in command.said
    assert "Traceback" not in command.said
    assert segment.read_bytes() == b"medallion spool 2\nsomething"


def test_an_exchange_out_of_reach_is_tried_again_until_stopped(
    ingest: Callable[..., Any], unused_tcp_port: int
) -> None:
    with ingest(f"ws://127.0.0.1:{unused_tcp_port}") as command:
        command.wait_for_event("disconnected", times=3)
        code = command.end(signal.SIGTERM)

    assert code == 0
    assert counts(command.said) == [0, 0, 0, 0]


def test_one_product_that_is_none_leaves_the_others(
    database: Any, ingest: Callable[..., Any], simulator: Callable[[], Any]
) -> None:
    with simulator() as url, ingest(url, COINBASE_PRODUCTS="NOPE-USD,BTC-USD") as command:
        command.wait_for(lambda: rows(database) > 0)
        code = command.end(signal.SIGTERM)

    assert code == 0
    [refused] = [e for e in command.events() if e["event"] == "subscription_refused"]
    assert refused["products"] == ["NOPE-USD"]


def test_no_product_that_is_one_exits_with_2(
    ingest: Callable[..., Any], simulator: Callable[[], Any]
) -> None:
    with simulator() as url, ingest(url, COINBASE_PRODUCTS="NOPE-USD,NIX-USD") as command:
        code = command.end()

    assert code == 2
    assert "There is no valid product among NOPE-USD, NIX-USD." in command.said
    assert "Traceback" not in command.said


def test_a_wrong_password_exits_with_2_and_is_not_shown(
    database: Any, ingest: Callable[..., Any], tmp_path: Path
) -> None:
    with ingest(
        "ws://127.0.0.1:1",
        # Away from the credentials, as with a server of one's own.
        MEDALLION_HOME=str(tmp_path),
        PGHOST=database.host,
        PGPORT=str(database.port),
        PGUSER="medallion_ingest",
        PGPASSWORD="hunter2",
    ) as command:
        code = command.end()

    assert code == 2
    assert "Check its user and password." in command.said
    assert "hunter2" not in command.said
    assert "Traceback" not in command.said


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("COINBASE_WS_URL", "https://example.com", "Accepted is a ws:// or wss:// URL"),
        ("BATCH_SIZE", "abc", "Accepted is rows per COPY, from 1 to 100000"),
        ("PGPORT", "abc", "Correct it in the command, the environment or .env."),
    ],
)
def test_a_wrong_setting_exits_with_2(
    medallion: Callable[..., Any], variable: str, value: str, told: str
) -> None:
    with medallion("ingest", **{variable: value}) as command:
        code = command.end()

    assert code == 2
    assert command.said.startswith(f"{variable} is '{value}'")
    assert told in command.said
    assert "Traceback" not in command.said


def test_metrics_are_served_and_their_port_is_guarded(
    database: Any,
    ingest: Callable[..., Any],
    simulator: Callable[[], Any],
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port = str(unused_tcp_port_factory())
    with simulator() as url, ingest(url, METRICS_PORT=port) as command:
        command.wait_for(lambda: rows(database) > 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            text = page.read().decode()
        with ingest(url, METRICS_PORT=port) as second:
            refused = second.end()
        code = command.end(signal.SIGTERM)

    assert (code, refused) == (0, 1)
    assert f"METRICS_PORT is {port}, which can't be opened" in second.said
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    assert names >= {
        "ingestion_frames_total",
        "ingestion_trades_total",
        "ingestion_batches_total",
        "ingestion_batch_seconds_count",
        "ingestion_buffered_frames",
        "ingestion_reconnects_total",
        "ingestion_rejected_frames_total",
        "ingestion_seconds_since_last_frame",
    }
