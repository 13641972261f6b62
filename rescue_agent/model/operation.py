# SPDX-License-Identifier: GPL-3.0-or-later
"""The instruction set: the few kinds of operation that every repair is made of (design section 2).

Paths named ``path`` are absolute *inside the patient* and are resolved inside it. ``Plan.root`` is
where the patient's root is mounted on the rescue system. Operations marked *held* are released in
reverse order at the end of the stage, whatever happens.
"""

from __future__ import annotations

from typing import Literal

from rescue_agent.model.document import Model

TARGET_ROOT = "/run/rescue-agent/target"
"""Mount point of the patient's root, in the private mount namespace of the run."""

Progress = Literal["", "e2fsck", "badblocks", "apt", "dnf", "xfs_repair", "btrfs"]


class Run(Model, frozen=True, kw_only=True, tag_field="op", tag="run"):
    """One command: argv, never a shell line.

    With ``until`` the command is repeated until that check exits with 0, at most ``max_runs``
    times; the check comes first, so nothing runs when it is already satisfied.
    """

    argv: tuple[str, ...]
    inside: bool = False
    """Run it in a chroot at the patient's root; otherwise on the rescue system."""
    ok: tuple[int, ...] = (0,)
    """Exit codes that count as success; what the tool's manual says, per tool."""
    timeout_s: float = 3600.0
    environment: tuple[tuple[str, str], ...] = ()
    progress: Progress = ""
    until: tuple[str, ...] = ()
    max_runs: int = 1
    inverse: tuple[str, ...] = ()
    """The command that takes its effect back; empty when nothing does."""


class Mount(Model, frozen=True, kw_only=True, tag_field="op", tag="mount"):
    """Mount a filesystem below the target root. Held."""

    source: str
    path: str
    """``/`` for the patient's root itself."""
    type: str
    options: str = ""


class Bind(Model, frozen=True, kw_only=True, tag_field="op", tag="bind"):
    """Show a file or folder of the rescue system inside the patient, private and slave. Held.

    ``content`` (with an empty ``source``) shows a small file with this text instead; it is
    written under the work folder, never to the patient.
    """

    source: str
    path: str
    content: str = ""
    folder: bool = False
    """It is a folder that is shown, not a file."""
    recursive: bool = False
    read_only: bool = False


class Activate(Model, frozen=True, kw_only=True, tag_field="op", tag="activate"):
    """Bring up a storage layer by command; ``release`` takes it down again. Held."""

    argv: tuple[str, ...]
    release: tuple[str, ...]
    device: str
    """The device that it brings about."""
    timeout_s: float = 120.0


class WriteFile(Model, frozen=True, kw_only=True, tag_field="op", tag="write-file"):
    """Atomically replace or create a regular file; keeps mode, owner and xattrs of the old one.

    With ``copy_of`` the content is that of another file of the patient.
    """

    path: str
    content: str = ""
    copy_of: str = ""
    mode: int = 0o644
    """For a new file only."""
    held: bool = False
    """Only for the time of the stage: the former state is put back on release."""


class RemoveFile(Model, frozen=True, kw_only=True, tag_field="op", tag="remove-file"):
    """Remove a file or link (never a folder)."""

    path: str


class Symlink(Model, frozen=True, kw_only=True, tag_field="op", tag="symlink"):
    """Make ``path`` a symbolic link to ``target``, which is kept as it is written."""

    path: str
    target: str


class SetMetadata(Model, frozen=True, kw_only=True, tag_field="op", tag="set-metadata"):
    """Set mode and owner of a file."""

    path: str
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Unpack(Model, frozen=True, kw_only=True, tag_field="op", tag="unpack"):
    """Lay a package's files over the target root: folder links kept, replaced files saved."""

    archive: str
    """Package file on the rescue system."""
    format: Literal["deb", "rpm", "pacman"] = "deb"
    members: tuple[str, ...] = ()
    """Only these paths; empty: all."""


Operation = Run | Mount | Bind | Activate | WriteFile | RemoveFile | Symlink | SetMetadata | Unpack
