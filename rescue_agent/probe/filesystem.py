# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a filesystem, found without ever mounting it writable.

Superblock first, then the checker, then a mount that is read-only and replays nothing. The order of
belief: a lost superblock, then what waits in a journal, then what the checker found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from rescue_agent.errors import Interrupted, MountFailed, RescueError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import BackupSuperblock, BlockDevice, Check, Filesystem, ProbeError, Space
from rescue_agent.probe import ext
from rescue_agent.probe.block import EXTENDED_TYPES
from rescue_agent.probe.checkers import Told, has_checker, run_check
from rescue_agent.probe.superblocks import Geometry, read_geometry
from rescue_agent.system.mounts import mounted_read_only
from rescue_agent.system.runner import Runner

State = Literal["clean", "dirty", "needs-recovery", "error", "damaged", "unknown"]
EXT_TYPES = frozenset({"ext2", "ext3", "ext4"})


class _Superblock(NamedTuple):
    """What was read from the device, of whatever type the filesystem is."""

    type: str
    state: State
    """As the superblock alone tells it."""
    geometry: Geometry = Geometry()
    uuid: str = ""
    label: str = ""
    primary: Literal["ok", "bad", "unknown"] = "unknown"
    backups: tuple[BackupSuperblock, ...] = ()
    notes: tuple[str, ...] = ()


def may_hold_filesystem(device: BlockDevice) -> bool:
    """Return whether a filesystem is there, or could have been: nothing else claims the device."""
    if device.partition is not None and device.partition.type in EXTENDED_TYPES:
        return False
    if device.content is None:
        return device.table == ""
    return device.content.usage == "filesystem" and not device.content.type.endswith("_member")


def user_of(device: BlockDevice) -> str:
    """Return who uses a device, as the end of a sentence; empty when nobody does."""
    if device.mounts:
        return f"mounted at {device.mounts[0].target}"
    if device.holders:
        return f"part of {device.holders[0]}"
    if device.held_by:
        holder = device.held_by[0]
        return f"held by {holder.command} ({holder.pid})" if holder.pid else "claimed by the kernel"
    return ""


def probe_filesystem(
    runner: Runner, device: BlockDevice, mount_point: Path, *, check: bool = True, may_mount: bool = True
) -> tuple[Filesystem | None, tuple[ProbeError, ...]]:
    """Return the filesystem on a device, None when there is no trace of one, and what went wrong.

    ``may_mount``: False when mounting would be ambiguous (two devices carry one btrfs UUID).
    """
    try:
        found = _read_superblock(device)
    except OSError as error:
        message = f"the superblock on {device.path} cannot be read: {os.strerror(error.errno or 5)}"
        problem = (ProbeError(probe="filesystem", subject=device.path, message=message),)
        if device.content is None:
            return None, problem
        kind = device.content.type
        unread = Filesystem(
            device=device.path,
            type=kind,
            state="unknown",
            uuid=device.content.uuid,
            label=device.content.label,
            check=Check(tool="", argv=(), verdict="unreadable", reason=message),
            read_error=message,
        )
        return unread, problem
    if found is None:
        return None, ()
    checked = None
    if (user := user_of(device)) or not _fits(found, device):
        reason = (
            f"{device.path} is {user}"
            if user
            else f"it believes that it has {found.geometry.size_bytes} bytes, "
            f"but {device.path} has only {device.size_bytes}"
        )
        checked = Check(tool="", argv=(), verdict="unknown", reason=f"not checked: {reason}")
        return _filesystem(device, found, checked, state="unknown", read_error=reason), ()
    if check and has_checker(found.type):
        checked = _run_check(runner, device, found)
        if checked.verdict == "unrepairable" and found.primary == "ok":
            # It looked sound here, and e2fsck knows better: a copy may still do.
            from_copy = _from_copies(device, found)
            if from_copy is not None:
                found, checked = from_copy, _run_check(runner, device, from_copy)
    state = state_of(found.state, checked)
    if not may_mount:
        reason = "another device carries the same UUID; mounting one could show the other"
        return _filesystem(device, found, checked, state=state, read_error=reason), ()
    space, read_error = _look_inside(runner, device.path, found.type, mount_point)
    return _filesystem(device, found, checked, state=state, space=space, read_error=read_error), ()


def _run_check(runner: Runner, device: BlockDevice, found: _Superblock) -> Check:
    backup = found.backups[0] if found.primary == "bad" and found.backups else None
    return run_check(
        runner, device.path, found.type, size_bytes=device.size_bytes, told=_told(found), backup=backup
    )


