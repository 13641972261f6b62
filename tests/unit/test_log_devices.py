# SPDX-License-Identifier: GPL-3.0-or-later
"""Which device a line names, in all the ways in which lines do."""

from __future__ import annotations

import pytest

from rescue_agent.diagnose.logs.devices import (
    device_in,
    device_of,
    find_device,
    find_identity,
    path_of_unit,
)
from rescue_agent.model.logs import LogHit


def hit(text: str = "", **values: str) -> LogHit:
    return LogHit(signature="x", line=1, text=text, values=values)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("EXT4-fs (vda1): mounted filesystem", "vda1"),
        ("sd 0:0:0:0: [sdb] Sense Key : Medium Error", "sdb"),
        ("BTRFS error (device dm-3): open_ctree failed", "dm-3"),
        ("mount: /data: bad superblock on /dev/mapper/vg0-data, missing", "/dev/mapper/vg0-data"),
        ("I/O error, dev nvme0n1p2, sector 5", "nvme0n1p2"),
        ("fsck of UUID=1b0a-22 failed", "UUID=1b0a-22"),
        ("md/raid1:md0: not enough operational mirrors", "md0"),
        ("Attempted to kill init! exitcode=0x00007f00", ""),
        ("logged to /dev/console and /dev/null", ""),
        ("the words hda and sda1 in prose: sda1.", "hda"),
        ("address 3sda1x is none", ""),
        ("prefix=(hd0,msdos5)/boot/grub", "(hd0,msdos5)"),
        ("error: attempt to read or write outside of disk `hd0'.", "hd0"),
        ("ata2.00: COMRESET failed (errno=-16)", ""),
        ("ALERT! /dev/loop0p2 does not exist", "/dev/loop0p2"),
    ],
)  # fmt: skip
def test_devices_in_a_text(text: str, device: str) -> None:
    assert device_in(text) == device


def test_a_named_group_comes_before_the_text() -> None:
    assert device_of(hit("on /dev/sda1", device="vdb2")) == "vdb2"
    assert device_of(hit("on /dev/sda1", name="vg0")) == "/dev/sda1"
    assert device_of(hit("nothing", name2="vg0")) == "vg0"
    assert device_of(hit("nothing", device="(null)")) == ""


def test_an_identity_or_a_port_is_the_last_resort() -> None:
    lines = [hit(uuid="AbCd-12"), hit(name="vg0")]
    assert (find_device(lines), find_identity(lines)) == ("vg0", "AbCd-12")
    assert find_device([]) == find_identity([]) == ""
    assert find_identity([hit("ata2.00: COMRESET failed (errno=-16)")]) == "ata2"
    assert find_identity([hit("sd 2:0:0:0: rejecting I/O to offline device")]) == "2:0:0:0"
    assert device_of(hit("rejecting I/O", device="2:0:0:0")) == ""


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (r"dev-disk-by\x2duuid-C829\x2dC4C1.device", "/dev/disk/by-uuid/C829-C4C1"),
        ("dev-sdb1.device", "/dev/sdb1"),
        ("dev-mapper-swap.swap", "/dev/mapper/swap"),
        ("vg0-root", "vg0-root"),
        ("/dev/sdb1", "/dev/sdb1"),
    ],
)
def test_units_are_paths(unit: str, path: str) -> None:
    assert path_of_unit(unit) == path
