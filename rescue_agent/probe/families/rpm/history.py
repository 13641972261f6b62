# SPDX-License-Identifier: GPL-3.0-or-later
"""What dnf and yum remember: which packages are installed, and whether the last run came to its end.

dnf 4 keeps an sqlite database (libdnf's transaction/sql), yum 3 a folder for each installed package
(yum/rpmsack.py, RPMDBAdditionalData) and a pair of files while a transaction runs
(yum/__init__.py, runTransaction). The files are copied before they are opened.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.probe.families.rpm.database import NO_PACKAGE
from rescue_agent.system.root import TargetRoot

DNF = "/var/lib/dnf/history.sqlite"
YUM = "/var/lib/yum"
MAX_BYTES = 1 << 30
MAX_PACKAGES = 100_000
MAX_SIGNS = 20

_THERE = (1, 2, 4, 6, 9, 10, 11)
"""Actions after which a package is installed: install, downgrade, obsolete, upgrade, reinstall,
reinstalled, reason change (libdnf's transaction/Types.hpp)."""
_LAST_ACTIONS = """
    SELECT rpm.name, rpm.epoch, rpm.version, rpm.release, rpm.arch, trans_item.action
    FROM trans_item JOIN rpm ON rpm.item_id = trans_item.item_id ORDER BY trans_item.id
"""
_LAST_RUN = "SELECT id, dt_end FROM trans ORDER BY id DESC LIMIT 1"
_FOLDER = re.compile(r"[0-9a-f]{20,64}-(.+)-([^-]+)-([^-]+)-([^-]+)\Z")


class History(NamedTuple):
    """What the managers remember."""

    recorded: tuple[InstalledPackage, ...] = ()
    interrupted: tuple[str, ...] = ()
    """Signs of a run that did not come to its end."""


def probe_history(root: TargetRoot, work: Path) -> History:
    """Return what dnf's and yum's own files say; nothing where they cannot be read."""
    dnf, yum = _dnf(root, work), _yum(root)
    recorded = max(dnf.recorded, yum.recorded, key=len)
    return History(recorded, (*dnf.interrupted, *yum.interrupted))


def _dnf(root: TargetRoot, work: Path) -> History:
    copy = work / "history.sqlite"
    try:
        if root.stat(DNF).st_size > MAX_BYTES:
            return History()
        for suffix in ("", "-wal"):
            if suffix and not root.is_file(DNF + suffix):
                continue
            with root.open_file(DNF + suffix) as source, open(f"{copy}{suffix}", "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, UnsafePath):
        return History()
    try:
        with closing(sqlite3.connect(copy)) as opened:
            last = opened.execute(_LAST_RUN).fetchone()
            rows = opened.execute(_LAST_ACTIONS).fetchmany(MAX_PACKAGES * 10)
    except sqlite3.Error:
        return History()
    signs: tuple[str, ...] = ()
    if last is not None and not last[1]:  # 0 until it ends
        signs = (f"dnf's transaction {int(last[0])} in {DNF} has no end",)
    return History(installed_after(rows), signs)


def installed_after(rows: Iterable[tuple[object, ...]]) -> tuple[InstalledPackage, ...]:
    """Return what is installed after the actions (name, epoch, version, release, architecture, action)."""
    found: dict[InstalledPackage, bool] = {}
    for name, epoch, version, release, architecture, action in rows:
        whole = f"{version}-{release}" if str(epoch) in ("0", "None") else f"{epoch}:{version}-{release}"
        package = InstalledPackage(
            name=printable(str(name)), version=printable(whole), architecture=printable(str(architecture))
        )
        found[package] = action in _THERE
    return tuple(package for package, there in found.items() if there)[:MAX_PACKAGES]


def _yum(root: TargetRoot) -> History:
    found: list[InstalledPackage] = []
    for letter in root.names(f"{YUM}/yumdb"):
        for name in root.names(f"{YUM}/yumdb/{letter}"):
            package = parse_yumdb(name)
            if package is not None and len(found) < MAX_PACKAGES:
                found.append(package)
    signs = tuple(
        f"{YUM}/{printable(name)}: yum did not come to the end of a transaction"
        for name in root.names(YUM)
        if re.fullmatch(r"transaction-all\.[0-9.:-]+", name)
    )
    return History(tuple(found), signs[:MAX_SIGNS])


def parse_yumdb(name: str) -> InstalledPackage | None:
    """Return the package that a folder ``ID-NAME-VERSION-RELEASE-ARCH`` of yum's database stands for."""
    match = _FOLDER.match(name)
    if match is None or match[1] == NO_PACKAGE:
        return None
    return InstalledPackage(
        name=printable(match[1]),
        version=printable(f"{match[2]}-{match[3]}"),
        architecture=printable(match[4]),
    )