def _told(found: _Superblock) -> Told:
    geometry = found.geometry
    return Told(geometry.log_waits, geometry.size_bytes // geometry.block_size if geometry.block_size else 0)


def state_of(by_superblock: State, check: Check | None) -> State:
    """Return the state from what the superblock says and what the checker found.

    A waiting journal stays that, whatever the checker found without replaying it. Without an
    answer of the checker nobody knows, unless the superblock itself tells of trouble.
    """
    if by_superblock in ("damaged", "needs-recovery") or check is None:
        return by_superblock
    match check.verdict:
        case "needs-recovery":
            return "needs-recovery"
        case "damaged" | "unrepairable":
            return "damaged"
        case "unreadable" | "unknown":
            return by_superblock if by_superblock in ("error", "dirty") else "unknown"
        case "clean":
            return "clean" if by_superblock == "unknown" else by_superblock


def _filesystem(
    device: BlockDevice,
    found: _Superblock,
    check: Check | None,
    *,
    state: State,
    space: Space | None = None,
    read_error: str = "",
) -> Filesystem:
    content = device.content
    return Filesystem(
        device=device.path,
        type=found.type,
        state=state,
        uuid=found.uuid or (content.uuid if content else ""),
        label=found.label or (content.label if content else ""),
        size_bytes=found.geometry.size_bytes,
        block_size=found.geometry.block_size,
        check=check,
        primary_superblock=found.primary,
        backups=found.backups,
        recorded=found.notes,
        space=space,
        readable=space is not None,
        read_error=read_error,
    )


def _fits(found: _Superblock, device: BlockDevice) -> bool:
    return found.geometry.size_bytes <= device.size_bytes


def _read_superblock(device: BlockDevice) -> _Superblock | None:
    descriptor = os.open(device.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        read_at = ext.reader_of(descriptor)
        content = device.content
        if content is None or content.type in (*EXT_TYPES, "ext4dev"):
            return _read_ext(read_at, device)
        geometry = read_geometry(read_at, content.type)
        head = read_at(ext.PRIMARY_OFFSET, ext.SUPERBLOCK_BYTES)
        if geometry.size_bytes > device.size_bytes and ext.parse_superblock(head) is not None:
            # The boot sector of an older filesystem before an ext superblock that blkid finds illegal.
            return _read_ext(read_at, device)
    finally:
        os.close(descriptor)
    state: State = "needs-recovery" if geometry.log_waits else "dirty" if geometry.dirty else "unknown"
    return _Superblock(content.type, state, geometry)


def _read_ext(read_at: ext.ReadAt, device: BlockDevice) -> _Superblock | None:
    """Return the ext superblock on a device, from a copy when the primary one cannot be believed."""
    primary = ext.parse_superblock(read_at(ext.PRIMARY_OFFSET, ext.SUPERBLOCK_BYTES))
    if device.content is None and primary is not None and primary.incompatible & ext.INCOMPAT_JOURNAL_DEVICE:
        return None
    fault = ext.fault_of(primary) if primary is not None else ""
    sound = primary is not None and not fault
    if primary is not None and sound and primary.size_bytes <= device.size_bytes:
        return _from_ext(primary)
    backups = ext.find_backups(read_at, device.size_bytes)
    if primary is not None and sound:
        # Too large for the device: its own copies know whether that number is the true one.
        best = next((b for _, b in backups if b.uuid == primary.uuid), None)
        if best is None or best.blocks == primary.blocks or best.size_bytes > device.size_bytes:
            return _from_ext(primary)
        fault = f"it tells of {primary.blocks} blocks, its copies of {best.blocks}"
    if backups:
        return _from_backups(backups, fault or "its magic number is not there")
    if primary is None or (device.content is None and not primary.block_size):
        return None
    return _Superblock(
        type=primary.type,
        state="damaged",
        uuid=primary.uuid,
        label=primary.label,
        primary="bad",
        notes=(f"the primary superblock is bad: {fault}, and no copy of it was found",),
    )


def _from_copies(device: BlockDevice, found: _Superblock) -> _Superblock | None:
    """Return an ext filesystem as its copies describe it, when the checker rejects the primary one."""
    descriptor = os.open(device.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        backups = ext.find_backups(ext.reader_of(descriptor), device.size_bytes)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if not backups or backups[0][1].uuid != found.uuid:
        return None
    return _from_backups(backups, "the checker rejects it")


def _from_backups(backups: tuple[tuple[BackupSuperblock, ext.Superblock], ...], reason: str) -> _Superblock:
    best = backups[0][1]
    return _Superblock(
        type=best.type,
        state="damaged",
        geometry=Geometry(size_bytes=best.size_bytes, block_size=best.block_size),
        uuid=best.uuid,
        label=best.label,
        primary="bad",
        backups=tuple(place for place, _ in backups),
        notes=(f"the primary superblock is bad: {reason}",),
    )


def _from_ext(block: ext.Superblock) -> _Superblock:
    state: State = "clean" if block.cleanly_unmounted else "dirty"
    if block.needs_recovery:
        state = "needs-recovery"
    elif block.has_errors:
        state = "error"
    notes = []
    if block.error_count:
        notes.append(f"the kernel noted {block.error_count} errors in it")
    if block.first_error:
        notes.append(f"first error {block.first_error}")
    if block.last_error:
        notes.append(f"last error {block.last_error}")
    if block.has_errors and not notes:
        notes.append("its superblock carries the error mark")
    return _Superblock(
        type=block.type,
        state=state,
        geometry=Geometry(
            size_bytes=block.size_bytes, block_size=block.block_size, log_waits=block.needs_recovery
        ),
        uuid=block.uuid,
        label=block.label,
        primary="ok",
        notes=tuple(notes),
    )


def _look_inside(runner: Runner, device: str, fstype: str, mount_point: Path) -> tuple[Space | None, str]:
    """Mount read-only without log replay; return the room in it, or why that did not work."""
    try:
        with mounted_read_only(runner, device, mount_point, fstype) as place:
            figures = os.statvfs(place)
    except Interrupted:
        raise
    except MountFailed as error:
        return None, printable(error.message)
    except (RescueError, OSError) as error:
        return None, printable(str(error))
    return Space(
        total_bytes=figures.f_blocks * figures.f_frsize,
        free_bytes=figures.f_bfree * figures.f_frsize,
        inodes_total=figures.f_files,
        inodes_free=figures.f_ffree,
    ), ""
