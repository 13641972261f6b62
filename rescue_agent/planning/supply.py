# SPDX-License-Identifier: GPL-3.0-or-later
"""A package to put in order, and the archive that it is put in order from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from rescue_agent.model.facts import DamagedFile, InstalledPackage
from rescue_agent.model.operation import Bind
from rescue_agent.model.plan import Policy

INSIDE_ARCHIVES = "/run/rescue-agent/archives"
INSIDE_FOLDER = "/run/rescue-agent/packages"
"""Where the run's downloads and the person's folder of packages are seen inside the patient."""

Origin = Literal["cache", "folder", "download"]


class Wanted(NamedTuple):
    """A package to put in order."""

    package: InstalledPackage
    files: tuple[DamagedFile, ...]
    """Its damaged files, configuration files left out."""
    lost_conffiles: bool
    """Configuration files are gone together with other files of it: not its owner's wish."""
    own_modes: tuple[DamagedFile, ...] = ()
    """Files whose permissions are their owner's, which a reinstallation would set back."""

    @property
    def name(self) -> str:
        """Its name for people and for apt, with the architecture when that is not the only one."""
        architecture = self.package.architecture
        return f"{self.package.name}:{architecture}" if architecture else self.package.name

    @property
    def only_attributes(self) -> bool:
        """Its files are whole, and only their modes and the like are others: no archive is needed."""
        return bool(self.files) and all(file.kind == "attributes" for file in self.files)


class Supply(NamedTuple):
    """Where the archive of a wanted package comes from."""

    wanted: Wanted
    origin: Origin
    version: str
    """The installed one, or the one that the sources offer in its place."""
    outside: str
    """Path of the archive on the rescue system, once it is there."""
    inside: str
    """Path of the same file inside the patient."""

    @property
    def is_newer(self) -> bool:
        """The installed version is no longer to be had."""
        return self.version != self.wanted.package.version


def bind_archives(policy: Policy, supplies: Iterable[Supply]) -> tuple[Bind, ...]:
    """Return what shows the archives of these supplies inside the patient."""
    origins = {supply.origin for supply in supplies}
    binds = []
    if "download" in origins:
        binds.append(
            Bind(source=f"{policy.work_dir}/archives", path=INSIDE_ARCHIVES, folder=True, read_only=True)
        )
    if "folder" in origins:
        binds.append(Bind(source=policy.packages_dir, path=INSIDE_FOLDER, folder=True, read_only=True))
    return tuple(binds)
