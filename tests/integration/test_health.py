"""A service that does not do its work is told of, however well its process is."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from medallion import health
from medallion.health import UnhealthyError
from tests.conftest import Database

pytestmark = pytest.mark.postgres18_only


@pytest.mark.parametrize(
    ("age", "told"), [(None, "No frame has come yet"), (61, "The last frame came 61 s ago")]
)
def test_an_ingester_without_frames_is_not_healthy(
    unused_tcp_port: int, age: float | None, told: str
) -> None:
    registry = CollectorRegistry()
    if age is not None:
        Gauge("ingestion_seconds_since_last_frame", "Age.", registry=registry).set(age)
    server, thread = start_http_server(unused_tcp_port, addr="127.0.0.1", registry=registry)
    try:
        with pytest.raises(UnhealthyError, match=told):
            health.receives(f"http://127.0.0.1:{unused_tcp_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_transform_that_leaves_trades_waiting_is_not_healthy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    health.transforms()
    database.execute(
        "insert into bronze.coinbase_trades_raw "
        "(received_at, source, channel, session_id, product_id, payload) values "
        "(now(), 'exchange_ws', 'matches', gen_random_uuid(), 'BTC-USD', '{}')"
    )
    with pytest.raises(UnhealthyError, match="1 frames wait"):
        health.transforms()
    # One that has just ended: the next is due in seconds.
    database.execute(
        "insert into ops.pipeline_runs (run_id, pipeline_name, start_ts, end_ts, status, "
        "full_refresh, bronze_low, bronze_high, records_processed) "
        "values ('1', 'build', now(), now(), 'success', false, 0, 0, 0)"
    )
    health.transforms()
