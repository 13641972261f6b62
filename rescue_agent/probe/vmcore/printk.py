# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel log as it lies in memory: the ring buffer of Linux 5.10 and later, the records before.

Sources: kernel/printk/printk_ringbuffer.[ch]; struct printk_log (3.11 to 5.9) and struct log (3.5
to 3.10) in kernel/printk.c. Lines come out as ``makedumpfile --dump-dmesg`` prints them.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rescue_agent.probe.vmcore.kernel import Kernel
from rescue_agent.probe.vmcore.source import NotInDump, Unreadable

MAX_RECORDS = 1 << 19
"""More than the largest buffers hold."""
MAX_TEXT = 24 << 20
"""Bytes of log that are kept, the newest; the largest buffers hold 32 MiB, most 256 KiB."""
_U16, _U64 = struct.Struct("<H"), struct.Struct("<Q")
_ID_MASK = (1 << 62) - 1
_POSITION_MASK = (1 << 64) - 1
_COMMITTED, _FINALIZED = 1, 2
_BLOCK_ID_BYTES = 8
_VISIBLE = {code: chr(code) if 32 <= code < 127 or code == 9 else f"\\x{code:02x}" for code in range(256)}


class Log(NamedTuple):
    """The kernel log, oldest line first."""

    lines: list[str]
    lost: int = 0
    """Records whose memory is not in the dump; 1 for all that follows when their chain is broken."""
    shortened: bool = False
    """There was more, older, than is kept."""


class Record(NamedTuple):
    """One message: nanoseconds since boot and its text."""

    time_ns: int
    text: bytes


def read_log(kernel: Kernel) -> Log:
    """Return the kernel log. Raises Unreadable when nothing of it is in the dump."""
    if "SYMBOL(prb)" in kernel.info:
        return _read_ring(kernel)
    if "SYMBOL(log_first_idx)" in kernel.info:
        return _read_buffer(kernel)
    raise Unreadable("its kernel keeps the log in a way that is not known here (older than 3.5?)")


def format_record(record: Record) -> str:
    """Return the line, or the lines, of a record; what cannot be printed as ``\\xNN``."""
    seconds, rest = divmod(record.time_ns, 10**9)
    prefix = f"[{seconds:5d}.{rest // 1000:06d}] "
    text = "\n".join(part.decode("latin-1").translate(_VISIBLE) for part in record.text.split(b"\n"))
    return prefix + text.replace("\n", "\n" + " " * len(prefix))


def collect(newest_first: Iterable[Record | None]) -> Log:
    """Return the log that these records make, as much of it as is kept; None is a lost record."""
    lines: list[str] = []
    lost, room = 0, MAX_TEXT
    shortened = False
    for record in newest_first:
        if record is None:
            lost += 1
            continue
        text = format_record(record)
        room -= len(text)
        if room < 0:
            shortened = True
            break
        lines.extend(reversed(text.split("\n")))
    if not lines:
        raise Unreadable("its kernel log is empty" if not lost else "its kernel log is not in it")
    lines.reverse()
    return Log(lines, lost, shortened)


# --- the ring buffer: Linux 5.10 and later ----------------------------------------------------------


def _read_ring(kernel: Kernel) -> Log:
    ring = _Ring(kernel)
    log = collect(ring.newest_first())
    return log._replace(shortened=log.shortened or ring.is_too_long)


