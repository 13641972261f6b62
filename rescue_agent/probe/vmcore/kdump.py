# SPDX-License-Identifier: GPL-3.0-or-later
"""kdump-compressed dumps: makedumpfile(8), QEMU's ``dump-guest-memory`` and ``virsh dump --format``.

Header, sub-header, two bitmaps (pages that exist, pages that are in the file), one descriptor for
each page in the file, the pages. Source: makedumpfile's IMPLEMENTATION and diskdump_mod.h.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator

from backports import zstd

from rescue_agent.probe.vmcore.elfcore import MAX_VMCOREINFO
from rescue_agent.probe.vmcore.source import Check, CompressedPages, NotInDump, Source, Unreadable

MAGIC = b"KDUMP   "
MAX_PAGES = 1 << 34
"""64 TiB of memory in 4 KiB pages."""
_BLOCK_SIZES = (4096, 8192, 16384, 65536)
_ZLIB, _LZO, _SNAPPY, _INCOMPLETE, _ZSTD = 1, 2, 4, 8, 0x20
_METHODS = {_LZO: "lzo", _SNAPPY: "snappy"}
_DESCRIPTOR = struct.Struct("<qIIQ")
_CHUNK = 4096
_CHUNK_PAGES = _CHUNK * 8
_CACHE_BYTES = 8 << 20
_TEXT_SIZES = range(300, 3000)
"""What a page of 4 KiB that holds little but a VMCOREINFO text (1.5 to 4 KiB of ASCII) shrinks to: the
others need not be decompressed to look for one."""


class KdumpMemory:
    """The memory in a kdump-compressed dump."""

    format = "kdump-compressed"

    def __init__(self, source: Source, check: Check) -> None:
        self._source = source
        self._check = check
        head = source.read(0, 4096)
        if head[:8] != MAGIC or len(head) < 464:
            raise Unreadable("it ends within the kdump header")
        (version,) = struct.unpack_from("<i", head, 8)
        status, block, sub_blocks, bitmap_blocks, pages = struct.unpack_from("<IiiII", head, 424)
        if block not in _BLOCK_SIZES or not 0 < version < 32 or not 0 < sub_blocks < 4096:
            raise Unreadable("its kdump header is damaged, or of a big-endian machine")
        self.block_bytes = block
        self.release, self.machine = _utsname(head, 2), _utsname(head, 4)
        sub = source.read(block, 104)
        if len(sub) < 104:
            raise Unreadable("it ends within the kdump sub-header")
        (phys_base,) = struct.unpack_from("<q", sub, 0)
        (split,) = struct.unpack_from("<i", sub, 12)
        if version >= 2 and split:
            raise Unreadable("it is one part of a split dump; makedumpfile --reassemble joins the parts")
        if version >= 6:
            (pages,) = struct.unpack_from("<Q", sub, 96)
        if not 0 < pages <= MAX_PAGES:
            raise Unreadable(f"its kdump header is damaged: {pages} pages")
        self.phys_bases: tuple[int, ...] = (phys_base,)
        self.vmcoreinfo = self._vmcoreinfo(sub) if version >= 3 else b""
        self.remarks: tuple[str, ...] = (
            ("makedumpfile marked it as incomplete",) if status & _INCOMPLETE else ()
        )
        self._pages = pages
        self._bitmap = block * (1 + sub_blocks)
        bitmap_bytes = block * bitmap_blocks
        needed = -(-pages // (8 * block)) * 2
        if bitmap_blocks >= needed:
            self._bitmap += bitmap_bytes // 2
            bitmap_bytes -= bitmap_bytes // 2
        if self._bitmap + bitmap_bytes > source.size or bitmap_bytes * 8 < pages:
            raise Unreadable("it ends within the bitmap of its pages, or its header is damaged")
        self._descriptors = self._bitmap + bitmap_bytes
        self._ranks = array("Q", [0])
        self._chunk_cache: tuple[int, bytes] = (-1, b"")
        self._cache: dict[int, bytes] = {}

    def _vmcoreinfo(self, sub: bytes) -> bytes:
        offset, size = struct.unpack_from("<QQ", sub, 32)
        return self._source.read(offset, min(size, MAX_VMCOREINFO)) if offset and size else b""

    def _chunk(self, number: int) -> bytes:
        """Return 4096 bytes of the bitmap, without what lies behind the last page."""
        if self._chunk_cache[0] != number:
            pages = min(self._pages - number * _CHUNK_PAGES, _CHUNK_PAGES)
            data = bytearray(self._source.read(self._bitmap + number * _CHUNK, -(-pages // 8)))
            if pages % 8 and data:
                data[-1] &= (1 << pages % 8) - 1
            self._chunk_cache = (number, bytes(data))
        return self._chunk_cache[1]

    def _rank(self, number: int) -> int:
        """Return how many pages of the chunks before this one are in the file."""
        while len(self._ranks) <= number:
            before = len(self._ranks) - 1
            if before % 256 == 0:
                self._check()
            self._ranks.append(self._ranks[-1] + int.from_bytes(self._chunk(before), "little").bit_count())
        return self._ranks[number]

    def _page(self, pfn: int) -> bytes:
        page = self._cache.get(pfn)
        if page is not None:
            return page
        number, inside = divmod(pfn, _CHUNK_PAGES)
        if not 0 <= pfn < self._pages or not self._chunk(number)[inside >> 3] >> (inside & 7) & 1:
            raise NotInDump(f"page {pfn:#x} is not in it")
        rank = self._rank(number)
        bits = int.from_bytes(self._chunk(number)[: (inside >> 3) + 1], "little")
        index = rank + (bits & (1 << inside) - 1).bit_count()
        raw = self._source.read(self._descriptors + index * _DESCRIPTOR.size, _DESCRIPTOR.size)
        if len(raw) < _DESCRIPTOR.size:
            raise NotInDump(f"it is cut off before the descriptor of page {pfn:#x}")
        offset, size, flags, _ = _DESCRIPTOR.unpack(raw)
        page = self._unpack(pfn, offset, size, flags)
        if len(self._cache) * self.block_bytes >= _CACHE_BYTES:
            del self._cache[next(iter(self._cache))]
        self._cache[pfn] = page
        return page

    def _unpack(self, pfn: int, offset: int, size: int, flags: int) -> bytes:
        data = self._source.read(offset, size) if 0 < size <= self.block_bytes else b""
        if len(data) != size or not data:
            raise NotInDump(f"it is cut off or damaged at page {pfn:#x}")
        for flag, method in _METHODS.items():
            if flags & flag:
                raise CompressedPages(method)
        if flags & _ZLIB:
            data = _inflate(data, self.block_bytes)
        elif flags & _ZSTD:
            data = _unzstd(data, self.block_bytes)
        if len(data) != self.block_bytes:
            raise NotInDump(f"page {pfn:#x} is damaged")
        return data

    def read(self, address: int, size: int) -> bytes:
        """Return memory at a physical address. Raises NotInDump or CompressedPages."""
        out = b""
        while len(out) < size:
            pfn, inside = divmod(address + len(out), self.block_bytes)
            out += self._page(pfn)[inside : inside + size - len(out)]
        return out

    def search(self, needle: bytes, check: Check) -> Iterator[int]:
        """Yield the physical addresses at which the text stands in pages that hold little else."""
        sizes = _TEXT_SIZES if self.block_bytes == 4096 else range(_TEXT_SIZES.start, self.block_bytes + 1)
        budget = 2 * self._source.size
        for number in range(-(-self._pages // _CHUNK_PAGES)):
            check()
            rank, data = self._rank(number), self._chunk(number)
            count = int.from_bytes(data, "little").bit_count()
            if not count:
                continue
            table = self._source.read(self._descriptors + rank * _DESCRIPTOR.size, count * _DESCRIPTOR.size)
            table = table[: len(table) // _DESCRIPTOR.size * _DESCRIPTOR.size]
            for inside, (offset, size, flags, _) in zip(
                _set_bits(data), _DESCRIPTOR.iter_unpack(table), strict=False
            ):
                if size not in sizes:
                    continue
                budget -= size
                if budget < 0:
                    raise Unreadable("its page descriptors are damaged: they overlap in the file")
                pfn = number * _CHUNK_PAGES + inside
                try:
                    found = self._unpack(pfn, offset, size, flags).find(needle)
                except NotInDump:
                    continue
                if found >= 0:
                    yield pfn * self.block_bytes + found


def _set_bits(data: bytes) -> Iterator[int]:
    for index, byte in enumerate(data):
        if byte:
            yield from (index * 8 + bit for bit in range(8) if byte >> bit & 1)


def _utsname(head: bytes, field: int) -> str:
    """Return a field of the header's struct new_utsname: 2 the release, 4 the machine."""
    raw = head[12 + 65 * field : 12 + 65 * (field + 1)]
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")


def _inflate(data: bytes, size: int) -> bytes:
    """Return at most ``size`` bytes; nothing when the checksum at the end was not reached or is wrong."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, size)
        rest = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error:
        return b""
    return out if stream.eof and not rest else b""


def _unzstd(data: bytes, size: int) -> bytes:
    """Return at most ``size`` bytes; nothing when the frame is damaged or holds more."""
    stream = zstd.ZstdDecompressor()
    try:
        out = stream.decompress(data, size)
    except zstd.ZstdError:
        return b""
    return out if stream.eof else b""
