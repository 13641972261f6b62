# SPDX-License-Identifier: GPL-3.0-or-later
"""How each family of package managers fetches, lays out, reinstalls, completes and upgrades. Pure.

The recipes know *what* has to be done and in which order; a family's manager knows the command
lines. Each module of this package that has a ``MANAGER`` is one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

from rescue_agent.model.facts import InstalledPackage, System
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import Operation, Run
from rescue_agent.planning.proposal import Case
from rescue_agent.planning.supply import Supply


class Work(NamedTuple):
    """What becomes a step of the plan once its order is known."""

    id: str
    title: str
    why: str
    operations: tuple[Operation, ...]
    estimate_s: float


class Restoration(NamedTuple):
    """How a lost package database comes back."""

    works: tuple[Work, ...] = ()
    missing: str = ""
    """What it does not bring back, or why nothing does."""
    enters: bool = False
    """The patient's own programs are needed for it."""


class Manager(Protocol):
    """What a family can do for a patient. Commands inside it keep changed configuration files."""

    family: str

    def fetcher(self) -> str:
        """Return how people call the rescue system's program that downloads."""

    def installer(self, system: System) -> str:
        """Return the patient's own program that reinstalls."""

    def archive_name(self, package: InstalledPackage, version: str) -> str:
        """Return the file name that a download gets."""

    def fetch(self, case: Case, system: System, downloads: Sequence[Supply]) -> tuple[Run, ...]:
        """Return what downloads exactly these into ``work_dir/archives``, changing nothing else."""

    def prove(self, case: Case, system: System, archives: Sequence[str]) -> tuple[Run, ...]:
        """Return what proves that these archives come from whom the patient trusts, before any use."""

    def start_proof(self) -> tuple[Run, ...]:
        """Return what shows that programs start inside: the only test, since outside proves nothing."""

    def reinstall(self, case: Case, system: System, supplies: Sequence[Supply]) -> tuple[Operation, ...]:
        """Return what reinstalls these inside, by the patient's own program."""

    def restore_attributes(self, system: System, packages: Sequence[InstalledPackage]) -> tuple[Run, ...]:
        """Return what puts modes and owners of whole files back; nothing where no program does that.

        Those that a damaged file's fact names are set in any case (DamagedFile.mode).
        """

    def label(self, case: Case, system: System, archives: Sequence[str]) -> Work | None:
        """Return what gives files that were laid out their security labels; None: none are needed."""

    def complete(self, case: Case, system: System, transaction: Sequence[Finding]) -> tuple[Work, ...]:
        """Return what ends an interrupted run of the package manager."""

    def restore_database(self, case: Case, system: System) -> Restoration:
        """Return how the lost database comes back."""

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return what brings all packages up to date, inside."""


@cache
def every_manager() -> tuple[Manager, ...]:
    """Return the managers of all families that can be mended."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return tuple(module.MANAGER for module in modules if hasattr(module, "MANAGER"))


def find_manager(system: System) -> Manager | None:
    """Return who manages the packages of a system; None when nothing can be done for its family."""
    return next((m for m in every_manager() if m.family == system.family), None)


def get_manager(system: System) -> Manager:
    """Return who manages the packages of a system. Raises LookupError when nobody does."""
    found = find_manager(system)
    if found is None:
        raise LookupError(f"no package manager is known for {system.family}")
    return found
