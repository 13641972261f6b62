# SPDX-License-Identifier: GPL-3.0-or-later
"""The patient's rpm database, always read in a copy.

rpm opens a database for writing even to look at it, and a newer one converts what an older one wrote.
"No packages" with exit code 0 is what it says of an empty folder, so the answer alone proves nothing.
Formats: rpm's lib/backend (sqlite, ndb, and Berkeley DB, which newer versions only read).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from rescue_agent.errors import CommandFailed, RescueError, ToolMissing
from rescue_agent.model.document import printable
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.model.families.rpm import MAIN_FILES, SALVAGE
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY, Runner
from rescue_agent.system.tools import require

FOLDERS = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
MAX_BYTES = 2 << 30
MAX_FILES = 64
QUERY_TIMEOUT_S = 600.0
NO_PACKAGE = "gpg-pubkey"
"""Public keys that were imported stand in the database as packages of this name."""
SUPERSEDED = "superseded"
"""State of the older one of two instances, of which an upgrade ought to have removed it."""

_FIELDS = ("NAME", "EPOCHNUM", "VERSION}-%{RELEASE", "ARCH", "LONGSIZE", "INSTALLTIME", "DBINSTANCE")
_FORM = "\\t".join(f"%{{{name}}}" for name in _FIELDS) + "\\n"
_SEVERAL = ("kernel", "kmod-", NO_PACKAGE)
"""Packages of which several versions may be installed side by side (dnf.conf(5), installonlypkgs)."""

State = Literal["ok", "missing", "empty", "damaged"]


class Database(NamedTuple):
    """The patient's database, and a copy of it that can be asked."""

    folder: str
    """Where it lies in the patient, links followed."""
    format: str
    """``sqlite``, ``ndb``, ``bdb``; empty when there is none."""
    files: tuple[str, ...]
    """The names in its folder."""
    state: State
    detail: str
    packages: tuple[InstalledPackage, ...]
    """Without imported keys. Of a damaged database: what could be saved of it."""
    copy: Path
    """A sound database with these packages, for ``rpm --dbpath``."""


class _Answer(NamedTuple):
    packages: tuple[InstalledPackage, ...]
    complaint: str


def probe_database(runner: Runner, root: TargetRoot, work: Path) -> Database:
    """Return the database of the patient; ``work`` is a folder for copies.

    Raises ToolMissing without rpm, RescueError when there is no room for a copy.
    """
    require(runner, "rpm", "rpmdb")
    folder, kind = _find(root)
    files = root.names(folder) if folder else ()
    copy = work / "rpmdb"
    copy.mkdir(parents=True)
    if not kind:
        return Database(folder or FOLDERS[-1], "", files, "missing", "no database file is there", (), copy)
    _copy(root, folder, files, copy)
    answer = _ask(runner, copy)
    if answer.complaint:
        saved = work / "saved"
        saved.mkdir()
        _salvage(runner, kind, copy, saved)
        rest = _ask(runner, saved)
        detail = f"{answer.complaint}; {len(rest.packages)} packages could be read from it one by one"
        return Database(folder, kind, files, "damaged", detail, rest.packages, saved)
    state: State = "ok" if answer.packages else "empty"
    detail = ""
    if kind == "bdb" and (broken := _broken_indexes(runner, copy)):
        state = "damaged"
        detail = f"its index {broken} is damaged; the packages themselves can all be read"
    if kind != "sqlite":
        copy = _with_indexes(runner, copy, work / "sqlite", answer.packages)
    return Database(folder, kind, files, state, detail, mark_superseded(answer.packages), copy)


def _broken_indexes(runner: Runner, copy: Path) -> str:
    """Return the names of the indexes that Berkeley DB's own verifier does not accept."""
    found = []
    for path in sorted(copy.iterdir()):
        if path.name != "Packages" and path.stat().st_size:
            try:
                runner.run(("db5.3_verify", "-q", str(path)))
            except CommandFailed:
                found.append(printable(path.name))
            except ToolMissing:
                return ""
    return ", ".join(found[:5])


def _find(root: TargetRoot) -> tuple[str, str]:
    """Return the folder of the database and its format; the folder alone when it holds none."""
    empty = ""
    for folder in FOLDERS:
        if not root.is_folder(folder):
            continue
        real = root.resolve(folder)
        empty = empty or real
        for name, kind in MAIN_FILES.items():
            if root.is_file(f"{real}/{name}"):
                return real, kind
    return empty, ""


