"""How long each query of the market page and of the BI documents takes."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Final

import asyncpg

from benchmarks.history import Connection, History
from benchmarks.measure import middle, table
from dashboards import queries
from warehouse.settings import PROJECT_ROOT, Role

DOCUMENTS: Final = ("powerbi", "metabase")
LOADED: Final = ("daily_kpis", "trade_completeness", "dim_dates", "dq_summary")
"""The tables that powerbi.md loads whole."""
CHOICE: Final = re.compile(r"\[\[(.*?)\]\]")
LARGEST: Final = "COIN1-USD"


class Timed:
    """A connection that notes how long each of its queries takes, in milliseconds.

    By the clock of the database, with planning and with the rows written out as text, but not sent:
    what a client makes of tens of thousands of rows is its own affair.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.took: dict[str, list[float]] = defaultdict(list)
        self._asked: dict[str, tuple[Any, ...]] = {}

    async def fetch(self, query: str, *of: Any) -> list[asyncpg.Record]:
        """Fetch rows."""
        ((told,),) = await self._connection.fetch(
            f"explain (analyze, timing off, serialize text, format json) {query}", *of
        )
        (plan,) = json.loads(told)
        self.took[query].append(plan["Planning Time"] + plan["Execution Time"])
        self._asked[query] = of
        return await self._connection.fetch(query, *of)

    async def fetchval(self, query: str, *of: Any) -> Any:
        """Fetch the value of a query that finds one."""
        return (await self.fetch(query, *of))[0][0]

    async def plan(self, query: str) -> str:
        """Return how PostgreSQL runs a query that was asked before."""
        lines = await self._connection.fetch(
            f"explain (analyze, costs off, buffers off) {query}", *self._asked[query]
        )
        return "\n".join(at_work([line for (line,) in lines])) or "It found nothing."


def at_work(plan: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a plan but those of nodes that found nothing: most partitions are such."""
    idle = math.inf
    for line in plan:
        depth = len(line) - len(line.lstrip())
        if depth > idle:
            continue
        idle = depth if "rows=0.00 " in line or "never executed" in line else math.inf
        if idle == math.inf:
            yield line


def documented() -> Iterator[tuple[str, str]]:
    """Yield the statements of the BI documents, with where each stands."""
    for name in LOADED:
        yield f"powerbi.md: {name}", f"select * from gold.{name}"  # noqa: S608  (a constant)
    for document in DOCUMENTS:
        text = (PROJECT_ROOT / "dashboards" / f"{document}.md").read_text()
        for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
            heading = part.partition("\n")[0]
            for sql in re.findall(r"^```sql\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
                yield f"{document}.md: {heading}", CHOICE.sub("", sql)
                if CHOICE.search(sql):
                    chosen = CHOICE.sub(r"\1", sql).replace("{{product}}", f"'{LARGEST}'")
                    yield f"{document}.md: {heading}, of a product", chosen


def questions() -> dict[str, str]:
    """Return the name of each query by its text: the page's, and those of the documents."""
    constants = {name: value for name, value in vars(queries).items() if name.isupper()}
    constants |= {f"CANDLES, {interval}": sql for interval, sql in queries.CANDLES.items()}
    page = {
        value: f"page: {name}"
        for name, value in constants.items()
        if isinstance(value, str) and not name.startswith("_")
    }
    return page | {sql: name for name, sql in documented()}


def section(history: History, rounds: int) -> str:
    """Measure each query, and show how PostgreSQL runs it."""

    async def read(connection: Connection) -> tuple[dict[str, list[float]], dict[str, str]]:
        timed: Any = Timed(connection)
        for _ in range(rounds):
            await queries.read_products(timed)
            for interval in queries.INTERVALS:
                await queries.read_market(timed, LARGEST, interval)
            await queries.read_quality(timed, "missing_price")
            await queries.read_pipeline(timed)
            for _, query in documented():
                await timed.fetch(query)
        return timed.took, {query: await timed.plan(query) for query in timed.took}

    took, plans = history.ask(read, Role.READER)
    names = questions()
    slowest_first = [
        (names[query], took[query], plans[query])
        for query in sorted(took, key=lambda query: -median(took[query]))
        if query in names
    ]
    rows = [[name, middle(times, ",.1f")] for name, times, _ in slowest_first]
    plans_told = "\n\n".join(f"{name}:\n\n```\n{plan}\n```" for name, _, plan in slowest_first)
    return (
        "### Reads\n\n"
        f"Each query of the market page and of the documents for Power BI and Metabase, as "
        f"`medallion_reader`, at {history.trades:,} trades: planned, run, and its rows written "
        f"out; {rounds} rounds.\n\n"
        + table(["query", "ms"], rows)
        + "\n\n<details><summary>How PostgreSQL runs each of them, but for what found nothing"
        f"</summary>\n\n{plans_told}\n\n</details>"
    )
