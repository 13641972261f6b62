# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for dnf and yum. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rescue_agent.model.facts import System
from rescue_agent.model.families.rhel import PLACES
from rescue_agent.model.operation import Run
from rescue_agent.planning.families.rpm import Rpm


def manager_run(*argv: str) -> Run:
    """Return a command of the patient's own dnf or yum.

    They are Python programs, which would leave byte code beside every module that they load.
    """
    return Run(
        argv=argv,
        inside=True,
        timeout_s=7200,
        environment=(("PYTHONDONTWRITEBYTECODE", "1"),),
        progress="dnf",
    )


class DnfYum(Rpm):
    """rpm with dnf or yum."""

    family = "rhel"
    places = PLACES

    def reinstall_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what reinstalls packages of the installed versions."""
        program = self.installer(system)
        if program == "rpm":
            return super().reinstall_run(system, paths)
        return manager_run(program, "-y", "--disablerepo=*", "reinstall", *paths)

    def update_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what puts newer packages in place of the installed ones, with what they need."""
        program = self.installer(system)
        if program == "rpm":
            return super().update_run(system, paths)
        return manager_run(program, "-y", "upgrade" if program == "dnf" else "update", *paths)

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return ``dnf upgrade`` or ``yum update``."""
        if system.package_manager == "dnf":
            return (manager_run("dnf", "-y", "upgrade"),)
        return (manager_run("yum", "-y", "update"),)


MANAGER = DnfYum()
