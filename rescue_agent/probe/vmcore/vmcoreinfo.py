# SPDX-License-Identifier: GPL-3.0-or-later
"""VMCOREINFO: what a kernel tells of itself to those who read its memory after its death.

Lines of ``KEY=value`` (Documentation/admin-guide/kdump/vmcoreinfo.rst of the kernel). The text is in a
note of the dump, or at least somewhere in the memory that was dumped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rescue_agent.model.document import printable
from rescue_agent.probe.vmcore.memory import Memory
from rescue_agent.probe.vmcore.source import Check, NotInDump, Unreadable

START = b"OSRELEASE="
TABLE = b"SYMBOL(swapper_pg_dir)="
TEXT_BYTES = 8192
"""Twice the room that the kernel gives it."""
MAX_HITS = 1 << 16
_MAX_DIGITS = 24
_MAX_NAME = 200


class VmcoreInfo:
    """The parsed text. What it lacks is an Unreadable that names it."""

    def __init__(self, text: bytes) -> None:
        lines = text.split(b"\0", 1)[0].decode("ascii", "backslashreplace").split("\n")
        self._values = dict(line.split("=", 1) for line in lines if "=" in line)
        self.release = printable(self._values.get("OSRELEASE", ""))[:_MAX_NAME]
        self.build_id = printable(self._values.get("BUILD-ID", ""))[:_MAX_NAME]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _number(self, key: str, base: int) -> int:
        try:
            value = self._values[key]
        except KeyError:
            raise Unreadable(f"its VMCOREINFO has no {key}") from None
        try:
            if len(value) <= _MAX_DIGITS:
                return int(value, base)
        except ValueError:
            pass
        raise Unreadable(f"its VMCOREINFO is damaged at {key}")

    def symbol(self, name: str) -> int:
        """Return the virtual address of a kernel symbol, KASLR included."""
        return self._number(f"SYMBOL({name})", 16) & (1 << 64) - 1

    def offset(self, member: str) -> int:
        """Return the offset in bytes of ``struct.member``."""
        return self._bounded(f"OFFSET({member})", range(1 << 16))

    def size(self, structure: str) -> int:
        """Return the size in bytes of a structure."""
        return self._bounded(f"SIZE({structure})", range(1, 1 << 16))

    def number(self, name: str) -> int:
        """Return a NUMBER, which architectures write as decimal or as ``0x…``."""
        value = self._values.get(f"NUMBER({name})", "")
        return self._number(f"NUMBER({name})", 16 if value.lower().startswith("0x") else 10)

    @property
    def page_bytes(self) -> int:
        """The kernel's page size."""
        return self._bounded("PAGESIZE", (4096, 16384, 65536))

    @property
    def crash_time(self) -> str:
        """When the kernel crashed, UTC, ISO 8601; only the kernel's own kdump notes that."""
        try:
            seconds = self._number("CRASHTIME", 10)
            return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (Unreadable, OverflowError, OSError, ValueError):
            return ""

    def _bounded(self, key: str, possible: range | tuple[int, ...]) -> int:
        value = self._number(key, 10)
        if value not in possible:
            raise Unreadable(f"its VMCOREINFO is damaged at {key}")
        return value


def search_texts(memory: Memory, check: Check) -> Iterator[bytes]:
    """Yield what looks like a VMCOREINFO text in the memory itself, in order of address.

    A text from before a reboot may still be there: the caller must prove that it fits.
    """
    seen = set()
    for hit, address in enumerate(memory.search(START, check)):
        if hit >= MAX_HITS:
            return
        text = b""
        try:
            # The kernel gives the text a page of its own; what follows it may not be in the dump.
            text = memory.read(address, 4096 - address % 4096)
            if b"\0" not in text:
                text += memory.read(address + len(text), TEXT_BYTES - len(text))
        except NotInDump:
            pass
        text = text.split(b"\0", 1)[0]
        if TABLE in text and text not in seen:
            seen.add(text)
            yield text
