# SPDX-License-Identifier: GPL-3.0-or-later
"""From the bytes of a dump to its kernel's log, without debug information."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from rescue_agent.probe.vmcore import elfcore, flattened, kdump
from rescue_agent.probe.vmcore.kernel import Kernel
from rescue_agent.probe.vmcore.memory import Memory
from rescue_agent.probe.vmcore.printk import Log, read_log
from rescue_agent.probe.vmcore.source import Check, CompressedPages, Source, Unreadable
from rescue_agent.probe.vmcore.vmcoreinfo import VmcoreInfo, search_texts

MAX_CANDIDATES = 16
"""Texts in memory that look like a VMCOREINFO and are tried: a few may be left from earlier boots."""


class Opened(NamedTuple):
    """The memory in a dump, and the plain form of the dump when it was flattened."""

    memory: Memory
    source: Source
    is_flattened: bool

    @property
    def format(self) -> str:
        return self.memory.format + (" (flattened)" if self.is_flattened else "")


class Decoded(NamedTuple):
    """What a dump's memory brought."""

    info: VmcoreInfo
    how: str
    """``note`` or ``memory scan``: where the VMCOREINFO was."""
    log: Log


def open_memory(source: Source, check: Check) -> Opened | None:
    """Return the memory in a dump, or None when the file is no dump of a form known here.

    Raises Unreadable when it is one, and damaged.
    """
    is_flattened = source.read(0, len(flattened.MAGIC)) == flattened.MAGIC
    if is_flattened:
        source = flattened.FlattenedSource(source, check)
    head = source.read(0, 8)
    if head.startswith(elfcore.MAGIC):
        return Opened(elfcore.ElfMemory(source), source, is_flattened)
    if head == kdump.MAGIC:
        return Opened(kdump.KdumpMemory(source, check), source, is_flattened)
    if is_flattened:
        raise Unreadable("its first piece, the dump's header, is missing")
    return None


def decode(memory: Memory, check: Check) -> Decoded:
    """Return the log of the kernel in a dump's memory.

    A VMCOREINFO is believed only when the kernel that it tells of is there. Raises Unreadable with
    what was wrong with the first one, and CompressedPages.
    """
    problem: Unreadable | None = None
    try:
        for how, text in _texts(memory, check):
            try:
                info = VmcoreInfo(text)
                return Decoded(info, how, read_log(Kernel(memory, info)))
            except CompressedPages:
                raise
            except Unreadable as error:
                problem = problem or error
    except CompressedPages:
        raise
    except Unreadable as error:
        problem = problem or error
    raise problem or Unreadable(
        "it has no VMCOREINFO, neither as a note nor in its memory (an old kernel, a netdump, "
        "a system other than Linux, or a dump that is cut off)"
    )


def _texts(memory: Memory, check: Check) -> Iterator[tuple[str, bytes]]:
    if memory.vmcoreinfo:
        yield "note", memory.vmcoreinfo
    for text in islice(search_texts(memory, check), MAX_CANDIDATES):
        yield "memory scan", text