def _copy(root: TargetRoot, folder: str, files: Iterable[str], target: Path) -> None:
    """Copy the regular files of the database; environment files of Berkeley DB stay where they are."""
    wanted = [name for name in files if not name.startswith(("__db.", "."))][:MAX_FILES]
    room = os.statvfs(target)
    left = min(MAX_BYTES, room.f_bavail * room.f_frsize // 2)
    for name in wanted:
        state = root.lstat(f"{folder}/{name}")
        if not stat.S_ISREG(state.st_mode):
            continue
        left -= state.st_size
        if left < 0:
            raise RescueError(
                f"there is no room for a copy of the rpm database in {target}",
                hint="it is only read in a copy; give the rescue system more memory",
            )
        with root.open_file(f"{folder}/{name}") as source, open(target / name, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def _ask(runner: Runner, copy: Path) -> _Answer:
    done = runner.run(("rpm", "--dbpath", str(copy), "-qa", "--qf", _FORM), ok=ANY, timeout_s=QUERY_TIMEOUT_S)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    complaint = ""
    if complaints or done.exit_code != 0:
        complaint = printable(complaints[0].removeprefix("error: ") if complaints else "rpm cannot read it")
    return _Answer(parse_packages(done.stdout), complaint[:300])


def parse_packages(text: str) -> tuple[InstalledPackage, ...]:
    """Return the packages that a query with the probe's form names, oldest installation first."""
    found: list[tuple[int, int, InstalledPackage]] = []
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != 7 or fields[0] == NO_PACKAGE:
            continue
        name, epoch, version, architecture, size, time, instance = fields
        package = InstalledPackage(
            name=printable(name),
            version=printable(version if epoch in ("0", "(none)") else f"{epoch}:{version}"),
            architecture=printable(architecture),
            installed_bytes=_number(size),
        )
        found.append((_number(time), _number(instance), package))
    return tuple(package for *_, package in sorted(found, key=lambda f: f[:2]))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def mark_superseded(packages: tuple[InstalledPackage, ...]) -> tuple[InstalledPackage, ...]:
    """Return the packages with those marked that a later instance of the same name replaces.

    The later one is the one installed last, not the one of higher version: it may be a downgrade.
    """
    last = {(p.name, p.architecture): p for p in packages}
    return tuple(
        p
        if last[p.name, p.architecture] is p or p.name.startswith(_SEVERAL)
        else InstalledPackage(
            name=p.name,
            version=p.version,
            architecture=p.architecture,
            state=SUPERSEDED,
            installed_bytes=p.installed_bytes,
        )
        for p in packages
    )


def _salvage(runner: Runner, kind: str, copy: Path, saved: Path) -> None:
    """Make a new database in ``saved`` of all that can be read; it stays empty when nothing can."""
    try:
        if kind == "sqlite":
            headers = saved.parent / "headers"
            runner.run(
                ("python3", "-c", SALVAGE, str(copy / "rpmdb.sqlite"), str(headers)),
                timeout_s=QUERY_TIMEOUT_S,
            )
            _import(runner, headers, saved)
        elif kind == "bdb":
            again = saved.parent / "again"
            again.mkdir()
            runner.run(
                ("sh", "-c", 'db5.3_dump -r "$1" | db5.3_load "$2"', "sh", str(copy / "Packages"),
                 str(again / "Packages")),
                timeout_s=QUERY_TIMEOUT_S,
            )  # fmt: skip
            _as_sqlite(runner, again, saved)
    except (CommandFailed, ToolMissing):
        return


def _with_indexes(runner: Runner, copy: Path, target: Path, packages: tuple[InstalledPackage, ...]) -> Path:
    """Return the copy in a form whose indexes are sure to be whole; itself where that cannot be had."""
    try:
        _as_sqlite(runner, copy, target)
    except (CommandFailed, ToolMissing):
        return copy
    return target if set(_ask(runner, target).packages) == set(packages) else copy


def _as_sqlite(runner: Runner, copy: Path, target: Path) -> Path:
    """Return a copy of a database in the rescue system's own format, with indexes of its own.

    The indexes of a Berkeley DB are files beside it that may be damaged by themselves.
    """
    target.mkdir(exist_ok=True)
    headers = target.parent / f"{target.name}-headers"
    runner.run(
        ("sh", "-c", 'rpmdb --dbpath "$1" --exportdb > "$2"', "sh", str(copy), str(headers)),
        timeout_s=QUERY_TIMEOUT_S,
    )
    _import(runner, headers, target)
    return target


def _import(runner: Runner, headers: Path, target: Path) -> None:
    runner.run(
        ("sh", "-c", 'rpmdb --dbpath "$1" --importdb < "$2"', "sh", str(target), str(headers)),
        timeout_s=QUERY_TIMEOUT_S,
    )
