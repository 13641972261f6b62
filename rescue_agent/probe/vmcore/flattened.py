# SPDX-License-Identifier: GPL-3.0-or-later
"""The flattened form: a dump written as a stream of pieces that each say where they belong.

makedumpfile(8) ``-F`` writes it, and so does QEMU for every kdump format. After a 4096-byte header
follow records of a big-endian offset, a size and the bytes; offset and size -1 end the stream. A later
piece replaces an earlier one. Source: makedumpfile's IMPLEMENTATION file, QEMU's dump/dump.c.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right

from rescue_agent.probe.vmcore.source import MAX_OFFSET, Check, Source, Unreadable

MAGIC = b"makedumpfile\0\0\0\0"
HEADER_BYTES = 4096
MAX_EXTENTS = 1 << 14
_RECORD = struct.Struct(">qq")
_MARK_BYTES = 1 << 20
_MARK_RECORDS = 256
_TINY_BYTES = 512
_MANY = 1 << 18


class _Extent:
    """Pieces that follow one another without a gap, wherever in the file they lie.

    Only some of them are noted (``marks``: place in the dump, ``positions``: place in the file); the
    others are found by walking on from there. So the index stays small for a dump of any size.
    """

    __slots__ = ("end", "last", "marks", "positions", "start", "unmarked")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.marks = array("Q")
        self.positions = array("Q")
        self.unmarked = 0
        self.last = (start, 0)

    def add(self, size: int, position: int) -> None:
        self.unmarked += 1
        if not self.marks or self.end - self.marks[-1] >= _MARK_BYTES or self.unmarked >= _MARK_RECORDS:
            self.marks.append(self.end)
            self.positions.append(position)
            self.unmarked = 0
        self.end += size

    def place_before(self, offset: int) -> tuple[int, int]:
        """Return the start of a noted piece at or before ``offset`` and its position in the file."""
        index = bisect_right(self.marks, offset) - 1
        noted = self.marks[index], self.positions[index]
        return self.last if noted[0] < self.last[0] <= offset else noted


class FlattenedSource:
    """The dump that a flattened file stands for; what no piece covers reads as zeros."""

    def __init__(self, source: Source, check: Check) -> None:
        self._source = source
        extents = self._index(check)
        if not extents:
            raise Unreadable("it ends before its first piece")
        self.size = max(extent.end for extent in extents)
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[_Extent] = []
        for extent in extents:
            self._lay_over(extent)

    def _index(self, check: Check) -> list[_Extent]:
        extents: list[_Extent] = []
        ending_at: dict[int, _Extent] = {}
        position, records = HEADER_BYTES, 0
        while True:
            head = self._source.read(position, _RECORD.size)
            if len(head) < _RECORD.size:
                break
            offset, size = _RECORD.unpack(head)
            there = min(size, self._source.size - position - _RECORD.size)
            if offset < 0 or there <= 0 or offset + size > MAX_OFFSET:
                break
            extent = ending_at.pop(offset, None)
            if extent is None:
                if len(extents) >= MAX_EXTENTS:
                    raise Unreadable("its pieces lie in too wild an order; makedumpfile -R puts them right")
                extent = _Extent(offset)
                extents.append(extent)
            extent.add(there, position)
            ending_at[extent.end] = extent
            position += _RECORD.size + size
            records += 1
            if records % 4096 == 0:
                check()
                if records > _MANY and position < records * _TINY_BYTES:
                    raise Unreadable("its pieces are too small; makedumpfile -R puts them together")
        return extents

    def _lay_over(self, extent: _Extent) -> None:
        """Note which part of the dump the extent covers; what it covers of earlier ones is replaced."""
        first = bisect_right(self._ends, extent.start)
        after = bisect_left(self._starts, extent.end)
        parts = [(extent.start, extent.end, extent)]
        if first < after and self._starts[first] < extent.start:
            parts.insert(0, (self._starts[first], extent.start, self._owners[first]))
        if first < after and self._ends[after - 1] > extent.end:
            parts.append((extent.end, self._ends[after - 1], self._owners[after - 1]))
        self._starts[first:after] = [part[0] for part in parts]
        self._ends[first:after] = [part[1] for part in parts]
        self._owners[first:after] = [part[2] for part in parts]

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes there, put together from the pieces."""
        if not 0 <= offset < self.size or size <= 0:
            return b""
        out = bytearray(min(size, self.size - offset))
        end = offset + len(out)
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            low, high = max(offset, self._starts[index]), min(end, self._ends[index])
            if low < high:
                self._copy(self._owners[index], low, high, out, offset)
            index += 1
        return bytes(out)

    def _copy(self, extent: _Extent, low: int, high: int, out: bytearray, base: int) -> None:
        cursor, position = extent.place_before(low)
        while cursor < high:
            head = self._source.read(position, _RECORD.size)
            if len(head) < _RECORD.size:
                return
            offset, size = _RECORD.unpack(head)
            if offset == cursor:
                start, stop = max(low, cursor), min(high, cursor + size)
                if start < stop:
                    data = self._source.read(position + _RECORD.size + start - cursor, stop - start)
                    out[start - base : start - base + len(data)] = data
                extent.last = (cursor, position)
                cursor += size
            position += _RECORD.size + size

    def next_data(self, offset: int) -> int:
        """Return the next offset that a piece covers."""
        index = bisect_right(self._ends, offset)
        return max(offset, self._starts[index]) if index < len(self._starts) else self.size
