"""Rows of bronze in Parquet files, on any file system that fsspec knows, and their checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from warehouse.settings import ArchiveError

GROUP_ROWS: Final = 50_000
GROUP_CHARACTERS: Final = 32_000_000
"""A row group is held in memory while it is filled: it ends with so many rows or characters."""
SCHEMA: Final = pa.schema(
    [
        ("bronze_id", pa.int64()),
        ("received_at", pa.timestamp("us", tz="UTC")),
        ("source", pa.string()),
        ("channel", pa.string()),
        ("session_id", pa.string()),
        ("product_id", pa.string()),
        ("payload", pa.string()),
    ]
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# What Tally does, in SQL.
CHECKSUM: Final = """
    sum((
        'x' || encode(
            substr(
                sha256(
                    convert_to(
                        concat_ws(
                            '|', bronze_id, (extract(epoch from received_at) * 1000000)::bigint,
                            source, channel, session_id, product_id, payload
                        ),
                        'UTF8'
                    )
                ),
                1,
                8
            ),
            'hex'
        )
    )::bit(64)::bigint)
"""


class Row(NamedTuple):
    """A row of coinbase_trades_raw; the payload is the text that PostgreSQL makes of it."""

    bronze_id: int
    received_at: datetime
    source: str
    channel: str
    session_id: str
    product_id: str | None
    payload: str


@dataclass(slots=True)
class Tally:
    """What rows add up to, in whatever order they come."""

    rows: int = 0
    checksum: int = 0
    first_bronze_id: int = 0
    last_bronze_id: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, bronze_id {self.first_bronze_id} to {self.last_bronze_id}, "
            f"checksum {self.checksum}"
        )

    def add(self, row: Row) -> None:
        """Count a row."""
        microseconds = (row.received_at - _EPOCH) // timedelta(microseconds=1)
        fields = [str(row.bronze_id), str(microseconds), *row[2:]]
        text = "|".join(field for field in fields if field is not None)
        digest = hashlib.sha256(text.encode()).digest()
        self.checksum += int.from_bytes(digest[:8], "big", signed=True)
        self.first_bronze_id = min(self.first_bronze_id, row.bronze_id) if self.rows else row[0]
        self.last_bronze_id = max(self.last_bronze_id, row.bronze_id)
        self.rows += 1


class Writer:
    """Writes rows to a Parquet file, and counts them."""

    def __init__(self, parquet: pq.ParquetWriter) -> None:
        self._parquet = parquet
        self._group: list[Row] = []
        self._characters = 0
        self.tally = Tally()

    def add(self, row: Row) -> None:
        """Take a row."""
        self.tally.add(row)
        self._group.append(row)
        self._characters += len(row.payload)
        if len(self._group) == GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory."""
        if self._group:
            columns = zip(zip(*self._group, strict=True), SCHEMA, strict=True)
            arrays = [pa.array(values, field.type) for values, field in columns]
            self._parquet.write_table(pa.table(arrays, schema=SCHEMA))
            self._group, self._characters = [], 0


class ParquetFile:
    """One file of the archive.

    Args:
        url: where it is.

    Raises:
        ArchiveError: its file system can't be used here.

    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ArchiveError(
                f"The archive {url} can't be used ({error}). Correct MEDALLION_ARCHIVE_URL, or "
                "install the package of its file system."
            ) from error

    def exists(self) -> bool:
        """Tell whether it is there."""
        with self._told("looked for"):
            return bool(self._fs.exists(self._path))

    def size(self) -> int:
        """Return its bytes."""
        with self._told("looked at"):
            return int(self._fs.size(self._path))

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Write it under a name of its own; `publish` gives it that of the file."""
        with self._told("written"):
            self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
            file = self._fs.open(self._unpublished, "wb")
            parquet = pq.ParquetWriter(file, SCHEMA, compression="zstd")
        writer = Writer(parquet)
        try:
            yield writer
            with self._told("written"):
                writer.flush()
        finally:
            with self._told("written"), file:
                parquet.close()

    def publish(self) -> None:
        """Put what was written in place; on a local disk, so that no power failure undoes it."""
        with self._told("written"):
            is_local = isinstance(self._fs, LocalFileSystem)
            if is_local:
                _sync(self._unpublished)
            self._fs.mv(self._unpublished, self._path)
            if is_local and os.name == "posix":
                _sync(self._path.rpartition("/")[0])

    def read(self, tally: Tally) -> Iterator[Row]:
        """Yield its rows, and count them."""
        with self._told("read"), self._fs.open(self._path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=GROUP_ROWS // 10):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row = Row(*values)
                    tally.add(row)
                    yield row

    @property
    def _unpublished(self) -> str:
        # No reader of *.parquet finds it.
        return f"{self._path}.unpublished"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        # ValueError is what pyarrow makes of damaged pages.
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.url} can't be {what} ({error}).") from error


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
