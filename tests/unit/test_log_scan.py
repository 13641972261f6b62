# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading logs: every encoding and packing, line numbers, boots, and hostile input in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.diagnose.logs import scan as scanning
from rescue_agent.diagnose.logs.text import message_of
from rescue_agent.errors import UsageError
from rescue_agent.model.logs import Boot, Log
from rescue_agent.probe import logs as probe

PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"
ROOT = 'VFS: Cannot open root device "(null)" or unknown-block(0,0): error -6'


def read(data: bytes, *, pieces: int = 1 << 20) -> Log:
    scanner = LogScanner(make_matcher())
    for at in range(0, len(data), pieces):
        scanner.feed(data[at : at + pieces])
    return scanner.finish(source="log")


def found(log: Log) -> dict[str, int]:
    """Return the line of each signature that was hit."""
    return {hit.signature: hit.line for boot in log.boots for hit in boot.hits}


@pytest.mark.parametrize(
    "line",
    [
        f"[    2.345678] {PANIC}",
        f"[    2.345678][    T1] {PANIC}",
        f"<0>[    2.345678] {PANIC}",
        f"[Tue Nov 24 10:11:12 2026] {PANIC}",
        f"kern  :emerg : [    2.345678] {PANIC}",
        f"Nov 24 10:11:12 host kernel: [    2.345678] {PANIC}",
        f"2026-11-24T10:11:12.123456+00:00 host kernel: {PANIC}",
        f"Nov 24 10:11:12.123456 host kernel: {PANIC}",
        f"MESSAGE={PANIC}",
    ],
)
def test_time_stamps_are_no_part_of_the_message(line: str) -> None:
    assert message_of(line) == PANIC


def test_the_message_of_a_json_line() -> None:
    assert message_of(json.dumps({"PRIORITY": "0", "MESSAGE": PANIC})) == PANIC
    assert message_of(json.dumps({"MESSAGE": list(b"\x1b[31m" + PANIC.encode())})) == PANIC
    assert message_of('{"MESSAGE": 5') == '{"MESSAGE": 5'


def test_a_message_of_bytes_is_looked_into() -> None:
    line = json.dumps({"MESSAGE": list(PANIC.encode())}, separators=(",", ":"))
    assert "init-exit-127" in found(read(f"{{}}\n{line}\n".encode()))


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.replace("GRUB!", "caf\xe9").encode("latin-1"),
        lambda text: text.replace(" ", " \0").encode(),
        lambda text: text.replace("panic", "\x1b[0;1;31mpanic\x1b[0m").encode(),
    ],
    ids=["utf-8", "bom", "crlf", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "nul", "colours"],
)
@pytest.mark.parametrize("pieces", [1 << 20, 7])
def test_any_encoding(encode: Callable[[str], bytes], pieces: int) -> None:
    log = read(encode(f"Welcome to GRUB!\n\n{PANIC}\n"), pieces=pieces)
    assert found(log)["init-exit-127"] == 3


def test_a_lone_carriage_return_ends_a_line_but_counts_none() -> None:
    log = read(f"progress 1%\rprogress 2%\r{PANIC}\rmore\n{ROOT}\n".encode())
    assert found(log)["init-exit-127"] == 1
    assert found(log)["vfs-root-without-disks"] == 2
    assert next(h for h in log.boots[0].hits if h.signature == "init-exit-127").text == PANIC


def test_a_cursor_that_jumps_begins_a_line() -> None:
    log = read(f"\x1b[2J\x1b[1;1Hmenu\x1b[12;5H{PANIC}\x1b[13;1Hend".encode())
    assert next(h for h in log.boots[0].hits if h.signature == "init-exit-127").text == PANIC


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_how_the_log_is_cut_into_pieces_does_not_matter(data: st.DataObject) -> None:
    lines = st.sampled_from(
        [PANIC, ROOT, "", "\x1b[31mred\x1b[0m", "Linux version 6.1.0 (x)", "x" * 50, "\r", "é"]
    )
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    text = "".join(data.draw(st.lists(st.builds(str.__add__, lines, ends), max_size=12))).encode()
    assert read(text, pieces=data.draw(st.integers(1, 40))) == read(text)


def test_boots_are_told_apart() -> None:
    one = "SeaBIOS (version 1.16.2)\nWelcome to GRUB!\n[    0.000000] Linux version 6.1.0 (a)\n"
    two = "[    0.000000] Linux version 5.10.0 (b)\n"
    log = read(f"{one}{PANIC}\n{two}fine\n{one}{ROOT}\n".encode())
    assert [(boot.first_line, boot.kernel) for boot in log.boots] == [
        (1, "6.1.0"),
        (5, "5.10.0"),
        (7, "6.1.0"),
    ]
    assert log.boots_seen == 3
    assert "init-exit-127" in hit_ids(log.boots[0])
    assert "init-exit-127" not in hit_ids(log.boots[2])


def hit_ids(boot: Boot) -> list[str]:
    return [hit.signature for hit in boot.hits]


def test_only_the_newest_boots_are_kept() -> None:
    log = read(b"[    0.000000] Linux version 6.1.0 (a)\n" * 50)
    assert log.boots_seen == 50
    assert len(log.boots) == scanning.BOOTS_KEPT
    assert log.boots[-1].first_line == 50


