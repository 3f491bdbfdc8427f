"""What is new since the last look: a problem that began, or one that is over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, Self

import msgspec

from orchestration.defs.alerts.problems import DATABASE, Problem

LEAST_QUIET: Final = timedelta(minutes=2)
"""So long a problem must be away to be over: a window of the continuous transform lasts seconds,
and the next one may be as bad."""
LONGEST_QUIET: Final = timedelta(hours=1)
"""What comes back must be away twice as long the next time, up to this."""
KEPT: Final = 100
"""Messages that wait for a target: Dagster stores them with every tick."""


class Message(msgspec.Struct, frozen=True):
    """That a problem began (then there is advice) or is over."""

    title: str
    text: str
    is_over: bool = False


class Told(msgspec.Struct, frozen=True):
    """A problem that was told. `gone_since` is when it was first not seen any more."""

    title: str
    since: datetime
    quiet: float = LEAST_QUIET.total_seconds()
    gone_since: datetime | None = None
    is_over: bool = False


class State(msgspec.Struct, frozen=True):
    """What is remembered from look to look.

    `waiting` holds for each target what it has not taken yet, oldest first; `failing` why.
    """

    told: dict[str, Told] = {}
    waiting: dict[str, list[Message]] = {}
    failing: dict[str, str] = {}

    @classmethod
    def read(cls, cursor: str | None) -> Self:
        """Read what `write` wrote; nothing is remembered at the beginning."""
        return msgspec.json.decode(cursor, type=cls) if cursor else cls()

    def write(self) -> str:
        """Return it as a cursor."""
        return msgspec.json.encode(self).decode()

    def lasting(self) -> list[str]:
        """Return the titles of the problems that are not over."""
        return [told.title for told in self.told.values() if not told.is_over]

    def after(self, current: Iterable[Problem], targets: Sequence[str], now: datetime) -> State:
        """Return the state after a look: what is new waits for each target."""
        told, news = _compare(self.told, {problem.key: problem for problem in current}, now)
        waiting = {name: [*self.waiting.get(name, []), *news][-KEPT:] for name in targets}
        failing = {name: why for name, why in self.failing.items() if name in targets}
        return State(told, waiting, failing)


def _compare(
    before: dict[str, Told], current: dict[str, Problem], now: datetime
) -> tuple[dict[str, Told], list[Message]]:
    told: dict[str, Told] = {}
    news: list[Message] = []
    for key, known in before.items():
        # While the database is away, nobody knows whether anything else is over.
        if key in current or DATABASE in current:
            told[key] = known if known.is_over else msgspec.structs.replace(known, gone_since=None)
            continue
        gone_since = known.gone_since or now
        quiet = timedelta(seconds=known.quiet)
        is_over = now - gone_since >= quiet
        if is_over and not known.is_over:
            news.append(
                Message(
                    known.title,
                    f"From {_moment(known.since)} to {_moment(gone_since)} UTC.",
                    is_over=True,
                )
            )
        if now - gone_since < quiet + LONGEST_QUIET:
            told[key] = msgspec.structs.replace(known, gone_since=gone_since, is_over=is_over)
    for key, problem in current.items():
        again = told.get(key)
        if again is not None and not again.is_over:
            continue
        quiet = LEAST_QUIET
        if again is not None:
            quiet = min(2 * timedelta(seconds=again.quiet), LONGEST_QUIET)
        told[key] = Told(problem.title, now, quiet.total_seconds())
        news.append(Message(problem.title, f"{problem.advice} Seen at {_moment(now)} UTC."))
    return told, news


def _moment(time: datetime) -> str:
    return f"{time:%d %b %H:%M}"
