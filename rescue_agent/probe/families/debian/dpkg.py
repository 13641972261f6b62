# SPDX-License-Identifier: GPL-3.0-or-later
"""The patient's dpkg database, read by the agent itself.

dpkg stops at the first damaged byte of ``status`` and answers "no packages" with exit code 0 when
the file is gone; here every whole stanza counts, and what is missing is told by the file lists.
Formats: deb-control(5), dpkg(1) FILES, lib/dpkg/parse.c, dpkg-divert(1).
"""

from __future__ import annotations

import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import DatabaseBackup, InstalledPackage, PackageDatabase
from rescue_agent.system.root import TargetRoot

ADMIN = "/var/lib/dpkg"
INFO = ADMIN + "/info"
STATUS_LIMIT = 32 << 20
MAX_PACKAGES = 100_000
MAX_SIGNS = 40

NOT_THERE = frozenset({"not-installed", "config-files"})
"""States in which a package has no files of its own on the disk (dpkg(1), PACKAGE STATES)."""
STATES = NOT_THERE | {
    "half-installed",
    "unpacked",
    "half-configured",
    "triggers-awaited",
    "triggers-pending",
    "installed",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.~-]*\Z")
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*)\Z")  # a name is printable ASCII without a colon
_MD5 = re.compile(r"[0-9a-f]{32}\Z")


class Stanza(NamedTuple):
    """A package of the status file, in whatever state."""

    package: InstalledPackage
    conffiles: tuple[tuple[str, str], ...]
    """Path and MD5 of every conffile that still belongs to it."""

    @property
    def list_names(self) -> tuple[str, str]:
        """The two names that its file list can have (``name`` and ``name:arch``)."""
        return self.package.name, f"{self.package.name}:{self.package.architecture}"


class Status(NamedTuple):
    """What could be read of a status file."""

    stanzas: tuple[Stanza, ...]
    damage: str
    """What is wrong with the file, in words; empty when nothing is."""


def parse_status(data: bytes) -> Status:
    """Return all whole stanzas of a dpkg status file, and the first sign of damage."""
    if not data.strip():
        return Status((), "it is empty")
    if not data.strip(b"\0"):
        return Status((), "it holds nothing but zeros")
    damage = ""
    if b"\0" in data:
        damage = f"zeros from byte {data.index(0)} on"
    elif not data.endswith(b"\n"):
        damage = "its end is cut off"
    found: dict[tuple[str, str], Stanza] = {}
    line = 1
    for block in data.decode("utf-8", "surrogateescape").split("\n\n"):
        if block.strip("\n"):
            stanza, reason = _stanza(block.strip("\n"))
            if stanza is None:
                damage = damage or f"{reason} in the stanza at line {line}"
            elif len(found) < MAX_PACKAGES:
                found[stanza.package.name, stanza.package.architecture] = stanza
        line += block.count("\n") + 2
    return Status(tuple(found.values()), damage)


def _stanza(block: str) -> tuple[Stanza | None, str]:
    fields: dict[str, str] = {}
    conffiles: list[str] = []
    name = ""
    for line in block.split("\n"):
        if line[:1] in (" ", "\t"):
            if name == "conffiles":
                conffiles.append(line.strip())
            continue
        match = _FIELD.match(line)
        if match is None or "\0" in line:
            return None, "a line that is no field"
        name = match[1].lower()
        fields[name] = match[2].strip()
    package, version = fields.get("package", ""), fields.get("version", "")
    words = fields.get("status", "").split()
    if not _NAME.match(package):
        return None, "no package name"
    if len(words) != 3 or words[2] not in STATES:
        return None, f"no status of {printable(package)}"
    if not version and words[2] not in NOT_THERE:
        return None, f"no version of {printable(package)}"
    return (
        Stanza(
            package=InstalledPackage(
                name=package,
                version=printable(version),
                architecture=printable(fields.get("architecture", "")),
                state=words[2],
                reinstall_required="reinstreq" in words[1],
                essential=fields.get("essential", "") == "yes",
                held=words[0] == "hold",
                installed_bytes=_kib(fields.get("installed-size", "")) << 10,
            ),
            conffiles=tuple(_conffiles(conffiles)),
        ),
        "",
    )