def test_many_lines_of_one_kind_are_counted_and_few_are_kept() -> None:
    lines = b"".join(b"I/O error, dev sd%c, sector %d\n" % (97 + n % 26, n) for n in range(1000))
    hits = [hit for hit in read(lines).boots[0].hits if hit.signature == "io-error"]
    assert len(hits) <= scanning.VALUES_KEPT + 1
    assert hits[0].count == len(range(0, 1000, 26))


def peak_of(data: Callable[[], object]) -> int:
    make_matcher()
    tracemalloc.start()
    try:
        data()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HOSTILE = {
    "one line": b"x" * (1 << 20),
    "one line of escapes": b"\x1b[" * (1 << 19),
    "an escape that never ends": b"\x1b]0;" + b"y" * (1 << 20),
    "nothing but zeros": b"\0" * (1 << 20),
    "carriage returns": b"\r" * (1 << 20),
    "bytes that are no text": bytes(range(128, 256)) * (1 << 13),
    "the same words again and again": b"Kernel panic " * (1 << 16),
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_logs_need_little_memory(piece: bytes) -> None:
    def scan() -> None:
        scanner = LogScanner(make_matcher())
        for _ in range(12):
            scanner.feed(piece)
        scanner.finish(source="x")

    assert peak_of(scan) < 64 << 20


def test_a_panic_in_a_line_without_end_is_found() -> None:
    log = read(b"x" * 3_000_000 + PANIC.encode() + b" " + b"x" * 3_000_000, pieces=1 << 16)
    hit = next(h for h in log.boots[0].hits if h.signature == "init-exit-127")
    assert (hit.line, hit.count) == (1, 1)
    assert "exitcode=0x00007f00" in hit.text
    assert len(hit.text) <= scanning.EXCERPT_CHARS


def test_lines_that_take_too_long_are_given_up_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MATCH_SECONDS", 0.0)
    log = read(f"{ROOT}\n{PANIC}\n".encode())
    assert "from line 1 on" in log.problem
    assert log.lines == 2


def test_escapes_in_an_excerpt_are_shown_not_sent() -> None:
    log = read("\x9b31m".encode() + PANIC.encode() + "\u202e".encode() + b"\n")
    assert all(hit.text.isprintable() for hit in log.boots[0].hits)


# --- files ----------------------------------------------------------------------------------------

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "two xz streams": lambda data: lzma.compress(data[:10]) + lzma.compress(data[10:]),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": zstd.compress,
}


def saved(folder: Path, data: bytes) -> Log:
    file = folder / "console.log"
    file.write_bytes(data)
    return probe.read_log(lambda: LogScanner(make_matcher()), str(file), progress=probe.silent)


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS.keys())
def test_any_packing(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    log = saved(tmp_path, pack(f"first\n{PANIC}\n".encode()))
    assert found(log)["init-exit-127"] == 2
    assert log.problem == ""


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_packed_logs_that_are_cut_off(tmp_path: Path, name: str) -> None:
    noise = "".join(f"{n * 7919 % 104729:x} line {n}\n" for n in range(60_000))
    packed = PACKINGS[name](f"{PANIC}\n{noise}".encode())
    log = saved(tmp_path, packed[: len(packed) * 3 // 4])
    if name != "bzip2":  # its blocks of 900 kB are whole or nothing
        assert "init-exit-127" in found(log)
    assert "cut off" in log.problem or "could not be read" in log.problem


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_packed_logs_with_damage_are_no_crash(tmp_path: Path, name: str) -> None:
    packed = bytearray(PACKINGS[name](f"{PANIC}\n{ROOT * 2000}\n".encode()))
    for at in range(8, len(packed), 5):
        packed[at] ^= 0x5A
    assert saved(tmp_path, bytes(packed)).problem


def test_a_bomb_is_read_up_to_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LIMIT_BYTES", 8 << 20)
    bomb = gzip.compress(b"a\n" * (32 << 20))
    log = saved(tmp_path, bomb)
    assert log.size_bytes <= 9 << 20
    assert "only the first" in log.problem


def test_an_xz_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    header = bytearray(lzma.compress(b"x" * 100, format=lzma.FORMAT_ALONE))
    header[1:5] = (1 << 30).to_bytes(4, "little")  # the dictionary size that it asks for
    assert "Memory usage limit" in saved(tmp_path, bytes(header)).problem


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(PANIC.encode()))))
    log = probe.read_log(lambda: LogScanner(make_matcher()), "-", progress=probe.silent)
    assert (log.source, found(log)["init-exit-127"]) == ("standard input", 1)


@pytest.mark.parametrize("name", ["missing.log", "."])
def test_what_is_no_log_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"missing\.log|folder"):
        probe.read_log(lambda: LogScanner(make_matcher()), str(tmp_path / name), progress=probe.silent)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no text"),
        (b"\0" * 5000, "holds no text"),
        (b"\x7fELF\2\1", "--vmcore"),
        (b"KDUMP   ", "--vmcore"),
        (gzip.compress(b"LPKSHHRH\0\0"), "journalctl"),
    ],
)
def test_what_holds_no_log_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """Nothing found in it would look like health."""
    with pytest.raises(UsageError) as caught:
        saved(tmp_path, data)
    assert says in str(caught.value)
