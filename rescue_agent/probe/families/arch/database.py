# SPDX-License-Identifier: GPL-3.0-or-later
"""pacman's local database, read by the agent itself.

``/var/lib/pacman/local/NAME-VERSION-RELEASE`` holds ``desc``, ``files`` and ``mtree`` of a package
(libalpm's be_local.c). ``desc`` and ``files`` are sections: ``%NAME%``, its lines, an empty line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.model.families.arch import LOCAL, LOCK, SUPERSEDED
from rescue_agent.system.root import TargetRoot

MAX_ENTRIES = 50_000
DESC_LIMIT = 1 << 20
FILES_LIMIT = 64 << 20
LOG = "/var/log/pacman.log"
LOG_LIMIT = 256 << 20
HALF = "half-installed"

_ENTRY = re.compile(r"([A-Za-z0-9@_+][A-Za-z0-9@._+-]*)-([^-/\s]+-[^-/\s]+)\Z")
_LOGGED = re.compile(
    r"\[[^\]]{1,40}\] \[ALPM\] (installed|upgraded|downgraded|reinstalled|removed) (\S+) \((.+)\)\Z"
)
_LOG_LINE = 512

State = Literal["ok", "missing", "empty", "damaged"]


class Entry(NamedTuple):
    """An entry of the local database."""

    folder: str
    package: InstalledPackage
    installed: int
    """When, in seconds since 1970; 0 when it does not say."""
    backup: frozenset[str]
    """Its configuration files, as paths of the patient."""
    broken: tuple[str, ...]
    """Its files that cannot be read or do not say what they must, each as ``path: why``."""


class Database(NamedTuple):
    """All entries, and what the folder shows besides."""

    entries: tuple[Entry, ...]
    state: State
    detail: str
    interrupted: tuple[str, ...]
    architecture: str
    """The one that most packages are for; empty when nothing tells."""


def probe_database(root: TargetRoot) -> Database:
    """Return the patient's local database; entries that cannot be read are half-installed packages."""
    names = [name for name in root.names(LOCAL) if name != "ALPM_DB_VERSION"][:MAX_ENTRIES]
    entries = [entry for name in names if (entry := _read_entry(root, name)) is not None]
    native = _native(entries)
    entries = _with_superseded(
        [
            entry
            if entry.package.architecture
            else entry._replace(package=msgspec.structs.replace(entry.package, architecture=native))
            for entry in entries
        ]
    )
    signs = [sign for entry in entries for sign in entry.broken]
    if root.lexists(LOCK):
        signs.insert(0, f"{LOCK}: a pacman did not come to the end of its work")
    state: State = "ok"
    detail = ""
    if not entries:
        state = "empty" if root.is_folder(LOCAL) else "missing"
        detail = f"{LOCAL} holds no package" if state == "empty" else f"{LOCAL} does not exist"
    return Database(tuple(entries), state, detail, tuple(signs), native)


def _native(entries: Sequence[Entry]) -> str:
    counted = Counter(e.package.architecture for e in entries)
    known = {name: count for name, count in counted.items() if name not in ("", "any")}
    return max(known, key=lambda name: known[name], default="")