def _kib(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 12 else 0


def _conffiles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Lines of a Conffiles field: path, digest, and perhaps ``obsolete`` or ``remove-on-upgrade``."""
    for line in lines:
        parts = line.split(" ")
        flags = [part for part in parts[-2:] if part in ("obsolete", "remove-on-upgrade")]
        parts = parts[: len(parts) - len(flags)]
        if len(parts) >= 2 and not flags and _MD5.match(parts[-1]):
            yield " ".join(parts[:-1]), parts[-1]


class Database(NamedTuple):
    """The fact, and what verification needs beside it."""

    fact: PackageDatabase
    lists: tuple[str, ...]
    """Names of the file lists (``libc6:amd64``), sorted."""
    to_verify: tuple[str, ...]
    """Those of packages that have their files on the disk; all, when the status tells nothing."""
    conffiles: Mapping[str, str]
    """MD5 of the packaged conffiles by path; empty when only their path is known."""
    native: str
    """Native architecture, as dpkg names it."""


def probe_database(root: TargetRoot) -> Database:
    """Return the patient's dpkg database. Raises OSError when the disk itself cannot be read."""
    lists = tuple(name[:-5] for name in root.names(INFO) if name.endswith(".list"))
    newest = _newest_list(root, lists)
    state, status, detail = _read_status(root)
    named = {name for stanza in status.stanzas for name in stanza.list_names}
    unknown = [name for name in lists if name not in named]
    if state == "ok" and len(unknown) * 50 > len(lists):
        state = "damaged"
        detail = f"{len(unknown)} of {len(lists)} packages with a file list are not in it"
    usable = state == "ok"
    present = [s for s in status.stanzas if s.package.state not in NOT_THERE]
    fact = PackageDatabase(
        manager="dpkg",
        state=state,
        detail=detail,
        listed=len(lists),
        packages=tuple(s.package for s in present),
        backups=() if usable else _backups(root, lists, newest),
        interrupted=_signs(root, present),
    )
    return Database(
        fact=fact,
        lists=lists,
        to_verify=_to_verify(lists, present) if usable else lists,
        conffiles=_all_conffiles(root, present, lists, usable),
        native=_native(root, present),
    )


State = Literal["ok", "missing", "empty", "damaged"]


def _read_status(root: TargetRoot) -> tuple[State, Status, str]:
    path = ADMIN + "/status"
    nothing = Status((), "")
    try:
        data = root.read_bytes(path, STATUS_LIMIT)
    except FileNotFoundError:
        return "missing", nothing, f"{path} does not exist"
    except (OSError, UnsafePath) as error:
        return "damaged", nothing, printable(f"{path} cannot be read: {error}")
    if not data.strip():
        return "empty", nothing, f"{path} is empty"
    status = parse_status(data)
    if status.damage:
        return "damaged", status, printable(f"{path}: {status.damage}")
    return "ok", status, ""


def _to_verify(lists: Iterable[str], present: Iterable[Stanza]) -> tuple[str, ...]:
    """A half-installed package is reinstalled whole; its files are neither the old nor the new."""
    whole = {name for s in present if s.package.state != "half-installed" for name in s.list_names}
    return tuple(name for name in lists if name in whole)


def _all_conffiles(
    root: TargetRoot, present: Iterable[Stanza], lists: Iterable[str], usable: bool
) -> Mapping[str, str]:
    found = {path: digest for stanza in present for path, digest in stanza.conffiles}
    if usable:
        return found
    for name in lists:
        for line in _lines(root, f"{INFO}/{name}.conffiles"):
            found.setdefault(line.rpartition(" ")[2], "")
    return found


def _native(root: TargetRoot, present: Iterable[Stanza]) -> str:
    """dpkg itself is always of the native architecture; ``arch`` is there once a foreign one was added."""
    for stanza in present:
        if stanza.package.name == "dpkg" and stanza.package.architecture:
            return stanza.package.architecture
    return printable(next(iter(_lines(root, ADMIN + "/arch")), ""))


def _newest_list(root: TargetRoot, lists: tuple[str, ...]) -> float:
    newest = 0.0
    for name in lists[:MAX_PACKAGES]:
        try:
            newest = max(newest, root.lstat(f"{INFO}/{name}.list").st_mtime)
        except OSError:
            continue
    return newest


def _backups(root: TargetRoot, lists: tuple[str, ...], newest: float) -> tuple[DatabaseBackup, ...]:
    """Return the older copies of the status file: dpkg's own, and those of dpkg-db-backup(8)."""
    paths = [ADMIN + "/status-old"]
    numbered = [
        m for name in root.names("/var/backups") if (m := re.match(r"dpkg\.status\.(\d{1,4})(\.gz)?\Z", name))
    ]
    paths += [f"/var/backups/{m[0]}" for m in sorted(numbered, key=lambda m: int(m[1]))][:20]
    found = []
    for path in paths:
        try:
            modified = root.stat(path).st_mtime
            data = root.read_bytes(path, STATUS_LIMIT)
            if path.endswith(".gz"):
                data = gunzip(data, STATUS_LIMIT)
        except FileNotFoundError:
            continue
        except (OSError, UnsafePath, ValueError):
            data, modified = b"", newest
        status = parse_status(data)
        present = [] if status.damage else [s for s in status.stanzas if s.package.state not in NOT_THERE]
        names = {name for stanza in present for name in stanza.list_names}
        found.append(
            DatabaseBackup(
                path=path,
                packages=len(present),
                listed=sum(name in names for name in lists),
                age_s=max(0, int(newest - modified)),
            )
        )
    return tuple(found)


def gunzip(data: bytes, limit: int) -> bytes:
    """Return the content of a gzip file; ValueError when it is damaged or larger than ``limit`` bytes."""
    engine = zlib.decompressobj(wbits=31)
    try:
        out = engine.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"damaged gzip file: {error}") from error
    if not engine.eof:
        raise ValueError("the gzip file is cut off, or too large")
    return out


