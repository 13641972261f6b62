# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory dumps made by hand: a small kernel with real page tables and a log, in every form of file.

Structures are those of the kernel's source: struct printk_ringbuffer of Linux 6.1, struct log of 3.10.
The kernel's image is mapped at 0xffffffff80000000, everything else through the tables alone, at
addresses of the direct map that have nothing to do with where the pages lie.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backports import zstd

CORPUS = Path(
    os.environ.get("RESCUE_AGENT_CRASH_DUMPS", Path(__file__).resolve().parents[3] / "shared/crash-dumps")
)
"""Dumps of a real kernel that panicked; they lie beside the repository."""

PAGE = 4096
IMAGE = 0xFFFFFFFF80000000
DIRECT = 0xFFFF888000000000
RELEASE = "3.10.0-1160.el7.x86_64"
BUILD_ID = "3b43fad5034874490492495d552c0af6a5fab235"
PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"

Record = tuple[int, bytes]
"""Nanoseconds since boot, text."""

LOG: tuple[Record, ...] = (
    (0, f"Linux version {RELEASE} (mockbuild) #1 SMP".encode()),
    (1_500_000_000, b"two lines\nof one record, \x1b[31mtab\there, caf\xc3\xa9"),
    (2_000_000, b""),
    *((2_000_000_000 + n * 1_000_000, f"filler {n} ".encode() * (n % 9 + 1)) for n in range(180)),
    (3_624_938_000, PANIC.encode()),
    (12_345_678_901_000, f"---[ end {PANIC} ]---".encode()),
)


def printed(log: Sequence[Record]) -> list[str]:
    """Return the lines that ``makedumpfile --dump-dmesg`` prints of these records."""
    lines: list[str] = []
    for time_ns, text in log:
        stamp = f"[{time_ns // 10**9:>5}.{time_ns % 10**9 // 1000:06}] "
        body = "".join(chr(c) if 32 <= c < 127 or c in (9, 10) else f"\\x{c:02x}" for c in text)
        lines += (stamp + body).replace("\n", "\n" + " " * len(stamp)).split("\n")
    return lines


