# SPDX-License-Identifier: GPL-3.0-or-later
"""The packaged files compared with pacman's mtree files, without any pacman.

``local/ENTRY/mtree`` is the package's own ``.MTREE``: mtree(5) as libarchive writes it, packed with gzip,
names escaped in octal, defaults set by ``/set`` lines. Folders are only looked for; their modes and
owners, and those of files, are compared as ``pacman -Qkk`` does. Times are ignored.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import DamagedFile, Verification
from rescue_agent.model.families.arch import LOCAL, SUPERSEDED
from rescue_agent.model.queries import is_below
from rescue_agent.probe.families import Level
from rescue_agent.probe.families.arch.database import Entry, listed_files
from rescue_agent.probe.families.debian.exclusion import Exclusions
from rescue_agent.system.guard import CancelToken
from rescue_agent.system.root import TargetRoot

Kind = Literal["missing", "changed", "empty", "wrong-type", "unreadable", "attributes"]

MAX_DAMAGED = 50_000
MAX_READ_ERRORS = 20
"""After so many files that the medium cannot read, hashing stops: a failing disk is not worn out."""
PACKED_LIMIT = 64 << 20
TEXT_LIMIT = 256 << 20
LINE_LIMIT = 1 << 16
_BUFFER_BYTES = 256 << 10
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_ELSEWHERE = ("/run", "/var/run", "/dev", "/proc", "/sys", "/tmp", "/var/tmp")  # noqa: S108
"""What is made anew at every start: packages own paths there that no disk that is off has."""
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot")
"""Where other modes are damage; elsewhere they are mostly their owner's work."""
_TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK}
_UNESCAPED = re.compile(rb"\\([0-7]{3})")


class Item(NamedTuple):
    """What a file of a package must be; -1 and empty values are not told."""

    path: str
    type: str
    """``file``, ``dir``, ``link``; others are passed over."""
    mode: int = -1
    uid: int = -1
    gid: int = -1
    size: int = -1
    sha256: str = ""
    link: str = ""


def parse_mtree(text: bytes) -> Iterator[Item]:
    """Yield what a package's mtree says of each of its files (mtree(5)); makepkg's own are left out.

    Raises ValueError for what cannot be one: a name that leads elsewhere, a number that is none.
    """
    if not text.startswith(b"#mtree"):
        raise ValueError("it does not begin with #mtree")
    defaults: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        if len(line) > LINE_LIMIT:
            raise ValueError("a line of it is too long")
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        values = dict(word.partition(b"=")[::2] for word in words[1:])
        if words[0] == b"/set":
            defaults.update(values)
        elif words[0] == b"/unset":
            for word in words[1:]:
                defaults.pop(word, None)
        else:
            item = _item(words[0], {**defaults, **values})
            if item is not None:
                yield item


def _item(name: bytes, values: dict[bytes, bytes]) -> Item | None:
    path = _unescape(name)
    if not path.startswith("./") or ".." in path.split("/"):
        raise ValueError(f"it names {path[:200]!r}")
    if path.startswith("./.") and path.count("/") == 1:
        return None
    return Item(
        path=path[1:],
        type=values.get(b"type", b"file").decode("ascii", "replace"),
        mode=_number(values, b"mode", 8) & 0o7777 if b"mode" in values else -1,
        uid=_number(values, b"uid", 10),
        gid=_number(values, b"gid", 10),
        size=_number(values, b"size", 10),
        sha256=values.get(b"sha256digest", values.get(b"sha256", b"")).decode("ascii", "replace"),
        link=_unescape(values.get(b"link", b"")),
    )


def _unescape(text: bytes) -> str:
    return os.fsdecode(_UNESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), text))


def _number(values: dict[bytes, bytes], name: bytes, base: int) -> int:
    text = values.get(name)
    if text is None:
        return -1
    if not text.isdigit() or len(text) > 18:
        raise ValueError(f"{name.decode()} is {text[:50]!r}")
    return int(text, base)


