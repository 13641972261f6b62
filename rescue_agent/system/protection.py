# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the kernel from writing to a device that is only looked at.

Mount options are not enough. When the ext4 driver meets damage, it notes that in the superblock, also
on a read-only mount without log replay; only a device that is itself read-only keeps it from that
(ext4_handle_error in fs/ext4/super.c asks bdev_read_only()). So the device is made read-only
for as long as it is mounted for looking.

The flag is the kernel's and outlives the process. A mark below ``/run``, which goes with a reboot
as the flag does, tells the next run what a killed one left behind.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rescue_agent.errors import MountFailed
from rescue_agent.system.guard import RUN_DIR

BLKROSET = 0x125D  # linux/fs.h: _IO(0x12, 93)
BLKROGET = 0x125E  # linux/fs.h: _IO(0x12, 94)
MARK_DIR = RUN_DIR / "read-only"


@contextmanager
def write_protected(device: str) -> Iterator[None]:
    """Make a block device read-only for the time of the block; leave one alone that is so already.

    Raises MountFailed when the kernel does not do it: then nobody can promise not to write.
    """
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(f"{device} cannot be opened: {error.strerror}") from error
    try:
        if _is_read_only(descriptor):
            yield
            return
        mark = _mark_of(descriptor)
        try:
            mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            mark.write_text(f"{os.getpid()} {device}\n")
            os.fsync(descriptor)  # what others have written so far is theirs, and belongs on the disk
            _set_read_only(descriptor, True)
        except OSError as error:
            mark.unlink(missing_ok=True)
            raise MountFailed(f"{device} cannot be protected from writes: {error.strerror}") from error
        try:
            yield
        finally:
            _set_read_only(descriptor, False)
            mark.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def lift_left_behind() -> tuple[str, ...]:
    """Make devices writable again that a killed run left read-only; return their paths.

    Marks of a process that is still alive are left to it.
    """
    lifted = []
    for mark in sorted(MARK_DIR.glob("*")):
        try:
            owner, _, device = mark.read_text().strip().partition(" ")
            if owner.isdecimal() and psutil.pid_exists(int(owner)):
                continue
            descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                # The name may belong to another device by now.
                if _mark_of(descriptor) == mark and _is_read_only(descriptor):
                    _set_read_only(descriptor, False)
                    lifted.append(device)
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass
        _forget(mark)
    return tuple(lifted)


def _forget(mark: Path) -> None:
    try:
        mark.unlink(missing_ok=True)
    except OSError:
        pass


def _mark_of(descriptor: int) -> Path:
    """Return where the mark of a device lies; the kernel's sequence number tells media apart."""
    number = os.fstat(descriptor).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    place = Path(f"/sys/dev/block/{name}")
    for source in (place / "diskseq", place / ".." / "diskseq"):
        try:
            return MARK_DIR / f"{name}-{source.read_text().strip()}"
        except OSError:
            continue
    return MARK_DIR / name


def _is_read_only(descriptor: int) -> bool:
    answer = fcntl.ioctl(descriptor, BLKROGET, struct.pack("i", 0))
    return bool(struct.unpack("i", answer)[0])


def _set_read_only(descriptor: int, value: bool) -> None:
    fcntl.ioctl(descriptor, BLKROSET, struct.pack("i", int(value)))
