# SPDX-License-Identifier: GPL-3.0-or-later
"""Which distribution is installed: os-release(5), and what it implies for package work."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rescue_agent.errors import UnsafePath
from rescue_agent.model.families import UNKNOWN, every_family, get_family
from rescue_agent.system.root import TargetRoot

PATHS = ("/etc/os-release", "/usr/lib/os-release")
LIMIT = 1 << 16

_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)\Z")


def parse_os_release(text: str) -> dict[str, str]:
    """Return the assignments of an os-release file, quotes and backslashes undone as a shell would.

    Later assignments win. Lines that are none are passed over.
    """
    found = {}
    for line in text.split("\n"):
        match = _LINE.match(line.rstrip("\r"))
        if match:
            found[match[1]] = _unquote(match[2].strip())
    return found


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1]
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r'\\(["$`\\])', r"\1", text[1:-1])
    return re.sub(r"\\(.)", r"\1", text)


def read_os_release(root: TargetRoot) -> dict[str, str] | None:
    """Return the patient's os-release; None when it has none that can be read."""
    for path in PATHS:
        try:
            return parse_os_release(root.read_text(path, LIMIT))
        except (OSError, UnsafePath):
            continue
    return None


def family_of(release: Mapping[str, str]) -> str:
    """Return the family that ID or, failing that, ID_LIKE names; else ``unknown``."""
    for word in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        for family in every_family():
            if word.lower() in family.ids:
                return family.name
    return UNKNOWN


def find_family(root: TargetRoot, release: Mapping[str, str]) -> str:
    """Return the family by os-release or, when that does not tell, by the package database that is there."""
    named = family_of(release)
    if named != UNKNOWN:
        return named
    shown = [
        (len(group), family.name)
        for family in every_family()
        for group in family.marks
        if all(root.lexists(path) for path in group)
    ]
    return max(shown, default=(0, UNKNOWN))[1]


def find_manager(root: TargetRoot, family: str) -> str:
    """Return the program that manages the patient's packages; ``unknown`` for an unknown family."""
    managers = get_family(family).managers
    for name, programs in managers:
        if any(root.lexists(path) for path in programs):
            return name
    return managers[-1][0] if managers else UNKNOWN
