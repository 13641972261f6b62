# SPDX-License-Identifier: GPL-3.0-or-later
"""How the packages of each family are looked at: what is installed, what is damaged, what is at hand.

Each module or package in this one that has a ``PROBE`` knows one family. None of them writes to the
patient or starts anything of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from rescue_agent.model.facts import Archive, PackageDatabase
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

Level = Literal["none", "existence", "full"]


class PackageLook(NamedTuple):
    """One look at the packages of one mounted system, and what it may use."""

    runner: Runner
    root: TargetRoot
    device: str
    level: Level
    """How closely packaged files are compared."""
    packages_dir: str
    """A folder of package files that the person named, or empty."""
    ask_dir: str
    """A folder for package lists; empty: the sources are not asked."""
    work_dir: Path
    """A folder of the look for copies of what must not be written to; the look removes it."""
    release: Mapping[str, str]
    """The assignments of os-release(5)."""
    report: Callable[[str, float], None]
    """Told the task and how much of it is done, 0 to 1."""


FindOwners = Callable[[Iterable[str]], Mapping[str, tuple[str, str]]]
"""Returns for each path or library name the package that lists it, and the path as listed."""


class Packages(NamedTuple):
    """What was found out about the packages of a system."""

    fact: PackageDatabase
    find_owners: FindOwners
    architecture: str = ""
    """The native one, as the family names it; empty when the database does not say."""


class FamilyProbe(Protocol):
    """How one family is looked at."""

    family: str
    folders: tuple[str, ...]
    """Where the database lies: when something of it cannot be seen, nothing is said about packages."""

    def look(self, look: PackageLook) -> Packages:
        """Return what is installed, what is damaged, what is at hand and what the sources offer."""


def at_hand(archives: Iterable[Archive]) -> set[tuple[str, str]]:
    """Return name and version of the package files that may be used."""
    return {(a.package, a.version) for a in archives if not a.refused}


@cache
def every_probe() -> tuple[FamilyProbe, ...]:
    """Return the probes of all families that can be looked at."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return tuple(module.PROBE for module in modules if hasattr(module, "PROBE"))


def find_probe(family: str) -> FamilyProbe | None:
    """Return who looks at the packages of a family; None when nobody can."""
    return next((probe for probe in every_probe() if probe.family == family), None)
