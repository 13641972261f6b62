# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person would type to find out what ``scan`` finds out: the peer of the benchmarks."""

from __future__ import annotations

from lab import disks


def raw_tools(disk: disks.Disk) -> None:
    """Find out by hand what a scan finds out: table, contents, file system state, system, packages."""
    with disks.attached(disk, read_only=True) as (device, (partition,)):
        disks.run("lsblk", "--json", "--output-all", device)
        disks.run("sfdisk", "--json", device)
        disks.status("blkid", "-p", "-o", "export", device)
        disks.run("blkid", "-p", "-o", "export", partition)
        disks.run("dumpe2fs", "-h", partition)
        disks.run("e2fsck", "-fn", partition)
        with disks.mounted_device(partition, "ext4", "ro,noload") as root:
            (root / "etc/os-release").read_text()
            disks.run("chroot", root, "/lib64/ld-linux-x86-64.so.2", "--list", "/usr/lib/systemd/systemd")
            disks.run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W")
            disks.run("dpkg", f"--root={root}", "--verify")
