# SPDX-License-Identifier: GPL-3.0-or-later
"""The few superblock fields of xfs, btrfs and FAT that no checker says in a form for programs.

Layouts: fs/xfs/libxfs/xfs_format.h (struct xfs_dsb), include/uapi/linux/btrfs_tree.h
(struct btrfs_super_block), Microsoft's FAT specification (BPB; the dirty flag is the kernel's,
fs/fat/fat.h).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rescue_agent.probe.ext import ReadAt

BTRFS_OFFSET = 65536


class Geometry(NamedTuple):
    """What a filesystem believes about itself."""

    size_bytes: int = 0
    block_size: int = 0
    log_waits: bool = False
    """A log holds changes that are not in place yet, as far as the superblock tells."""
    dirty: bool = False
    """It was not unmounted cleanly."""
    devices: int = 1


def read_geometry(read_at: ReadAt, fstype: str) -> Geometry:
    """Return what the superblock on a device says; an empty value for a type not known here."""
    match fstype:
        case "xfs":
            return parse_xfs(read_at(0, 512))
        case "btrfs":
            return parse_btrfs(read_at(BTRFS_OFFSET, 4096))
        case "vfat":
            return parse_fat(read_at(0, 512))
        case _:
            return Geometry()


def parse_xfs(data: bytes) -> Geometry:
    """Return the geometry in an xfs superblock (big-endian). Its log's state is not kept there."""
    if len(data) < 16 or data[:4] != b"XFSB":
        return Geometry()
    block_size, blocks = struct.unpack_from(">IQ", data, 4)
    return Geometry(size_bytes=block_size * blocks, block_size=block_size)


def parse_btrfs(data: bytes) -> Geometry:
    """Return the geometry of this device in a btrfs superblock (little-endian)."""
    if len(data) < 4096 or data[0x40:0x48] != b"_BHRfS_M":
        return Geometry()
    (log_root,) = struct.unpack_from("<Q", data, 0x60)
    (devices,) = struct.unpack_from("<Q", data, 0x88)
    (sector,) = struct.unpack_from("<I", data, 0x90)
    (own_bytes,) = struct.unpack_from("<Q", data, 0xC9 + 8)  # dev_item.total_bytes
    return Geometry(
        size_bytes=own_bytes, block_size=sector, log_waits=log_root != 0, devices=min(devices, 1 << 16)
    )


def parse_fat(data: bytes) -> Geometry:
    """Return the geometry in a FAT boot sector, and whether the kernel left it marked dirty."""
    if len(data) < 512 or data[510:512] != b"\x55\xaa":
        return Geometry()
    sector, per_cluster = struct.unpack_from("<HB", data, 11)
    (small,) = struct.unpack_from("<H", data, 19)
    (fat16_size,) = struct.unpack_from("<H", data, 22)
    (large,) = struct.unpack_from("<I", data, 32)
    state = data[0x25] if fat16_size else data[0x41]
    return Geometry(
        size_bytes=sector * (small or large), block_size=sector * per_cluster, dirty=bool(state & 1)
    )