def unpack_mtree(packed: bytes) -> bytes:
    """Return the text of a packed mtree. Raises ValueError when it is damaged, cut off or too large."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(packed, TEXT_LIMIT)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("it is cut off" if not unpacker.unconsumed_tail else "it is too large")
    return text


def verify(
    root: TargetRoot,
    entries: Sequence[Entry],
    exclusions: Exclusions,
    *,
    level: Level,
    cancel: CancelToken,
    report: Callable[[float], None] = lambda _: None,
) -> tuple[Verification, tuple[str, ...]]:
    """Compare the files of every entry with the disk; return it and what cannot be compared, in words.

    ``level`` ``existence`` looks only whether they are there. ``exclusions`` are pacman's ``NoExtract``.
    An mtree that cannot be read leaves the list of names: then only existence is compared.
    """
    start = time.monotonic()
    entries = [entry for entry in entries if entry.package.state != SUPERSEDED]
    if level == "none" or not entries:
        return Verification(level="none"), ()
    sweep = _Sweep(root, level)
    signs: list[str] = []
    missing: list[DamagedFile] = []
    for number, entry in enumerate(entries):
        cancel.check()
        report(number / len(entries))
        for item in _items(root, entry, signs):
            damage = sweep.compare(item, entry)
            if damage is not None and len(sweep.found) + len(missing) < MAX_DAMAGED:
                (missing if damage.kind == "missing" else sweep.found).append(damage)
    left_out = exclusions.left_out(
        [(d.path, d.package) for d in missing],
        lambda: (path for entry in entries for path in listed_files(root, entry)),
    )
    damaged = [*sweep.found, *(d for d in missing if d.path not in left_out)]
    report(1.0)
    verification = Verification(
        level="existence" if sweep.is_hopeless else level,
        files=sweep.count,
        packages=len(entries),
        duration_s=round(time.monotonic() - start, 3),
        damaged=tuple(sorted(damaged, key=lambda d: (d.package, d.path))),
    )
    return verification, tuple(signs)


def _items(root: TargetRoot, entry: Entry, signs: list[str]) -> Sequence[Item]:
    path = f"{LOCAL}/{entry.folder}/mtree"
    try:
        return list(parse_mtree(unpack_mtree(root.read_bytes(path, PACKED_LIMIT))))
    except (OSError, UnsafePath, ValueError) as error:
        if not entry.broken:
            signs.append(f"{path}: {printable(str(error))[:200]}")
        return [Item(name, "") for name in listed_files(root, entry)]


class _Sweep:
    """Compares one file after the other."""

    def __init__(self, root: TargetRoot, level: Level) -> None:
        self._root = root
        self._level = level
        self._read_errors = 0
        self.count = 0
        self.found: list[DamagedFile] = []

    @property
    def is_hopeless(self) -> bool:
        """So much cannot be read that the medium must be failing."""
        return self._read_errors >= MAX_READ_ERRORS

    def compare(self, item: Item, entry: Entry) -> DamagedFile | None:
        """Return what is wrong with a file, or None."""
        if is_below(item.path, _ELSEWHERE) or (item.type and item.type not in _TYPES):
            return None
        self.count += 1
        try:
            state = self._root.lstat(item.path)
        except (OSError, ValueError, UnsafePath) as error:
            gone = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            self._read_errors += not gone
            return self._damage(item, entry, "missing" if gone else "unreadable")
        if self._level != "full" or not item.type:
            return None
        kind = self._kind(item, state)
        return self._damage(item, entry, kind, state) if kind else None

    def _kind(self, item: Item, state: os.stat_result) -> Kind | None:
        if stat.S_IFMT(state.st_mode) != _TYPES[item.type]:
            # A folder that its owner has moved and linked serves as well.
            moved = item.type == "dir" and self._root.is_folder(item.path)
            return None if moved else "wrong-type"
        if item.type == "link":
            return "changed" if item.link and self._root.readlink(item.path) != item.link else None
        if item.type == "file" and item.size >= 0 and state.st_size != item.size:
            return "changed" if state.st_size else "empty"
        if item.type == "file" and item.sha256 and not self.is_hopeless:
            try:
                if self._digest(item.path) != item.sha256:
                    return "changed"
            except (OSError, UnsafePath):
                self._read_errors += 1
                return "unreadable"
        told = ((item.mode, stat.S_IMODE(state.st_mode)), (item.uid, state.st_uid), (item.gid, state.st_gid))
        return "attributes" if any(wanted not in (-1, there) for wanted, there in told) else None

    def _digest(self, path: str) -> str:
        descriptor = self._root.open(path, _FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnsafePath(f"{path} is not a regular file")
            digest = hashlib.sha256()
            while piece := os.read(descriptor, _BUFFER_BYTES):
                digest.update(piece)
            return digest.hexdigest()
        finally:
            os.close(descriptor)

    def _damage(
        self, item: Item, entry: Entry, kind: Kind, state: os.stat_result | None = None
    ) -> DamagedFile:
        config = item.path in entry.backup or (kind == "attributes" and not is_below(item.path, _PROGRAMS))
        mode = uid = gid = None
        if state is not None and item.type != "link" and kind in ("attributes", "changed", "empty"):
            own = (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid)
            packaged = tuple(
                max(v, o) if v == -1 else v for v, o in zip((item.mode, item.uid, item.gid), own, strict=True)
            )
            if own != packaged and config:
                mode, uid, gid = own
            elif kind == "attributes":
                mode, uid, gid = packaged
        return DamagedFile(
            path=printable(item.path),
            package=printable(entry.package.name),
            kind=kind,
            conffile=config,
            mode=mode,
            uid=uid,
            gid=gid,
        )
