# SPDX-License-Identifier: GPL-3.0-or-later
"""ELF dumps: ``/proc/vmcore``, QEMU's dump-guest-memory, ``virsh dump --memory-only`` (elf(5)).

QEMU 7.1 and later put the section headers first, so the program headers stand where ``e_phoff`` says
and not behind the header; their number may be in the first section header (``PN_XNUM``).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from rescue_agent.probe.vmcore.source import Check, NotInDump, Source, Unreadable

MAGIC = b"\x7fELF"
MAX_SEGMENTS = 1 << 18
MAX_NOTES = 1 << 16
MAX_VMCOREINFO = 1 << 16
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF
_ET_CORE = 4
_NT_AUXV, _NT_FILE = 6, 0x46494C45
_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le", 22: "s390x", 243: "riscv64", 258: "loongarch64"}
_KERNEL_MAP = 0xFFFFFFFF80000000
_PIECE = 1 << 20
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")


class Note(NamedTuple):
    """One note: its owner, its type, and where its contents lie in the file."""

    name: bytes
    type: int
    offset: int
    size: int


class _Program(NamedTuple):
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int
    align: int


def programs(source: Source) -> tuple[int, int, Iterator[_Program]]:
    """Return ``e_type``, ``e_machine`` and the program headers of a 64-bit little-endian ELF file.

    Raises Unreadable when it is none, or when its headers lie outside of it.
    """
    raw = source.read(0, _HEADER.size)
    if raw[:4] != MAGIC or len(raw) < _HEADER.size:
        raise Unreadable("it ends within the ELF header")
    if raw[4] != 2 or raw[5] != 1:
        raise Unreadable("it is of a 32-bit or big-endian machine; crash of that architecture reads it")
    fields = _HEADER.unpack(raw)
    kind, machine, at, sections, entry, count = (fields[index] for index in (1, 2, 5, 6, 9, 10))
    if count == _PN_XNUM:
        first = source.read(sections, 64)
        if len(first) < 64:
            raise Unreadable("its section headers lie beyond its end")
        (count,) = struct.unpack_from("<I", first, 44)  # sh_info
    if count and entry < _PROGRAM.size:
        raise Unreadable("its ELF header is damaged")
    if count > MAX_SEGMENTS:
        raise Unreadable(f"its ELF header is damaged: {count} program headers")
    return kind, machine, _program_headers(source, at, entry, count)


def _program_headers(source: Source, at: int, entry: int, count: int) -> Iterator[_Program]:
    for index in range(count):
        raw = source.read(at + index * entry, _PROGRAM.size)
        if len(raw) < _PROGRAM.size:
            raise Unreadable("its program headers lie beyond its end")
        yield _Program(*_PROGRAM.unpack(raw))


def notes(source: Source, offset: int, size: int) -> Iterator[Note]:
    """Yield the notes of a PT_NOTE segment, as far as they lie within the file."""
    end = min(offset + size, source.size)
    for _ in range(MAX_NOTES):
        raw = source.read(offset, _NOTE.size)
        if len(raw) < _NOTE.size or offset + _NOTE.size > end:
            return
        name_size, data_size, kind = _NOTE.unpack(raw)
        name = source.read(offset + _NOTE.size, min(name_size, 64)).rstrip(b"\0")
        data = offset + _NOTE.size + (name_size + 3 & ~3)
        if name and data <= end:
            yield Note(name, kind, data, min(data_size, end - data))
        offset = data + (data_size + 3 & ~3)


class ElfMemory:
    """The memory in an ELF dump."""

    format = "ELF"
    release = ""

    def __init__(self, source: Source) -> None:
        self._source = source
        kind, machine, headers = programs(source)
        if kind != _ET_CORE:
            raise Unreadable("it is a program or a kernel image, no memory dump")
        self.machine = _MACHINES.get(machine, f"ELF machine {machine}")
        self.vmcoreinfo = b""
        segments, bases, owners = self._sort(headers)
        if not segments and not owners:
            raise Unreadable(
                "it has no program headers, as in a core of Xen's xl dump-core; "
                "crash with the kernel's debuginfo (--debuginfo) reads those"
            )
        if {(b"CORE", _NT_AUXV), (b"CORE", _NT_FILE)} & owners:
            raise Unreadable("it is the core dump of one process, not of a machine")
        self.phys_bases = tuple(bases)
        self._starts, self._sizes, self._offsets = _disjoint(segments)
        end = max((offset + size for _, size, offset in segments), default=0)
        missing = end - source.size
        self.remarks: tuple[str, ...] = (
            (f"the file is cut off: {missing} bytes are missing at its end",) if missing > 0 else ()
        )

    def _sort(
        self, headers: Iterator[_Program]
    ) -> tuple[list[tuple[int, int, int]], list[int], set[tuple[bytes, int]]]:
        segments: list[tuple[int, int, int]] = []
        bases: list[int] = []
        owners: set[tuple[bytes, int]] = set()
        for program in headers:
            if program.type == _PT_LOAD and program.file_size:
                segments.append((program.paddr, program.file_size, program.offset))
                if program.vaddr >= _KERNEL_MAP and len(bases) < 16:
                    # kdump's ELF core maps the kernel's image, and with it gives phys_base away.
                    bases.append(program.paddr - (program.vaddr - _KERNEL_MAP))
            elif program.type == _PT_NOTE and not self.vmcoreinfo:
                for note in notes(self._source, program.offset, program.file_size):
                    owners.add((note.name, note.type))
                    if note.name == b"VMCOREINFO":
                        self.vmcoreinfo = self._source.read(note.offset, min(note.size, MAX_VMCOREINFO))
        return segments, bases, owners

    def read(self, address: int, size: int) -> bytes:
        """Return memory at a physical address. Raises NotInDump unless all of it is there."""
        out = b""
        while len(out) < size:
            at = address + len(out)
            index = bisect_right(self._starts, at) - 1 if 0 <= at < 1 << 64 else -1
            inside = at - self._starts[index] if index >= 0 else 0
            if index < 0 or inside >= self._sizes[index]:
                raise NotInDump(f"physical address {at:#x} is not in it")
            wanted = min(size - len(out), self._sizes[index] - inside)
            data = self._source.read(self._offsets[index] + inside, wanted)
            if len(data) < wanted:
                raise NotInDump(f"it is cut off before physical address {at + len(data):#x}")
            out += data
        return out

    def search(self, needle: bytes, check: Check) -> Iterator[int]:
        """Yield the physical addresses at which the text stands."""
        budget = self._source.size + _PIECE
        for start, size, offset in zip(self._starts, self._sizes, self._offsets, strict=True):
            at = offset
            end = min(offset + size, self._source.size)
            while at < end:
                check()
                at = max(self._source.next_data(at) - len(needle), at)
                data = self._source.read(at, min(_PIECE, end - at))
                budget -= len(data)
                if budget < 0:
                    raise Unreadable("its program headers are damaged: they overlap in the file")
                found = data.find(needle)
                while found >= 0:
                    yield start + at + found - offset
                    found = data.find(needle, found + 1)
                if len(data) <= len(needle):
                    break
                at += len(data) - len(needle) + 1


def _disjoint(segments: list[tuple[int, int, int]]) -> tuple[array[int], array[int], array[int]]:
    """Return starts, sizes and file offsets by address; what a segment repeats of another is cut away."""
    starts, sizes, offsets = array("Q"), array("Q"), array("Q")
    covered = 0
    for start, size, offset in sorted(segments):
        skip = max(covered - start, 0)
        if skip >= size or start + size > 1 << 64 or offset + size > 1 << 64:
            continue
        starts.append(start + skip)
        sizes.append(size - skip)
        offsets.append(offset + skip)
        covered = start + size
    return starts, sizes, offsets
