# SPDX-License-Identifier: GPL-3.0-or-later
"""The superblock of ext2, ext3 and ext4 and its copies, read from the device without mounting it.

Layout: fs/ext4/ext4.h (struct ext4_super_block) and Documentation/filesystems/ext4/super.rst of the
kernel. Where the copies lie: lib/ext2fs/closefs.c (ext2fs_bg_has_super) of e2fsprogs.
"""

from __future__ import annotations

import datetime
import os
import struct
import uuid as uuids
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from rescue_agent.model.document import printable
from rescue_agent.model.facts import BackupSuperblock

PRIMARY_OFFSET = 1024
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
STATE_VALID = 0x1
STATE_ERROR = 0x2
COMPAT_JOURNAL = 0x4
INCOMPAT_RECOVER = 0x4
INCOMPAT_JOURNAL_DEVICE = 0x8
INCOMPAT_64BIT = 0x80
RO_COMPAT_CHECKSUM = 0x400

_EXT3_INCOMPAT = 0x2 | 0x4 | 0x10  # filetype, recover, meta_bg
_EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4  # sparse_super, large_file, btree_dir
_MAX_LOG_BLOCK = 6  # EXT4_MAX_BLOCK_LOG_SIZE: 64 KiB
_KEEP_BACKUPS = 8

ReadAt = Callable[[int, int], bytes]
"""Returns that many bytes from that offset, fewer at the end of the device; raises OSError."""

ExtType = Literal["ext2", "ext3", "ext4"]


class Superblock(NamedTuple):
    """The fields that matter here, whether or not they make sense (see ``fault_of``)."""

    type: ExtType
    state: int
    blocks: int
    block_size: int
    first_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    group: int
    """The block group that this copy says it lies in; 0 for the primary."""
    revision: int
    incompatible: int
    uuid: str
    label: str
    error_count: int
    first_error: str
    last_error: str
    checksum_ok: bool

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_size

    @property
    def cleanly_unmounted(self) -> bool:
        return bool(self.state & STATE_VALID)

    @property
    def needs_recovery(self) -> bool:
        return bool(self.incompatible & INCOMPAT_RECOVER)

    @property
    def has_errors(self) -> bool:
        """The kernel, or a checker, noted that something is wrong with it."""
        return bool(self.state & STATE_ERROR) or self.error_count > 0


def parse_superblock(data: bytes) -> Superblock | None:
    """Return the superblock in 1024 bytes; None when its magic number is not there."""
    if len(data) < SUPERBLOCK_BYTES or struct.unpack_from("<H", data, 0x38)[0] != MAGIC:
        return None
    compatible, incompatible, ro_compatible = struct.unpack_from("<III", data, 0x5C)
    (log_block,) = struct.unpack_from("<I", data, 0x18)
    (blocks_low,) = struct.unpack_from("<I", data, 0x04)
    (blocks_high,) = struct.unpack_from("<I", data, 0x150) if incompatible & INCOMPAT_64BIT else (0,)
    (revision,) = struct.unpack_from("<I", data, 0x4C)
    inode_size, group = struct.unpack_from("<HH", data, 0x58) if revision else (128, 0)
    return Superblock(
        type=_type_of(compatible, incompatible, ro_compatible),
        state=struct.unpack_from("<H", data, 0x3A)[0],
        blocks=blocks_high << 32 | blocks_low,
        block_size=1024 << log_block if log_block <= _MAX_LOG_BLOCK else 0,
        first_block=struct.unpack_from("<I", data, 0x14)[0],
        blocks_per_group=struct.unpack_from("<I", data, 0x20)[0],
        inodes_per_group=struct.unpack_from("<I", data, 0x28)[0],
        inode_size=inode_size,
        group=group,
        revision=revision,
        incompatible=incompatible,
        uuid=_uuid(data[0x68:0x78]),
        label=_text(data[0x78:0x88]),
        error_count=struct.unpack_from("<I", data, 0x194)[0],
        first_error=_error(data, 0x198, 0x1C8, 0x1A8),
        last_error=_error(data, 0x1CC, 0x1D4, 0x1E0),
        checksum_ok=(
            not ro_compatible & RO_COMPAT_CHECKSUM
            or struct.unpack_from("<I", data, 0x3FC)[0] == crc32c(data[:0x3FC])
        ),
    )


