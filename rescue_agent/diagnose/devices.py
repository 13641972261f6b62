# SPDX-License-Identifier: GPL-3.0-or-later
"""Media, devices and the layers between: failing, read-only, in use, locked, short, hibernated, cloned."""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import command_line, listed, make_finding, saw
from rescue_agent.model.facts import BlockDevice, Container, Facts
from rescue_agent.model.finding import Evidence, Finding
from rescue_agent.model.queries import (
    human_size,
    is_ancestor,
    is_patient,
    patient_devices,
    patient_filesystems,
    patient_systems,
    whole_disks,
)

_SHARED_UUID_TYPES = ("btrfs", "zfs_member", "LVM2_member", "linux_raid_member", "crypto_LUKS", "bcache")
"""Several devices of one volume carry the same UUID on purpose, or the layer above tells them apart."""

IMAGE_FIRST = (
    "Copy the disk with ddrescue to a healthy one (ddrescue -d DISK COPY MAP) and repair the copy: a "
    "repair that writes to a disk with unreadable blocks loses what could still be read."
)


def diagnose_devices(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the media and the layers above them."""
    yield from _failing(facts)
    yield from _read_only(facts)
    yield from _in_use(facts)
    yield from _containers(facts)
    yield from _too_short(facts)
    yield from _hibernated(facts)
    yield from _clones(facts)


def _failing(facts: Facts) -> Iterator[Finding]:
    evidence: dict[str, list[Evidence]] = {}
    for health in facts.health:
        for disk in whole_disks(facts, health.device) or (health.device,):
            if not is_patient(facts, disk):
                continue
            if health.smart == "failing":
                detail = health.smart_detail or "the drive reports that it is failing"
                evidence.setdefault(disk, []).extend(saw(f"smartctl {health.device}", detail))
            if health.io_errors:
                lines = health.io_error_lines or (f"{health.io_errors} input/output errors",)
                evidence.setdefault(disk, []).extend(saw("kernel log", *lines))
    for found in patient_filesystems(facts):
        check = found.check
        if check is not None and check.verdict == "unreadable":
            words = check.messages or (check.reason or "the medium returned read errors",)
            for disk in whole_disks(facts, found.device) or (found.device,):
                evidence.setdefault(disk, []).extend(saw(command_line(check.argv), *words))
    for disk, seen in evidence.items():
        yield make_finding(
            "disk-failing",
            disk,
            f"{disk} returns errors: the medium under it is failing",
            seen,
            severity="fatal",
            device=disk,
            repair="advice",
            advice=IMAGE_FIRST,
        )


def _read_only(facts: Facts) -> Iterator[Finding]:
    health = {h.device: h for h in facts.health}
    for device in patient_devices(facts):
        if device.parents:
            continue
        own = health.get(device.path)
        if device.read_only or (own is not None and own.read_only):
            yield make_finding(
                "disk-read-only",
                device.path,
                f"{device.path} refuses writes",
                saw(f"/sys/class/block/{device.path.rpartition('/')[2]}/ro", "1"),
                severity="warning",
                device=device.path,
                repair="advice",
                advice=(
                    "Look for a write-protect switch, or clear the flag with 'blockdev --setrw'; a drive "
                    "that has made itself read-only is failing: copy it first."
                ),
            )


def _in_use(facts: Facts) -> Iterator[Finding]:
    for device in patient_devices(facts):
        if not device.mounts and not device.held_by:
            continue
        evidence = [
            *saw(
                "mountinfo", *(f"{m.source} on {m.target} type {m.type} ({m.options})" for m in device.mounts)
            ),
            *saw("/proc", *(f"{h.command} (process {h.pid}) has {h.path} open" for h in device.held_by)),
        ]
        yield make_finding(
            "disk-in-use",
            device.path,
            f"{device.path} is in use on this machine",
            evidence,
            severity="warning",
            device=device.path,
            repair="advice",
            advice="Unmount it and end what holds it open, then start again; if the machine runs from it, "
            "boot a rescue medium instead.",
        )


_CONTAINER_CODES = {
    "luks": ("luks-not-unlocked", "Unlock it first: 'cryptsetup open {device} NAME', then start again."),
    "lvm": (
        "volume-group-unavailable",
        "Look with 'pvs' and 'vgs'; 'vgchange --activate y' brings it up when all of its disks are here.",
    ),
    "md": (
        "md-array-not-assembled",
        "Look with 'mdadm --examine {device}'; 'mdadm --assemble --readonly --scan' assembles it.",
    ),
}


def _containers(facts: Facts) -> Iterator[Finding]:
    seen_without = not patient_systems(facts)
    for container in facts.containers:
        if container.state not in ("locked", "inactive", "degraded") or not is_patient(
            facts, container.device
        ):
            continue
        if container.kind not in _CONTAINER_CODES:
            continue
        code, advice = _CONTAINER_CODES[container.kind]
        yield make_finding(
            code,
            container.device,
            _container_title(container),
            saw("blkid -p", f"{container.device}: {container.kind}, {container.state}"),
            # With a system in sight this may be how it always is: only a warning.
            severity="error" if seen_without and container.state != "degraded" else "warning",
            confidence="certain",
            device=container.device,
            repair="advice",
            advice=advice.format(device=container.device),
        )


def _container_title(container: Container) -> str:
    name = f" ({container.name})" if container.name else ""
    what = {"luks": "encrypted container", "lvm": "LVM volume", "md": "RAID array"}[container.kind]
    state = {
        "locked": "is locked: what it holds cannot be seen",
        "inactive": "is not active: what it holds cannot be seen",
        "degraded": "runs with members missing",
    }[container.state]
    return f"The {what} on {container.device}{name} {state}"


def _too_short(facts: Facts) -> Iterator[Finding]:
    for found in patient_filesystems(facts):
        device = facts.device(found.device)
        # btrfs counts the bytes of all of its devices.
        if device is None or found.type == "btrfs" or found.size_bytes <= device.size_bytes:
            continue
        yield make_finding(
            "fs-size-mismatch",
            found.device,
            f"The {found.type} filesystem on {found.device} is larger than the device that holds it",
            (
                *saw(
                    f"superblock of {found.device}",
                    f"the filesystem has {found.size_bytes} bytes ({human_size(found.size_bytes)})",
                ),
                *saw(
                    f"size of {found.device}",
                    f"the device has {device.size_bytes} bytes ({human_size(device.size_bytes)})",
                ),
            ),
            severity="fatal",
            device=found.device,
            repair="advice",
            advice=(
                "Give the partition, volume or image its former size back. No filesystem check may run "
                "before: on the short device it destroys what lies beyond its end."
            ),
        )


def _hibernated(facts: Facts) -> Iterator[Finding]:
    swaps = [d for d in patient_devices(facts) if d.content is not None and d.content.type == "swsuspend"]
    for device in swaps:
        yield _hibernation(device.path, device.path, saw(f"blkid -p {device.path}", "TYPE=swsuspend"))
    if not swaps:
        for system in patient_systems(facts):
            if system.hibernated:
                yield _hibernation(
                    f"{system.name} on {system.device}",
                    system.device,
                    saw(f"{system.device}", "a hibernation image waits to be resumed"),
                )


def _hibernation(subject: str, device: str, evidence: tuple[Evidence, ...]) -> Finding:
    return make_finding(
        "system-hibernated",
        subject,
        f"A hibernated system waits on {device}: it believes that its filesystems are still mounted",
        evidence,
        severity="error",
        device=device,
        repair="advice",
        advice=(
            "Let the machine resume and shut it down. When it cannot resume, and what was open in it may be "
            f"lost, discard the image with 'mkswap -U UUID {device}' (the UUID that it has) and start again."
        ),
    )


def _clones(facts: Facts) -> Iterator[Finding]:
    """Copies among the disks that were asked for: every entry by UUID is ambiguous then.

    A copy elsewhere on the rescue system does no harm, since the agent itself goes by device.
    """
    by_uuid: dict[tuple[str, str], list[BlockDevice]] = {}
    for device in patient_devices(facts):
        content = device.content
        if content is None or not content.uuid or content.usage != "filesystem":
            continue
        if content.type not in _SHARED_UUID_TYPES:
            by_uuid.setdefault((content.type, content.uuid), []).append(device)
    for (kind, uuid), devices in by_uuid.items():
        apart = [
            d for d in devices if not any(is_ancestor(facts, d.path, o.path) for o in devices if o is not d)
        ]
        if len(apart) < 2:
            continue
        yield make_finding(
            "duplicate-uuid",
            uuid,
            f"{listed(d.path for d in apart)} carry the same filesystem UUID: one is a copy of the other",
            saw("blkid -p", *(f"{d.path}: UUID={uuid} TYPE={kind}" for d in apart)),
            severity="warning",
            device=apart[0].path,
            repair="advice",
            advice="Detach the copy, or name one disk, so that no entry by UUID can lead to the wrong one.",
        )
