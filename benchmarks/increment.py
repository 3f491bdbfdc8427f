"""What a build of 5,000 new trades costs, on histories of different lengths."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Final, NamedTuple

from benchmarks.history import DAYS, MISSING, PRODUCTS, History
from benchmarks.measure import cpu_seconds, interleaved, middle, postgres_pid, table

NEW: Final = 5_000
LATE_SHARE: Final = 0.05


class Cost(NamedTuple):
    """Of one build: CPU seconds of the database, and seconds by the clock."""

    cpu: float
    wall: float


def cost(history: History, work: Callable[[], None]) -> Cost:
    """Return what some work costs, all processes of the database counted."""
    server = postgres_pid(history.settings)
    cpu, began = cpu_seconds(server), time.monotonic()
    work()
    return Cost(cpu_seconds(server) - cpu, time.monotonic() - began)


def section(histories: Sequence[History], rounds: int, new: int = NEW) -> str:
    """Measure builds of new trades, and of as many of which some are late."""
    kinds = {"none": 0, f"{int(new * LATE_SHARE):,}": int(new * LATE_SHARE)}

    def build(history: History, late: int) -> Cost:
        history.receive_new(new, late)
        return cost(history, lambda: history.dbt("build"))

    measured = interleaved(
        rounds,
        {
            f"{name} late on {history.trades:,}": partial(build, history, late)
            for history in histories
            for name, late in kinds.items()
        },
    )
    rows, growths = [], []
    for name in kinds:
        costs = [measured[f"{name} late on {history.trades:,}"] for history in histories]
        cpus = [median(each.cpu for each in one) for one in costs]
        growths.append(f"{cpus[-1] / cpus[0] - 1:+.0%}")
        rows += [
            [
                f"{history.trades:,}",
                name,
                middle([each.cpu for each in one], ".2f"),
                middle([each.wall for each in one], ".2f"),
            ]
            for history, one in zip(histories, costs, strict=True)
        ]
    return (
        "### Increment\n\n"
        f"{new:,} new trades on histories of {DAYS} days and {PRODUCTS} products: the whole of "
        "`dbt build`, models and checks of what is new, in a dbt that is kept. Late trades "
        f"are spread over the {DAYS} days, each in a minute of its own, and come by REST; in each "
        f"history {MISSING:,} are missing at first. Medians of {rounds} rounds, to and fro over "
        "the databases of one server without autovacuum, and between which ends they lie:\n\n"
        + table(
            ["trades of history", "late of the new", "CPU s of the database", "s by the clock"],
            rows,
        )
        + f"\n\nFrom the shortest history to the longest CPU grows by {growths[0]}; with late "
        f"trades by {growths[1]}."
    )
