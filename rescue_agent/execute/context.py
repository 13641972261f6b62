# SPDX-License-Identifier: GPL-3.0-or-later
"""What one execution of a plan shares: the patient's mounts, its files, and how a path of the
patient is proved to lie on the patient before anything is written there."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rescue_agent.errors import RescueError, UnsafePath
from rescue_agent.execute.journal import Journal, device_identities
from rescue_agent.model.plan import Plan
from rescue_agent.model.run import Event, Notice
from rescue_agent.system.mounts import mounts
from rescue_agent.system.resources import Resources
from rescue_agent.system.root import TargetRoot, mount_id_of
from rescue_agent.system.runner import ANY, Runner

_MAX_LINKS = 8


class PatientMount(NamedTuple):
    """A filesystem that the plan mounted at or below the target root."""

    mount_point: str
    """As the patient sees it."""
    device: str
    """Identity of the device (``BlockDevice.id``); empty for a tmpfs, which vanishes with the run."""
    type: str
    options: str


class Place(NamedTuple):
    """Where a path of the patient really lies: every link but the last followed."""

    path: str
    mount: PatientMount

    @property
    def lasts(self) -> bool:
        """It is on the patient's disk, not in a tmpfs of the run."""
        return self.mount.device != ""


class Context:
    """Everything that an operation needs to take effect."""

    def __init__(
        self,
        runner: Runner,
        journal: Journal,
        resources: Resources,
        plan: Plan,
        emit: Callable[[Event], None],
    ) -> None:
        self.runner = runner
        self.journal = journal
        self.resources = resources
        self.plan = plan
        self.emit = emit
        self.root = plan.root
        self.work_dir = Path(plan.policy.work_dir)
        self.mounts: dict[int, PatientMount] = {}
        """Mounts of the plan's own ``Mount`` operations that files may be written to, by mount id."""
        self._identities: dict[str, str] | None = None
        self._lock = threading.Lock()

    @property
    def saved_dir(self) -> Path:
        """Folder of the former states of changed files."""
        return self.journal.directory / "saved"

    def notice(self, message: str, hint: str = "") -> None:
        """Tell the person something that does not stop the work."""
        self.emit(Notice(level="warning", message=message, hint=hint))

    def identity(self, device: str) -> str:
        """Return the identity of a device path: from the last look, the plan, or its filesystem."""
        with self._lock:
            if self._identities is None:
                self._identities = {disk.device: disk.id for disk in self.plan.disks}
                self._identities |= device_identities(self.journal.directory, self.journal.last_look)
            known = self._identities.get(device) or self._identities.get(str(Path(device).resolve()))
        if known:
            return known
        asked = self.runner.run(("blkid", "-p", "-o", "value", "-s", "UUID", "--", device), ok=ANY)
        uuid = asked.stdout.strip()
        return f"fsuuid:{uuid}" if asked.exit_code == 0 and uuid else f"path:{device}"

    def root_is_mounted(self) -> bool:
        """Return whether this execution mounted the patient's root."""
        return any(mount.mount_point == "/" for mount in self.mounts.values())

    def forget_mounts(self) -> None:
        """Forget mounts that are gone; their ids are given to others."""
        there = {mount.id for mount in mounts()}
        self.mounts = {number: mount for number, mount in self.mounts.items() if number in there}

    def need_root(self) -> None:
        """Raise RescueError unless the patient's root is mounted: nothing is done on a bare folder."""
        if not self.root_is_mounted():
            raise RescueError(f"the patient's root is not mounted at {self.root}")

    @contextmanager
    def patient(self) -> Iterator[TargetRoot]:
        """Give the patient's file tree; open only as long as needed, since it keeps the mount busy."""
        self.need_root()
        with TargetRoot(self.root) as root:
            yield root

    # --- where a path really lies ------------------------------------------------------------

    def place(self, root: TargetRoot, path: str) -> Place:
        """Return where ``path`` really lies.

        Raises UnsafePath when that is not a filesystem of the patient: /dev, /sys and other things
        of the rescue system are shown below the root, and a link of the patient may lead there.
        """
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise UnsafePath(f"{path!r} is not a name in UTF-8") from error
        with root.parent_of(path) as (folder, name):
            mount = self.mounts.get(mount_id_of(folder))
            if mount is None:
                raise UnsafePath(
                    f"{path} leads to a part of the rescue system that is shown inside the patient"
                )
        parent = root.resolve(posixpath.dirname(path.rstrip("/")) or "/")
        return Place(posixpath.join(parent, name), mount)

    def make_folders(self, root: TargetRoot, path: str) -> tuple[str, ...]:
        """Make a folder and its parents where they are missing; return those made, outermost first.

        A link whose target is missing gets its target. Raises UnsafePath when something else than
        a folder stands in the way, or the way leads off the patient's filesystems.
        """
        made = []
        for place in self.missing_folders(root, path):
            root.make_folders(place.path)
            made.append(place.path)
        return tuple(made)

    def missing_folders(self, root: TargetRoot, path: str, links: int = _MAX_LINKS) -> Iterator[Place]:
        """Give each folder that ``make_folders`` would make; the caller makes it before the next."""
        parts = [part for part in path.split("/") if part]
        for count in range(1, len(parts) + 1):
            here = "/" + "/".join(parts[:count])
            if root.is_folder(here):
                continue
            place = self.place(root, here)
            if not root.lexists(here):
                yield place
                continue
            try:
                target = root.readlink(here)
            except OSError as error:
                raise UnsafePath(f"{here} of the patient is not a folder") from error
            if links == 0:
                raise UnsafePath(f"{here} of the patient is a link that leads nowhere")
            yield from self.missing_folders(
                root, posixpath.normpath(posixpath.join(posixpath.dirname(place.path), target)), links - 1
            )
            if not root.is_folder(here):
                raise UnsafePath(f"{here} of the patient is a link that leads nowhere")