@dataclass
class Machine:
    """Physical memory, page by page."""

    phys_base: int = 0x1200000
    levels: int = 4
    pages: dict[int, bytearray] = field(default_factory=dict)
    tables: int = IMAGE + 0x1000000
    """Virtual address of swapper_pg_dir; more tables follow it."""
    free_table: int = 0x5000

    def physical(self, virtual: int) -> int:
        """Return where an address of the kernel's image lies."""
        return virtual - IMAGE + self.phys_base

    def poke(self, physical: int, data: bytes) -> None:
        """Write physical memory."""
        while data:
            page = self.pages.setdefault(physical // PAGE, bytearray(PAGE))
            inside = physical % PAGE
            page[inside : inside + len(data)] = data[: PAGE - inside]
            physical, data = physical + PAGE - inside, data[PAGE - inside :]

    def map(self, virtual: int, physical: int, *, shift: int = 12) -> None:
        """Map a page of 1 << shift bytes in the tables: 12, 21 or 30."""
        table = self.physical(self.tables)
        self.pages.setdefault(table // PAGE, bytearray(PAGE))
        for level in range(self.levels, 0, -1):
            bit = 12 + 9 * (level - 1)
            at = table + (virtual >> bit & 511) * 8
            if bit == shift:
                self.poke(at, struct.pack("<Q", physical | (0x63 if shift == 12 else 0xE3) | 1 << 63))
                return
            entry = int.from_bytes(self.pages[at // PAGE][at % PAGE : at % PAGE + 8], "little")
            if not entry:
                self.free_table += PAGE
                entry = self.physical(self.tables) + self.free_table | 0x67
                self.pages.setdefault(entry // PAGE, bytearray(PAGE))
                self.poke(at, struct.pack("<Q", entry))
            table = entry & 0x000FFFFFFFFFF000

    def put(self, virtual: int, data: bytes, *, first_frame: int) -> None:
        """Write data at addresses of the direct map, its pages in reverse order of memory."""
        count = -(-(virtual % PAGE + len(data)) // PAGE)
        for index in range(count):
            frame = (first_frame + count - 1 - index) * PAGE
            start = max(index * PAGE - virtual % PAGE, 0)
            end = (index + 1) * PAGE - virtual % PAGE
            self.map((virtual // PAGE + index) * PAGE, frame)
            self.poke(frame + (virtual % PAGE if index == 0 else 0), data[start:end] or b"\0")

    def runs(self) -> list[tuple[int, bytes]]:
        """Return physical address and contents of each run of pages."""
        found: list[tuple[int, bytearray]] = []
        for frame in sorted(self.pages):
            if found and found[-1][0] + len(found[-1][1]) == frame * PAGE:
                found[-1][1].extend(self.pages[frame])
            else:
                found.append((frame * PAGE, bytearray(self.pages[frame])))
        return [(address, bytes(data)) for address, data in found]


_OTHERS = (
    *(f"page.{name}" for name in ("flags", "_refcount", "mapping", "lru", "_mapcount", "private")),
    *(f"pglist_data.{name}" for name in ("node_zones", "nr_zones", "node_start_pfn", "node_id")),
    *(f"zone.{name}" for name in ("free_area", "vm_stat", "spanned_pages")),
    *(f"list_head.{name}" for name in ("next", "prev")),
    *(f"vmap_area.{name}" for name in ("va_start", "list")),
    "mem_section.section_mem_map",
    "free_area.free_list",
)


def _common(machine: Machine) -> dict[str, object]:
    uts = IMAGE + 0x1002B60
    machine.map(IMAGE + 0x1000000, machine.physical(IMAGE + 0x1000000), shift=21)
    machine.poke(machine.physical(uts), struct.pack("<I", 2) + b"Linux\0".ljust(65, b"\0"))
    machine.poke(machine.physical(uts) + 4 + 130, RELEASE.encode() + b"\0")
    machine.poke(machine.physical(IMAGE + 0x1003100), struct.pack("<Q", DIRECT))  # mem_map, of FLATMEM
    return {
        "OSRELEASE": RELEASE,
        "PAGESIZE": PAGE,
        "SYMBOL(init_uts_ns)": f"{uts:x}",
        "SYMBOL(swapper_pg_dir)": f"{machine.tables:x}",
        "SYMBOL(init_level4_pgt)": f"{machine.tables:x}",
        # For other readers, such as makedumpfile; and a kernel's text is as long as that.
        "SYMBOL(mem_map)": f"{IMAGE + 0x1003100:x}",
        "SIZE(page)": 64,
        **{f"OFFSET({member})": zlib.crc32(member.encode()) % 4096 for member in _OTHERS},
    }


def _text(values: dict[str, object]) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in values.items()).encode()


@dataclass(frozen=True)
class Kernel:
    """A kernel in a machine's memory, and what it tells of itself."""

    machine: Machine
    info: bytes
    """The text of its VMCOREINFO."""
    lines: list[str]
    """What is still in its log."""

    def with_text_in_memory(self) -> Kernel:
        """Put the VMCOREINFO text into a page of its own, as the kernel does."""
        self.machine.poke(0x5A7000, self.info + b"\0")
        return self


def ring_kernel(
    machine: Machine,
    log: Sequence[Record] = LOG,
    *,
    text_bits: int = 13,
    count_bits: int = 7,
    exact: bool = False,
) -> Kernel:
    """A kernel of Linux 5.10 or later whose log has gone round its rings (printk_ringbuffer.c).

    ``exact``: as the newest kernels do, a text that just fits before the end of the ring stays there.
    """
    room, count, mask = 1 << text_bits, 1 << count_bits, (1 << 64) - 1
    texts, descriptors, infos = bytearray(room), bytearray(24 * count), bytearray(88 * count)
    live: deque[tuple[int, int, Record]] = deque()
    position = -room & mask  # BLK0_LPOS
    for number, record in enumerate(log):
        identity = number - count & (1 << 62) - 1
        slot = identity % count
        begin = following = 3  # NO_LPOS
        if record[1]:
            size = 8 + len(record[1]) + -len(record[1]) % 8
            begin, start, following = position, position % room, position + size & mask
            if begin >> text_bits != (following - exact & mask) >> text_bits:
                start, following = 0, (following >> text_bits << text_bits) + size
            position = following
            texts[start : start + size] = struct.pack("<Q", identity) + record[1].ljust(size - 8, b"\0")
        while live and (len(live) >= count - 1 or position - live[0][1] & mask > room):
            live.popleft()
        live.append((identity, begin if record[1] else position, record))
        struct.pack_into("<QQQ", descriptors, slot * 24, identity | 2 << 62, begin, following)
        struct.pack_into("<QQHBB", infos, slot * 88, number, record[0], len(record[1]), 0, 6 << 5)
    places = (DIRECT + 0x7F000123450, DIRECT + 0x7F000234560, DIRECT + 0x7F000345670)
    for place, data, frame in zip(places, (texts, descriptors, infos), (0x300, 0x320, 0x340), strict=True):
        machine.put(place, bytes(data), first_frame=frame)
    pointer, ring = IMAGE + 0x10032C0, IMAGE + 0x10032E0
    machine.poke(machine.physical(pointer), struct.pack("<Q", ring))
    state = struct.pack("<I4xQQQQQ", count_bits, places[1], places[2], live[-1][0], live[0][0], 0)
    machine.poke(
        machine.physical(ring), state + struct.pack("<I4xQQQ", text_bits, places[0], position, live[0][1])
    )
    info = {
        **_common(machine),
        "BUILD-ID": BUILD_ID,
        "SYMBOL(prb)": f"{pointer:x}",
        **{f"SIZE({name})": size for name, size in _RING_SIZES.items()},
        **{f"OFFSET({name})": offset for name, offset in _RING_OFFSETS.items()},
        "NUMBER(phys_base)": machine.phys_base,
        "NUMBER(pgtable_l5_enabled)": int(machine.levels == 5),
        "KERNELOFFSET": "0",
        "CRASHTIME": 1574266958,
    }
    return Kernel(machine, _text(info), printed([record for _, _, record in live if record[1]]))


_RING_SIZES = {
    "printk_ringbuffer": 88,
    "prb_desc_ring": 48,
    "prb_desc": 24,
    "printk_info": 88,
    "prb_data_ring": 32,
}
_RING_OFFSETS = {
    "printk_ringbuffer.desc_ring": 0,
    "printk_ringbuffer.text_data_ring": 48,
    "prb_desc_ring.count_bits": 0,
    "prb_desc_ring.descs": 8,
    "prb_desc_ring.infos": 16,
    "prb_desc_ring.head_id": 24,
    "prb_desc_ring.tail_id": 32,
    "prb_desc.state_var": 0,
    "prb_desc.text_blk_lpos": 8,
    "prb_data_blk_lpos.begin": 0,
    "prb_data_blk_lpos.next": 8,
    "printk_info.ts_nsec": 8,
    "printk_info.text_len": 16,
    "prb_data_ring.size_bits": 0,
    "prb_data_ring.data": 8,
    "atomic_long_t.counter": 0,
}


def buffer_kernel(
    machine: Machine, log: Sequence[Record] = LOG, *, name: str = "log", size: int = 8192
) -> Kernel:
    """A kernel of Linux 3.5 to 5.9 whose records have gone round log_buf (log_store in printk.c).

    As el7's: it tells neither phys_base nor a build-id. ``name``: ``log`` before 3.11, then ``printk_log``.
    """
    buffer = bytearray(size)
    live: deque[tuple[int, Record]] = deque()
    end = 0
    for record in log:
        length = 16 + len(record[1]) + -len(record[1]) % 4
        while live:
            first = live[0][0]
            if (max(size - end, first) if end > first else first - end) > length + 16:
                break
            live.popleft()
        if end + length + 16 >= size:
            buffer[end : end + 16] = bytes(16)
            end = 0
        live.append((end, record))
        struct.pack_into("<QHHHBB", buffer, end, record[0], length, len(record[1]), 0, 0, 6 << 5)
        buffer[end + 16 : end + length] = record[1].ljust(length - 16, b"\0")
        end += length
    machine.put(DIRECT + 0x7F000123450, bytes(buffer), first_frame=0x300)
    symbols = {
        "log_buf": 0x1003000,
        "log_buf_len": 0x1003008,
        "log_first_idx": 0x1003010,
        "log_next_idx": 0x1003014,
    }
    state = struct.pack("<QI4xII", DIRECT + 0x7F000123450, size, live[0][0], end)
    machine.poke(machine.physical(IMAGE + 0x1003000), state)
    info = {
        **_common(machine),
        **{f"SYMBOL({symbol})": f"{IMAGE + offset:x}" for symbol, offset in symbols.items()},
        f"SIZE({name})": 16,
        f"OFFSET({name}.ts_nsec)": 0,
        f"OFFSET({name}.len)": 8,
        f"OFFSET({name}.text_len)": 10,
        f"OFFSET({name}.dict_len)": 12,
    }
    return Kernel(machine, _text(info), printed([record for _, record in live]))


class Bytes:
    """A dump in memory, to be read like a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size] if offset >= 0 and size > 0 else b""

    def next_data(self, offset: int) -> int:
        return min(offset, self.size)


# --- the forms of file -----------------------------------------------------------------------------


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """Return an ELF note."""
    name += b"\0"
    pad = -len(name) % 4, -len(data) % 4
    return struct.pack("<III", len(name), len(data), kind) + name + bytes(pad[0]) + data + bytes(pad[1])


def elf(
    machine: Machine,
    notes: bytes = b"",
    *,
    qemu: bool = False,
    many: bool = False,
    kernel_map: bool = False,
    kind: int = 4,
    arch: int = 62,
) -> bytes:
    """Return an ELF core. ``qemu``: section headers first, as QEMU writes since 7.1; ``many``: the count of
    program headers stands in a section header; ``kernel_map``: with the segment of the kernel's image
    that kdump's core has."""
    runs = machine.runs()
    programs = len(runs) + 1 + kernel_map
    at = 192 if qemu else 64
    sections = 64 if qemu else (at + programs * 56 if many else 0)
    start = at + programs * 56 + (64 if many and not qemu else 0)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, arch, 1, 0, at, sections, 0, 8 if qemu else 64, 56,
        0xFFFF if many else programs, 64 if sections else 0, 1 if sections else 0, 0,
    )  # fmt: skip
    section = bytes(44) + struct.pack("<I", programs) + bytes(16) if sections else b""
    table = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(notes), len(notes), 4)
    offset = start + len(notes)
    for address, data in runs:
        table += struct.pack("<IIQQQQQQ", 1, 0, offset, 0, address, len(data), len(data), 0)
        if kernel_map and address <= machine.physical(machine.tables) < address + len(data):
            virtual = address - machine.phys_base + IMAGE
            table += struct.pack("<IIQQQQQQ", 1, 0, offset, virtual, address, len(data), len(data), 0)
        offset += len(data)
    head = header + section.ljust(at - 64, b"\0") + table if qemu else header + table + section
    return head + notes + b"".join(data for _, data in runs)


LZO, SNAPPY, ZSTD = 2, 4, 0x20


def kdump(
    kernel: Kernel,
    *,
    with_info: bool = True,
    phys_base: int | None = None,
    flags: int = 1,
    version: int = 6,
    machine_name: str = "x86_64",
    split: int = 0,
) -> bytes:
    """Return a kdump-compressed dump; ``flags``: how the pages claim to be compressed (1: zlib)."""
    machine = kernel.machine
    frames = sorted(machine.pages)
    pages = frames[-1] + 1
    bitmap = bytearray(-(-pages // (8 * PAGE)) * PAGE)
    for frame in frames:
        bitmap[frame >> 3] |= 1 << (frame & 7)
    info = kernel.info if with_info else b""
    names = [b"Linux", b"", b"", b"", machine_name.encode(), b""]
    head = b"KDUMP   " + struct.pack("<i", version) + b"".join(name.ljust(65, b"\0") for name in names)
    head = head.ljust(424, b"\0") + struct.pack("<IiiII", 1, PAGE, 1, len(bitmap) * 2 // PAGE, pages)
    base = machine.phys_base if phys_base is None else phys_base
    sub = struct.pack("<qiiQQQQ", base, 0, split, 0, 0, PAGE + 512 if info else 0, len(info))
    sub = sub.ljust(96, b"\0") + struct.pack("<Q", pages)
    out = head.ljust(PAGE, b"\0") + (sub.ljust(512, b"\0") + info).ljust(PAGE, b"\0") + bitmap * 2
    at = len(out) + 24 * len(frames)
    table, data = b"", b""
    for frame in frames:
        page = bytes(machine.pages[frame])
        packed = zstd.compress(page) if flags == ZSTD else zlib.compress(page, 1)
        flag = flags
        if len(packed) >= PAGE:
            packed, flag = bytes(machine.pages[frame]), 0
        table += struct.pack("<qIIQ", at + len(data), len(packed), flag, 0)
        data += packed
    return out + table + data


def flattened(dump: bytes, piece: int = 1500) -> bytes:
    """Return the flattened form: two interleaved streams, and the header once more at the end."""
    middle = len(dump) // 2
    left, right = (
        [(at, min(piece, end - at)) for at in range(start, end, piece)]
        for start, end in ((0, middle), (middle, len(dump)))
    )
    out = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    out = out.ljust(4096, b"\0")
    for index in range(max(len(left), len(right))):
        for pieces in (left, right):
            for at, size in pieces[index : index + 1]:
                data = bytes(size) if at == 0 else dump[at : at + size]
                out += struct.pack(">qq", at, size) + data
    return out + struct.pack(">qq", 0, piece) + dump[:piece] + struct.pack(">qq", -1, -1)
