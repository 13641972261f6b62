# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices: how they hang together (udev's library over sysfs) and what they hold (blkid -p).

Works without a running udevd: libudev reads sysfs, and what udev's database would add (serial
number, WWN) is read from sysfs as well. Every content probe is one ``blkid -p`` (low-level, no cache).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import pyudev

from rescue_agent.errors import CommandFailed, Interrupted, RescueError, ToolMissing, UsageError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import (
    BlockDevice,
    Container,
    Content,
    DeviceKind,
    Holder,
    Image,
    Partition,
    ProbeError,
)
from rescue_agent.probe import usage
from rescue_agent.probe.usage import Number
from rescue_agent.system.runner import Runner
from rescue_agent.system.tools import missing

HEAD_BYTES = 1 << 20
BLKID_NOTHING = 2
BLKID_AMBIVALENT = 8
"""Exit codes of blkid(8)."""

EXTENDED_TYPES = frozenset({"0x5", "0xf", "0x85"})
"""DOS types of a partition that only holds other partitions."""

_ContainerKind = Literal["luks", "lvm", "md", "bcache", "zfs", "other"]
_CONTAINERS: Mapping[str, _ContainerKind] = {
    "crypto_LUKS": "luks",
    "LVM2_member": "lvm",
    "linux_raid_member": "md",
    "bcache": "bcache",
    "zfs_member": "zfs",
}
_OTHER_DISKS = re.compile(r"(ram|zram|mtdblock|fd|nullb|bcache)\d")
_WORKERS = 4


class Node(NamedTuple):
    """A block device as sysfs shows it, before anything is read from it."""

    name: str
    """Its name in sysfs."""
    path: str
    kind: DeviceKind
    number: Number
    sys_path: str
    size_bytes: int
    parents: tuple[str, ...]
    """Names in sysfs, as are the holders."""
    holders: tuple[str, ...]
    properties: Mapping[str, str]


class Signature(NamedTuple):
    """What ``blkid -p`` says: the content and the entry in the partition table around it."""

    content: Content | None = None
    partition: Partition | None = None
    table: Literal["", "gpt", "dos", "other"] = ""
    ambivalent: str = ""
    """The signatures that contradict each other; then ``content`` has no type."""


class Blocks(NamedTuple):
    """All block devices of the machine."""

    devices: tuple[BlockDevice, ...]
    containers: tuple[Container, ...]
    errors: tuple[ProbeError, ...]


# --- the tree ------------------------------------------------------------------------------


def probe_nodes() -> tuple[Node, ...]:
    """Return every block device with a size and a node, whole disks before their partitions."""
    found = []
    loops: dict[str, str] = {}
    for device in pyudev.Context().list_devices(subsystem="block"):
        path, name, sys_path = device.device_node, device.sys_name, device.sys_path
        size = _number(_attribute(sys_path, "size")) * 512
        number = usage.number_of(path) if path else None
        if number is None or size == 0:
            continue
        dm_name = _attribute(sys_path, "dm/name")
        if dm_name and os.path.exists(f"/dev/mapper/{dm_name}"):
            path = f"/dev/mapper/{dm_name}"
        parents = _names(sys_path, "slaves")
        if device.device_type == "partition":
            parents = (os.path.basename(os.path.dirname(sys_path)),)
        if (backing := _attribute(sys_path, "loop/backing_file")).startswith("/dev/"):
            loops[name] = os.path.basename(os.path.realpath(backing))
            parents = (loops[name],)
        found.append(
            Node(
                name=name,
                path=path,
                kind=_kind(name, str(device.device_type)),
                number=number,
                sys_path=sys_path,
                size_bytes=size,
                parents=parents,
                holders=_names(sys_path, "holders"),
                properties=dict(device.properties),
            )
        )
    for upper, lower in loops.items():
        found = [n._replace(holders=(*n.holders, upper)) if n.name == lower else n for n in found]
    return tuple(sorted(found, key=_natural))


def _natural(node: Node) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", node.name) if p]


def _kind(name: str, device_type: str) -> DeviceKind:
    if device_type == "partition":
        return "partition"
    for prefix, kind in _KINDS:
        if re.match(prefix, name):
            return kind
    return "other" if _OTHER_DISKS.match(name) else "disk"


_KINDS: tuple[tuple[str, DeviceKind], ...] = (
    (r"loop\d", "loop"),
    (r"dm-\d", "dm"),
    (r"md[\d_]", "md"),
    (r"sr\d", "rom"),
)


def _names(sys_path: str, folder: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(os.path.join(sys_path, folder))))
    except OSError:
        return ()


