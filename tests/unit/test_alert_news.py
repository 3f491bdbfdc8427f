"""Which problem is told when: once as it begins, once as it ends, and seldom if it flaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestration.defs.alerts.news import KEPT, Message, State
from orchestration.defs.alerts.problems import (
    FailedCheck,
    Problem,
    Quarantine,
    Seen,
    Thresholds,
    database_away,
    problems,
)

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
STALE = Problem("bronze", "No trade has come for 11 minutes", "Look.")
GAPS = Problem("gaps", "3 trades have been missing", "Look.")
AWAY = database_away("It can't be reached.")


class Story:
    """Looks that follow each other, and what one target would be told of them."""

    def __init__(self) -> None:
        self.state = State()
        self.now = NOON

    def look(self, *current: Problem, minutes: float = 0.5) -> list[Message]:
        self.now += timedelta(minutes=minutes)
        before = len(self.state.waiting.get("slack", []))
        # As from tick to tick.
        self.state = State.read(self.state.after(current, ["slack"], self.now).write())
        return self.state.waiting["slack"][before:]


def test_a_problem_is_told_once_and_its_end_once() -> None:
    story = Story()
    [begins] = story.look(STALE)
    assert (begins.title, begins.is_over) == (STALE.title, False)
    assert begins.text == "Look. Seen at 25 Nov 12:00 UTC."
    longer = Problem("bronze", "No trade has come for 3 hours", "Look.")
    assert [story.look(longer) for _ in range(10)] == [[]] * 10
    assert story.look() == story.look() == []
    [ends] = story.look(minutes=2)
    assert (ends.title, ends.is_over) == (STALE.title, True)
    assert ends.text == "From 25 Nov 12:00 to 25 Nov 12:06 UTC."
    assert story.look(minutes=90) == []


def test_problems_are_told_apart() -> None:
    story = Story()
    assert [message.title for message in story.look(STALE)] == [STALE.title]
    assert [message.title for message in story.look(STALE, GAPS)] == [GAPS.title]
    story.look(GAPS)
    assert [message.title for message in story.look(GAPS, minutes=3)] == [STALE.title]


def test_what_flaps_is_told_ever_more_seldom() -> None:
    story = Story()
    told = []
    for _ in range(24 * 6):
        told += story.look(STALE, minutes=5)
        told += story.look(minutes=5)
        told += story.look(minutes=4)
    # Away for four minutes: too short from the third time on.
    assert [message.is_over for message in told] == [False, True, False, True, False]
    assert [message.is_over for message in story.look(minutes=9)] == [True]


def test_while_the_database_is_away_nothing_else_is_over() -> None:
    story = Story()
    story.look(STALE, GAPS)
    assert [message.title for message in story.look(AWAY)] == [AWAY.title]
    assert story.look(AWAY, minutes=600) == []
    # It is back, and the gap still there.
    assert story.look(GAPS) == []
    ended = [message.title for message in story.look(GAPS, minutes=3)]
    assert sorted(ended) == sorted([AWAY.title, STALE.title])


def test_a_target_that_takes_nothing_for_long_gets_the_newest_messages() -> None:
    story = Story()
    for number in range(KEPT + 1):
        story.look(*(Problem(f"{n}", f"Problem {n}", "Look.") for n in range(number + 1)))
    titles = [message.title for message in story.state.waiting["slack"]]
    assert titles == [f"Problem {n}" for n in range(1, KEPT + 1)]


def build_problems(error: str) -> list[str]:
    seen = Seen(
        at=NOON,
        newest_frame=None,
        open_gaps=(),
        quarantine=Quarantine(0, 0, ()),
        failed_checks=(FailedCheck("no_duplicates", "gold.ohlc_1m", "Got 1 result", "One each."),),
        failed_build=error,
        failed_runs=(),
    )
    limits = Thresholds(timedelta(minutes=10), timedelta(hours=1), 0.01)
    return [problem.key for problem in problems(seen, limits)]


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        ("no_duplicates: Got 1 result, configured to fail if != 0", False),
        ("ohlc_1m: Database Error; no_duplicates: Got 1 result", True),
        ("Did not end; was it killed?", True),
    ],
)
def test_a_build_that_fails_by_a_check_alone_is_told_by_the_check(
    error: str, is_told: bool
) -> None:
    assert build_problems(error) == ["check no_duplicates"] + ["build"] * is_told