def _with_superseded(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with those marked that a later one of the same name replaces."""
    last: dict[str, Entry] = {}
    for entry in entries:
        other = last.get(entry.package.name)
        if other is None or (not entry.broken, entry.installed) >= (not other.broken, other.installed):
            last[entry.package.name] = entry
    old = [
        entry._replace(
            package=msgspec.structs.replace(entry.package, state=SUPERSEDED, reinstall_required=False)
        )
        for entry in entries
        if last[entry.package.name] is not entry
    ]
    return [*last.values(), *old]


def _read_entry(root: TargetRoot, folder: str) -> Entry | None:
    """Return an entry by its folder's name; None for what is no entry."""
    match = _ENTRY.fullmatch(folder)
    place = f"{LOCAL}/{folder}"
    if match is None or not root.is_folder(place):
        return None
    broken: list[str] = []
    desc = _sections(root, f"{place}/desc", DESC_LIMIT, broken)
    if desc is not None and (_first(desc, "NAME"), _first(desc, "VERSION")) != (match[1], match[2]):
        broken.append(f"{place}/desc: it does not name the package")
        desc = None
    files = _sections(root, f"{place}/files", FILES_LIMIT, broken)
    if files == {} and root.stat(f"{place}/files").st_size:
        broken.append(f"{place}/files: it names no files")
    if not root.is_file(f"{place}/mtree") and files:
        broken.append(f"{place}/mtree: it is missing")
    desc = desc or {}
    package = InstalledPackage(
        name=match[1],
        version=match[2],
        architecture=printable(_first(desc, "ARCH")),
        state=HALF if broken else "installed",
        reinstall_required=bool(broken),
        installed_bytes=_number(_first(desc, "SIZE")),
    )
    backup = frozenset("/" + line.partition("\t")[0] for line in (files or {}).get("BACKUP", ()))
    return Entry(folder, package, _number(_first(desc, "INSTALLDATE")), backup, tuple(broken))


def _sections(root: TargetRoot, path: str, limit: int, broken: list[str]) -> dict[str, list[str]] | None:
    try:
        return parse_sections(root.read_text(path, limit))
    except FileNotFoundError:
        broken.append(f"{path}: it is missing")
    except (OSError, UnsafePath) as error:
        broken.append(f"{path}: {printable(str(error))[:200]}")
    return None


def parse_sections(text: str) -> dict[str, list[str]]:
    """Return the sections of a ``desc`` or ``files`` file, each with its lines."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.split("\n"):
        if re.fullmatch(r"%[A-Z0-9]+%", line) and lines is None:
            lines = found.setdefault(line[1:-1], [])
        elif not line:
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


def _first(sections: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(sections.get(name, ())), "")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def listed_files(root: TargetRoot, entry: Entry) -> tuple[str, ...]:
    """Return the paths that an entry lists, folders without their final slash."""
    found = _sections(root, f"{LOCAL}/{entry.folder}/files", FILES_LIMIT, []) or {}
    return tuple("/" + line.rstrip("/") for line in found.get("FILES", ()))


def find_listed(
    root: TargetRoot, entries: Sequence[Entry], wanted: Sequence[str]
) -> Mapping[str, tuple[str, str]]:
    """Return for each path or file name the package that lists it: (name, path as listed).

    A path is also found under its alias with or without ``/usr``. A name without ``/`` matches in any
    folder of libraries.
    """
    paths = {alias: item for item in wanted if "/" in item for alias in _aliases(item)}
    names = {item: item for item in wanted if "/" not in item}
    found: dict[str, tuple[str, str]] = {}
    for entry in entries:
        for path in listed_files(root, entry):
            folder, _, name = path.rpartition("/")
            item = paths.get(path) or (names.get(name) if "/lib" in folder else None)
            if item:
                found.setdefault(item, (entry.package.name, path))
    return found


def _aliases(path: str) -> tuple[str, str]:
    return path, path.removeprefix("/usr") if path.startswith("/usr/") else "/usr" + path


def probe_recorded(root: TargetRoot) -> tuple[InstalledPackage, ...]:
    """Return what ought to be installed after all lines of pacman.log; nothing when it cannot be read."""
    try:
        return parse_log(root.read_text(LOG, LOG_LIMIT))
    except (OSError, UnsafePath):
        return ()


def parse_log(text: str) -> tuple[InstalledPackage, ...]:
    """Return what is installed after all lines of a pacman.log (libalpm's ``alpm_logaction`` calls)."""
    found: dict[str, InstalledPackage] = {}
    for line in text.splitlines():
        match = _LOGGED.fullmatch(line) if len(line) <= _LOG_LINE else None
        if match is None:
            continue
        action, name, version = match[1], match[2], match[3].rpartition(" -> ")[2]
        if action == "removed":
            found.pop(name, None)
        elif _ENTRY.fullmatch(f"{name}-{version}"):
            found[name] = InstalledPackage(name=printable(name), version=printable(version))
    return tuple(found.values())
