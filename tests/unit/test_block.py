# SPDX-License-Identifier: GPL-3.0-or-later
"""What blkid and sysfs say, read without a machine."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.errors import UsageError
from rescue_agent.model.facts import BlockDevice, Content, Image, Partition
from rescue_agent.probe import usage
from rescue_agent.probe.block import identity, parse_signature, select_disks
from rescue_agent.probe.filesystem import may_hold_filesystem, user_of
from rescue_agent.probe.usage import parse_overlay_folders, parse_swaps

PARTITION = """\
ID_FS_LABEL=a_\x1b_ID_FS_TYPE=swap
ID_FS_LABEL_ENC=a\\x1b\\x0aID_FS_TYPE=swap\\x20\\xc3\\xa9
ID_FS_UUID=f814aa82-75cf-4169-9f48-2bd0e0135d9d
ID_FS_UUID_ENC=f814aa82-75cf-4169-9f48-2bd0e0135d9d
ID_FS_VERSION=1.0
ID_FS_TYPE=ext4
ID_FS_USAGE=filesystem
ID_PART_ENTRY_SCHEME=gpt
ID_PART_ENTRY_NAME=na\\x1bme
ID_PART_ENTRY_UUID=b645ed08-87ea-dc4e-b7c7-ad017b26e132
ID_PART_ENTRY_TYPE=0fc63daf-8483-4772-8e79-3d69d8477de4
ID_PART_ENTRY_NUMBER=1
ID_PART_ENTRY_OFFSET=2048
ID_PART_ENTRY_SIZE=131072
"""


def test_a_partition_and_its_content() -> None:
    found = parse_signature(PARTITION)
    assert found.content == Content(
        type="ext4",
        usage="filesystem",
        uuid="f814aa82-75cf-4169-9f48-2bd0e0135d9d",
        label="a\\x1b\\x0aID_FS_TYPE=swap é",
        version="1.0",
    )
    assert found.partition == Partition(
        number=1,
        start_bytes=1 << 20,
        size_bytes=64 << 20,
        type="0fc63daf-8483-4772-8e79-3d69d8477de4",
        uuid="b645ed08-87ea-dc4e-b7c7-ad017b26e132",
        name="na\\x1bme",
    )


def test_contradicting_signatures_are_no_filesystem() -> None:
    found = parse_signature("ID_FS_AMBIVALENT=filesystem:xfs filesystem:ext4:1.0\n")
    assert found.ambivalent == "filesystem:xfs filesystem:ext4:1.0"
    assert found.content is not None
    assert found.content.type == ""
    assert not may_hold_filesystem(device(content=found.content))


@pytest.mark.parametrize(("said", "table"), [("gpt", "gpt"), ("dos", "dos"), ("sun", "other")])
def test_partition_tables(said: str, table: str) -> None:
    assert parse_signature(f"ID_PART_TABLE_TYPE={said}\n").table == table


@given(st.text())
def test_any_text_of_blkid_gives_printable_facts(text: str) -> None:
    found = parse_signature(text)
    for part in (found.content, found.partition):
        for value in msgspec.structs.astuple(part) if part is not None else ():
            assert str(value).isprintable()


def device(path: str = "/dev/sdb", **changes: object) -> BlockDevice:
    base = BlockDevice(path=path, id="", kind="disk", disk=path, size_bytes=1 << 30)
    return msgspec.structs.replace(base, **changes)


def test_the_best_known_identity_wins() -> None:
    plain = device()
    assert identity(plain) == "path:/dev/sdb"
    filled = device(content=Content(type="ext4", uuid="F"), serial="S")
    assert identity(filled) == "serial:S"
    assert identity(msgspec.structs.replace(filled, wwn="naa.5")) == "wwn:naa.5"
    assert (
        identity(msgspec.structs.replace(filled, image=Image(path="/a.img", format="raw"))) == "image:/a.img"
    )
    part = device("/dev/sdb1", kind="partition", disk="/dev/sdb", serial="S")
    assert identity(msgspec.structs.replace(part, content=Content(type="xfs", uuid="F"))) == "fsuuid:F"
    entry = Partition(number=1, start_bytes=0, size_bytes=1, uuid="P")
    assert identity(msgspec.structs.replace(part, partition=entry)) == "partuuid:P"


def test_without_names_only_fixed_disks_are_patients() -> None:
    devices = (
        device("/dev/sda", live_medium=True),
        device("/dev/sdb"),
        device("/dev/sdb1", kind="partition", disk="/dev/sdb"),
        device("/dev/sdc", removable=True),
        device("/dev/sr0", kind="rom"),
        device("/dev/loop0", kind="loop"),
        device("/dev/zram0", kind="other"),
    )
    assert select_disks(devices, ()) == ("/dev/sdb",)


def test_a_name_that_is_no_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is not a block device"):
        select_disks((device(),), ("/dev/null",))
    with pytest.raises(UsageError, match="is not a block device"):
        select_disks((device(),), ("/no/such\x1bname",))


def test_what_claims_a_device_keeps_it_from_being_searched() -> None:
    assert may_hold_filesystem(device())
    assert not may_hold_filesystem(device(table="gpt"))
    assert not may_hold_filesystem(device(content=Content(type="swap", usage="other")))
    assert not may_hold_filesystem(device(content=Content(type="zfs_member", usage="filesystem")))
    extended = Partition(number=2, start_bytes=0, size_bytes=1, type="0x5")
    assert not may_hold_filesystem(device("/dev/sdb2", kind="partition", partition=extended))
    assert user_of(device(holders=("/dev/mapper/root",))) == "part of /dev/mapper/root"


def test_swap_areas_and_overlay_roots() -> None:
    swaps = "Filename\tType\tSize\n/dev/sda2 partition 9 0 -2\n/swap\\040file file 9 0 -3\n"
    assert parse_swaps(swaps) == ("/dev/sda2", "/swap file")
    live = (
        "proc /proc proc rw 0 0\n"
        "overlay / overlay rw,lowerdir=/run/live/rootfs/a:/run/live/rootfs/b,upperdir=/o/rw 0 0\n"
        "overlay /srv overlay rw,lowerdir=/other 0 0\n"
    )
    assert parse_overlay_folders(live) == ("/run/live/rootfs/a", "/run/live/rootfs/b", "/o/rw")


@dataclass
class _Mount:
    target: str
    type: str


@pytest.mark.parametrize(
    ("target", "kind", "live"),
    [
        ("/", "ext4", True),
        ("/run/live/medium", "iso9660", True),
        ("/run/initramfs/live", "vfat", True),
        ("/run/archiso/bootmnt", "iso9660", True),
        ("/cdrom", "iso9660", True),
        ("/sysroot-ro", "squashfs", True),
        ("/snap/core/1", "squashfs", False),
        ("/srv", "ext4", False),
        ("/run/livedata", "ext4", False),
    ],
)
def test_where_a_live_system_keeps_its_medium(target: str, kind: str, live: bool) -> None:
    assert usage._is_live_mount(_Mount(target, kind)) is live  # type: ignore[arg-type]
