"""`docs/operations.md` is right: its queries find, its commands exist, and a backup comes back."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dbt.cli.main import cli as dbt_command
from typer.main import get_command

from medallion.cli import app
from tests.conftest import ROOT, Database, Server
from tests.dbt.conftest import NOON, PROJECT, Dbt, Lakehouse, match
from warehouse.embedded import BINARIES
from warehouse.migrate import migrate

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
COMMANDS: dict[str, Any] = {"medallion": get_command(app), "dbt": dbt_command}
PARTITIONS = (
    "select inhrelid::regclass::text as name, pg_get_expr(relpartbound, inhrelid) as bounds "
    "from pg_inherits inner join pg_class on pg_class.oid = inhrelid "
    "where inhparent = 'bronze.coinbase_trades_raw'::regclass order by 1"
)
WATERMARKS = "select * from ops.model_watermarks order by model"


def blocks(language: str, text: str = DOCUMENT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def section(heading: str) -> str:
    return re.split(r"^## ", DOCUMENT.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.M)[0]


def script(block: str) -> str:
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines())


def commands() -> Iterator[list[str]]:
    """Yield each command of `medallion` and of dbt, as a shell takes it."""
    for line in script("".join(blocks("console"))).splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words = words[1:]
        if len(words) > 1 and words[0] in COMMANDS:
            yield words


def arguments_of(command: Any, words: Sequence[str]) -> list[str]:
    """Read the words as the command does, and return what it hands on."""
    context = command.make_context(command.name, list(words))
    rest = [*getattr(context, "_protected_args", []), *context.args]
    if not hasattr(command, "resolve_command"):
        return rest
    _, inner, rest = command.resolve_command(context, rest)
    return arguments_of(inner, rest)


def test_each_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    found = list(commands())
    assert len(found) > 10
    for program, *words in found:
        arguments_of(COMMANDS[program], words)


@pytest.mark.postgres18_only
def test_each_query_finds_what_it_is_for(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2, price="abc"))
    lakehouse.record_gap("{[3,4)}")
    lakehouse.database.execute(
        "insert into bronze.feed_sessions (session_id, source, url, products, started_at) "
        "values (gen_random_uuid(), 'exchange_ws', 'wss://…', '{BTC-USD}', now())",
        role="medallion_ingest",
    )
    lakehouse.dbt("run")
    lakehouse.database.execute("update silver.coinbase_trades set price = -1")
    assert lakehouse.dbt("test").failed
    queries = blocks("sql")
    assert len(queries) > 5
    for query in queries:
        assert lakehouse.database.fetch(query, role="medallion_transform"), query
    for program, *words in commands():
        if program == "medallion" and words[:2] == ["postgres", "psql"] and "-c" in words:
            lakehouse.database.fetch(words[-1])


def test_a_backup_comes_back_whole_also_on_a_newer_postgresql(
    lakehouse: Lakehouse,
    servers: Callable[[Path], Server],
    dbts: Callable[[Server], Dbt],
    tmp_path: Path,
) -> None:
    backup, restore = map(script, blocks("console", section("Backup and restore")))
    before = [match(n, at=n * 20) for n in range(1, 9)]
    lakehouse.receive(*before[:4], received_at=NOON - timedelta(days=3))
    lakehouse.receive(*before[4:])
    lakehouse.record_gap("{[9,10)}")
    lakehouse.build()
    lakehouse.receive(match(10))
    kept = [lakehouse.rows(PARTITIONS), lakehouse.rows(WATERMARKS), lakehouse.fingerprints()]
    run(backup, lakehouse.database, tmp_path)
    lakehouse.receive(match(11))

    target = servers(BINARIES)
    database = Database(target.settings.model_copy(update={"pgdatabase": "crypto_dw"}))
    run(restore, database, tmp_path)
    restored = Lakehouse(database, dbts(target))
    assert [restored.rows(PARTITIONS), restored.rows(WATERMARKS), restored.fingerprints()] == kept
    assert asyncio.run(migrate(database.settings)) == []
    assert restored.one("show timezone") == {"TimeZone": "UTC"}
    # What came after the backup is a gap, and fetched.
    restored.repair(match(11))
    restored.receive(match(12))
    last = "select max(bronze_id) as id, count(*) as rows from bronze.coinbase_trades_raw"
    assert restored.one(last) == {"id": 11, "rows": 11}
    restored.build()
    runs = "select records_processed as read from ops.pipeline_runs order by start_ts desc limit 1"
    assert restored.one(runs) == {"read": 3}
    increment = restored.fingerprints()
    assert increment != kept[2]
    restored.run("--full-refresh")
    assert restored.fingerprints() == increment


def run(commands: str, database: Database, folder: Path) -> None:
    """Run commands in a shell, as an operator of this database."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands],  # noqa: S607  (wherever it is)
        cwd=folder,
        env={**os.environ, **database.environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
