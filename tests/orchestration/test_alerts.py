"""What is posted when something goes wrong in a real lakehouse, and when it is right again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import msgspec
import pytest

from orchestration.defs.alerts.news import State
from tests.dbt.conftest import Lakehouse, match
from tests.receiver import Receiver, receiver

pytestmark = pytest.mark.postgres18_only

SLACK = "/services/T0/B0/SECRET"
OTHER = "/hooks/SECRET"


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Be Slack and another target."""
    with receiver() as here:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", here.url(SLACK))
        monkeypatch.setenv("ALERT_URLS", here.url(f"{OTHER}?password=SECRET", "json"))
        yield here


@pytest.fixture
def look(tick: Any, posts: Receiver) -> Any:
    """Let the daemon look, some minutes after the last time."""
    cursor: str | None = None

    def evaluate(minutes: float = 0) -> str:
        nonlocal cursor
        result = tick("alerts", earlier(cursor, minutes) if cursor else None)
        cursor = result.cursor
        assert "SECRET" not in cursor
        told: str = result.skip_message
        return told

    return evaluate


def earlier(cursor: str, minutes: float) -> str:
    """Put all that a cursor remembers so long into the past."""
    state = State.read(cursor)
    ago = timedelta(minutes=minutes)
    told = {
        key: msgspec.structs.replace(
            known,
            since=known.since - ago,
            gone_since=known.gone_since and known.gone_since - ago,
        )
        for key, known in state.told.items()
    }
    return msgspec.structs.replace(state, told=told).write()


def texts(posts: Receiver) -> list[str]:
    return [body["text"] for body in posts.take(SLACK)]


def test_without_a_target_it_says_so(tick: Any) -> None:
    assert "set SLACK_WEBHOOK_URL or ALERT_URLS" in tick("alerts").skip_message


def test_each_kind_of_problem_is_posted_once_and_its_end_once(
    look: Any, posts: Receiver, house: Lakehouse
) -> None:
    ago = datetime.now(UTC) - timedelta(minutes=61)
    house.receive(*(match(n) for n in range(1, 11)))
    house.build()
    assert look() == "All is well."
    assert posts.posted == []

    house.receive(match(11, price="abc"), match(12), received_at=ago)
    house.record_gap("{[13,16)}", found_at=ago)
    house.record_gap("{[20,21)}")
    house.build()
    house.database.execute(
        "update gold.ohlc_1m set high = low - 1; update ops.model_watermarks set checked = 0"
    )
    assert house.dbt("test", "-s", "ohlc_1m_high_is_not_below_low").failed
    assert look().startswith("4 problems: ")
    [text] = texts(posts)
    paragraphs = text.split("\n\n")
    assert [line.split("\n")[0] for line in paragraphs] == [
        "🔴 *No trade has come for 61 minutes*",
        "🔴 *3 trades have been missing for more than 60 minutes*",
        "🔴 *8.3% of the newest trades are in quarantine*",
        "🔴 *Check failed: ohlc_1m_high_is_not_below_low*",
    ]
    assert "medallion ingest" in paragraphs[0]
    assert "Of BTC-USD." in paragraphs[1]
    assert "1 of 12, and 1.0% is the most that is usual" in paragraphs[2]
    assert "The highest price is not below the lowest." in paragraphs[3]
    [other] = posts.take(OTHER)
    assert other["title"] == "medallion: No trade has come for 61 minutes, and 3 more"
    assert other["message"].count("🔴") == 4
    assert other["type"] == "warning"

    assert look(minutes=30).startswith("4 problems: ")
    assert posts.posted == []

    house.receive(*(match(n) for n in range(13, 200)))
    house.database.execute(
        "update bronze.trade_gaps set missing = '{}', closed_at = now() where first_id = 13"
    )
    house.build("--full-refresh")
    assert look().startswith("4 problems: ")
    assert look(minutes=3) == "All is well."
    [text] = texts(posts)
    assert text.count("🟢 *Over: ") == 4
    [other] = posts.take(OTHER)
    assert other["type"] == "success"


def test_a_target_that_fails_holds_up_no_other_and_is_told_later(
    look: Any, posts: Receiver, house: Lakehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    house.receive(match(1), received_at=datetime.now(UTC) - timedelta(hours=1))
    posts.answers = {SLACK: 404}
    look()
    assert len(posts.take(OTHER)) == 1
    house.receive(match(2))
    look()
    look(minutes=3)
    assert len(posts.take(OTHER)) == 1
    assert posts.posted == []

    posts.answers = {}
    look()
    [text] = texts(posts)
    assert "🔴 *No trade has come for 60 minutes*" in text
    assert "🟢 *Over: No trade has come for 60 minutes*" in text
    look()
    assert posts.posted == []
    said = [line for line in capsys.readouterr().err.splitlines() if "_URL" in line]
    assert [line.split(" - ", 3)[-1] for line in said] == [
        "SLACK_WEBHOOK_URL takes no message, and is tried again: It answered 404: no_service /***",
        "SLACK_WEBHOOK_URL takes messages again.",
    ]


def test_a_database_that_is_away_is_told_and_nothing_is_over_meanwhile(
    look: Any,
    posts: Receiver,
    house: Lakehouse,
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    house.receive(match(1), received_at=datetime.now(UTC) - timedelta(hours=1))
    look()
    assert len(posts.take(SLACK)) == 1
    with monkeypatch.context() as patch:
        patch.setenv("PGHOST", "127.0.0.1")
        patch.setenv("PGPORT", str(unused_tcp_port))
        look()
        look(minutes=60)
    [text] = texts(posts)
    assert "*The database is away*" in text
    assert f"can't be reached on 127.0.0.1:{unused_tcp_port}" in text
    look()
    look(minutes=3)
    [text] = texts(posts)
    assert text.startswith("🟢 *Over: The database is away*")
    assert "No trade" not in text


def test_a_job_is_told_whose_newest_run_failed_and_is_not_tried_again(
    look: Any, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    def run(status: dg.DagsterRunStatus, **tags: str) -> None:
        job = definitions.resolve_job_def("repair_gaps")
        instance.create_run_for_job(job, status=status, tags=tags)

    run(dg.DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    assert look() == "All is well."
    run(dg.DagsterRunStatus.FAILURE, **{"dagster/will_retry": "false"})
    assert look() == "1 problem: Run failed: repair_gaps."
    run(dg.DagsterRunStatus.STARTED)
    assert look() == "1 problem: Run failed: repair_gaps."
    run(dg.DagsterRunStatus.SUCCESS)
    look()
    assert look(minutes=3) == "All is well."
