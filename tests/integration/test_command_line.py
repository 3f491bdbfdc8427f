"""`medallion …` as it is typed: what it prints and with which exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

import medallion.dbt
from medallion.bi import MASK
from medallion.cli import main
from tests.conftest import ROOT, Database, Server
from tests.receiver import receiver
from warehouse.embedded import BINARIES
from warehouse.settings import ConnectionInfo, WarehouseSettings

BASH = shutil.which("bash")

Run = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """What it said to the user, without the line breaks of the terminal."""
        return " ".join(self.err.split())


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run the command line where nothing is set, and no database is."""
    monkeypatch.setenv("MEDALLION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")

    def medallion(*arguments: str, **environment: str) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["medallion", *arguments])
            for name, value in environment.items():
                patch.setenv(name, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as end:
                main()
        code = end.value.code
        return Done(code if isinstance(code, int) else 0, *capfd.readouterr())

    yield medallion
    # It logs to the standard error of this test.
    structlog.reset_defaults()


@pytest.fixture
def run_here(run: Run, database: Database) -> Run:
    """Run the command line on the test's database."""

    def medallion(*arguments: str, **environment: str) -> Done:
        return run(*arguments, **(database.environment() | environment))

    return medallion


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for command in (
        "demo", "ingest", "dashboard", "docs", "simulate", "migrate", "deps", "postgres", "env",
        "bi", "status",
    ):  # fmt: skip
        assert f" {command} " in done.out
    for command in ("start", "stop", "status", "psql"):
        assert f" {command} " in run("postgres", "--help").out
    assert " test " in run("alerts", "--help").out


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_what_is_typed() -> None:
    # What --install-completion puts in place; it looks which shell it runs in.
    script = """
        eval "$(_MEDALLION_COMPLETE=source_bash medallion)"
        for typed in "medallion rec" "medallion postgres st" "medallion env --role re"; do
            COMP_WORDS=($typed) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _medallion_completion medallion
            echo "${COMPREPLY[@]}"
        done
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(BASH), "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["reconcile", "start stop status", "reader"]


@pytest.mark.parametrize("command", ["status", "env", "bi", "ingest", "dashboard"])
def test_without_a_database_it_says_how_to_get_one(run: Run, command: str) -> None:
    done = run(command)
    assert done.code == 2
    assert "There is no database yet. Run `medallion demo`" in done.told


@pytest.mark.parametrize("command", [["status"], ["docs"], ["archive", "--day", "2026-01-01"]])
def test_a_server_that_is_away_is_told_with_its_address(run: Run, command: list[str]) -> None:
    done = run(*command, PGHOST="127.0.0.1", PGPORT="1", PGPASSWORD="not to be told")
    assert done.code == 2
    assert "PostgreSQL can't be reached on 127.0.0.1:1" in done.told
    assert "not to be told" not in done.err


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("PGPORT", "abc", "PGPORT is 'abc'"),
        ("PGSSLMODE", "maybe", "PGSSLMODE is 'maybe'"),
        ("BATCH_SIZE", "0", "BATCH_SIZE is '0'"),
        ("COINBASE_WS_URL", "http://x", "COINBASE_WS_URL is 'http://x'"),
        ("COINBASE_PRODUCTS", "?", "COINBASE_PRODUCTS is '?'"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_accepted(
    run: Run, setting: str, value: str, told: str
) -> None:
    done = run("ingest", **{setting: value})
    assert done.code == 2
    assert told in done.told
    assert "Accepted is" in done.told
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("SLACK_WEBHOOK_URL", "hooks.slack.com/SECRET", "it is no http:// or https:// URL"),
        ("ALERT_URLS", "json://localhost/ok foo://SECRET", "URL 2 in it is none that Apprise"),
        ("ALERT_URLS", "SECRET", "URL 1 in it is none that Apprise"),
    ],
)
def test_a_wrong_target_of_alerts_is_told_without_printing_it(
    run: Run, setting: str, value: str, told: str
) -> None:
    done = run("alerts", "test", **{setting: value})
    assert done.code == 2
    assert f"{setting} is '***' (" in done.told
    assert told in done.told
    assert "SECRET" not in done.out + done.err


def test_each_target_of_alerts_is_tried_and_told_why_it_failed(
    run: Run, unused_tcp_port: int
) -> None:
    assert "set SLACK_WEBHOOK_URL or ALERT_URLS" in run("alerts", "test").told
    with receiver() as posts:
        posts.answers = {"/services/SECRET": 403}
        targets = {
            "SLACK_WEBHOOK_URL": posts.url("/services/SECRET"),
            "ALERT_URLS": f"{posts.url('/hooks/SECRET', 'json')}, "
            f"json://user:SECRET@127.0.0.1:{unused_tcp_port}/SECRET",
        }
        done = run("alerts", "test", **targets)
        assert done.code == 1
        assert "SLACK_WEBHOOK_URL: not delivered. It answered 403: no_service /***" in done.told
        assert "ALERT_URLS 1 (JSON): delivered." in done.out
        assert "ALERT_URLS 2 (JSON): not delivered. A Connection error occurred" in done.told
        assert "SECRET" not in done.out + done.err
        [post] = posts.take("/hooks/SECRET")
        assert "This is a test" in post["title"]
        told = json.loads(run("alerts", "test", "--json", **targets).out)
        assert [(each["target"], bool(each["error"])) for each in told] == [
            ("SLACK_WEBHOOK_URL", True), ("ALERT_URLS 1 (JSON)", False),
            ("ALERT_URLS 2 (JSON)", True),
        ]  # fmt: skip
        posts.answers = {}
        assert run("alerts", "test", SLACK_WEBHOOK_URL=targets["SLACK_WEBHOOK_URL"]).code == 0


def test_status_shows_each_table_and_its_lag(run_here: Run, database: Database) -> None:
    database.execute(
        "insert into bronze.coinbase_trades_raw (received_at, source, channel, session_id, payload)"
        " select now(), 'exchange_ws', 'matches', gen_random_uuid(), '{}'"
        " from generate_series(1, 3)"
    )
    # It is not built from trades.
    database.execute(
        "create table gold.dim_products as select now() as changed_at", role="medallion_transform"
    )
    done = run_here("status")
    assert done.code == 0
    bronze = next(line for line in done.out.splitlines() if "coinbase_trades_raw" in line)
    assert re.fullmatch(r"bronze\.coinbase_trades_raw\s+3\s+20.*\s0", bronze.strip())
    assert re.search(r"silver\.coinbase_trades +- +not built: run `dbt build`", done.out)
    tables = {table["name"]: table for table in json.loads(run_here("status", "--json").out)}
    assert tables["bronze.coinbase_trades_raw"]["rows"] == 3
    assert tables["gold.ohlc_1m"]["rows"] is None
    assert re.search(r"gold\.dim_products +1 +20.* -", done.out)
    assert tables["gold.dim_products"]["lag"] is None


@pytest.mark.parametrize("command", ["transform", "dagster"])
@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("MEDALLION_HOME", "/proc/nowhere", "Dagster can't keep what it remembers in /proc/no"),
        ("DAGSTER_POSTGRES_URL", "SECRET", "DAGSTER_POSTGRES_URL is '***' (it is no postgresql:"),
    ],
)
def test_what_dagster_remembers_needs_a_place(
    run: Run, command: str, setting: str, value: str, told: str
) -> None:
    done = run(command, **{"PGHOST": "db.example", setting: value})
    assert done.code == 2
    assert told in done.told
    assert "SECRET" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_told_without_a_traceback() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        done = subprocess.run(
            [sys.executable, "-m", "medallion", "env"],
            env={**os.environ, "PGHOST": "db.example", "MEDALLION_TRANSFORM_PASSWORD": "x"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "The machine refused: [Errno 28] No space left on device."
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("home", "told"),
    [("/proc/nowhere", "can't live in /proc/nowhere"), (__file__, f"can't live in {__file__}")],
)
def test_a_home_that_cannot_be_used_is_told(run: Run, home: str, told: str) -> None:
    done = run("postgres", "start", MEDALLION_HOME=home)
    assert done.code == 2
    assert told in done.told
    assert "Set MEDALLION_HOME" in done.told
    assert "Traceback" not in done.err


def test_a_relative_home_is_the_projects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDALLION_HOME", ".medallion")
    assert WarehouseSettings().medallion_home == ROOT / ".medallion"


@pytest.mark.parametrize("products", ["FOO-USD", "BTC-USD, FOO-USD"])
def test_the_demo_names_the_products_that_it_has(run_here: Run, products: str) -> None:
    done = run_here("demo", "--products", products)
    assert done.code == 2
    assert "There is no FOO-USD in simulator" in done.told
    assert "BTC-USD, ETH-USD" in done.told


def test_a_database_that_takes_no_connections_is_told(run_here: Run) -> None:
    done = run_here("status", PGDATABASE="template0")
    assert done.code == 2
    assert "opens no connection to the database 'template0'" in done.told


def test_env_tells_when_a_role_has_no_password_of_its_own(run: Run) -> None:
    done = run("env", "--role", "reader", PGHOST="db.example", PGUSER="root", PGPASSWORD="x")
    assert "export PGUSER='root'" in done.out
    assert "MEDALLION_READER_PASSWORD is not set" in done.told


def test_dbmate_takes_nothing_from_a_foreign_env_file(
    run_here: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.maintain("drop database if exists made_elsewhere")
    (tmp_path / ".env").write_text("DBMATE_MIGRATIONS_TABLE=hijacked\nnot a line of such a file\n")
    monkeypatch.chdir(tmp_path)
    done = run_here("migrate", PGDATABASE="made_elsewhere", DBMATE_MIGRATIONS_TABLE="hijacked")
    assert done.code == 0, done.err
    assert run_here("migrate", PGDATABASE="made_elsewhere").out == "Nothing to do.\n"


def test_status_of_a_missing_database_says_what_to_run(run_here: Run) -> None:
    done = run_here("status", PGDATABASE="no_such_database")
    assert done.code == 2
    assert "There is no database 'no_such_database'" in done.told
    assert "medallion migrate" in done.told


def test_migrate_makes_a_database_and_does_nothing_the_second_time(
    run_here: Run, server: Server
) -> None:
    server.maintain("drop database if exists made_by_migrate")
    first = run_here("migrate", PGDATABASE="made_by_migrate")
    assert first.code == 0, first.err
    assert first.out.count("applied ") == len(list((ROOT / "warehouse/migrations").glob("*.sql")))
    assert run_here("migrate", PGDATABASE="made_by_migrate").out == "Nothing to do.\n"


def test_bi_keeps_the_password_to_itself_unless_asked(run_here: Run, database: Database) -> None:
    password = database.password("medallion_reader")
    masked, as_json = run_here("bi"), run_here("bi", "--json")
    assert password not in masked.out + as_json.out
    assert json.loads(as_json.out)["power_bi"]["Password"] == MASK
    assert f" {password}\n" in run_here("bi", "--show-password").out
    tools = json.loads(run_here("bi", "--show-password", "--json").out)
    assert tools["power_bi"]["Server"] == f"127.0.0.1:{database.port}"
    assert tools["metabase"]["Password"] == password


async def test_bi_tells_how_a_reader_connects(run_here: Run, database: Database) -> None:
    told = json.loads(run_here("bi", "--show-password", "--json").out)["postgresql"]
    schemas = told.pop("schemas").split(", ")
    connection = await ConnectionInfo(**told | {"port": int(told["port"])}).connect()
    readable = "select has_schema_privilege(unnest($1::text[]), 'usage') as readable"
    assert [row["readable"] for row in await connection.fetch(readable, schemas)] == [True, True]
    assert await connection.fetchval("select current_user") == "medallion_reader"
    await connection.close()


def test_bi_tells_when_it_is_no_mere_reader(run: Run) -> None:
    server = {"PGHOST": "::1", "PGUSER": "root", "PGPASSWORD": "x", "PGSSLMODE": "require"}
    done = run("bi", "--json", **server)
    assert "MEDALLION_READER_PASSWORD is not set" in done.told
    power_bi = json.loads(done.out)["power_bi"]
    assert (power_bi["Server"], power_bi["Encrypt connections"]) == ("[::1]:5432", "on")


@pytest.mark.skipif(sys.platform == "win32", reason="the other shell")
@pytest.mark.parametrize("role", ["transform", "reader", "ingest", "admin"])
def test_env_is_all_that_a_client_needs(run_here: Run, database: Database, role: str) -> None:
    printed = run_here("env", "--role", role).out
    psql = f"{printed}\npsql -Atc 'select current_user'"
    path = os.pathsep.join([str(BINARIES), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/sh", "-c", psql], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ("postgres" if role == "admin" else f"medallion_{role}")


def test_env_quotes_for_the_shell_that_reads_it(run: Run) -> None:
    server = {"PGHOST": "db.example", "PGPASSWORD": "it's $(secret)"}
    assert "export PGPASSWORD='it'\\''s $(secret)'" in run("env", "--shell", "posix", **server).out
    powershell = run("env", "--shell", "powershell", **server).out
    assert "$Env:PGPASSWORD = 'it''s $(secret)'" in powershell


def test_psql_opens_as_the_chosen_role_and_hands_on_the_exit_code(run_here: Run) -> None:
    done = run_here("postgres", "psql", "--role", "reader", "-Atc", "select current_user")
    assert (done.code, done.out) == (0, "medallion_reader\n")
    denied = run_here("postgres", "psql", "--role", "reader", "-c", "create table gold.x (y int)")
    assert denied.code == 1
    assert "permission denied" in denied.err


def test_the_embedded_server_starts_tells_and_stops(run: Run) -> None:
    # Not pytest's own folder: see the fixture `server`.
    with tempfile.TemporaryDirectory(prefix="medallion-") as home:
        here = {"MEDALLION_HOME": home}
        stopped = run("postgres", "status", "--json", **here)
        assert (stopped.code, json.loads(stopped.out)) == (3, {"running": False, "port": None})
        assert run("postgres", "start", **here).out.startswith("PostgreSQL listens on 127.0.0.1:")
        try:
            status = run("postgres", "status", **here)
            assert (status.code, status.out[:21]) == (0, "Running on 127.0.0.1:")
            as_json = json.loads(run("postgres", "status", "--json", **here).out)
            assert f"127.0.0.1:{as_json['port']}." in status.out
            assert run("status", **here).code == 2
            assert run("migrate", **here).code == 0
            assert run("status", **here).code == 0
        finally:
            stopped = run("postgres", "stop", **here)
        assert stopped.out == "Stopped.\n"
        assert run("postgres", "stop", **here).out == "It was not running.\n"


def test_the_embedded_server_is_left_alone_where_another_is_set(run: Run) -> None:
    done = run("postgres", "start", PGHOST="db.example")
    assert done.code == 2
    assert "Unset PGHOST" in done.told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--speed", "fast"], "--speed is 'fast'"),
        (["--speed", "-1"], "speed"),
        (["--speed", "inf"], "speed"),
        (["--speed", "nan"], "speed"),
        (["--duplicates", "2"], "--duplicates"),
        (["--wrong-candles", "2"], "--wrong-candles"),
        (["--recording", "no such file"], "no such file"),
    ],
)
def test_the_simulator_refuses_what_it_cannot_do(run: Run, arguments: list[str], told: str) -> None:
    done = run("simulate", *arguments)
    assert done.code == 2
    assert told in done.told
    assert "Traceback" not in done.err


def test_the_simulator_says_when_its_port_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("simulate", "--port", port)
    assert done.code == 2
    assert f"Port {port} can't be opened" in done.told


@pytest.mark.parametrize("command", ["dashboard", "dagster", "docs"])
def test_a_page_says_when_its_port_is_taken(run_here: Run, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_here(command, "--port", port)
    assert done.code == 2
    assert f"127.0.0.1:{port} can't be opened" in done.told


@pytest.mark.parametrize(
    ("option", "other"),
    [("--dagster-port", "--dashboard-port"), ("--dashboard-port", "--dagster-port")],
)
def test_the_stack_says_which_port_is_taken_before_it_starts_anything(
    run: Run, option: str, other: str, unused_tcp_port: int, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = (option, port, other, str(unused_tcp_port))
        done = run("up", *arguments, MEDALLION_HOME=str(tmp_path))
    assert done.code == 2
    assert f"127.0.0.1:{port} can't be opened" in done.told
    assert option in done.told
    assert list(tmp_path.iterdir()) == []


def test_deps_falls_back_to_the_packages_kept_here(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a proxy that nobody serves, on a machine with or without the internet."""
    project = tmp_path / "dbt_project"
    project.mkdir()
    for name in ("dbt_project.yml", "packages.yml", "profiles.yml"):
        shutil.copy(ROOT / "dbt_project" / name, project)
    monkeypatch.setattr(medallion.dbt, "DBT_PROJECT", project)
    monkeypatch.setattr(medallion.dbt, "PACKAGES", project / "dbt_packages")
    done = run("deps", HTTPS_PROXY="http://127.0.0.1:9", PGHOST="x", PGUSER="x")
    assert done.code == 0, done.err
    assert "can't be reached" in done.out
    assert (project / "dbt_packages/dbt_expectations/dbt_project.yml").exists()
    (project / "packages.yml").write_text("packages: [{package: no}]")
    done = run("deps", PGHOST="x", PGUSER="x")
    assert done.code == 2
    assert "`dbt deps` failed" in done.told
