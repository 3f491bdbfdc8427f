"""The spool on a real file system: what was written comes back, whatever happened to the files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingestion.errors import DamagedSpoolError, FatalSpoolError
from ingestion.spool import HEADER, Spool, SpoolFullError

MANY = 10**9

# The marker of records among them: a frame may hold anything.
records = st.lists(st.binary(max_size=40) | st.just(b"\xc1rec\0\0\0\0\0\0\0\0\xc1rec"), max_size=8)


@contextmanager
def spool(folder: Path, max_bytes: int = MANY) -> Iterator[Spool]:
    opened = Spool(folder, max_bytes)
    opened.open()
    try:
        yield opened
    finally:
        opened.close()


def drain(opened: Spool, limit: int = 3) -> list[bytes]:
    found: list[bytes] = []
    while read := opened.read(limit):
        found += read
        opened.acknowledge()
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.spool"))


def size_of(record: bytes) -> int:
    """Return the bytes that a record takes: marker, length and checksum before it."""
    return 12 + len(record)


@given(groups=st.lists(records, max_size=5), restarts=st.booleans())
def test_records_come_back_in_order(groups: list[list[bytes]], restarts: bool) -> None:
    written = [record for group in groups for record in group]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with spool(folder) as opened:
            for group in groups:
                opened.append(group)
            assert opened.records == len(written)
            assert opened.size == sum(path.stat().st_size for path in segments(folder))
            if not restarts:
                assert drain(opened) == written
        with spool(folder) as opened:
            assert drain(opened) == (written if restarts else [])
            assert (opened.records, opened.size) == (0, 0)
        assert segments(folder) == []


@given(written=records, data=st.data())
def test_a_torn_tail_leaves_the_whole_records_before_it(
    written: list[bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with spool(folder) as opened:
            opened.append([b"first", *written])
        [segment] = segments(folder)
        whole = segment.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        segment.write_bytes(whole[:cut])
        expected: list[bytes] = []
        end = len(HEADER)
        for record in [b"first", *written]:
            if end + size_of(record) > cut:
                break
            end += size_of(record)
            expected.append(record)

        with capture_logs() as logs, spool(folder) as opened:
            told = [entry["bytes"] for entry in logs if entry["event"] == "spool_tail_cut"]
            torn = cut - end if cut >= len(HEADER) else cut
            assert told == ([torn] if torn else [])
        with capture_logs() as logs, spool(folder) as opened:
            # Once told, it is gone.
            assert {entry["event"] for entry in logs} <= {"spool_found"}
            opened.append([b"later"])
            assert drain(opened) == [*expected, b"later"]
        assert list(folder.glob("*/*.damaged")) == []


@given(written=records, data=st.data())
def test_a_flipped_byte_is_found_and_costs_one_record(
    written: list[bytes], data: st.DataObject
) -> None:
    written = [b"first", *written, b"last"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with spool(folder) as opened:
            opened.append(written)
        [segment] = segments(folder)
        content = bytearray(segment.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        segment.write_bytes(content)
        end, hit = len(HEADER), None
        for number, record in enumerate(written):
            if end <= place < end + size_of(record):
                hit = number
            end += size_of(record)
        expected = [record for number, record in enumerate(written) if number != hit]

        try:
            with capture_logs() as logs, spool(folder) as opened:
                assert drain(opened) == expected
        except FatalSpoolError:
            assert len(b"medallion spool ") <= place < len(HEADER)
            return
        events = {entry["event"] for entry in logs}
        if events & {"spool_tail_cut"}:
            # Its length points past the end of the file, as after a kill.
            assert hit == len(written) - 1
            return
        assert events >= {"spool_damaged", "spool_segment_set_aside"}
        [aside] = folder.glob("*/*.damaged")
        assert aside.read_bytes() == content


def test_what_is_read_and_not_acknowledged_comes_again_after_a_restart(tmp_path: Path) -> None:
    with spool(tmp_path) as opened:
        opened.append([b"1", b"2", b"3"])
        assert opened.read(2) == [b"1", b"2"]
        opened.acknowledge()
        assert opened.read(2) == [b"3"]
        assert opened.records == 1

    with spool(tmp_path) as opened:
        assert drain(opened) == [b"1", b"2", b"3"]


def test_what_is_put_in_front_is_read_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.spool.SEGMENT_BYTES", 50)
    oldest = [b"%d" % number for number in range(20)]
    with spool(tmp_path) as opened:
        opened.append([b"newer"])
        opened.prepend(oldest)
    with spool(tmp_path) as opened:
        opened.prepend([b"ancient"])
        assert opened.records == 22

    assert len(segments(tmp_path)) == 2 + 20 * 13 // 52
    with spool(tmp_path) as opened:
        assert drain(opened) == [b"ancient", *oldest, b"newer"]


def test_a_full_segment_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.spool.SEGMENT_BYTES", 100)
    written = [b"%d" % number for number in range(50)]
    with spool(tmp_path) as opened:
        for record in written:
            opened.append([record])
        assert len(segments(tmp_path)) == 50 * 14 // 98 + 1
        assert opened.read(5) == written[:5]
        opened.append([b"while reading"])
        opened.acknowledge()
        assert drain(opened) == [*written[5:], b"while reading"]
        assert segments(tmp_path) == []
        opened.append([b"when empty"])
        assert drain(opened) == [b"when empty"]


def test_the_bound_keeps_the_oldest_and_lets_in_again_what_fits(tmp_path: Path) -> None:
    size = size_of(b"1")
    with spool(tmp_path, len(HEADER) * 2 + 3 * size) as opened:
        opened.append([b"1"])
        with pytest.raises(SpoolFullError, match="reached its bound") as full:
            opened.append([b"2", b"3", b"4"])
        assert full.value.kept == 2
        with pytest.raises(SpoolFullError) as full:
            opened.append([b"4"])
        assert full.value.kept == 0
        # What has no other place goes beyond it.
        opened.append([b"4"], bounded=False)
        assert drain(opened) == [b"1", b"2", b"3", b"4"]
        opened.append([b"5"])
        assert drain(opened) == [b"5"]


def test_a_full_disk_keeps_the_whole_records_that_fit(small_disk: Path) -> None:
    written = [b"%d" % number * 1000 for number in range(100, 200)]
    with spool(small_disk) as opened:
        opened.append(written[:10])
        with pytest.raises(SpoolFullError, match="No space left") as full:
            opened.append(written[10:])
        kept = 10 + full.value.kept
        assert 60 < kept < 100
        assert opened.records == kept
        with pytest.raises(SpoolFullError) as full:
            opened.append(written[kept:])
        assert full.value.kept == 0
        [segment] = segments(small_disk)
        assert segment.stat().st_size == opened.size
    with spool(small_disk) as opened:
        # A new segment is begun, and the disk has no room for one.
        with pytest.raises(SpoolFullError, match="No space left") as full:
            opened.append(written[kept:])
        assert full.value.kept == 0
        assert opened.read(kept) == written[:kept]
        opened.acknowledge()
        opened.append(written[kept:])
        assert drain(opened) == written[kept:]


def test_a_disk_that_fills_while_memory_is_spilled_keeps_the_oldest(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.spool.SEGMENT_BYTES", 20_000)
    written = [b"%d" % number * 1000 for number in range(100, 200)]
    with spool(small_disk) as opened:
        opened.append([b"newest"])
        with pytest.raises(SpoolFullError) as full:
            opened.prepend(written)
    with spool(small_disk) as opened:
        assert drain(opened) == [*written[: full.value.kept], b"newest"]
        assert 60 < full.value.kept < 100


def test_a_spool_of_another_version_is_told_and_left_alone(tmp_path: Path) -> None:
    with spool(tmp_path) as opened:
        opened.append([b"ours"])
    [segment] = segments(tmp_path)
    other = segment.with_stem("1000000001")
    other.write_bytes(b"medallion spool 2\nwhat only version 2 can read")
    torn = segment.with_stem("1000000002")
    torn.write_bytes(HEADER + b"\xc1rec")
    before = {path: path.read_bytes() for path in segments(tmp_path)}

    for _ in range(2):
        with pytest.raises(FatalSpoolError, match="spool version 2, and this one reads 1") as told:
            Spool(tmp_path, MANY).open()

    assert str(other) in str(told.value)
    assert "SPOOL_DIR" in str(told.value)
    assert {path: path.read_bytes() for path in segments(tmp_path)} == before


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(FatalSpoolError, match=f"SPOOL_DIR is {file}, which can't be used"):
        Spool(file, MANY).open()


def test_each_spool_has_a_slot_of_its_own_and_takes_over_what_is_left(tmp_path: Path) -> None:
    with spool(tmp_path) as first, spool(tmp_path) as second, spool(tmp_path) as third:
        first.append([b"1"])
        second.append([b"2"])
        third.append([b"3"])
        assert [path.parent.name for path in segments(tmp_path)] == ["1", "2", "3"]
        first.close()
        third.close()
        with spool(tmp_path) as fourth:
            fourth.append([b"4"])
            assert [path.parent.name for path in segments(tmp_path)] == ["1", "1", "1", "2"]
            assert drain(fourth) == [b"1", b"3", b"4"]
        assert drain(second) == [b"2"]


def test_a_killed_process_leaves_its_slot(tmp_path: Path) -> None:
    holder = (
        "import sys, pathlib; from ingestion.spool import Spool\n"
        "spool = Spool(pathlib.Path(sys.argv[1]), 10**9); spool.open()\n"
        "spool.append([b'left']); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with spool(tmp_path) as beside:
            assert drain(beside) == []
        process.kill()
        process.wait()
    with spool(tmp_path) as after:
        assert drain(after) == [b"left"]


def test_records_that_vanish_meanwhile_are_not_passed_over(tmp_path: Path) -> None:
    with spool(tmp_path) as opened:
        opened.append([b"1", b"2", b"3"])
        [segment] = segments(tmp_path)
        content = bytearray(segment.read_bytes())
        content[-size_of(b"3") - 1] ^= 1
        segment.write_bytes(content)
        with pytest.raises(DamagedSpoolError, match="1 of the frames"):
            opened.read(10)

    with spool(tmp_path) as opened:
        assert drain(opened) == [b"1", b"3"]
    assert len(list(tmp_path.glob("*/*.damaged"))) == 1