def _attribute(sys_path: str, name: str) -> str:
    try:
        return Path(sys_path, name).read_text("utf-8", "surrogateescape").strip("\n\0 ")
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _disk_of(node: Node, by_name: Mapping[str, Node]) -> Node:
    """Return the whole disk that a device lies on: its first parent's, all the way down."""
    seen = {node.name}
    while node.parents and node.parents[0] in by_name and node.parents[0] not in seen:
        node = by_name[node.parents[0]]
        seen.add(node.name)
    return node


# --- blkid -----------------------------------------------------------------------------------


def probe_signature(runner: Runner, device: str) -> Signature:
    """Return what a device holds; raises RescueError with blkid's words when it cannot be read."""
    try:
        done = runner.run(
            ("blkid", "-p", "-o", "udev", "--", device), ok=(0, BLKID_NOTHING, BLKID_AMBIVALENT), timeout_s=60
        )
    except ToolMissing as error:
        raise missing(error.name) from error
    except CommandFailed as error:
        raise RescueError(
            f"{device} cannot be probed: {printable(' '.join(error.stderr.split()) or error.message)}"
        ) from error
    if done.exit_code == BLKID_NOTHING and (reason := _unreadable(device)):
        # blkid has one code for "nothing there" and "could not read it".
        raise RescueError(f"{device} cannot be read: {reason}")
    return parse_signature(done.stdout)


def _unreadable(device: str) -> str:
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.pread(descriptor, 4096, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return ""


def parse_signature(text: str) -> Signature:
    """Return the meaning of ``blkid -p -o udev``.

    That format is the one whose ``…_ENC`` values tell text of the disk apart from blkid's own
    escapes; a newline in a label cannot forge a line of it.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    content = None
    if kind := values.get("ID_FS_TYPE", ""):
        content = Content(
            type=printable(kind),
            usage=printable(values.get("ID_FS_USAGE", "")),
            uuid=_decoded(values.get("ID_FS_UUID_ENC", "")),
            label=_decoded(values.get("ID_FS_LABEL_ENC", "")),
            version=printable(values.get("ID_FS_VERSION", "")),
        )
    partition = None
    number = values.get("ID_PART_ENTRY_NUMBER", "")
    if number.isdigit():
        partition = Partition(
            number=int(number),
            start_bytes=_number(values.get("ID_PART_ENTRY_OFFSET", "")) * 512,
            size_bytes=_number(values.get("ID_PART_ENTRY_SIZE", "")) * 512,
            type=printable(values.get("ID_PART_ENTRY_TYPE", "")),
            uuid=_decoded(values.get("ID_PART_ENTRY_UUID", "")),
            name=_decoded(values.get("ID_PART_ENTRY_NAME", "")),
        )
    if ambivalent := printable(values.get("ID_FS_AMBIVALENT", "")):
        # Something is there, and nothing may be done to it as if it were one or the other.
        content = Content(type="", usage="ambivalent", version=ambivalent)
    table = values.get("ID_PART_TABLE_TYPE", "")
    return Signature(
        content=content,
        partition=partition,
        table="" if not table else "gpt" if table == "gpt" else "dos" if table == "dos" else "other",
        ambivalent=ambivalent,
    )


def _decoded(text: str) -> str:
    """Undo blkid's ``\\xNN`` and make the result safe to print."""
    data = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda m: bytes([int(m[1], 16)]), text.encode("utf-8", "replace"))
    return printable(data.decode("utf-8", "backslashreplace"))


# --- everything together --------------------------------------------------------------------


