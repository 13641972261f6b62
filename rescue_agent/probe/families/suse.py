# SPDX-License-Identifier: GPL-3.0-or-later
"""zypper's systems, looked at.

Its history (libzypp's zypp/HistoryLog.cc) is one line for each package that was installed or removed,
``time|install|name|version-release|architecture|…``, without an end of a transaction.
"""

from __future__ import annotations

from pathlib import Path

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.model.families.suse import PLACES
from rescue_agent.probe.families.rpm import RpmProbe
from rescue_agent.probe.families.rpm.history import History
from rescue_agent.system.root import TargetRoot

HISTORY = "/var/log/zypp/history"
LIMIT = 64 << 20
_SEVERAL = ("kernel-",)
"""Packages of which several versions may be installed side by side (zypp.conf, multiversion)."""


def probe_history(root: TargetRoot, _: Path) -> History:
    """Return what zypper remembers; nothing where its history cannot be read."""
    try:
        return History(parse_history(root.read_text(HISTORY, LIMIT)))
    except (OSError, UnsafePath):
        return History()


def parse_history(text: str) -> tuple[InstalledPackage, ...]:
    """Return what is installed after all lines of zypper's history."""
    found: dict[tuple[str, ...], InstalledPackage] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if line.startswith("#") or len(fields) < 5:
            continue
        action, name, version, architecture = (field.strip() for field in fields[1:5])
        key: tuple[str, ...] = (name, architecture)
        if name.startswith(_SEVERAL):
            key = (name, architecture, version)
        if action == "install":
            found[key] = InstalledPackage(
                name=printable(name), version=printable(version), architecture=printable(architecture)
            )
        elif action == "remove":
            found.pop(key, None)
    return tuple(found.values())


PROBE = RpmProbe("suse", PLACES, probe_history)
