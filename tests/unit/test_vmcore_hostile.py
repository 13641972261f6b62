# SPDX-License-Identifier: GPL-3.0-or-later
"""Truncated and spoiled dumps: the log, part of it, or a clear error; in bounded time and memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.dumps import PAGE, Bytes, Kernel, Machine, buffer_kernel, elf, flattened, kdump, note, ring_kernel

from rescue_agent.probe.vmcore.dump import decode, open_memory
from rescue_agent.probe.vmcore.source import Unreadable

MAX_CASE_S = 10.0
"""Even the worst case must end; an ordinary one takes milliseconds."""
MAX_CASE_BYTES = 60 << 20


def _forms(kernel: Kernel) -> list[bytes]:
    info = note(b"VMCOREINFO", 0, kernel.info)
    return [
        elf(kernel.machine, info, qemu=True),
        elf(kernel.machine, info, kernel_map=True),
        kdump(kernel),
        flattened(kdump(kernel)),
        kdump(kernel.with_text_in_memory(), with_info=False),
    ]


DUMPS = [*_forms(ring_kernel(Machine(), text_bits=12)), *_forms(buffer_kernel(Machine(), size=4096))]
LINES = [*[ring_kernel(Machine(), text_bits=12).lines] * 5, *[buffer_kernel(Machine(), size=4096).lines] * 5]
NASTY = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.sampled_from(
        [bytes(8), b"\xff" * 8, b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 40), struct.pack(">q", 1 << 40)]
    ),
)


def _places(dump: bytes) -> st.SearchStrategy[int]:
    """Offsets, mostly of the headers, page tables and heads of the log, where damage bites."""
    heads = [at for at in range(0, len(dump), 8) if dump[at : at + 8] not in (bytes(8), b"\xff" * 8)]
    return st.one_of(st.integers(0, 2047), st.sampled_from(heads), st.integers(0, len(dump) - 1))


def _read(data: bytes) -> list[str] | None:
    """Return the lines, or None when the dump says clearly that it can't be read."""
    started = time.monotonic()
    try:
        opened = open_memory(Bytes(data), lambda: None)
        return decode(opened.memory, lambda: None).log.lines if opened is not None else None
    except Unreadable as error:
        assert str(error)
        return None
    finally:
        assert time.monotonic() - started < MAX_CASE_S


PLACES = [_places(dump) for dump in DUMPS]


@settings(max_examples=1400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_spoiled(data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(DUMPS) - 1))
    dump = bytearray(DUMPS[which])
    for at, junk in data.draw(st.lists(st.tuples(PLACES[which], NASTY), min_size=1, max_size=4)):
        dump[at : at + len(junk)] = junk
    lines = _read(bytes(dump))
    assert lines is None or all(line.replace("\t", " ").isprintable() for line in lines)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, len(DUMPS) - 1),
    st.integers(0, 7),
    st.lists(st.integers(0, 1 << 30), min_size=1, max_size=3),
)
def test_flipped_bits(which: int, bit: int, places: list[int]) -> None:
    dump = bytearray(DUMPS[which])
    for place in places:
        dump[place % len(dump)] ^= 1 << bit
    _read(bytes(dump))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(DUMPS) - 1), st.floats(0, 1))
def test_cut_off(which: int, part: float) -> None:
    """What comes out is a part of the log, never something else."""
    lines = _read(DUMPS[which][: int(len(DUMPS[which]) * part)])
    assert lines is None or set(lines) <= set(LINES[which])


def test_the_dumps_are_whole_before_they_are_spoiled() -> None:
    assert [_read(dump) for dump in DUMPS] == LINES