def probe_blocks(runner: Runner, images: Mapping[str, Image], *, removable_too: Sequence[str] = ()) -> Blocks:
    """Return all block devices with their contents, users and identities.

    ``images``: attached loop device → image. Drives with removable media are opened only when they,
    or a partition of them, are named in ``removable_too``: opening an empty drive can take long.
    Raises ToolMissing without blkid.
    """
    nodes = probe_nodes()
    by_name = {n.name: n for n in nodes}
    live = _live_names(nodes, by_name)
    paths = {n.name: n.path for n in nodes}
    signatures, errors = _signatures(
        runner, nodes, by_name, {usage.number_of(name) for name in removable_too}
    )
    # What cannot be read on the medium of the rescue system says nothing about the patient.
    errors = tuple(e for e in errors if not any(e.subject == paths[name] for name in live))
    mounts, held = usage.probe_mounts(), usage.probe_holders()
    devices = []
    for node in nodes:
        signature = signatures.get(node.name, Signature())
        disk = _disk_of(node, by_name)
        partition = signature.partition if node.kind == "partition" else None
        image = images.get(node.path)
        device = BlockDevice(
            path=node.path,
            id="",
            kind=node.kind,
            disk=disk.path,
            size_bytes=node.size_bytes,
            parents=tuple(paths[p] for p in node.parents if p in paths),
            holders=tuple(paths.get(h, f"/dev/{h}") for h in node.holders),
            sector_bytes=_number(_attribute(disk.sys_path, "queue/logical_block_size")) or 512,
            read_only=_is_read_only(node, images.get(disk.path)),
            removable=_attribute(disk.sys_path, "removable") == "1",
            rotational=_attribute(disk.sys_path, "queue/rotational") == "1",
            model=_model(node),
            serial=_serial(node),
            wwn=_wwn(node),
            table=signature.table if node.kind != "partition" else "",
            partition=partition or _sysfs_partition(node),
            content=signature.content,
            image=image,
            mounts=mounts.get(node.number, ()),
            held_by=held.get(node.number, ()),
            live_medium=node.name in live,
        )
        device = _with_hidden_user(device, by_name, node)
        devices.append(msgspec.structs.replace(device, id=identity(device)))
    containers = tuple(c for n, d in zip(nodes, devices, strict=True) if (c := _container(d, n, by_name)))
    return Blocks(tuple(devices), containers, errors)


def _is_read_only(node: Node, image: Image | None) -> bool:
    """Return whether the medium refuses writes. An image is attached read-only for looking, which says
    nothing about it: there the question is whether its file may be written."""
    if _attribute(node.sys_path, "ro") != "1":
        return False
    return image is None or not os.access(image.path, os.W_OK)


