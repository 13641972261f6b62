# SPDX-License-Identifier: GPL-3.0-or-later
"""The patient's mount table (fstab(5)), and which devices here its entries mean.

How an entry finds its device, surest first:

- ``UUID=``, ``LABEL=``, ``PARTUUID=``, ``PARTLABEL=`` and the ``/dev/disk/by-*`` link of the same kind:
  the device that carries it. Of several (a cloned disk) the one on the root's own disk; else none.
- ``/dev/disk/by-id/``: the disk whose WWN or serial number stands in the name, and ``-partN`` of it.
- ``/dev/mapper/…``, ``/dev/VG/LV`` and ``/dev/md…``: the device of that name, since those names come
  from the metadata on the disks.
- ``/dev/sda3``, ``/dev/nvme0n1p3`` and the like: the letter is another one on the rescue system. The
  number is not. Partition 3 of the root's own disk is taken when the table itself says so: its root
  entry names the same disk (``/dev/sda…``) with the root's true number, or it has no such root entry
  and names no second disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from rescue_agent.model.document import printable
from rescue_agent.model.facts import BlockDevice, FstabEntry

FSTAB_LIMIT = 1 << 20
MAX_ENTRIES = 500

PSEUDO_TYPES = frozenset(
    {
        *("proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "ramfs", "securityfs", "cgroup", "cgroup2", "none"),
        *("debugfs", "tracefs", "pstore", "efivarfs", "bpf", "mqueue", "hugetlbfs", "configfs", "autofs"),
        *("binfmt_misc", "overlay", "rpc_pipefs", "nfsd"),
    }
)
NETWORK_TYPES = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "glusterfs", "ceph", "9p", "afs", "ncpfs", "davfs")
)
_TAGS = {"UUID": "uuid", "LABEL": "label", "PARTUUID": "partuuid", "PARTLABEL": "partlabel"}
_KERNEL_NAME = re.compile(
    r"/dev/(?:((?:sd|vd|xvd|hd)[a-z]{1,3})(\d+)?|((?:nvme\d+n|mmcblk|loop|nbd)\d+)(?:p(\d+))?)\Z"
)


class RawEntry(NamedTuple):
    """A line of the table, escapes undone, not yet safe to print."""

    line: int
    spec: str
    mount_point: str
    type: str
    options: tuple[str, ...]
    passno: int


def parse_fstab(text: str) -> tuple[RawEntry, ...]:
    """Return the entries of an fstab; fields that a line lacks are empty (``defaults`` for options)."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split(None, 6)
        if not fields or fields[0].startswith("#"):
            continue
        fields += [""] * (6 - len(fields))
        options = tuple(o for o in _unescape(fields[3] or "defaults").split(",") if o)
        passno = int(fields[5]) if fields[5].isdecimal() and len(fields[5]) < 4 else 0
        found.append(
            RawEntry(
                number, _unescape(fields[0]), _unescape(fields[1]), _unescape(fields[2]), options, passno
            )
        )
    return tuple(found[:MAX_ENTRIES])