def test_a_damaged_page_is_not_believed() -> None:
    """Its checksum counts: a text that was never printed must not come out."""
    kernel = ring_kernel(Machine(), text_bits=12)
    whole = kdump(kernel)
    pages = range(
        len(whole) - sum(len(zlib.compress(bytes(p), 1)) for p in kernel.machine.pages.values()), len(whole)
    )
    got = Counter[str]()
    for place in pages[:: len(pages) // 300]:
        dump = bytearray(whole)
        dump[place] ^= 1
        lines = _read(bytes(dump))
        assert lines is None or set(lines) <= set(kernel.lines), place
        got["none" if lines is None else "all" if lines == kernel.lines else "part"] += 1
    assert got["none"] and got["part"]


def test_members_that_lie_outside_of_their_structure() -> None:
    kernel = buffer_kernel(Machine())
    kernel = Kernel(
        kernel.machine, kernel.info.replace(b"OFFSET(log.text_len)=10", b"OFFSET(log.text_len)=63"), []
    )
    assert _read(kdump(kernel)) is None


# --- what would cost memory or time, were it believed ------------------------------------------------


def _peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        _read(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_counts_that_cannot_be_right_cost_nothing() -> None:
    kernel = ring_kernel(Machine())
    many = bytearray(elf(kernel.machine, note(b"VMCOREINFO", 0, kernel.info), qemu=True, many=True))
    struct.pack_into("<I", many, 64 + 44, 0xFFFFFFFF)
    pages = bytearray(kdump(kernel))
    struct.pack_into("<Q", pages, PAGE + 96, (1 << 34) - 1)
    blocks = bytearray(pages)
    struct.pack_into("<I", blocks, 436, 0xFFFFFFFF)
    for data in (many, pages, blocks):
        assert _peak(bytes(data)) < 4 << 20


@pytest.mark.parametrize(("count_bits", "text_bits"), [(31, 31), (31, 13), (7, 31), (32, 13), (0, 0)])
def test_a_ring_of_any_claimed_size(count_bits: int, text_bits: int) -> None:
    kernel = ring_kernel(Machine())
    ring = kernel.machine.physical(0xFFFFFFFF810032E0)
    kernel.machine.poke(ring, struct.pack("<I", count_bits))
    kernel.machine.poke(ring + 48, struct.pack("<I", text_bits))
    assert _peak(kdump(kernel)) < MAX_CASE_BYTES


def test_a_log_that_repeats_itself_without_end() -> None:
    kernel = buffer_kernel(Machine(), [(n, b"x" * 100) for n in range(9)])
    # The end is never met: the last record leads back to the first.
    kernel.machine.poke(kernel.machine.physical(0xFFFFFFFF81003014), struct.pack("<I", 4))
    assert _peak(kdump(kernel)) < MAX_CASE_BYTES


def test_records_that_all_point_to_one_long_text() -> None:
    """2^20 descriptors can claim 64 GiB of text: what is kept of it is bounded."""
    from rescue_agent.probe.vmcore import printk

    record = printk.Record(0, b"x" * 65535)
    log = printk.collect(record for _ in range(1 << 20))
    assert log.shortened and sum(map(len, log.lines)) <= printk.MAX_TEXT


def test_a_dump_full_of_vmcoreinfo() -> None:
    fake = (
        b"OSRELEASE=1\nSYMBOL(swapper_pg_dir)=ffffffff81000000\nSYMBOL(init_uts_ns)=ffffffff81000000\n%d\n\0"
    )
    machine = Machine()
    machine.poke(0, b"".join(fake % n for n in range(20000)))
    assert _peak(elf(machine)) < MAX_CASE_BYTES


def test_segments_that_overlap_in_the_file() -> None:
    count, size = 20000, 1 << 20
    table = b"".join(struct.pack("<IIQQQQQQ", 1, 0, 0, 0, n * size, size, size, 0) for n in range(count))
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    assert _peak(header + table + bytes(size)) < MAX_CASE_BYTES


def test_flattened_crumbs() -> None:
    crumbs = b"".join(struct.pack(">qqB", n * 3, 1, 0) for n in range(1 << 18))
    start = time.monotonic()
    assert _peak(flattened(b"")[:4096] + crumbs) < MAX_CASE_BYTES
    assert time.monotonic() - start < MAX_CASE_S