def _signs(root: TargetRoot, present: Iterable[Stanza]) -> tuple[str, ...]:
    """What an interrupted run left: unread updates, and packages on their way."""
    signs = [
        f"{ADMIN}/updates/{printable(name)} was not merged into the status file"
        for name in root.names(ADMIN + "/updates")
        if name.isdigit()
    ]
    signs += [
        f"{s.package.name} is {s.package.state}"
        for s in present
        if s.package.state in ("half-installed", "half-configured", "unpacked")
    ]
    return _bounded(signs)


def _bounded(signs: list[str]) -> tuple[str, ...]:
    more = len(signs) - MAX_SIGNS
    return tuple(signs[:MAX_SIGNS]) + ((f"and {more} more",) if more > 0 else ())


def with_leftovers(fact: PackageDatabase, leftovers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the signs of interruption with the half-unpacked files that verification came across."""
    return _bounded([*fact.interrupted, *(f"{path} was left by an unpacking" for path in leftovers)])


def _lines(root: TargetRoot, path: str) -> list[str]:
    try:
        text = root.read_bytes(path, STATUS_LIMIT).decode("utf-8", "surrogateescape")
    except (OSError, UnsafePath):
        return []
    return [line for line in text.split("\n") if line]


class Diversion(NamedTuple):
    """A path that all packages but one are kept off (dpkg-divert(1))."""

    diverted_to: str
    package: str
    """The one that keeps the path; ``:`` for a local diversion, which keeps off every package."""


def parse_diversions(lines: list[str]) -> Mapping[str, Diversion]:
    """Return the diversions of ``/var/lib/dpkg/diversions``: three lines each."""
    return {
        lines[i]: Diversion(lines[i + 1], lines[i + 2])
        for i in range(0, len(lines) - 2, 3)
        if lines[i].startswith("/") and lines[i + 1].startswith("/")
    }


def probe_diversions(root: TargetRoot) -> Mapping[str, Diversion]:
    """Return the patient's diversions by path."""
    return parse_diversions(_lines(root, ADMIN + "/diversions"))


def find_listed(root: TargetRoot, wanted: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Return for each path or file name the package that lists it: (list name, path as listed).

    A path is also found under its alias with or without ``/usr``, since a merged /usr shows each
    file under both names (file-hierarchy(7)). A name without ``/`` matches in any folder of libraries.
    """
    needles: dict[bytes, list[str]] = {}
    for item in wanted:
        alias = item.removeprefix("/usr") if item.startswith("/usr/") else "/usr" + item
        for line in (f"\n{item}\n", f"\n{alias}\n") if "/" in item else (f"/{item}\n",):
            needles.setdefault(line.encode("utf-8", "surrogateescape"), []).append(item)
    found: dict[str, tuple[str, str]] = {}
    for name in root.names(INFO) if needles else ():
        if not name.endswith(".list"):
            continue
        try:
            data = b"\n" + root.read_bytes(f"{INFO}/{name}", STATUS_LIMIT)
        except (OSError, UnsafePath):
            continue
        for needle, items in needles.items():
            at = data.find(needle)
            if at < 0:
                continue
            entry = data[data.rfind(b"\n", 0, at + 1) + 1 : data.find(b"\n", at + 1)]
            path = entry.decode("utf-8", "surrogateescape")
            for item in items:
                if "/" in item or "/lib" in posixpath.dirname(path):
                    found.setdefault(item, (name[:-5], path))
    return found
