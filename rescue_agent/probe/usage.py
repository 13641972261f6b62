# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a block device: mounts seen by any process, swap, open descriptors, the rescue system itself."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from rescue_agent.model.document import printable
from rescue_agent.model.facts import Holder, Mount
from rescue_agent.system.guard import RUN_DIR
from rescue_agent.system.mounts import MountInfo, mounts, parse_mountinfo

LIVE_FOLDERS = (
    "/run/live",
    "/lib/live/mount",
    "/usr/lib/live/mount",
    "/run/initramfs",
    "/run/archiso",
    "/run/miso",
    "/cdrom",
    "/rofs",
    "/isodevice",
    "/run/rescue-medium",
)
"""Where live systems keep the medium that they run from: live-boot(7), dracut's dmsquash-live,
archiso, casper."""

_CLAIM_TRIES = 3
_CLAIM_DELAY_S = 0.05

Number = tuple[int, int]
"""Major and minor number of a device."""


def number_of(path: str) -> Number | None:
    """Return the device number of a block device node, or None."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return (os.major(info.st_rdev), os.minor(info.st_rdev)) if stat.S_ISBLK(info.st_mode) else None


def probe_mounts() -> Mapping[Number, tuple[Mount, ...]]:
    """Return all mounts of block devices in every mount namespace, without this run's own.

    btrfs and others show an anonymous device number; there the source's name tells the device.
    """
    own = RUN_DIR.as_posix()
    found: dict[Number, dict[Mount, None]] = {}
    for is_own, infos in _namespaces():
        for info in infos:
            if is_own and (info.target == own or info.target.startswith(own + "/")):
                continue
            mount = Mount(
                source=printable(info.source),
                target=printable(info.target),
                type=info.type,
                options=printable(info.options),
            )
            for number in _devices_of(info):
                found.setdefault(number, {})[mount] = None
    for path in _swaps():
        if (user := number_of(path)) is not None:
            found.setdefault(user, {})[Mount(source=printable(path), target="[SWAP]", type="swap")] = None
    return {number: tuple(mounts_here) for number, mounts_here in found.items()}


def _namespaces() -> Iterator[tuple[bool, tuple[MountInfo, ...]]]:
    """Give the mounts of each mount namespace once; True with this process's own."""
    yield True, mounts()
    seen = {_namespace_of("self")}
    texts: set[bytes] = set()
    for pid in psutil.pids():
        name = _namespace_of(pid)
        if name and name in seen:
            continue
        seen.add(name)
        try:
            data = Path(f"/proc/{pid}/mountinfo").read_bytes()
        except OSError:
            continue
        if name or data not in texts:
            texts.add(data)
            yield False, parse_mountinfo(os.fsdecode(data))


