"""Records that wait on disk: append-only segment files, written in groups and read in order.

A segment is a header, then records: marker, length, checksum, bytes. The marker lets a reader find
the next record behind a damaged one. The checksum begins with the record's place in the segment, so
that nothing within a record passes for one, whatever the exchange sends.

Blocking file work only; the methods may be called from any thread, and each waits for the one
before.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate, count
from pathlib import Path
from typing import Final
from zlib import crc32

import structlog

from ingestion.errors import DamagedSpoolError, FatalSpoolError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = structlog.get_logger(__name__)

_MAGIC: Final = b"medallion spool "
HEADER: Final = _MAGIC + b"1\n"
"""What each segment begins with. The number is the version of all that follows."""
_MARKER: Final = b"\xc1rec"
_RECORD: Final = struct.Struct(">4sII")  # marker, length, crc32
SEGMENT_BYTES: Final = 16 * 2**20
"""A segment of this size is followed by a new one. One segment is read into memory at once."""
_FIRST_NUMBER: Final = 10**9
"""The number of the first segment: not 0, for `prepend` counts down."""


class SpoolFullError(Exception):
    """Not all records could be kept.

    Args:
        kept: how many of them were, from the first.
        reason: why not more.

    """

    def __init__(self, kept: int, reason: str) -> None:
        super().__init__(reason)
        self.kept = kept
        self.reason = reason


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int
    records: int
    is_damaged: bool = False

    @property
    def number(self) -> int:
        return int(self.path.stem)


class Spool:
    """A queue of records on disk that outlasts the process.

    Each process has a slot of its own: `<folder>/1`, `<folder>/2` and so on. It takes the first
    that is free, and the segments from other slots that nobody uses any more.

    Args:
        folder: holds the slots.
        max_bytes: `append` takes no more than this.

    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._slot = folder
        self._claim: FileIO | None = None
        self._segments: deque[_Segment] = deque()
        self._file: FileIO | None = None
        # Of the oldest segment: its bytes, and where in them the records are that were not read.
        self._data = b""
        self._unread: deque[tuple[int, int]] = deque()
        self._read = 0

        self.records = 0
        """Records that are not acknowledged."""
        self.size = 0
        """Bytes on disk."""

    def open(self) -> None:
        """Take a slot and find what was left there, or in slots that nobody uses.

        A record cut short at the end, where a process was killed, is cut off. Anything else that
        can't be read is passed over, and its segment is set aside in the end instead of removed.

        Raises:
            FatalSpoolError: the folder can't be used, or what it holds is of another version.

        """
        try:
            with self._lock, ExitStack() as others:
                slots = self._claim_slots(others)
                found = [path for slot in slots for path in _segments_in(slot)]
                # First of all: a spool of another version is left as it is.
                for path in found:
                    _check_version(path)
                for path in found:
                    self._take_in(path)
        except FatalSpoolError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise FatalSpoolError(
                f"SPOOL_DIR is {self._folder}, which can't be used ({error}). "
                "Set it to a folder that can be written."
            ) from None
        if self.records:
            log.warning("spool_found", folder=str(self._slot), frames=self.records, bytes=self.size)

    def append(self, records: Sequence[bytes], *, bounded: bool = True) -> None:
        """Add records behind all others; when this returns, they are safe on the disk.

        Args:
            records: any bytes, oldest first.
            bounded: take no more than the spool's bound.

        Raises:
            SpoolFullError: the disk, or the bound, lets only some of them in, or none.

        """
        with self._lock:
            fitting = len(records)
            if bounded:
                ends = list(accumulate(map(_size_of, records)))
                fitting = bisect_right(ends, self._max_bytes - self.size - len(HEADER))
            if fitting:
                try:
                    file = self._newest()
                except OSError as error:
                    raise SpoolFullError(0, str(error)) from None
                self._write(self._segments[-1], file, records[:fitting])
        if fitting < len(records):
            raise SpoolFullError(
                fitting, f"the spool has reached its bound of {self._max_bytes / 10**6:g} MB"
            )

    def prepend(self, records: Sequence[bytes]) -> None:
        """Add records in front of all others, beyond the bound if need be. Nothing is read after.

        Raises:
            SpoolFullError: the disk lets only some of them in, or none.

        """
        with self._lock:
            parts = list(_parts(records))
            first = self._segments[0].number if self._segments else _FIRST_NUMBER
            added: list[_Segment] = []
            try:
                for number, part in enumerate(parts, first - len(parts)):
                    try:
                        segment, file = self._create(number)
                    except OSError as error:
                        raise SpoolFullError(0, str(error)) from None
                    added.append(segment)
                    with file:
                        self._write(segment, file, part)
            except SpoolFullError as error:
                whole = sum(map(len, parts[: len(added) - 1]))
                raise SpoolFullError(whole + error.kept, error.reason) from None
            finally:
                self._segments.extendleft(reversed(added))

    def read(self, limit: int) -> list[bytes]:
        """Return the oldest records not read yet, at most so many; none where nothing is left.

        Raises:
            DamagedSpoolError: what was written is no longer there as it was.

        """
        with self._lock:
            if not self._unread:
                self._load_oldest()
            spans = [self._unread.popleft() for _ in range(min(limit, len(self._unread)))]
            self._read += len(spans)
            return [self._data[begin:end] for begin, end in spans]

    def acknowledge(self) -> None:
        """Forget what was read. A segment goes when all of it was: until then it may come again."""
        with self._lock:
            if self._read and not self._unread:
                self._remove(self._segments[0])
                self._segments.popleft()
                self._data = b""
            self.records -= self._read
            self._read = 0

    def close(self) -> None:
        """Leave the slot to whoever comes next."""
        with self._lock:
            self._seal()
            if self._claim is not None:
                self._claim.close()
                self._claim = None

    def _claim_slots(self, others: ExitStack) -> list[Path]:
        """Lock the first free slot, and every other free one until `others` is closed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        slots: list[Path] = []
        for number in count(1):
            slot = self._folder / str(number)
            if slots and not slot.exists():
                return slots
            slot.mkdir(exist_ok=True)
            claim = _claim(slot)
            if claim is None:
                continue
            if slots:
                others.enter_context(claim)
            else:
                self._slot, self._claim = slot, claim
            slots.append(slot)
        raise AssertionError("there is always another number")

    def _take_in(self, path: Path) -> None:
        """Take a segment as it is found: cut what is torn, report what is damaged."""
        data = path.read_bytes()
        spans = list(_whole_records(data))
        start = len(HEADER) if data.startswith(HEADER) else 0
        end = spans[-1][1] if spans else start
        torn = len(data) - end if _is_torn(data, end) else 0
        whole = start + sum(_RECORD.size + end - begin for begin, end in spans)
        damaged = len(data) - whole - torn
        if path.parent != self._slot:
            number = self._segments[-1].number + 1 if self._segments else _FIRST_NUMBER
            path = path.rename(self._path(number))
        segment = _Segment(path, len(data) - torn, len(spans), is_damaged=damaged > 0)
        if torn:
            with path.open("r+b") as file:
                file.truncate(segment.size)
                os.fsync(file.fileno())
            log.warning("spool_tail_cut", segment=str(path), bytes=torn)
        if damaged:
            log.error("spool_damaged", segment=str(path), bytes=damaged, whole_records=len(spans))
        self.size += segment.size
        if spans:
            self.records += len(spans)
            self._segments.append(segment)
        else:
            self._remove(segment)

    def _path(self, number: int) -> Path:
        return self._slot / f"{number:010d}.spool"

    def _newest(self) -> FileIO:
        """Return the segment to append to, a new one where the last is full or was closed."""
        if self._file is not None and self._segments[-1].size >= SEGMENT_BYTES:
            self._seal()
        if self._file is None:
            number = self._segments[-1].number + 1 if self._segments else _FIRST_NUMBER
            segment, self._file = self._create(number)
            self._segments.append(segment)
        return self._file

    def _create(self, number: int) -> tuple[_Segment, FileIO]:
        path = self._path(number)
        file = FileIO(path, "x")
        try:
            _write_all(file, HEADER)
            _sync_folder(self._slot)
        except OSError:
            file.close()
            path.unlink()
            raise
        self.size += len(HEADER)
        return _Segment(path, len(HEADER), 0), file

    def _write(self, segment: _Segment, file: FileIO, records: Sequence[bytes]) -> None:
        """Add a group to a segment. Where it fails, the segment ends with its last whole record."""
        group = bytearray()
        for record in records:
            begin = segment.size + len(group) + _RECORD.size
            group += _RECORD.pack(_MARKER, len(record), crc32(record, begin))
            group += record
        ends = list(accumulate(map(_size_of, records), initial=0))
        try:
            _write_all(file, group)
            os.fsync(file.fileno())
        except OSError as error:
            kept = self._cut_back(segment, file, ends)
            raise SpoolFullError(kept, str(error)) from None
        self._count(segment, len(records), ends[-1])

    def _cut_back(self, segment: _Segment, file: FileIO, ends: list[int]) -> int:
        """Keep the records of a group that are whole; return how many that are."""
        try:
            written = file.tell() - segment.size
            # After a failed fsync, nobody knows what of a group is on the disk.
            kept = bisect_right(ends, written) - 1 if written < ends[-1] else 0
            file.truncate(segment.size + ends[kept])
            file.seek(segment.size + ends[kept])
            os.fsync(file.fileno())
        except OSError as error:
            log.error("spool_not_cut", segment=str(segment.path), error=str(error))  # noqa: TRY400
            # Whatever else it holds comes twice after a restart; nothing more is added to it.
            self._seal()
            return 0
        self._count(segment, kept, ends[kept])
        return kept

    def _count(self, segment: _Segment, records: int, size: int) -> None:
        segment.records += records
        segment.size += size
        self.records += records
        self.size += size

    def _seal(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _load_oldest(self) -> None:
        # A segment is empty where nothing of its first group could be written.
        while self._segments and not self._segments[0].records:
            self._seal_if_newest()
            self._remove(self._segments[0])
            self._segments.popleft()
        if not self._segments:
            return
        self._seal_if_newest()
        segment = self._segments[0]
        with segment.path.open("rb") as file:
            self._data = file.read(segment.size)
        spans = list(_whole_records(self._data))
        if len(spans) < segment.records:
            raise DamagedSpoolError(
                f"{segment.records - len(spans)} of the frames in {segment.path} can't be read any "
                "more. Start again to go on with the others; this segment is then set aside, not "
                "removed. Is the disk failing?"
            )
        self._unread.extend(spans)

    def _seal_if_newest(self) -> None:
        if len(self._segments) == 1:
            self._seal()

    def _remove(self, segment: _Segment) -> None:
        if segment.is_damaged:
            aside = segment.path.with_name(f"{segment.path.stem}-{time.time_ns()}.damaged")
            segment.path.rename(aside)
            log.error("spool_segment_set_aside", segment=str(aside), bytes=segment.size)
        else:
            segment.path.unlink(missing_ok=True)
        self.size -= segment.size


def _segments_in(slot: Path) -> list[Path]:
    return sorted(path for path in slot.glob("*.spool") if path.stem.isdecimal())


def _claim(slot: Path) -> FileIO | None:
    """Lock a slot until the returned file is closed; None where another process has it."""
    file = FileIO(slot / "lock", "a")
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file


def _check_version(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(len(HEADER))
    if len(begin) == len(HEADER) and begin.startswith(_MAGIC) and begin != HEADER:
        version = begin.removeprefix(_MAGIC).decode(errors="replace").strip()
        raise FatalSpoolError(
            f"{path} holds frames that are not in bronze yet, written by another version of "
            f"medallion (spool version {version}, and this one reads 1). Run `medallion ingest` of "
            "that version until they are saved, or set SPOOL_DIR to another folder."
        )


def _whole_records(data: bytes) -> Iterator[tuple[int, int]]:
    """Find the records whose checksum is right: where each begins and ends."""
    view = memoryview(data)
    at = 0
    while (at := data.find(_MARKER, at)) >= 0:
        begin = at + _RECORD.size
        at += 1
        if begin > len(data):
            return
        _, length, checksum = _RECORD.unpack_from(data, begin - _RECORD.size)
        end = begin + length
        if end <= len(data) and crc32(view[begin:end], begin) == checksum:
            yield begin, end
            at = end


def _is_torn(data: bytes, at: int) -> bool:
    """Tell whether a header or record was cut short: it begins here, and would end later."""
    rest = data[at : at + _RECORD.size]
    if at == 0 and HEADER.startswith(data):
        return True
    if len(rest) < _RECORD.size:
        return bool(rest) and _MARKER.startswith(rest[: len(_MARKER)])
    marker, length, _ = _RECORD.unpack(rest)
    return bool(marker == _MARKER and at + _RECORD.size + length > len(data))


def _size_of(record: bytes) -> int:
    return _RECORD.size + len(record)


def _parts(records: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut records into parts that each fill a segment."""
    begin = size = 0
    for place, record in enumerate(records):
        size += _size_of(record)
        if size >= SEGMENT_BYTES:
            yield records[begin : place + 1]
            begin, size = place + 1, 0
    if begin < len(records):
        yield records[begin:]


def _write_all(file: FileIO, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as safe as its content. Windows can't, and needs it less."""
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
