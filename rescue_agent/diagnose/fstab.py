# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount table (fstab(5)): entries that systemd would wait for in vain."""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import make_finding, saw
from rescue_agent.model.facts import Facts, FstabEntry, System
from rescue_agent.model.finding import Finding, Severity
from rescue_agent.model.queries import patient_systems

_BY_TAG = ("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=")
_NO_DISK = ("/dev/fd", "/dev/sr", "/dev/cdrom", "/dev/dvd", "/dev/loop", "/dev/zram", "/dev/nfs")
_COMPARED = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "swap")
_PATIENT = ("nofail", "noauto", "x-systemd.automount", "_netdev")
"""With one of these the boot goes on without the device (systemd.mount(5))."""


def diagnose_fstab(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the mount table of each installed system."""
    for system in patient_systems(facts):
        if system.fstab_state in ("missing", "unreadable"):
            yield make_finding(
                "fstab-bad-entry",
                f"/etc/fstab on {system.device}",
                f"/etc/fstab of {system.name or system.device} is {system.fstab_state}",
                saw("/etc/fstab", system.fstab_state),
                # A root that the kernel's command line names still boots; nothing else gets mounted.
                severity="warning" if system.fstab_state == "missing" else "error",
                confidence="likely",
                system=system,
                repair="advice",
                advice="Write it anew from what 'blkid' shows.",
            )
        for entry in system.fstab:
            yield from _entry(facts, system, entry)


def _entry(facts: Facts, system: System, entry: FstabEntry) -> Iterator[Finding]:
    line = f"{entry.spec} {entry.mount_point} {entry.type} {','.join(entry.options) or 'defaults'}"
    source = f"/etc/fstab, line {entry.line}"
    if not entry.device:
        if not _names_disk(entry.spec):
            return
        others = "Attach it, or add 'nofail' to the entry when the machine can do without it."
        yield make_finding(
            "fstab-bad-entry",
            f"{entry.mount_point} in /etc/fstab on {system.device}",
            f"/etc/fstab mounts {entry.spec} at {entry.mount_point}, but no such device is here",
            saw(source, line),
            severity=_severity(entry),
            # The device may simply not be attached to this rescue system.
            confidence="likely",
            system=system,
            repair="advice",
            advice=f"Compare with 'blkid' and put the right UUID into line {entry.line}. {others}",
        )
        return
    device = facts.device(entry.device)
    holds = device.content.type if device is not None and device.content is not None else ""
    holds = "swap" if holds == "swsuspend" else holds
    if entry.type in _COMPARED and holds in _COMPARED and not _same_driver(entry.type, holds):
        yield make_finding(
            "fstab-bad-entry",
            f"{entry.mount_point} in /etc/fstab on {system.device}",
            f"/etc/fstab calls {entry.spec} {entry.type}, but it holds {holds}",
            (*saw(source, line), *saw(f"blkid -p {entry.device}", f"TYPE={holds}")),
            severity=_severity(entry),
            system=system,
            repair="advice",
            advice=f"Put {holds} as the type into line {entry.line} of /etc/fstab.",
        )


def _names_disk(spec: str) -> bool:
    if spec.startswith(_NO_DISK):
        return False
    return spec.startswith(_BY_TAG) or spec.startswith("/dev/")


def _severity(entry: FstabEntry) -> Severity:
    if set(entry.options) & set(_PATIENT):
        return "warning"
    # systemd gives up waiting for swap and goes on; for a mount it stops in emergency mode.
    return "error" if entry.type == "swap" else "fatal"


def _same_driver(one: str, other: str) -> bool:
    return one == other or {one, other} <= {"ext2", "ext3", "ext4"}
