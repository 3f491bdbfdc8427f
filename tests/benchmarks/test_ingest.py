"""The benchmark of ingest at a size that tells nothing, so that it does not rot."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ingest, reference
from benchmarks.__main__ import places, put
from benchmarks.measure import postgres_pid

TINY = ingest.Sizes(rounds=1, warm_up=0, seconds=0.2, memory_from=1_000, memory_to=2_000)


pytestmark = pytest.mark.postgres18_only


def test_each_client_of_the_feed_is_measured_against_the_ingester(database: Any) -> None:
    settings = database.settings
    clients = {
        ingest.OURS: ingest.ingester(settings),
        "plain loop": ingest.plain_loop(settings),
        "receiving alone": ingest.receiver(),
    }

    told = ingest.compared(clients, 60, TINY, postgres_pid(settings))

    head, _rule, *rows = told.splitlines()
    assert head.startswith("| 60 products, connections: 2 | trades/s |")
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in clients]
    for row in rows:
        trades_per_second, client_cpu = re.findall(r"([\d,.]+) \(", row)[:2]
        assert float(trades_per_second.replace(",", "")) > 0
        assert float(client_cpu) > 0
    # Both stored what they took: the count of each checks that none is missing, and none twice, and
    # leaves no row behind.
    (found,) = database.fetch(
        "select (select count(*) from bronze.feed_sessions) as sessions, "
        "(select count(*) from bronze.coinbase_trades_raw) as rows"
    )
    assert dict(found) == {"sessions": 2, "rows": 0}


def test_memory_is_read_after_few_trades_and_after_many(database: Any) -> None:
    told = ingest.memory(database.settings, TINY)

    few, many = re.findall(r"(\d+) MiB", told)
    assert 20 < int(few) <= int(many) < 500


def test_without_a_checkout_there_is_no_reference(
    database: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFERENCE", "")
    assert reference.given(database.settings) is None

    monkeypatch.setenv("REFERENCE", str(tmp_path))
    with pytest.raises(SystemExit, match="no checkout of it"):
        reference.given(database.settings)


def test_a_section_is_put_into_its_place_and_nothing_else_changes() -> None:
    document = (
        "a\n<!-- bench:one -->\nold\n<!-- /bench:one -->\n"
        "b\n<!-- bench:two -->\n<!-- /bench:two -->\n"
    )

    assert places(document) == ["one", "two"]
    once = put(document, "one", "\nnew\n\n")
    assert once == document.replace("old", "new")
    assert put(once, "one", "new") == once
