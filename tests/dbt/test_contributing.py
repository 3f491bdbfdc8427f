"""The worked examples of docs/contributing.md, put into a copy of the project and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.conftest import ROOT, SECONDS, Database, Server
from tests.dbt.conftest import Dbt, Lakehouse, match

pytestmark = pytest.mark.postgres18_only

PAGE = ROOT / "docs" / "contributing.md"
NEW_FILE = re.compile(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^```diff\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ dbt (.*)$", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all examples in it."""
    copy = tmp_path_factory.mktemp("contributing")
    left_out = shutil.ignore_patterns("target", "logs", "__pycache__")
    for folder in ("dbt_project", "ingestion", "medallion", "orchestration", "warehouse"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=left_out)
    shutil.copy(ROOT / "dbt-bouncer.yml", copy)
    text = PAGE.read_text()
    for path, content in NEW_FILE.findall(text):
        (copy / path).write_text(content)
    for change in CHANGE.findall(text):
        patch = ["git", "apply", "-"]
        done = subprocess.run(
            patch, cwd=copy, input=change, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{done.stderr} of\n{change}"
    return copy


@pytest.fixture(scope="module")
def changed(project: Path, server: Server) -> Dbt:
    """dbt for the copy."""
    return Dbt(server, project / "dbt_project" / "target" / "lint", project / "dbt_project")


@pytest.fixture
def house(database: Database, changed: Dbt) -> Lakehouse:
    """A fresh database, for the copy to build."""
    return Lakehouse(database, changed)


def command(section: str) -> list[str]:
    """Return the arguments of the dbt command in a section of the page."""
    _, text = PAGE.read_text().split(f"## {section}\n")
    found = COMMAND.search(text.split("\n## ")[0])
    assert found, section
    return shlex.split(found[1])


def test_the_new_model_is_built_and_keeps_the_rules(house: Lakehouse, project: Path) -> None:
    house.receive(match(1, price="100"), match(2, price="90"), match(3, price="110"))
    house.dbt("run", "-s", "+ohlc_1h")
    build = house.build(*command("Add a model")[1:])
    assert {"ohlc_4h", "ohlc_4h_invariants", "ohlc_4h_rolls_up"} <= build.statuses.keys()
    candle = house.one("select high, low, trade_count, bucket_4h from gold.ohlc_4h")
    assert (candle["high"], candle["low"], candle["trade_count"]) == (110, 90, 3)
    assert candle["bucket_4h"].hour == 12
    house.build("-s", "test_type:unit,ohlc_4h", "--selector", "unit")
    rules = [Path(sys.executable).with_name("dbt-bouncer"), "run"]
    done = subprocess.run(rules, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_new_check_passes_and_fails(house: Lakehouse) -> None:
    arguments = command("Add a check")
    house.receive(match(1, price="100"))
    house.dbt("run", "-s", "+ohlc_1m")
    assert house.dbt(*arguments).statuses["prices_stay_within_tenfold"] == "pass"
    house.receive(match(2, price="1000.01"))
    house.dbt("run", "-s", "+ohlc_1m")
    assert house.dbt(*arguments).failed == {"prices_stay_within_tenfold"}


@contextmanager
def full_channel() -> Iterator[str]:
    """Serve the channel `full`: of what happens to orders, one thing in two is a match."""

    def answer(socket: ServerConnection) -> None:
        asked = json.loads(socket.recv())
        assert [channel["name"] for channel in asked["channels"]] == ["full", "heartbeat"]
        socket.send(json.dumps({"type": "subscriptions", "channels": asked["channels"]}))
        for trade_id in range(1, 11):
            socket.send(json.dumps({"type": "open", "product_id": "BTC-USD", "price": "100"}))
            socket.send(json.dumps(match(trade_id)))
        for _ in socket:
            pass

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_the_new_feed_reaches_silver(house: Lakehouse, project: Path) -> None:
    # Where it stands, Python finds the copy first.
    medallion = [sys.executable, "-m", "medallion"]
    environment = {**os.environ, **house.database.environment()}
    subprocess.run([*medallion, "migrate"], cwd=project, env=environment, check=True)
    with full_channel() as url:
        feed = {"COINBASE_FEED": "full", "COINBASE_WS_URL": url, "COINBASE_PRODUCTS": "BTC-USD"}
        with subprocess.Popen(
            [*medallion, "ingest"],
            cwd=project,
            env=environment | feed,
            stderr=subprocess.PIPE,
        ) as ingester:
            until = time.monotonic() + SECONDS
            counted = "select count(*) as rows from bronze.coinbase_trades_raw"
            while house.one(counted)["rows"] < 10 and time.monotonic() < until:
                time.sleep(0.1)
            ingester.send_signal(signal.SIGTERM)
            _, told = ingester.communicate(timeout=SECONDS)
        assert ingester.returncode == 0, told
    assert not house.dbt(*command("Add a feed")).failed
    trades = house.rows("select trade_id, source from silver.coinbase_trades order by trade_id")
    assert [(row["trade_id"], row["source"]) for row in trades] == [
        (trade_id, "full_ws") for trade_id in range(1, 11)
    ]
