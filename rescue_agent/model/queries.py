# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to facts that diagnosis and planning both ask. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rescue_agent.model.facts import (
    BlockDevice,
    DatabaseBackup,
    Facts,
    Filesystem,
    InstalledPackage,
    PackageDatabase,
    System,
)

MERGED_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32")
"""Folders that a merged /usr replaces by links to those below /usr (file-hierarchy(7))."""

RPM_ARCHITECTURES = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "armhf": "armv7hl",
    "i386": "i686",
    "loong64": "loongarch64",
    "ppc64el": "ppc64le",
}
"""dpkg's names of architectures, where rpm has others."""

_NO_PACKAGES_BELOW = ("/home", "/root", "/mnt", "/media", "/tmp", "/var/tmp", "/srv")  # noqa: S108
"""Where packages lay no files, so that a fault there says nothing about the system itself."""


def whole_disks(facts: Facts, device: str) -> tuple[str, ...]:
    """Return the paths of the whole disks that a device lies on, through every layer, sorted."""
    found: set[str] = set()
    todo, seen = [device], {device}
    while todo:
        here = facts.device(todo.pop())
        if here is None:
            continue
        if not here.parents:
            found.add(here.disk)
        for parent in here.parents:
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return tuple(sorted(found))


def is_live(facts: Facts, device: str) -> bool:
    """Return whether the device, or a disk under it, carries the rescue system."""
    own = facts.device(device)
    if own is not None and own.live_medium:
        return True
    under = (facts.device(path) for path in whole_disks(facts, device))
    return any(disk is not None and disk.live_medium for disk in under)


def is_patient(facts: Facts, device: str) -> bool:
    """Return whether the device lies on the disks that were asked for, and on no other."""
    disks = whole_disks(facts, device) or (device,)
    asked = {disk for path in facts.disks for disk in (whole_disks(facts, path) or (path,))}
    return not is_live(facts, device) and all(disk in asked for disk in disks)


def patient_devices(facts: Facts) -> tuple[BlockDevice, ...]:
    """Return the devices on the disks that were asked for."""
    return tuple(device for device in facts.devices if is_patient(facts, device.path))


def patient_filesystems(facts: Facts) -> tuple[Filesystem, ...]:
    """Return the filesystems on the disks that were asked for."""
    return tuple(found for found in facts.filesystems if is_patient(facts, found.device))


def patient_systems(facts: Facts) -> tuple[System, ...]:
    """Return the installed systems on the disks that were asked for."""
    return tuple(system for system in facts.systems if is_patient(facts, system.device))


def is_ancestor(facts: Facts, upper: str, device: str) -> bool:
    """Return whether ``device`` is made of ``upper``, directly or through other layers."""
    todo, seen = [device], {device}
    while todo:
        here = facts.device(todo.pop())
        for parent in here.parents if here is not None else ():
            if parent == upper:
                return True
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return False


def system_devices(system: System) -> tuple[str, ...]:
    """Return the devices of a system's own filesystems, root first."""
    return (system.device, *(mount.device for mount in system.mounts if mount.device != system.device))


def program_devices(system: System) -> tuple[str, ...]:
    """Return the devices that hold what packages install: root, and mounts such as /usr and /var."""
    below = tuple(
        mount.device
        for mount in system.mounts
        if mount.device != system.device and not is_below(mount.mount_point, _NO_PACKAGES_BELOW)
    )
    return (system.device, *below)


def is_below(path: str, folders: tuple[str, ...]) -> bool:
    """Return whether ``path`` is one of ``folders`` or lies in one."""
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def mount_point_of(system: System, device: str) -> str:
    """Return where the system mounts a device, or an empty string."""
    if device == system.device:
        return "/"
    return next((mount.mount_point for mount in system.mounts if mount.device == device), "")


def canonical_path(path: str) -> str:
    """Return a path of the patient with /lib and the like as below /usr, as a merged /usr has them.

    File lists of older packages name ``/lib/…`` where the loader finds ``/usr/lib/…``.
    """
    first, _, rest = path.lstrip("/").partition("/")
    return f"/usr/{first}/{rest}" if first in MERGED_FOLDERS and rest else "/" + path.lstrip("/")


def is_merged(system: System) -> bool:
    """Return whether /bin, /lib and the like are links to those below /usr in this system.

    Told by where the shell and its neighbours lie: without the merge they are in /bin itself.
    """
    names = ("sh", "dash", "bash", "tar", "cat")
    paths = [tool.path for tool in system.tools if tool.name.rpartition("/")[2] in names]
    return any(path.startswith("/usr/bin/") for path in paths)


def lost_links(system: System) -> tuple[str, ...]:
    """Return the top folders whose link to /usr is gone, such as ``/lib64``.

    No package need own these links, and whatever is laid out without them makes real folders of
    them: the merge is broken then, for good.
    """
    if system.database is None or not is_merged(system):
        return ()
    gone = {file.path for file in system.database.verification.damaged if file.kind == "missing"}
    return tuple(f"/{name}" for name in MERGED_FOLDERS if f"/{name}" in gone)


def packages_by_label(database: PackageDatabase | None) -> dict[str, InstalledPackage]:
    """Return the installed packages by every name that means one (see InstalledPackage.labels)."""
    found: dict[str, InstalledPackage] = {}
    for package in database.packages if database is not None else ():
        for label in package.labels:
            found.setdefault(label, package)
    return found


def find_package(database: PackageDatabase | None, name: str) -> InstalledPackage | None:
    """Return the installed package that ``name`` means, or None."""
    for package in database.packages if database is not None else ():
        if name in package.labels:
            return package
    return None


def bare_names(database: PackageDatabase | None, names: Iterable[str]) -> frozenset[str]:
    """Return the plain names of packages, without architecture or version."""
    known = packages_by_label(database)
    return frozenset(known[name].name if name in known else name.partition(":")[0] for name in names)


def usable_backup(database: PackageDatabase) -> DatabaseBackup | None:
    """Return the backup that names the most of what has a file list; of equals the newest. Or None.

    One that knows less than half of the lists is of another time: worse than saying so. Compressed
    copies are older than the plain ones and are left to the person.
    """
    best = max(
        (b for b in database.backups if b.packages and not b.path.endswith((".gz", ".xz"))),
        key=lambda b: (b.listed, -b.age_s),
        default=None,
    )
    if best is None or best.listed * 2 < database.listed:
        return None
    return best


def usable_bytes(found: Filesystem) -> int:
    """Return the bytes that root can still write to a filesystem; 0 when its room is not known.

    ext4 counts clusters as free that it hands out to nobody: 2 %, at most 4096 of them
    (ext4_set_resv_clusters in the kernel's fs/ext4/super.c).
    """
    if found.space is None:
        return 0
    kept = 0
    if found.type == "ext4":
        kept = min(found.space.total_bytes // 50, 4096 * (found.block_size or 4096))
    return max(0, found.space.free_bytes - kept)


def is_missing_tool(facts: Facts, name: str) -> bool:
    """Return whether the rescue system is known to lack a program; what was not looked for is not."""
    return any(tool.name == name and not tool.path for tool in facts.rescue.tools)


def human_size(size_bytes: int) -> str:
    """Return a size for people, ``1.5 GiB``."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 package``, ``3 packages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
