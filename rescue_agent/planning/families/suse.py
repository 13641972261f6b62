# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for zypper. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rescue_agent.model.facts import System
from rescue_agent.model.families.suse import PLACES
from rescue_agent.model.operation import Run
from rescue_agent.planning.families.rpm import Rpm, inside

DONE = (0, 100, 101, 102, 103, 106)
"""zypper(8), EXIT CODES: it worked, and there is something to tell: updates are there, a restart is due,
a repository could not be reached and was left out."""


def zypper(*words: str) -> Run:
    """Return a command of the patient's own zypper."""
    return inside("zypper", "--non-interactive", *words, ok=DONE)


class Zypper(Rpm):
    """rpm with zypper."""

    family = "suse"
    places = PLACES

    def reinstall_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what reinstalls packages of the installed versions."""
        if self.installer(system) == "rpm":
            return super().reinstall_run(system, paths)
        # From files alone: a repository that cannot be reached is left out.
        return zypper("--no-refresh", "install", "--force", *paths)

    def update_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what puts newer packages in place of the installed ones, with what they need."""
        if self.installer(system) == "rpm":
            return super().update_run(system, paths)
        return zypper("install", *paths)

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return ``zypper refresh`` and ``zypper update``."""
        return (zypper("refresh"), zypper("update"))


MANAGER = Zypper()