def _signatures(
    runner: Runner, nodes: Sequence[Node], by_name: Mapping[str, Node], wanted: set[Number | None]
) -> tuple[Mapping[str, Signature], tuple[ProbeError, ...]]:
    wanted_disks = {_disk_of(n, by_name).name for n in nodes if n.number in wanted}

    def may_be_opened(node: Node) -> bool:
        disk = _disk_of(node, by_name)
        removable = _attribute(disk.sys_path, "removable") == "1" or disk.kind == "rom"
        floppy = disk.name.startswith("fd")
        return disk.name in wanted_disks or not (removable or floppy)

    errors: list[ProbeError] = []

    def probe(node: Node) -> Signature:
        try:
            found = probe_signature(runner, node.path)
        except (Interrupted, ToolMissing):
            raise
        except RescueError as error:
            errors.append(
                ProbeError(probe="block", subject=node.path, message=error.message, hint=error.hint)
            )
            return Signature()
        if found.ambivalent:
            errors.append(
                ProbeError(
                    probe="block",
                    subject=node.path,
                    message=f"{node.path} carries signatures that contradict each other: {found.ambivalent}",
                    hint=f"see which one is stale with: wipefs {node.path}",
                )
            )
        return found

    chosen = [n for n in nodes if may_be_opened(n)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = dict(zip([n.name for n in chosen], pool.map(probe, chosen), strict=True))
    return results, tuple(sorted(errors, key=lambda e: e.subject))


def _live_names(nodes: Sequence[Node], by_name: Mapping[str, Node]) -> frozenset[str]:
    """Return the devices under the rescue system, and everything on the disks where those lie."""
    numbers = usage.probe_live_numbers()
    found: set[str] = set()
    pending = [n for n in nodes if n.number in numbers]
    while pending:
        node = pending.pop()
        if node.name in found:
            continue
        found.add(node.name)
        pending += [by_name[p] for p in node.parents if p in by_name]
    disks = {_disk_of(by_name[name], by_name).name for name in found}
    return frozenset(found | {n.name for n in nodes if _disk_of(n, by_name).name in disks})


def _with_hidden_user(device: BlockDevice, by_name: Mapping[str, Node], node: Node) -> BlockDevice:
    """Add the kernel as a user when it has claimed a device and nothing visible says why."""
    has_parts = any(node.name in other.parents for other in by_name.values())
    if device.mounts or device.holders or has_parts or device.kind == "rom" or device.removable:
        return device
    if device.partition is not None and device.partition.type in EXTENDED_TYPES:
        return device
    if not usage.is_claimed(device.path):
        return device
    hidden = Holder(pid=0, command="kernel", path=device.path)
    return msgspec.structs.replace(device, held_by=(*device.held_by, hidden))


def with_heads(devices: Iterable[BlockDevice]) -> tuple[tuple[BlockDevice, ...], tuple[ProbeError, ...]]:
    """Return the devices with ``head_sha256`` filled in for whole disks and what may hold a filesystem."""
    done, errors = [], []
    for device in devices:
        holds = device.content is None or device.content.usage == "filesystem"
        if device.partition is not None and device.partition.type in EXTENDED_TYPES:
            holds = False
        head = ""
        if device.path == device.disk or holds:
            try:
                head = _head(device.path)
            except OSError as error:
                message = f"the beginning of {device.path} cannot be read: {error.strerror}"
                errors.append(ProbeError(probe="block", subject=device.path, message=message))
        done.append(msgspec.structs.replace(device, head_sha256=head))
    return tuple(done), tuple(errors)


def _head(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return hashlib.sha256(os.pread(descriptor, HEAD_BYTES, 0)).hexdigest()
    finally:
        os.close(descriptor)


# --- single fields -----------------------------------------------------------------------------


def identity(device: BlockDevice) -> str:
    """Return what names a device beyond this boot; the better known first."""
    if device.image is not None:
        return f"image:{printable(device.image.path)}"
    if device.partition is not None and device.partition.uuid:
        return f"partuuid:{device.partition.uuid}"
    if device.kind != "partition":
        if device.wwn:
            return f"wwn:{device.wwn}"
        if device.serial:
            return f"serial:{device.serial}"
    if device.content is not None and device.content.uuid:
        return f"fsuuid:{device.content.uuid}"
    return f"path:{device.path}"


def _sysfs_partition(node: Node) -> Partition | None:
    if node.kind != "partition":
        return None
    return Partition(
        number=_number(_attribute(node.sys_path, "partition")),
        start_bytes=_number(_attribute(node.sys_path, "start")) * 512,
        size_bytes=node.size_bytes,
    )


def _model(node: Node) -> str:
    if node.kind not in ("disk", "rom"):
        return ""
    vendor, model = _attribute(node.sys_path, "device/vendor"), _attribute(node.sys_path, "device/model")
    # virtio has a PCI number there ("0x1af4") in place of a name.
    return printable(" ".join(part for part in (vendor, model) if part and not part.startswith("0x")))


def _serial(node: Node) -> str:
    if node.kind not in ("disk", "rom"):
        return ""
    known = node.properties.get("ID_SERIAL_SHORT", "")
    for name in ("serial", "device/serial"):
        known = known or _attribute(node.sys_path, name)
    return printable(known or _vital_product_data(node.sys_path))


def _vital_product_data(sys_path: str) -> str:
    """Return the unit serial number of a SCSI disk (page 0x80 of its VPD, SPC-4 7.8.18)."""
    try:
        data = Path(sys_path, "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    return data[4 : 4 + int.from_bytes(data[2:4], "big")].decode("ascii", "replace").strip(" \0")


def _wwn(node: Node) -> str:
    if node.kind != "disk":
        return ""
    known = node.properties.get("ID_WWN", "")
    for name in ("wwid", "device/wwid"):
        known = known or _attribute(node.sys_path, name)
    return printable(" ".join(known.split()))


def _container(device: BlockDevice, node: Node, by_name: Mapping[str, Node]) -> Container | None:
    content = device.content
    if content is None or (content.type not in _CONTAINERS and content.usage not in ("raid", "crypto")):
        return None
    kind: _ContainerKind = _CONTAINERS.get(content.type, "other")
    upper = next((by_name[h] for h in node.holders if h in by_name), None)
    state: Literal["open", "locked", "inactive", "degraded"] = "open"
    if upper is None:
        state = "locked" if kind == "luks" else "inactive"
    elif _number(_attribute(upper.sys_path, "md/degraded")) > 0:
        state = "degraded"
    name = _attribute(upper.sys_path, "dm/name") or upper.name if upper else content.label
    return Container(device=device.path, kind=kind, name=printable(name), state=state)


def select_disks(devices: Sequence[BlockDevice], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the whole disks that ``wanted`` names, or of all that may be patients.

    A partition or volume stands for its disk. Without names: fixed disks, without the medium of
    the rescue system. Raises UsageError for a name that is no block device here.
    """
    if not wanted:
        return tuple(d.path for d in devices if d.kind == "disk" and not d.removable and not d.live_medium)
    chosen = [_named(devices, name) for name in wanted]
    return tuple(dict.fromkeys(d.disk for d in chosen))


def _named(devices: Sequence[BlockDevice], name: str) -> BlockDevice:
    number = usage.number_of(name)
    if number is None:
        raise UsageError(f"{printable(name)} is not a block device")
    for device in devices:
        if device.path == os.path.realpath(name) or usage.number_of(device.path) == number:
            return device
    raise UsageError(f"{printable(name)} has no size: is a medium in the drive?")
