from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ingestion.settings import IngestionSettings, explain
from tests.conftest import ROOT
from warehouse.settings import WarehouseSettings

VARIABLES = [name.upper() for name in IngestionSettings.model_fields]


@pytest.fixture(autouse=True)
def _no_variable_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def load(env_file: Path | None = None) -> IngestionSettings:
    return IngestionSettings(_env_file=env_file)


def test_defaults_record_three_products_of_the_exchange() -> None:
    settings = load()

    assert settings.coinbase_ws_url == "wss://ws-feed.exchange.coinbase.com"
    assert settings.coinbase_products == ("BTC-USD", "ETH-USD", "SOL-USD")
    assert settings.metrics_port is None


def test_products_are_trimmed_capitalised_and_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COINBASE_PRODUCTS", " btc-usd, ETH-USD ,,BTC-USD,")

    assert load().coinbase_products == ("BTC-USD", "ETH-USD")


def test_dotenv_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("BATCH_SIZE=7\nSILENCE_SECONDS=3\nSOMETHING_ELSE=x\n")
    monkeypatch.setenv("SILENCE_SECONDS", "4")

    settings = load(dotenv)

    assert (settings.batch_size, settings.silence_seconds) == (7, 4)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("COINBASE_WS_URL", "https://example.com", "a ws:// or wss:// URL"),
        ("COINBASE_WS_URL", "wss://", "a ws:// or wss:// URL"),
        ("COINBASE_WS_URL", "wss://a..b", "a ws:// or wss:// URL"),
        ("COINBASE_PRODUCTS", ",", "product ids separated by commas"),
        ("COINBASE_PRODUCTS", "BTC-USD,BTC/USD", "product ids separated by commas"),
        ("BATCH_SIZE", "0", "from 1 to 100000"),
        ("BATCH_SIZE", "many", "from 1 to 100000"),
        ("FLUSH_INTERVAL_SECONDS", "nan", "from 0.01 to 60"),
        ("MAX_BUFFERED_FRAMES", "-1", "from 1 to 50000000"),
        ("SPOOL_MAX_MEGABYTES", "0", "from 1 to 100000000"),
        ("SILENCE_SECONDS", "inf", "from 0.1 to 3600"),
        ("DRAIN_SECONDS", "-1", "from 0.1 to 3600"),
        ("METRICS_PORT", "70000", "from 1 to 65535"),
    ],
)
def test_a_wrong_value_is_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError) as caught:
        load()

    told = explain(caught.value, IngestionSettings.model_fields)
    assert "\n" not in told
    assert told.startswith(f"{name} is '{value}'")
    assert accepted in told


def test_a_relative_spool_is_in_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().spool_dir == ROOT / ".medallion" / "spool"
    monkeypatch.setenv("SPOOL_DIR", "elsewhere/spool")
    assert load().spool_dir == ROOT / "elsewhere" / "spool"


def test_each_wrong_value_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "x")
    monkeypatch.setenv("METRICS_PORT", "y")

    with pytest.raises(ValidationError) as caught:
        load()

    assert len(explain(caught.value, IngestionSettings.model_fields).splitlines()) == 2


def test_a_buffer_smaller_than_a_batch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_BUFFERED_FRAMES", "10")

    with pytest.raises(ValidationError) as caught:
        load()

    assert explain(caught.value, IngestionSettings.model_fields) == (
        "MAX_BUFFERED_FRAMES is 10, but it must hold at least one batch: BATCH_SIZE is 5000."
    )


@pytest.mark.parametrize("scheme", ["wss", "https"])
def test_a_url_with_a_password_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("COINBASE_WS_URL", f"{scheme}://me:hunter2@example.com/feed")

    with pytest.raises(ValidationError) as caught:
        load()

    told = explain(caught.value, IngestionSettings.model_fields)
    assert f"{scheme}://***@example.com/feed" in told
    assert "hunter2" not in told
    assert "me:" not in told


def test_a_wrong_setting_of_the_database_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "abc")

    with pytest.raises(ValidationError) as caught:
        WarehouseSettings(_env_file=None)

    told = explain(caught.value, WarehouseSettings.model_fields)
    assert told.startswith("PGPORT is 'abc' (Input should be a valid integer")
    assert told.endswith(
        "Accepted is the server's port, from 1 to 65535. "
        "Correct it in the command, the environment or .env."
    )


def test_rest_belongs_to_the_feed_unless_it_is_set() -> None:
    def rest_url(**given: str) -> str:
        return IngestionSettings(_env_file=None, **given).rest_url

    assert rest_url() == "https://api.exchange.coinbase.com"
    sandbox = "wss://ws-feed-public.sandbox.exchange.coinbase.com"
    assert rest_url(coinbase_ws_url=sandbox) == "https://api-public.sandbox.exchange.coinbase.com"
    assert rest_url(coinbase_ws_url="ws://127.0.0.1:8765/x") == "http://127.0.0.1:8765"
    assert rest_url(coinbase_rest_url="http://127.0.0.1:1") == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("coinbase_rest_url", "ftp://x", "no http:// or https:// URL"),
        ("coinbase_rest_url", "https://u:secret@x", "a user name or a password"),
        ("coinbase_advanced_ws_url", "https://x", "scheme isn't ws or wss"),
        ("coinbase_products", "all,BTC-USD", "'all' stands alone"),
        ("coinbase_feed", "level2", "exchange, advanced, or both"),
        ("products_per_connection", "0", "from 1 to 500"),
    ],
)
def test_a_feed_that_is_none_is_told(name: str, value: str, told: str) -> None:
    with pytest.raises(ValidationError) as error:
        IngestionSettings(_env_file=None, **{name: value})
    message = explain(error.value, IngestionSettings.model_fields)
    assert told in message
    assert name.upper() in message
    assert "secret" not in message


def test_all_products_may_be_asked_for() -> None:
    assert IngestionSettings(_env_file=None, coinbase_products="all").all_products
    assert not IngestionSettings(_env_file=None, coinbase_products="BTC-USD").all_products


def test_each_database_has_a_spool_of_its_own(tmp_path: Path) -> None:
    settings = IngestionSettings(_env_file=None, spool_dir=tmp_path)
    assert settings.with_spool_of("a").spool_dir == tmp_path / "a"
    assert settings.with_spool_of("../b").spool_dir.parent == tmp_path
