# SPDX-License-Identifier: GPL-3.0-or-later
"""The physical memory of the machine that a dump was taken of, whatever the file's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from rescue_agent.probe.vmcore.source import Check


class Memory(Protocol):
    """Physical memory, and what the dump's own headers say of it."""

    format: str
    """``ELF``, ``kdump-compressed``."""
    machine: str
    """As ``uname -m`` names it."""
    release: str
    """The kernel's release when the dump's header has it; mostly it stands in VMCOREINFO."""
    vmcoreinfo: bytes
    """The text of the VMCOREINFO note; empty when there is none."""
    phys_bases: tuple[int, ...]
    """Where the headers say the kernel was loaded (x86-64's ``phys_base``); hints, not facts."""
    remarks: tuple[str, ...]

    def read(self, address: int, size: int) -> bytes:
        """Return memory at a physical address. Raises NotInDump unless all of it is there."""
        ...

    def search(self, needle: bytes, check: Check) -> Iterator[int]:
        """Yield the physical addresses at which a short text may stand.

        Raises Unreadable when the dump claims more memory than its size allows.
        """
        ...
