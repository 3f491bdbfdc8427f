"""What is a problem, and what to do about it. Pure: what is seen comes in, problems come out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

DATABASE: Final = "database"
LONGEST_DETAIL: Final = 300
"""Characters of an error: it is read on a phone."""
_FAILED_NODE: Final = re.compile(r"(?:^|; )(\w+): ")
"""How ops.pipeline_runs joins its errors."""


@dataclass(frozen=True)
class Problem:
    """Something that somebody has to look at.

    `key` is the same for as long as it lasts, whatever title and advice say of it meanwhile.
    """

    key: str
    title: str
    advice: str


@dataclass(frozen=True)
class Thresholds:
    """From when on it is a problem. dbt's project has the numbers: its checks go by the same."""

    stale_after: timedelta
    gap_open_max: timedelta
    quarantine_share_max: float


@dataclass(frozen=True)
class OpenGaps:
    """What a product has missed for too long."""

    product_id: str
    trades: int


@dataclass(frozen=True)
class Quarantine:
    """What became of the trades that were read lately, and the most frequent reasons."""

    quarantined: int
    accepted: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FailedCheck:
    """A check whose newest verdict is bad."""

    name: str
    table: str
    message: str
    description: str


@dataclass(frozen=True)
class FailedRun:
    """A job of Dagster whose newest finished run failed, and is not tried again by itself."""

    job: str
    run_id: str


@dataclass(frozen=True)
class Seen:
    """How the house stands at a time. `failed_build` is the error of the newest dbt build."""

    at: datetime
    newest_frame: datetime | None
    open_gaps: tuple[OpenGaps, ...]
    quarantine: Quarantine
    failed_checks: tuple[FailedCheck, ...]
    failed_build: str | None
    failed_runs: tuple[FailedRun, ...]


def database_away(reason: str) -> Problem:
    """Return the problem that hides all others."""
    return Problem(DATABASE, "The database is away", reason)


def problems(seen: Seen, thresholds: Thresholds) -> Iterator[Problem]:
    """Say what is wrong, the causes before what follows from them."""
    # Where no frame ever came, nothing has stopped.
    if seen.newest_frame and seen.at - seen.newest_frame > thresholds.stale_after:
        yield Problem(
            "bronze",
            f"No trade has come for {_long(seen.at - seen.newest_frame)}",
            f"The newest frame is of {seen.newest_frame:%d %b %H:%M} UTC. Look whether "
            "`medallion ingest` runs and what it logs; bronze.feed_sessions has why connections "
            "ended. Trades that were missed are fetched once it runs again.",
        )
    if seen.open_gaps:
        trades = sum(gaps.trades for gaps in seen.open_gaps)
        yield Problem(
            "gaps",
            f"{trades:,} trades have been missing for more than {_long(thresholds.gap_open_max)}",
            f"Of {_some([gaps.product_id for gaps in seen.open_gaps])}. Look at closed_at, tries "
            "and next_try_at in bronze.trade_gaps, and what `medallion ingest` logs of REST; the "
            "job repair_gaps fetches them as well.",
        )
    quarantine = seen.quarantine
    received = quarantine.quarantined + quarantine.accepted
    if quarantine.quarantined > thresholds.quarantine_share_max * received:
        yield Problem(
            "quarantine",
            f"{quarantine.quarantined / received:.1%} of the newest trades are in quarantine",
            f"{quarantine.quarantined:,} of {received:,}, and "
            f"{thresholds.quarantine_share_max:.1%} is the most that is usual: "
            f"{_some(quarantine.reasons)}. silver.coinbase_trades_quarantine has each frame.",
        )
    for check in seen.failed_checks:
        yield Problem(
            f"check {check.name}",
            f"Check failed: {check.name}",
            f"{check.table} breaks what should hold: {check.description} dbt says: "
            f"{_short(check.message)} See the rows with `dbt show -s {check.name}`.",
        )
    if seen.failed_build and not _is_said(seen.failed_build, seen.failed_checks):
        yield Problem(
            "build",
            "The dbt build fails: silver and gold are not up to date",
            f"{_short(seen.failed_build)} Once it is put right, `medallion transform` goes on by "
            "itself.",
        )
    for run in seen.failed_runs:
        yield Problem(
            f"run {run.job}",
            f"Run failed: {run.job}",
            f"Open run {run.run_id[:8]} in Dagster's UI, under Runs: its log has the error. This "
            "is over when a run of the job succeeds.",
        )


def _is_said(error: str, failed_checks: tuple[FailedCheck, ...]) -> bool:
    """Tell whether failed checks are all that made a build fail."""
    names = set(_FAILED_NODE.findall(error))
    return bool(names) and names <= {check.name for check in failed_checks}


def _short(error: str) -> str:
    line = " ".join(error.split())
    if len(line) > LONGEST_DETAIL:
        line = f"{line[:LONGEST_DETAIL]}…"
    return line if line.endswith((".", "…")) else f"{line}."


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _long(duration: timedelta) -> str:
    minutes = round(duration.total_seconds() / 60)
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"
