# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of each family of package managers, as words and rules. Pure.

A family is one module of this package, with two namesakes that do the work where something can be
done: ``probe.families`` (what is installed, what is damaged, what is at hand) and
``planning.families`` (fetch, lay out, reinstall, complete, upgrade). Modules are found by being
there: a new family needs no change outside of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Literal

from rescue_agent.model.facts import PackageDatabase, System

UNKNOWN = "unknown"
REMOTE = ("http://", "https://", "ftp://", "mirror+http", "mirror://", "tor+http")
"""What a source that needs the network contains."""
GLIBC: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "libc.so.6": ("glibc",),
        "libm.so.6": ("glibc",),
        "libpthread.so.0": ("glibc",),
        "libdl.so.2": ("glibc",),
        "librt.so.1": ("glibc",),
        "ld-linux-x86-64.so.2": ("glibc",),
        "ld-linux-aarch64.so.1": ("glibc",),
    }
)
"""The C library and its loader where its package is called glibc; libm, libpthread and the rest moved
into it with glibc 2.34."""
LOST_SHARE = 0.05
"""A readable database that knows so many fewer packages than it ought to has lost some."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its signs, its words, and what it stands on."""

    name: str
    ids: frozenset[str] = frozenset()
    """Values of ID and ID_LIKE in os-release(5)."""
    marks: tuple[tuple[str, ...], ...] = ()
    """Where os-release tells nothing: paths of which each group, wholly there, shows the family. The
    longest group wins."""
    managers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Package managers with the programs that show them; the last is taken when none is there."""
    tools: tuple[str, ...] = ("/bin/sh",)
    """The programs that package repair inside a chroot stands on."""
    optional_tools: tuple[str, ...] = ()
    """Programs that count among them only where they are installed."""
    database_folders: tuple[str, ...] = ()
    """Where the package database may lie."""
    database: str = "the package database"
    """How evidence names the database."""
    checksums: str = "the package database"
    """How evidence names what the packaged files are compared with."""
    history: str = "the package manager's history"
    """How evidence names the signs of an interrupted run."""
    listed_by: str = "a file list"
    """What else tells of a package: ``132 packages have {listed_by}``."""
    archive_suffix: str = ""
    """How the names of package files end; empty where nothing can be mended."""
    archive_format: Literal["deb", "rpm", "pacman"] = "deb"
    """How they are unpacked."""
    version_advice: str = ""
    """How a person finds out which version of ``{package}`` is installed when the database is lost."""
    fetch_tool: str = ""
    """The rescue system's program that downloads packages for the patient."""
    sources_folder: str = "the package manager's configuration"
    """Where the patient's download sources are configured."""
    owner_search: str = "the distribution's package search"
    """What tells a person which package brings a file."""
    rebuild_advice: str = ""
    """What a person can do about a lost database that cannot be put back."""
    policy_rc_d: bool = False
    """Its package scripts ask /usr/sbin/policy-rc.d before they start a service (invoke-rc.d(8))."""
    tool_packages: frozenset[str] = frozenset()
    """Packages that the manager, its scripts and the shell stand on. Damage here makes errors inside
    lie, so it is put right from outside before anything runs inside."""
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Soname (or its part before the version), or canonical path, → the packages that bring it; the
    first that is installed is meant, since a library changed its package from release to release."""

    def find_loss(self, database: PackageDatabase) -> str:
        """Return in words why the database cannot be believed, or an empty string."""
        if database.state == "missing":
            return "it does not exist"
        if database.state == "empty":
            return "it is empty"
        if database.state == "damaged":
            return database.detail or "it cannot be parsed"
        known = len(database.packages)
        if database.listed and known < database.listed - max(2, int(database.listed * LOST_SHARE)):
            return f"it knows {known} packages, but {database.listed} have {self.listed_by}"
        return ""

    def find_doubt(self, database: PackageDatabase) -> tuple[str, ...]:
        """Return the packages that a database which can be read ought to know and does not."""
        return ()

    def advise_sources(self, system: System) -> str:
        """Return what can be done when the patient's sources do not have what they ought to."""
        return ""

    def can_restore(self, database: PackageDatabase) -> bool:
        """Return whether a lost database can be put back without asking a person."""
        return False


NONE = Family(name=UNKNOWN)


@cache
def every_family() -> tuple[Family, ...]:
    """Return all families, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = (getattr(module, "FAMILY", None) for module in modules)
    return tuple(sorted((f for f in found if isinstance(f, Family)), key=lambda f: f.name))


def get_family(name: str) -> Family:
    """Return the family of this name; for an unknown one a family that knows nothing."""
    return next((family for family in every_family() if family.name == name), NONE)


def family_of(system: System) -> Family:
    """Return the family of an installed system."""
    return get_family(system.family)
