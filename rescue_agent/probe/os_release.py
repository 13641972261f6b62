# SPDX-License-Identifier: GPL-3.0-or-later
"""Which distribution is installed: os-release(5), and what it implies for package work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from rescue_agent.errors import UnsafePath
from rescue_agent.system.root import TargetRoot

PATHS = ("/etc/os-release", "/usr/lib/os-release")
LIMIT = 1 << 16

Family = Literal["debian", "rhel", "suse", "arch", "unknown"]
Manager = Literal["apt", "yum", "dnf", "zypper", "pacman", "unknown"]

_FAMILIES: Mapping[str, Family] = {
    "debian": "debian",
    "ubuntu": "debian",
    "raspbian": "debian",
    "linuxmint": "debian",
    "kali": "debian",
    "rhel": "rhel",
    "fedora": "rhel",
    "centos": "rhel",
    "rocky": "rhel",
    "almalinux": "rhel",
    "ol": "rhel",
    "amzn": "rhel",
    "suse": "suse",
    "opensuse": "suse",
    "opensuse-leap": "suse",
    "opensuse-tumbleweed": "suse",
    "sles": "suse",
    "sled": "suse",
    "arch": "arch",
    "manjaro": "arch",
    "endeavouros": "arch",
}
_RPM_FOLDERS = ("/var/lib/rpm", "/usr/lib/sysimage/rpm")
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


def family_of(release: Mapping[str, str]) -> Family:
    """Return the family that ID or, failing that, ID_LIKE names."""
    for word in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        if word.lower() in _FAMILIES:
            return _FAMILIES[word.lower()]
    return "unknown"


def find_family(root: TargetRoot, release: Mapping[str, str]) -> Family:
    """Return the family by os-release or, when that does not tell, by the package database that is there."""
    named = family_of(release)
    if named != "unknown":
        return named
    if root.is_folder("/var/lib/dpkg/info") or root.is_file("/var/lib/dpkg/status"):
        return "debian"
    if root.is_folder("/var/lib/pacman/local"):
        return "arch"
    if any(root.is_folder(folder) for folder in _RPM_FOLDERS):
        return "suse" if root.lexists("/usr/bin/zypper") else "rhel"
    return "unknown"


def find_manager(root: TargetRoot, family: Family) -> Manager:
    """Return the program that manages the patient's packages."""
    if family == "rhel":
        newer = any(root.lexists(path) for path in ("/usr/bin/dnf", "/usr/bin/dnf-3", "/usr/bin/dnf5"))
        return "dnf" if newer else "yum"
    managers: Mapping[Family, Manager] = {"debian": "apt", "suse": "zypper", "arch": "pacman"}
    return managers.get(family, "unknown")
