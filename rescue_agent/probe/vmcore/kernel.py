# SPDX-License-Identifier: GPL-3.0-or-later
"""The dead kernel's virtual memory: its page tables, walked in the dump.

x86-64 with four and five levels (Documentation/arch/x86/x86_64/mm.rst of the kernel, Intel SDM vol. 3
ch. 4) and aarch64 with every page size (Documentation/arch/arm64/memory.rst, Arm ARM D8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

from rescue_agent.probe.vmcore.memory import Memory
from rescue_agent.probe.vmcore.source import NotInDump, Unreadable
from rescue_agent.probe.vmcore.vmcoreinfo import VmcoreInfo

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_GRANULE = 4096
_CACHED_PAGES = 2048


class _Layout(Protocol):
    """Where virtual memory lies in physical memory."""

    def translate(self, address: int) -> int:
        """Return the physical address. Raises NotInDump where nothing is mapped."""
        ...


class Kernel:
    """Reads the kernel's virtual memory. Raises Unreadable when the VMCOREINFO is of another kernel."""

    def __init__(self, memory: Memory, info: VmcoreInfo) -> None:
        self.info = info
        self._memory = memory
        self._pages: dict[int, bytes] = {}
        machine = memory.machine
        if machine in ("", "Unknown"):
            # QEMU writes "Unknown" to the kdump header of everything but x86 and s390.
            machine = "aarch64" if "NUMBER(kimage_voffset)" in info else "x86_64"
        if machine == "x86_64":
            self._layout: _Layout = _X8664(memory, info)
        elif machine == "aarch64":
            self._layout = _Aarch64(memory, info)
        else:
            raise Unreadable(
                f"it is of a machine of the kind {machine!r}, whose page tables are not known here; "
                "makedumpfile --dump-dmesg or crash of that architecture reads it"
            )

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            page = self._memory.read(self._layout.translate(number * _GRANULE), _GRANULE)
            if len(self._pages) >= _CACHED_PAGES:
                del self._pages[next(iter(self._pages))]
            self._pages[number] = page
        return page

    def read(self, address: int, size: int) -> bytes:
        """Return kernel memory. Raises NotInDump unless all of it is mapped and in the dump."""
        number, inside = divmod(address, _GRANULE)
        out = self._page(number)[inside : inside + size]
        while len(out) < size:
            number += 1
            out += self._page(number)[: size - len(out)]
        return out

    def u32(self, address: int) -> int:
        """Return the 32-bit number at a virtual address."""
        return int(_U32.unpack(self.read(address, 4))[0])

    def u64(self, address: int) -> int:
        """Return the 64-bit number, or the pointer, at a virtual address."""
        return int(_U64.unpack(self.read(address, 8))[0])


def _holds_release(memory: Memory, address: int, release: str) -> bool:
    """Return whether init_uts_ns is at this physical address: it holds the release (utsname(7))."""
    wanted = release.encode() + b"\0"
    for size in (512, _GRANULE - address % _GRANULE):
        try:
            if wanted in memory.read(address, size):
                return True
        except NotInDump:  # the page that follows may be left out
            continue
    return False


class _X8664:
    _IMAGE = 0xFFFFFFFF80000000
    _IMAGE_BYTES = 1 << 30
    _ADDRESS = 0x000FFFFFFFFFF000
    _STEP = 2 << 20
    """The kernel is loaded at multiples of this (CONFIG_PHYSICAL_ALIGN)."""
    _GUESSES = 2048

    def __init__(self, memory: Memory, info: VmcoreInfo) -> None:
        self._memory = memory
        self._base = self._find_base(info)
        self._root = info.symbol("swapper_pg_dir") - self._IMAGE + self._base
        five = "NUMBER(pgtable_l5_enabled)" in info and info.number("pgtable_l5_enabled") == 1
        self._shifts = (48, 39, 30, 21, 12) if five else (39, 30, 21, 12)
        encryption = info.number("sme_mask") if "NUMBER(sme_mask)" in info else 0
        self._mask = self._ADDRESS & ~encryption

    def _find_base(self, info: VmcoreInfo) -> int:
        uts = info.symbol("init_uts_ns") - self._IMAGE
        if not info.release or not 0 <= uts < self._IMAGE_BYTES:
            raise Unreadable("its VMCOREINFO is damaged, or of another architecture")
        for base in self._bases(info):
            if _holds_release(self._memory, uts + base, info.release):
                return base
        raise Unreadable(f"the kernel {info.release} that its VMCOREINFO tells of is not in its memory")

    def _bases(self, info: VmcoreInfo) -> Iterator[int]:
        """Yield where the kernel may lie. Kernels before 4.10 do not tell, and headers may be wrong.

        QEMU reads the decimal NUMBER(phys_base) as hexadecimal and writes that to the kdump header.
        """
        if "NUMBER(phys_base)" in info:
            yield info.number("phys_base")
            return
        yield from self._memory.phys_bases
        for step in range(self._GUESSES):
            yield step * self._STEP
            yield -step * self._STEP

    def translate(self, address: int) -> int:
        if 0 <= address - self._IMAGE < self._IMAGE_BYTES:
            return address - self._IMAGE + self._base
        table = self._root
        for shift in self._shifts:
            at = table + (address >> shift & 511) * 8
            (entry,) = _U64.unpack(self._memory.read(at, 8))
            if not entry & 1:
                break
            table = entry & self._mask
            if shift == 12 or (entry & 0x80 and shift in (30, 21)):
                inside = (1 << shift) - 1
                return int(table & ~inside | address & inside)
        raise NotInDump(f"the kernel has nothing mapped at {address:#x}")


class _Aarch64:
    def __init__(self, memory: Memory, info: VmcoreInfo) -> None:
        self._memory = memory
        offset = info.number("kimage_voffset")
        self._root = (info.symbol("swapper_pg_dir") - offset) & (1 << 64) - 1
        uts = (info.symbol("init_uts_ns") - offset) & (1 << 64) - 1
        if not info.release or not _holds_release(memory, uts, info.release):
            raise Unreadable(f"the kernel {info.release} that its VMCOREINFO tells of is not in its memory")
        self._bits = info.number("VA_BITS")
        if "NUMBER(TCR_EL1_T1SZ)" in info:
            # A kernel built for 52 bits runs with 48 on a CPU that has no more.
            self._bits = 64 - info.number("TCR_EL1_T1SZ")
        self._page_shift = info.page_bytes.bit_length() - 1
        if not self._page_shift + 3 < self._bits <= 52:
            raise Unreadable("its VMCOREINFO is damaged at NUMBER(VA_BITS)")

    def translate(self, address: int) -> int:
        if address >> self._bits != (1 << 64 - self._bits) - 1:
            raise NotInDump(f"{address:#x} is no address of the kernel")
        width = self._page_shift - 3
        levels = -(-(self._bits - self._page_shift) // width)
        address &= (1 << self._bits) - 1
        table = self._root
        for level in reversed(range(levels)):
            shift = self._page_shift + level * width
            at = table + (address >> shift & (1 << width) - 1) * 8
            (entry,) = _U64.unpack(self._memory.read(at, 8))
            is_page_or_table = entry & 2
            if not entry & 1 or not (level or is_page_or_table):
                break
            table = entry & ((1 << 48) - 1) >> self._page_shift << self._page_shift
            if self._page_shift == 16:
                table |= (entry >> 12 & 0xF) << 48
            if not (level and is_page_or_table):
                inside = (1 << shift) - 1
                return int(table & ~inside | address & inside)
        raise NotInDump(f"the kernel has nothing mapped at {address:#x}")
