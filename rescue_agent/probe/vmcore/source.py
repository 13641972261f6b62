# SPDX-License-Identifier: GPL-3.0-or-later
"""Random access to the bytes of a dump file, and what can go wrong with them.

Nothing here maps or keeps the file: a dump of a terabyte costs no more memory than one of a megabyte.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rescue_agent.errors import UsageError

MAX_PIECE = 64 << 20
MAX_OFFSET = (1 << 63) - 1

Check = Callable[[], None]
"""Called now and then by whatever may take long; raises to stop it."""


class Unreadable(Exception):
    """The dump does not hold what is looked for: cut off, damaged, or made in an unknown way.

    The text completes the sentence "the dump cannot be read: …".
    """


class NotInDump(Unreadable):
    """A piece of the machine's memory is not in the dump, or its bytes are damaged."""


class CompressedPages(Unreadable):
    """The pages are compressed in a way that Python's standard library does not know."""

    def __init__(self, method: str) -> None:
        super().__init__(f"its pages are compressed with {method}")
        self.method = method


class Source(Protocol):
    """Bytes that can be read anywhere."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes there; fewer at the end, none beyond it."""
        ...

    def next_data(self, offset: int) -> int:
        """Return the first offset from this one on that may hold anything but zeros."""
        ...


class FileSource:
    """A file that is open for reading, by its descriptor, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes there. Raises NotInDump where the medium cannot be read."""
        if not 0 <= offset < self.size or size <= 0:
            return b""
        size = min(size, MAX_PIECE)
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise NotInDump(f"the file cannot be read at {offset:#x}: {error.strerror}") from error

    def next_data(self, offset: int) -> int:
        """Return where the next bytes lie that are no hole of a sparse file (lseek(2))."""
        if not 0 <= offset < self.size:
            return self.size
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return self.size


@contextmanager
def open_file(path: Path) -> Iterator[FileSource]:
    """Give a regular file to read. Raises UsageError for anything else, and when it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {error.strerror}", hint="name a memory dump") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(
                f"{path} is no regular file", hint="name the dump itself, such as /var/crash/…/vmcore"
            )
        yield FileSource(descriptor)
    finally:
        os.close(descriptor)
