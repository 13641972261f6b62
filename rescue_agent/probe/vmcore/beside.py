# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel log as text beside the dump: somebody who knew the kernel has read it out already.

kdump writes ``vmcore-dmesg.txt`` (RHEL), ``dmesg.TIME`` beside ``dump.TIME`` (Debian) or ``dmesg.txt``
(SUSE); systemd-pstore joins what the firmware kept to ``dmesg.txt`` (systemd-pstore.service(8)), or
the pieces lie there as ``dmesg-efi-…``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from pathlib import Path
from typing import NamedTuple

from rescue_agent.model.document import printable

MAX_BYTES = 24 << 20
MAX_LINES = 1 << 19
MAX_PIECES = 1000
_PIECE = re.compile(r"dmesg-(?!.*\.enc\.)[a-z][\w.-]*\Z")
_PIECE_HEAD = re.compile(r"(\w+)#(\d+) Part(\d+)\Z")
_STAMPED = re.compile(r"dump\.(\d+)\Z")
_LINE = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{6}\]")
_RELEASE = re.compile(r"\] Linux version (\S+)")


class Text(NamedTuple):
    """A kernel log that was found as text."""

    name: str
    lines: list[str]
    release: str
    """What its ``Linux version`` line says; empty when that line is not there."""


def find_text(dump: Path) -> Text | None:
    """Return the log that lies beside a dump, or None."""
    stamp = _STAMPED.match(dump.name)
    names = ["vmcore-dmesg.txt", "dmesg.txt", *([f"dmesg.{stamp[1]}"] if stamp else [])]
    for name in names:
        found = _text(name, _find_lines(dump.parent / name))
        if found is not None:
            return found
    return _text("pstore", _pstore(dump.parent))


def _text(name: str, lines: list[str]) -> Text | None:
    if not any(_LINE.match(line) for line in lines[:100]):
        return None
    release = next((match[1] for line in lines[:200] if (match := _RELEASE.search(line))), "")
    return Text(name, lines, release)


def read_lines(path: Path) -> list[str]:
    """Return the last lines of a text file, fit for a terminal. Raises OSError unless it is a file."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if status.st_size > MAX_BYTES:
            file.seek(-MAX_BYTES, os.SEEK_END)
            file.readline()
        return list(deque(map(_printable, file), maxlen=MAX_LINES))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _printable(line: bytes) -> str:
    text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return "\t".join(map(printable, text.split("\t")))


def _find_lines(path: Path) -> list[str]:
    try:
        return read_lines(path)
    except OSError:
        return []


def _pstore(folder: Path) -> list[str]:
    """Return the newest record that pstore kept, its parts joined; the first part is the end of the log."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _PIECE.match(entry.name))[:MAX_PIECES]
    except OSError:
        return []
    records: dict[tuple[int, str], dict[int, list[str]]] = {}
    for name in names:
        lines = _find_lines(folder / name)
        head = _PIECE_HEAD.match(lines[0]) if lines else None
        if head is not None:
            records.setdefault((int(head[2]), head[1]), {})[int(head[3])] = lines[1:]
    if not records:
        return []
    newest = records[max(records)]
    return [line for part in sorted(newest, reverse=True) for line in newest[part]]
