"""The counts of one capture as Prometheus metrics: read when asked, so that no frame pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestion.errors import MetricsPortError

BATCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


@dataclass(frozen=True)
class CaptureStats:
    """The counts of one capture at one moment."""

    started_at: datetime
    frames: int
    """Frames received, of every type."""
    trades: int
    """Trades received (match and last_match)."""
    rows: int
    """Rows committed to bronze.coinbase_trades_raw."""
    batches: int
    """Batches committed."""
    rejected: int
    """Rows committed to bronze.coinbase_frames_rejected."""
    reconnects: int
    """Connections to the exchange after the first."""
    buffered: int
    """Frames in memory that are neither committed nor in the spool yet."""
    spooled: int
    """Frames in the spool that are not committed yet."""
    spooled_bytes: int
    """Bytes of the spool on disk."""
    not_kept: int
    """Frames received while memory and spool were full."""
    repaired: int
    """Trades that were missing and came over REST."""
    frames_by_type: dict[str, int]
    """`unknown` counts the types that Coinbase doesn't document, `unreadable` what is no JSON."""
    seconds_since_last_frame: float | None
    """None before the first frame."""


class CaptureMetrics(Collector):
    """The numbers of one capture in a registry of its own.

    Args:
        read: returns the counts of now.
        missing: returns the trades missing now, per product.

    """

    def __init__(
        self, read: Callable[[], CaptureStats], missing: Callable[[], dict[str, int]]
    ) -> None:
        self._read = read
        self._missing = missing
        self.registry = CollectorRegistry()
        self.batch_seconds = Histogram(
            "ingestion_batch_seconds",
            "Time from sending a batch to its commit.",
            buckets=BATCH_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not read the counts to learn the names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now."""
        stats = self._read()
        frames = CounterMetricFamily(
            "ingestion_frames", "Frames received, by type.", labels=["type"]
        )
        for kind, count in stats.frames_by_type.items():
            frames.add_metric([kind], count)
        yield frames
        counters = {
            "trades": ("Trades received.", stats.trades),
            "rows": ("Rows committed to bronze.coinbase_trades_raw.", stats.rows),
            "batches": ("Batches committed.", stats.batches),
            "rejected_frames": (
                "Rows committed to bronze.coinbase_frames_rejected.",
                stats.rejected,
            ),
            "reconnects": ("Connections to the exchange after the first.", stats.reconnects),
            "repaired_trades": ("Trades that were missing and came over REST.", stats.repaired),
            "frames_not_kept": (
                "Frames received while memory and spool were full.",
                stats.not_kept,
            ),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(f"ingestion_{name}", meaning, value=value)
        gauges = {
            "buffered_frames": (
                "Frames in memory that are neither committed nor in the spool yet.",
                stats.buffered,
            ),
            "spooled_frames": ("Frames in the spool that are not committed.", stats.spooled),
            "spooled_bytes": ("Bytes of the spool on disk.", stats.spooled_bytes),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"ingestion_{name}", meaning, value=value)
        if stats.seconds_since_last_frame is not None:
            yield GaugeMetricFamily(
                "ingestion_seconds_since_last_frame",
                "Age of the newest frame.",
                value=stats.seconds_since_last_frame,
            )
        missing = GaugeMetricFamily(
            "ingestion_missing_trades",
            "Trades that are not here yet; those that are just late are among them.",
            labels=["product_id"],
        )
        for product_id, count in self._missing().items():
            missing.add_metric([product_id], count)
        yield missing


@contextmanager
def serve(registry: CollectorRegistry, port: int | None) -> Iterator[None]:
    """Serve a registry on 127.0.0.1 while the context lasts; without a port, serve nothing.

    Raises:
        MetricsPortError: the port can't be opened.

    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise MetricsPortError(
            f"METRICS_PORT is {port}, which can't be opened on 127.0.0.1: {error.strerror}. "
            "Set it to a free port, or unset it."
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
