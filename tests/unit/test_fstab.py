# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount table, and which devices its entries mean on another machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.model.facts import BlockDevice, Content, Partition
from rescue_agent.probe.fstab import find_device, parse_fstab, resolve_entries


def partition(
    disk: str, number: int, uuid: str, *, kind: str = "ext4", label: str = "", name: str = ""
) -> BlockDevice:
    return BlockDevice(
        path=f"{disk}{number}",
        id=uuid,
        kind="partition",
        disk=disk,
        size_bytes=1 << 30,
        partition=Partition(number=number, start_bytes=0, size_bytes=1, uuid=f"abcd-{number}", name=name),
        content=Content(type=kind, uuid=uuid, label=label),
    )


def whole(path: str, **more: str) -> BlockDevice:
    return BlockDevice(path=path, id=path, kind="disk", disk=path, size_bytes=1 << 30, **more)  # type: ignore[arg-type]


DISKS = (
    whole("/dev/vdb", serial="S3R1AL", wwn="0x5000c500a1b2c3d4"),
    partition("/dev/vdb", 1, "AAAA-0001", kind="vfat", name="EFI System"),
    partition("/dev/vdb", 2, "aaaa-0002"),
    partition("/dev/vdb", 3, "aaaa-0003", label="my data"),
    whole("/dev/vdc"),
    partition("/dev/vdc", 2, "cccc-0002"),
)
ROOT = "/dev/vdb2"


def resolved(text: str, devices: tuple[BlockDevice, ...] = DISKS, root: str = ROOT) -> dict[str, str]:
    return {e.spec: e.device for e in resolve_entries(parse_fstab(text), devices, root)}


def test_fields_defaults_and_escapes() -> None:
    (entry, short) = parse_fstab("# comment\n\n  UUID=x /mnt/a\\040b\text4 rw,,nofail 0 2 # more\n/dev/y\n")
    assert entry.line == 3 and entry.mount_point == "/mnt/a b" and entry.type == "ext4"
    assert entry.options == ("rw", "nofail") and entry.passno == 2
    assert (short.line, short.spec, short.mount_point, short.type, short.options) == (
        4,
        "/dev/y",
        "",
        "",
        ("defaults",),
    )


@pytest.mark.parametrize(
    ("spec", "device"),
    [
        ("UUID=aaaa-0003", "/dev/vdb3"),
        ("UUID=AAAA-0003", "/dev/vdb3"),
        ('UUID="aaaa-0001"', "/dev/vdb1"),
        ("LABEL=my data", "/dev/vdb3"),
        ("PARTUUID=ABCD-3", "/dev/vdb3"),
        ("PARTLABEL=EFI System", "/dev/vdb1"),
        ("/dev/disk/by-uuid/cccc-0002", "/dev/vdc2"),
        ("/dev/disk/by-label/my\\x20data", "/dev/vdb3"),
        ("/dev/disk/by-id/ata-Maker_Model_S3R1AL-part3", "/dev/vdb3"),
        ("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part1", "/dev/vdb1"),
        ("/dev/disk/by-id/ata-Maker_Other-part3", ""),
        ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part3", ""),
        ("UUID=gone", ""),
        ("UUID=", ""),
        ("LABEL=", ""),
    ],
)
def test_tags_find_their_device(spec: str, device: str) -> None:
    assert find_device(spec, DISKS, ROOT) == device


def test_a_tag_on_two_disks_means_the_one_with_the_root() -> None:
    clone = partition("/dev/vdd", 3, "aaaa-0003")
    assert find_device("UUID=aaaa-0003", (*DISKS, clone), ROOT) == "/dev/vdb3"
    twins = (partition("/dev/vdd", 5, "dddd"), partition("/dev/vde", 5, "dddd"))
    assert find_device("UUID=dddd", (*DISKS, *twins), ROOT) == ""


def test_any_member_of_a_btrfs_mounts_it() -> None:
    members = tuple(partition(disk, 1, "bbbb", kind="btrfs") for disk in ("/dev/vdd", "/dev/vde"))
    assert find_device("UUID=bbbb", (*DISKS, *members), ROOT) == "/dev/vdd1"


def test_a_kernel_name_counts_when_the_root_entry_proves_it() -> None:
    assert resolved("/dev/sda2 / ext4\n/dev/sda3 /home ext4\n/dev/sdb3 /srv ext4\n/dev/sda9 /x ext4\n") == {
        "/dev/sda2": "/dev/vdb2",
        "/dev/sda3": "/dev/vdb3",
        "/dev/sdb3": "",
        "/dev/sda9": "",
    }
    assert resolved("/dev/nvme0n1p2 / ext4\n/dev/nvme0n1p3 /home ext4\n")["/dev/nvme0n1p3"] == "/dev/vdb3"


def test_a_kernel_name_is_not_believed_when_the_root_entry_contradicts() -> None:
    assert set(resolved("/dev/sda1 / ext4\n/dev/sda3 /home ext4\n").values()) == {""}


def test_the_only_disk_named_is_the_roots() -> None:
    assert resolved("UUID=aaaa-0002 / ext4\n/dev/sda3 /home ext4\n")["/dev/sda3"] == "/dev/vdb3"
    two = resolved("UUID=aaaa-0002 / ext4\n/dev/sda3 /home ext4\n/dev/sdb1 /srv ext4\n")
    assert two["/dev/sda3"] == two["/dev/sdb1"] == ""


def test_names_from_metadata_are_kept() -> None:
    volume = BlockDevice(
        path="/dev/mapper/vg--a-home", id="x", kind="dm", disk="/dev/vdb", size_bytes=1, content=None
    )
    assert find_device("/dev/mapper/vg--a-home", (*DISKS, volume), ROOT) == volume.path
    assert find_device("/dev/vg-a/home", (*DISKS, volume), ROOT) == volume.path


def test_what_is_no_disk_gets_no_device() -> None:
    table = "tmpfs /tmp tmpfs\nproc /proc proc\nhost:/x /x nfs\n/dev/vdb3 /b none bind\n/swapfile none swap\n"
    assert set(resolved(table).values()) == {""}


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    entries = resolve_entries(parse_fstab(text), DISKS, ROOT)
    assert all(e.spec.isprintable() and e.mount_point.isprintable() and e.type.isprintable() for e in entries)