def _namespace_of(pid: int | str) -> str:
    """Return the name of a process's mount namespace; empty when the kernel keeps it back."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _devices_of(info: MountInfo) -> tuple[Number, ...]:
    major, _, minor = info.device.partition(":")
    if not (major.isdigit() and minor.isdigit()):
        return ()
    if int(major):
        return ((int(major), int(minor)),)
    number = number_of(info.source) if info.source.startswith("/dev/") else None
    if number is None:
        return ()
    if info.type != "btrfs":
        return (number,)
    return _btrfs_members(number) or (number,)


def _btrfs_members(number: Number) -> tuple[Number, ...]:
    """Return all devices of the mounted btrfs that this one belongs to (sysfs: fs/btrfs)."""
    try:
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number[0]}:{number[1]}"))
        for folder in Path("/sys/fs/btrfs").glob("*/devices"):
            members = [p.name for p in folder.iterdir()]
            if name in members:
                return tuple(n for m in members if (n := number_of(f"/dev/{m}")))
    except OSError:
        pass
    return ()


def _swaps() -> tuple[str, ...]:
    try:
        text = Path("/proc/swaps").read_text("utf-8", "surrogateescape")
    except OSError:
        return ()
    return parse_swaps(text)


def parse_swaps(text: str) -> tuple[str, ...]:
    """Return the devices and files of /proc/swaps (proc_swaps(5))."""
    names = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    return tuple(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), name) for name in names)


def probe_holders() -> Mapping[Number, tuple[Holder, ...]]:
    """Return the processes that have a block device open for writing; not this one nor its helpers.

    Readers do not count: udev, blkid, smartd and others open every device for a moment.
    """
    found: dict[Number, list[Holder]] = {}
    own = _own_family()
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        numbers = dict(_open_devices(process.pid))
        if not numbers:
            continue
        try:
            command = process.name()
        except psutil.Error:
            continue
        for number, path in numbers.items():
            holder = Holder(pid=process.pid, command=printable(command), path=printable(path))
            found.setdefault(number, []).append(holder)
    return {number: tuple(holders) for number, holders in found.items()}


def _own_family() -> set[int]:
    try:
        return {os.getpid(), *(c.pid for c in psutil.Process().children(recursive=True))}
    except psutil.Error:
        return {os.getpid()}


def _open_devices(pid: int) -> Iterator[tuple[Number, str]]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        link = f"{folder}/{name}"
        try:
            path = os.readlink(link)
            if not path.startswith("/dev/"):
                continue
        except OSError:
            continue
        if _is_open_for_writing(pid, name) and (number := number_of(link)):
            yield number, path


def _is_open_for_writing(pid: int, descriptor: str) -> bool:
    """Return whether a descriptor was opened for writing (proc_pid_fdinfo(5): flags, octal)."""
    for line in _read(f"/proc/{pid}/fdinfo/{descriptor}").splitlines():
        key, _, value = line.partition(":")
        if key == "flags":
            return int(value.strip() or "0", 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def is_claimed(path: str) -> bool:
    """Return whether the kernel itself uses a device: a mount that no process shows, a stack upon it.

    Opening with O_EXCL alone takes no lock for longer than the call and writes nothing (open(2)).
    Somebody else may ask the same at this moment, so it is asked again.
    """
    for attempt in range(_CLAIM_TRIES):
        if attempt:
            time.sleep(_CLAIM_DELAY_S)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                continue
        return False
    return True


# --- the medium under the rescue system ---------------------------------------------------------


def probe_live_numbers() -> frozenset[Number]:
    """Return the devices under the running rescue system: its root, every layer of it, its medium.

    Layers are followed downwards: overlay folders, loop devices to the filesystem of their file.
    Partitions and volumes are not followed here (see ``block``).
    """
    table = mounts()
    found: set[Number] = set()
    pending = [m for m in table if _is_live_mount(m)]
    numbers: list[Number] = [n for m in pending for n in _devices_of(m)]
    numbers += [n for path in ("/", *_overlay_folders()) if (n := _filesystem_of(path, table))]
    while numbers:
        number = numbers.pop()
        if number in found:
            continue
        found.add(number)
        backing = _read(f"/sys/dev/block/{number[0]}:{number[1]}/loop/backing_file")
        if backing and (below := _filesystem_of(backing, table)):
            numbers.append(below)
    return frozenset(found)


def _is_live_mount(mount: MountInfo) -> bool:
    if mount.target in ("/", "/usr"):
        return True
    if any(mount.target == f or mount.target.startswith(f + "/") for f in LIVE_FOLDERS):
        return True
    # A compressed image is what a live root is made of, wherever the initramfs has put it.
    return mount.type in ("squashfs", "erofs") and not mount.target.startswith(("/mnt/", "/media/", "/snap/"))


def _overlay_folders() -> tuple[str, ...]:
    """Return the folders that an overlay root is made of, as its mount options name them."""
    try:
        text = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return ()
    return parse_overlay_folders(text)


def parse_overlay_folders(text: str) -> tuple[str, ...]:
    """Return the lower and upper folders of the overlay at ``/`` from /proc/self/mounts."""
    folders: list[str] = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) < 4 or fields[1] != "/" or fields[2] != "overlay":
            continue
        for option in fields[3].split(","):
            key, _, value = option.partition("=")
            if key in ("lowerdir", "upperdir", "lowerdir+", "datadir+"):
                folders += [v for v in value.split(":") if v.startswith("/")]
    return tuple(folders)


def _filesystem_of(path: str, table: Iterable[MountInfo]) -> Number | None:
    """Return the block device of the filesystem that holds ``path``; a device node stands for itself."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(info.st_mode):
        return os.major(info.st_rdev), os.minor(info.st_rdev)
    number = (os.major(info.st_dev), os.minor(info.st_dev))
    if number[0]:
        return number
    name = f"{number[0]}:{number[1]}"
    for mount in table:
        if mount.device == name and (devices := _devices_of(mount)):
            return devices[0]
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "surrogateescape").rstrip("\n")
    except OSError:
        return ""
