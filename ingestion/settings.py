"""The ingester's own settings, from the environment and from `.env` in the project's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

ALL: Final = "ALL"
"""In COINBASE_PRODUCTS: every product that is traded."""

FeedChoice = Literal["exchange", "advanced", "both"]

_PROJECT_ROOT = Path(__file__).resolve().parents[1]
_PRODUCT = re.compile(r"[A-Z0-9]+(-[A-Z0-9]+)+")
_CREDENTIALS = re.compile(r"(?<=//)[^/]*@")


class IngestionSettings(BaseSettings):
    """What to record and how. Each field is the variable of the same name in capitals.

    Raises:
        pydantic.ValidationError: a value is not accepted; `explain` makes a message of it.

    """

    model_config = SettingsConfigDict(
        env_file=_PROJECT_ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    coinbase_ws_url: str = Field(
        default="wss://ws-feed.exchange.coinbase.com",
        description="a ws:// or wss:// URL of the Exchange feed",
    )
    coinbase_advanced_ws_url: str = Field(
        default="wss://advanced-trade-ws.coinbase.com",
        description="a ws:// or wss:// URL of the Advanced Trade feed",
    )
    coinbase_rest_url: str | None = Field(
        default=None,
        description="an http:// or https:// URL of the Exchange's REST interface; by default the "
        "one that belongs to COINBASE_WS_URL",
    )
    coinbase_feed: FeedChoice = Field(
        default="exchange",
        description="exchange, advanced, or both: then one may fail without a gap",
    )
    coinbase_products: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("BTC-USD", "ETH-USD", "SOL-USD"),
        description="product ids separated by commas, for example BTC-USD,ETH-USD, or all",
    )
    products_per_connection: int = Field(
        default=50,
        ge=1,
        le=500,
        description="products read over one connection, from 1 to 500",
    )
    batch_size: int = Field(
        default=5000, ge=1, le=100_000, description="rows per COPY, from 1 to 100000"
    )
    flush_interval_seconds: float = Field(
        default=0.2,
        ge=0.01,
        le=60,
        description="the longest wait before a part-filled batch is written, from 0.01 to 60",
    )
    max_buffered_frames: int = Field(
        default=500_000,
        ge=1,
        le=50_000_000,
        description="frames kept in memory while the database is away, about 0.5 kB each, "
        "from 1 to 50000000",
    )
    spool_dir: Path = Field(
        default=_PROJECT_ROOT / ".medallion" / "spool",
        description="a folder for the frames that memory can't hold while the database is away",
    )
    spool_max_megabytes: int = Field(
        default=10_000,
        ge=1,
        le=100_000_000,
        description="megabytes of frames kept in SPOOL_DIR, from 1 to 100000000",
    )
    silence_seconds: float = Field(
        default=10,
        ge=0.1,
        le=3600,
        description="seconds without a frame before reconnecting, from 0.1 to 3600",
    )
    drain_seconds: float = Field(
        default=30,
        ge=0.1,
        le=3600,
        description="seconds that stopping waits while bronze takes nothing, from 0.1 to 3600",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="a port on 127.0.0.1, from 1 to 65535, or nothing for no metrics",
    )

    def with_spool_of(self, database: str) -> Self:
        """Return the same with a spool for this database: frames for one must not reach another."""
        return self.model_copy(update={"spool_dir": self.spool_dir / quote(database, safe="")})

    @property
    def all_products(self) -> bool:
        """Whether every product that is traded is recorded, also those listed later."""
        return self.coinbase_products == (ALL,)

    @property
    def rest_url(self) -> str:
        """Where REST is: at Coinbase `api` stands in place of `ws-feed`, else on the same host."""
        if self.coinbase_rest_url is not None:
            return self.coinbase_rest_url
        parts = urlsplit(self.coinbase_ws_url)
        scheme = "https" if parts.scheme == "wss" else "http"
        return f"{scheme}://{parts.netloc.replace('ws-feed', 'api', 1)}"

    @field_validator("coinbase_ws_url", "coinbase_advanced_ws_url")
    @classmethod
    def _url_is_websocket(cls, url: str) -> str:
        try:
            parsed = parse_uri(url)
            parsed.host.encode("idna")
        except InvalidURI as error:
            raise ValueError(error.msg) from None
        if parsed.username is not None:
            # The URL is logged and stored with each session.
            raise ValueError("it holds a user name or a password, and the feed asks for none")
        return url

    @field_validator("coinbase_rest_url")
    @classmethod
    def _url_is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("it is no http:// or https:// URL")
        if parts.username is not None:
            raise ValueError("it holds a user name or a password, and REST asks for none")
        return url

    @field_validator("coinbase_products", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        products = (product.strip().upper() for product in value.split(","))
        return tuple(dict.fromkeys(product for product in products if product))

    @field_validator("coinbase_products")
    @classmethod
    def _products_look_like_products(cls, products: tuple[str, ...]) -> tuple[str, ...]:
        if not products:
            raise ValueError("there is no product in it")
        if products == (ALL,):
            return products
        for product in products:
            if product == ALL:
                raise ValueError("'all' stands alone")
            if not _PRODUCT.fullmatch(product):
                raise ValueError(f"{product!r} is no product id")
        return products

    @field_validator("spool_dir")
    @classmethod
    def _from_the_project(cls, folder: Path) -> Path:
        """Take a relative folder from the project's, whichever the current one is."""
        return _PROJECT_ROOT / folder.expanduser()

    @model_validator(mode="after")
    def _batch_fits_the_buffer(self) -> Self:
        if self.max_buffered_frames < self.batch_size:
            raise ValueError(
                f"MAX_BUFFERED_FRAMES is {self.max_buffered_frames}, but it must hold at least "
                f"one batch: BATCH_SIZE is {self.batch_size}"
            )
        return self


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """Return one line per wrong setting: the variable, its value and what its field accepts.

    The value of a secret stays one.
    """
    lines = []
    for wrong in error.errors(include_url=False):
        reason = wrong["msg"].removeprefix("Value error, ")
        if not wrong["loc"]:
            lines.append(f"{reason}.")
            continue
        name = str(wrong["loc"][0])
        value = _CREDENTIALS.sub("***@", repr(wrong["input"]))
        if SecretStr in {fields[name].annotation, *get_args(fields[name].annotation)}:
            value = "'***'"
        lines.append(
            f"{name.upper()} is {value} ({reason}). "
            f"Accepted is {fields[name].description}. "
            "Correct it in the command, the environment or .env."
        )
    return "\n".join(lines)
