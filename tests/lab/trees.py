# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file tree holds, as lines that can be hashed and compared.

One line for each file of a tree, of the form that ``fs-images/manifest.json`` gives under ``fields``:
kind, mode (with the kind's bits), uid, gid, then what that kind has, then the path in hexadecimal.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

BIG_BYTES = 256 << 20

LOGS = (
    "/var/log/",
    "/var/cache/ldconfig/aux-cache",
    "/var/cache/apt/pkgcache.bin",
    "/var/cache/apt/srcpkgcache.bin",
)
"""What tells when something was done: logs, and caches that hold inode numbers and times."""

TRACES = (
    "/var/log/",
    "/var/cache/",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/triggers/",
    "/var/lib/apt/",
    "/etc/.pwd.lock",
    "/lost+found",
)
"""What an honest package repair leaves different without changing the system: logs, caches, locks, and
dpkg's own copy of its former state."""


def digest(root: Path) -> str:
    """Return the SHA-256 of a tree: sorted lines, joined by newlines (the manifest's ``tree_digest``)."""
    return hashlib.sha256(b"\n".join(sorted(_lines(root)))).hexdigest()


def names_digest(root: Path) -> str:
    """Return the same without the content hashes (the manifest's ``names_digest``)."""
    return hashlib.sha256(b"\n".join(sorted(_lines(root, contents=False)))).hexdigest()


def counts(root: Path) -> dict[str, int]:
    """Return how many folders, files, links and other things lie below the root."""
    names = {"d": "dirs", "f": "files", "l": "links", "o": "other", "E": "errors"}
    found = dict.fromkeys(names.values(), 0)
    for line in _lines(root, contents=False):
        found[names[line[:1].decode()]] += 1
    return found


def snapshot(root: Path, below: str = "/", skip: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {path: what it is} for a tree or a part of it, for ``changes``."""
    found = {}
    start = root / below.strip("/")
    for line in _lines(start):
        head, _, path_hex = line.rpartition(b"\t")
        path = below.rstrip("/") + os.fsdecode(bytes.fromhex(path_hex.decode()))
        if not path.startswith(skip or ("\0",)):
            found[path] = head.decode()
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Return every path that differs, with what was there and what is there now."""
    paths = sorted(before.keys() | after.keys())
    return {
        p: f"{before.get(p, 'absent')} -> {after.get(p, 'absent')}"
        for p in paths
        if before.get(p) != after.get(p)
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, device or image."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(root: Path, *, contents: bool = True) -> Iterator[bytes]:
    base = os.fsencode(root)
    stack = [b""]
    while stack:
        folder = stack.pop()
        try:
            names = os.listdir(base + folder)
        except OSError as error:
            yield b"E\t%d\t%s" % (error.errno or 0, _hex(folder or b"/"))
            continue
        for name in names:
            path = folder + b"/" + name
            try:
                info = os.lstat(base + path)
            except OSError as error:
                yield b"E\t%d\t%s" % (error.errno or 0, _hex(path))
                continue
            if stat.S_ISDIR(info.st_mode):
                stack.append(path)
            yield _line(base + path, path, info, contents)


def _line(real: bytes, path: bytes, info: os.stat_result, contents: bool) -> bytes:
    mode = b"%o" % info.st_mode  # with the kind's bits: 40755
    owner = b"%d\t%d" % (info.st_uid, info.st_gid)
    where = _hex(path)
    if stat.S_ISDIR(info.st_mode):
        return b"\t".join((b"d", mode, owner, where))
    if stat.S_ISLNK(info.st_mode):
        try:
            return b"\t".join((b"l", _hex(os.readlink(real)), where))
        except OSError as error:
            return b"E\t%d\t%s" % (error.errno or 0, where)
    if stat.S_ISREG(info.st_mode):
        what = [_content(real, info.st_size)] if contents else []
        return b"\t".join((b"f", mode, owner, b"%d" % info.st_size, *what, where))
    return b"\t".join((b"o", mode, owner, b"%d" % info.st_rdev, where))


def _content(real: bytes, size: int) -> bytes:
    if size > BIG_BYTES:
        return b"BIG"
    try:
        with open(real, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().encode()
    except OSError as error:
        return b"E%d" % (error.errno or 0)


def _hex(data: bytes) -> bytes:
    return data.hex().encode()


def lines_of(root: Path, wanted: Callable[[bytes], bool] = lambda _: True) -> list[bytes]:
    """Return the sorted lines themselves, for a failed comparison to show."""
    return sorted(line for line in _lines(root) if wanted(line))
