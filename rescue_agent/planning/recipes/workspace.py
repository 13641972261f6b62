# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace: the patient's root with everything that its own programs need around them.

Held operations only, so that ``rescue-agent shell`` can open it too. What each part is for:

- /dev is the live devtmpfs, bound alone and slave, with a new devpts and its own shm: a recursive bind
  would send unmounts back and share terminals.
- /sys is read-only: package scripts that find it so take the chroot for what it is, and trigger nothing.
- /run is new and empty; of the live /run only udev's database is shown, read-only. With all of it,
  scripts would reach the rescue system's services.
- /proc/cmdline shows the patient's own root device: the live system's would end up in boot entries.
- Name resolution lies where the patient's link leads (into the new /run, mostly), never over the link.
- policy-rc.d keeps Debian's package scripts from starting services (invoke-rc.d(8): 101 means
  forbidden); those of others ask systemctl, which does nothing in a chroot.
"""

from __future__ import annotations

from rescue_agent.model.facts import Facts, System, SystemMount
from rescue_agent.model.families import family_of
from rescue_agent.model.operation import Bind, Mount, Operation, Run, WriteFile
from rescue_agent.model.plan import WORKSPACE, Step
from rescue_agent.model.queries import whole_disks
from rescue_agent.planning.proposal import Case

_KEPT_OPTIONS = (
    "subvol=",
    "subvolid=",
    "umask=",
    "fmask=",
    "dmask=",
    "uid=",
    "gid=",
    "iocharset=",
    "codepage=",
    "compress=",
    "compress-force=",
)
"""Options of the patient's fstab that change what is seen or how it is stored; the rest is its own affair."""

POLICY_RC_D = "/usr/sbin/policy-rc.d"
POLICY_CONTENT = "#!/bin/sh\n# No services are started while the rescue system works here.\nexit 101\n"

_ARCHITECTURES = {
    "x86_64": ("amd64", "i386", "x86_64", "i686"),
    "aarch64": ("arm64", "armhf", "aarch64"),
    "i686": ("i386", "i686"),
}
"""``uname -m`` of the rescue system → architectures whose programs its kernel runs."""


def why_not_inside(facts: Facts, system: System) -> str:
    """Return why none of the patient's programs may be started, or an empty string."""
    if system.unusual:
        return f"{system.unusual[0]}, so working inside {system.device} is not safe"
    runs = _ARCHITECTURES.get(facts.rescue.architecture, (facts.rescue.architecture,))
    if facts.rescue.architecture and system.architecture and system.architecture not in runs:
        return (
            f"the programs on {system.device} are for {system.architecture}, and this rescue system runs on "
            f"{facts.rescue.architecture}"
        )
    return ""


def runs_inside(step: Step) -> bool:
    """Return whether the step starts programs of the patient."""
    return any(isinstance(operation, Run) and operation.inside for operation in step.operations)


def workspace_step(case: Case, system: System, findings: tuple[str, ...], *, inside: bool = True) -> Step:
    """Return the step that mounts the patient writable and prepares it for its own programs.

    Without ``inside``, or when nothing in it may be started, only its own filesystems are mounted: on
    a full disk not even the smallest file of the surroundings can be written.
    """
    forbidden = why_not_inside(case.facts, system)
    inside = inside and not forbidden
    devices = [system.device, *(mount.device for mount in usable_mounts(case.facts, system))]
    operations = (*_filesystems(case.facts, system), *(_surroundings(case, system) if inside else ()))
    return Step(
        id=WORKSPACE,
        stage="packages",
        title=f"Mount {system.name or 'the system'} on {system.device} to work on it",
        why=(
            "The following steps need the system's own folders"
            + (
                " and, for its own programs, /dev, /proc, /sys and /run around them."
                if inside
                else f". Nothing in it is started: {forbidden}."
                if forbidden
                else "; nothing in it is started."
            )
            + " Everything is released again, in reverse order."
        ),
        findings=findings,
        risk="reversible",
        operations=operations,
        disks=tuple(dict.fromkeys(d for device in devices for d in whole_disks(case.facts, device))),
        estimate_s=2.0,
    )


def usable_mounts(facts: Facts, system: System) -> tuple[SystemMount, ...]:
    """Return the patient's other filesystems that are in order and that this kernel can mount."""
    found = []
    for mount in system.mounts:
        own = facts.filesystem(mount.device)
        if own is not None and own.state == "clean" and own.readable and mount.mount_point != "/":
            found.append(mount)
    return tuple(found)


def _filesystems(facts: Facts, system: System) -> tuple[Operation, ...]:
    root = facts.filesystem(system.device)
    kind = root.type if root is not None else "auto"
    subvolume = (f"subvol={system.subvolume}",) if system.subvolume else ()
    operations = [
        Mount(source=system.device, path="/", type=kind, options=",".join(("rw", "nodev", *subvolume)))
    ]
    for mount in usable_mounts(facts, system):
        kept = tuple(option for option in mount.options if option.startswith(_KEPT_OPTIONS))
        operations.append(
            Mount(
                source=mount.device,
                path=mount.mount_point,
                type=mount.type,
                options=",".join(("rw", "nosuid", "nodev", *kept))
                if mount.mount_point != "/usr"
                else ",".join(("rw", "nodev", *kept)),
            )
        )
    return tuple(operations)


def _surroundings(case: Case, system: System) -> tuple[Operation, ...]:
    facts, policy = case.facts, case.policy
    operations: list[Operation] = [
        Mount(source="proc", path="/proc", type="proc", options="nosuid,nodev,noexec"),
        Bind(source="", path="/proc/cmdline", content=_command_line(facts, system), read_only=True),
        Mount(source="sysfs", path="/sys", type="sysfs", options="ro,nosuid,nodev,noexec"),
        Bind(source="/dev", path="/dev", folder=True),
        Mount(
            source="devpts",
            path="/dev/pts",
            type="devpts",
            options="nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        Mount(source="tmpfs", path="/dev/shm", type="tmpfs", options="mode=1777,nosuid,nodev"),  # noqa: S108
        Mount(source="tmpfs", path="/run", type="tmpfs", options="mode=0755,nosuid,nodev"),
        Mount(source="tmpfs", path="/run/lock", type="tmpfs", options="mode=1777,nosuid,nodev,noexec"),
    ]
    if facts.rescue.udev:
        operations.append(Bind(source="/run/udev", path="/run/udev", folder=True, read_only=True))
    if policy.network and facts.rescue.network is not False and _may_resolve(system.resolv_conf):
        operations.append(Bind(source="/etc/resolv.conf", path=system.resolv_conf, read_only=True))
    if family_of(system).policy_rc_d:
        operations.append(WriteFile(path=POLICY_RC_D, content=POLICY_CONTENT, mode=0o755, held=True))
    return tuple(operations)


def _may_resolve(path: str) -> bool:
    """Return whether name resolution may be shown at ``path``: a link to /etc/passwd is no place for it."""
    return path.startswith("/run/") or (path.startswith("/etc/") and "resolv" in path.rpartition("/")[2])


def _command_line(facts: Facts, system: System) -> str:
    root = facts.filesystem(system.device)
    name = f"UUID={root.uuid}" if root is not None and root.uuid else system.device
    flags = f" rootflags=subvol={system.subvolume}" if system.subvolume else ""
    return f"root={name} ro{flags}\n"