class _Ring:
    """struct printk_ringbuffer: descriptors in a ring, the texts in another."""

    def __init__(self, kernel: Kernel) -> None:
        info = kernel.info
        self._kernel = kernel
        ring = kernel.u64(info.symbol("prb"))
        descriptors = ring + info.offset("printk_ringbuffer.desc_ring")
        texts = ring + info.offset("printk_ringbuffer.text_data_ring")
        count_bits = kernel.u32(descriptors + info.offset("prb_desc_ring.count_bits"))
        self._size_bits = kernel.u32(texts + info.offset("prb_data_ring.size_bits"))
        if not 0 < count_bits < 32 or not 0 < self._size_bits < 32:
            raise Unreadable("the head of its kernel log is damaged")
        self._count = 1 << count_bits
        self._descriptors = kernel.u64(descriptors + info.offset("prb_desc_ring.descs"))
        self._infos = kernel.u64(descriptors + info.offset("prb_desc_ring.infos"))
        self._texts = kernel.u64(texts + info.offset("prb_data_ring.data"))
        self._head = kernel.u64(descriptors + info.offset("prb_desc_ring.head_id")) & _ID_MASK
        self._tail = kernel.u64(descriptors + info.offset("prb_desc_ring.tail_id")) & _ID_MASK
        self.is_too_long = min((self._head - self._tail & _ID_MASK) + 1, self._count) > MAX_RECORDS
        self._descriptor_size, self._info_size = info.size("prb_desc"), info.size("printk_info")
        block = info.offset("prb_desc.text_blk_lpos")
        self._at = (
            info.offset("prb_desc.state_var"),
            block + info.offset("prb_data_blk_lpos.begin"),
            block + info.offset("prb_data_blk_lpos.next"),
        )
        self._time_at, self._length_at = (
            info.offset("printk_info.ts_nsec"),
            info.offset("printk_info.text_len"),
        )

    def newest_first(self) -> Iterator[Record | None]:
        """Yield the newest records back from the head; None for one whose memory is not there."""
        number = self._head
        for _ in range(min(self._count, MAX_RECORDS)):
            try:
                record = self._record(number)
                if record is not None:
                    yield record
            except NotInDump:
                yield None
            if number == self._tail:
                return
            number = number - 1 & _ID_MASK

    def _record(self, number: int) -> Record | None:
        """Return a record; None for one that has no text or was not written to its end."""
        slot = number % self._count
        descriptor = self._descriptors + slot * self._descriptor_size
        state, begin, following = (self._kernel.u64(descriptor + at) for at in self._at)
        if state & _ID_MASK != number or state >> 62 not in (_COMMITTED, _FINALIZED):
            return None
        ring_bytes = 1 << self._size_bits
        start, size = begin % ring_bytes, (following - begin) & _POSITION_MASK
        # A block that would not fit before the end lies at the start of the ring, whole.
        if begin >> self._size_bits != ((following - 1) & _POSITION_MASK) >> self._size_bits:
            start, size = 0, following % ring_bytes
        if begin & 1 or not _BLOCK_ID_BYTES < size <= ring_bytes:
            return None
        info = self._infos + slot * self._info_size
        (length,) = _U16.unpack(self._kernel.read(info + self._length_at, 2))
        length = min(length, size - _BLOCK_ID_BYTES)
        text = self._kernel.read(self._texts + start + _BLOCK_ID_BYTES, length) if length else b""
        return Record(self._kernel.u64(info + self._time_at), text)


# --- records in log_buf: Linux 3.5 to 5.9 ----------------------------------------------------------


def _read_buffer(kernel: Kernel) -> Log:
    info = kernel.info
    name = "printk_log" if "SIZE(printk_log)" in info else "log"
    header = info.size(name)
    time_at, length_at, text_at = (info.offset(f"{name}.{field}") for field in ("ts_nsec", "len", "text_len"))
    if max(time_at + 8, length_at + 2, text_at + 2) > header:
        raise Unreadable(f"its VMCOREINFO is damaged at SIZE({name})")
    start, size = kernel.u64(info.symbol("log_buf")), kernel.u32(info.symbol("log_buf_len"))
    index, end = kernel.u32(info.symbol("log_first_idx")), kernel.u32(info.symbol("log_next_idx"))
    if not header <= size <= 1 << 31 or index >= size or end > size:
        raise Unreadable("the head of its kernel log is damaged")
    records: deque[Record | None] = deque()
    kept, shortened = 0, False
    try:
        for raw in _chain(kernel, start, size, index, end, header, length_at):
            (text_length,) = _U16.unpack_from(raw, text_at)
            (time_ns,) = _U64.unpack_from(raw, time_at)
            records.append(Record(time_ns, raw[header : header + text_length]))
            kept += len(raw)
            while kept > MAX_TEXT:
                oldest = records.popleft()
                kept -= header + len(oldest.text) if oldest is not None else 0
                shortened = True
    except NotInDump:
        records.append(None)
    log = collect(reversed(records))
    return log._replace(shortened=log.shortened or shortened)


def _chain(
    kernel: Kernel, start: int, size: int, index: int, end: int, header: int, length_at: int
) -> Iterator[bytes]:
    """Yield each record with its header, oldest first. Raises NotInDump where their chain breaks."""
    left = size
    for _ in range(MAX_RECORDS):
        if index == end:
            return
        (length,) = _U16.unpack(kernel.read(start + index + length_at, 2))
        if not length and index:
            # A length of zero says that the next record lies at the start of the buffer.
            left -= size - index
            index = 0
            continue
        left -= length
        if length < header or index + length > size or left < 0:
            break
        yield kernel.read(start + index, length)
        index += length
    raise NotInDump("the chain of its records is broken")