def _unescape(text: str) -> str:
    """Undo ``\\040`` for a space and the like, as getmntent(3) does."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda m: chr(int(m[1], 8)), text)


def needs_device(entry: RawEntry) -> bool:
    """Return whether the entry names a block device: no pseudo or network filesystem, bind or swap file."""
    if entry.type in PSEUDO_TYPES or entry.type in NETWORK_TYPES or entry.type.startswith("fuse"):
        return False
    if {"bind", "rbind"} & set(entry.options):
        return False
    return names_device(entry.spec)


def names_device(spec: str) -> bool:
    """Return whether the first field of an entry is the name of a block device, by path or by tag."""
    return spec.startswith("/dev/") or spec.partition("=")[0] in (*_TAGS, "ID")


def resolve_entries(
    entries: Iterable[RawEntry], devices: tuple[BlockDevice, ...], root_device: str
) -> tuple[FstabEntry, ...]:
    """Return the entries as facts, each with the device that it means here (see the module's text)."""
    entries = tuple(entries)
    resolver = _Resolver(entries, devices, root_device)
    return tuple(
        FstabEntry(
            line=entry.line,
            spec=printable(entry.spec),
            mount_point=printable(entry.mount_point),
            type=printable(entry.type),
            options=tuple(printable(option) for option in entry.options),
            passno=entry.passno,
            device=resolver.find(entry.spec) if needs_device(entry) else "",
        )
        for entry in entries
    )


def find_device(spec: str, devices: tuple[BlockDevice, ...], root_device: str) -> str:
    """Return the path of the device that ``spec`` (as in fstab or ``root=``) means, or an empty string."""
    return _Resolver((), devices, root_device).find(spec)


class _Resolver:
    def __init__(
        self, entries: tuple[RawEntry, ...], devices: tuple[BlockDevice, ...], root_device: str
    ) -> None:
        self._devices = devices
        by_path = {device.path: device for device in devices}
        self._root = by_path.get(root_device)
        self._disk = self._root.disk if self._root else ""
        self._kernel_disk = self._name_of_root_disk(entries)

    def find(self, spec: str) -> str:
        if spec.startswith("/dev/disk/by-"):
            kind, _, value = spec.removeprefix("/dev/disk/by-").partition("/")
            value = re.sub(r"\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), value)
            return self._by_id(value) if kind == "id" else self._by_tag(kind, value)
        if spec.startswith("/dev/"):
            return self._by_path(spec)
        name, _, value = spec.partition("=")
        if name == "ID":
            return self._by_id(value)
        return self._by_tag(_TAGS.get(name, ""), value.strip("\"'"))

    def _by_tag(self, kind: str, value: str) -> str:
        if not value:
            return ""
        return self._choose(d for d in self._devices if _tag(d, kind) == _folded(kind, value))

    def _by_id(self, value: str) -> str:
        name, _, number = value.rpartition("-part")
        if not number.isdecimal():
            name, number = value, "0"
        disks = {
            d.path
            for d in self._devices
            if (d.wwn and d.wwn.lower() in name.lower()) or (d.serial and name.endswith(d.serial))
        }
        return self._choose(d for d in self._devices if d.disk in disks and _number(d) == int(number))

    def _by_path(self, spec: str) -> str:
        match = _KERNEL_NAME.match(spec)
        if match is None:
            names = [spec]
            parts = spec.split("/")
            if len(parts) == 4 and parts[2] not in ("mapper", "md"):
                volume = "-".join(part.replace("-", "--") for part in parts[2:])
                names.append(f"/dev/mapper/{volume}")
            return next((d.path for d in self._devices if d.path in names), "")
        if (match[1] or match[3]) != self._kernel_disk:
            return ""
        number = int(match[2] or match[4] or 0)
        return next((d.path for d in self._devices if d.disk == self._disk and _number(d) == number), "")

    def _name_of_root_disk(self, entries: tuple[RawEntry, ...]) -> str:
        """Return what the table calls the disk that holds the root (``sda``), or an empty string."""
        if self._root is None:
            return ""
        named = [(entry, m) for entry in entries if (m := _KERNEL_NAME.match(entry.spec))]
        for entry, match in named:
            if entry.mount_point == "/":
                true = int(match[2] or match[4] or 0) == _number(self._root)
                return (match[1] or match[3]) if true else ""
        disks = {match[1] or match[3] for _, match in named}
        return disks.pop() if len(disks) == 1 else ""

    def _choose(self, found: Iterable[BlockDevice]) -> str:
        candidates = list(found)
        if len(candidates) == 1 or _is_one_btrfs(candidates):
            return candidates[0].path
        nearest = [d for d in candidates if d is self._root]
        nearest = nearest or [d for d in candidates if d.disk == self._disk]
        return nearest[0].path if len(nearest) == 1 else ""


def _is_one_btrfs(devices: list[BlockDevice]) -> bool:
    """Every member of a btrfs filesystem carries its UUID, and any of them mounts it."""
    return bool(devices) and all(d.content is not None and d.content.type == "btrfs" for d in devices)


def _number(device: BlockDevice) -> int:
    """Return the partition number; 0 for a whole disk, -1 for anything else."""
    if device.partition is not None:
        return device.partition.number
    return 0 if device.path == device.disk else -1


def _tag(device: BlockDevice, kind: str) -> str:
    content, partition = device.content, device.partition
    value = {
        "uuid": content.uuid if content else "",
        "label": content.label if content else "",
        "partuuid": partition.uuid if partition else "",
        "partlabel": partition.name if partition else "",
    }.get(kind, "")
    return _folded(kind, value)


def _folded(kind: str, value: str) -> str:
    return value.lower() if kind in ("uuid", "partuuid") else printable(value)
