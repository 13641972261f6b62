# SPDX-License-Identifier: GPL-3.0-or-later
"""Every program of the rescue system that the agent may call, and the Debian package that brings it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rescue_agent.errors import ToolMissing
from rescue_agent.system.runner import Runner

TOOLS: Mapping[str, str] = MappingProxyType(
    {
        "apt-get": "apt",
        "blkid": "util-linux",
        "blockdev": "util-linux",
        "bsdtar": "libarchive-tools",
        "btrfs": "btrfs-progs",
        "chroot": "coreutils",
        "crash": "crash",
        "dd": "coreutils",
        "ddrescue": "gddrescue",
        "dpkg": "dpkg",
        "dpkg-deb": "dpkg",
        "db5.3_dump": "db5.3-util",
        "db5.3_load": "db5.3-util",
        "dnf": "dnf-plugins-core",
        "dumpe2fs": "e2fsprogs",
        "e2fsck": "e2fsprogs",
        "e2undo": "e2fsprogs",
        "fsck.ext2": "e2fsprogs",
        "fsck.ext3": "e2fsprogs",
        "fsck.ext4": "e2fsprogs",
        "fsck.fat": "dosfstools",
        "journalctl": "systemd",
        "losetup": "mount",
        "makedumpfile": "makedumpfile",
        "mke2fs": "e2fsprogs",
        "mount": "mount",
        "pacman": "pacman-package-manager",
        "partx": "util-linux",
        "qemu-img": "qemu-utils",
        "qemu-storage-daemon": "qemu-system-common",
        "rpm": "rpm",
        "rpm2archive": "rpm2cpio",
        "rpmdb": "rpm",
        "rpmkeys": "rpm",
        "setfiles": "policycoreutils",
        "smartctl": "smartmontools",
        "tar": "tar",
        "umount": "mount",
        "xfs_metadump": "xfsprogs",
        "xfs_repair": "xfsprogs",
    }
)


def missing(name: str) -> ToolMissing:
    """Return the error that says which package brings a program that is not installed."""
    package = TOOLS.get(name, name)
    return ToolMissing(name, hint=f"install the package {package} on the rescue system")


def require(runner: Runner, *names: str) -> None:
    """Raise ToolMissing, naming the package, for the first program that is not installed."""
    for name in names:
        if not runner.which(name):
            raise missing(name)