def _type_of(compatible: int, incompatible: int, ro_compatible: int) -> ExtType:
    """Return the type by the rule of libblkid: what ext3 could not mount is ext4."""
    if incompatible & ~_EXT3_INCOMPAT or ro_compatible & ~_EXT3_RO_COMPAT:
        return "ext4"
    return "ext3" if compatible & COMPAT_JOURNAL else "ext2"


def _uuid(data: bytes) -> str:
    return str(uuids.UUID(bytes=data)) if any(data) else ""


def _text(data: bytes) -> str:
    return printable(data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"))


def _error(data: bytes, time_at: int, line_at: int, function_at: int) -> str:
    """Return what the kernel noted about one error: when, and in which of its functions."""
    (seconds,) = struct.unpack_from("<I", data, time_at)
    (line,) = struct.unpack_from("<I", data, line_at)
    function = _text(data[function_at : function_at + 32])
    if not seconds and not function:
        return ""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{when} {function}:{line}" if function else when


def fault_of(block: Superblock, *, group: int = 0) -> str:
    """Return why a superblock cannot be believed, or an empty string (ext4_fill_super's checks)."""
    size = block.block_size
    if not block.checksum_ok:
        return "its checksum is wrong"
    if not size:
        return "its block size is impossible"
    if block.first_block != (1 if size == 1024 else 0) and not (size == 1024 and block.first_block == 0):
        return "its first data block is impossible"
    if not 0 < block.blocks_per_group <= 8 * size * 4096 or block.blocks_per_group % 8:
        return "its number of blocks per group is impossible"
    if not 0 < block.inodes_per_group <= 8 * size:
        return "its number of inodes per group is impossible"
    if block.inode_size < 128 or block.inode_size & block.inode_size - 1 or block.inode_size > size:
        return "its inode size is impossible"
    if block.blocks <= block.first_block:
        return "its number of blocks is impossible"
    if block.group != group and not (block.revision == 0 and block.group == 0):
        return f"it says that it is the copy of group {block.group}"
    return ""


# --- copies --------------------------------------------------------------------------------


def find_backups(read_at: ReadAt, size_bytes: int) -> tuple[tuple[BackupSuperblock, Superblock], ...]:
    """Return the copies of a superblock at the standard places of every block size.

    Only copies that fit each other and their place are given: those with the UUID of the first
    convincing one. Unreadable places are passed over. At most 8, nearest first.
    """
    for log_block in range(_MAX_LOG_BLOCK + 1):
        found = _backups_of(read_at, size_bytes, 1024 << log_block)
        if found:
            return found
    return ()


def _backups_of(
    read_at: ReadAt, size_bytes: int, block_size: int
) -> tuple[tuple[BackupSuperblock, Superblock], ...]:
    first = 1 if block_size == 1024 else 0
    per_group = 8 * block_size
    found: list[tuple[BackupSuperblock, Superblock]] = []
    for group in sparse_groups():
        at = first + group * per_group
        if (at + 1) * block_size > size_bytes or len(found) >= _KEEP_BACKUPS:
            break
        try:
            block = parse_superblock(read_at(at * block_size, SUPERBLOCK_BYTES))
        except OSError:
            continue
        if block is None or block.block_size != block_size or block.first_block != first:
            continue
        if block.blocks_per_group != per_group or fault_of(block, group=group & 0xFFFF):
            continue
        if found and block.uuid != found[0][1].uuid:
            continue
        found.append((BackupSuperblock(block=at, block_size=block_size), block))
    return tuple(found)


def sparse_groups() -> Iterator[int]:
    """Give the groups that hold a copy under sparse_super, in order: 1 and the powers of 3, 5 and 7.

    Without that feature every group has one, these among them.
    """
    powers = {3: 3, 5: 5, 7: 7}
    yield 1
    while True:
        base, group = min(powers.items(), key=lambda item: item[1])
        yield group
        powers[base] = group * base


# --- crc32c ----------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Return ext4's checksum of ``data``: CRC-32C, seeded with all ones, not inverted at the end."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(_crc_entry(index) for index in range(256))


def reader_of(descriptor: int) -> ReadAt:
    """Return a function that reads from an open device."""
    return lambda offset, size: os.pread(descriptor, size, offset)
