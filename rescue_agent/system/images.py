# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images as block devices: raw ones by loop, the others through QEMU's FUSE export, then by loop.

Everything that is taken goes through ``Resources``: recorded before it happens, released in reverse
order, the release proved from sysfs and mountinfo.

What an image may pull in
    A qcow2 or VMDK can name other files: a backing file, a data file, extents. They are followed only
    when they are plain file names that lead, links resolved, to a regular file in the folder of the
    image itself or below it. Anything else (``/etc/shadow``, ``nbd://…``, ``json:{…}``) is refused:
    an image from somebody else must not make the agent read a file that its owner did not hand over.
    Whoever trusts such a chain puts it into one file with ``qemu-img convert`` first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rescue_agent.errors import (
    CommandFailed,
    CommandTimeout,
    MountFailed,
    Refused,
    RescueError,
    ToolMissing,
    UsageError,
)
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Image
from rescue_agent.system import imageformats
from rescue_agent.system.guard import RUN_DIR
from rescue_agent.system.imageformats import HEAD_BYTES, TAIL_BYTES, Format
from rescue_agent.system.mounts import holders_of, mounts, release
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import ANY, Runner
from rescue_agent.system.tools import missing, require

EXPORT_DIR = RUN_DIR / "exports"
_FIRST_LOOP, _LAST_LOOP = 1 << 12, 1 << 20
"""Loop numbers that nobody else is likely to use; a minor number has 20 bits (linux/kdev_t.h)."""
_LOOP_TRIES = 16
_LOOP_CTL_REMOVE = 0x4C81  # linux/loop.h
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_BYTES = 232
EXPORT_TIMEOUT_S = 30.0
NODE_TIMEOUT_S = 5.0
DETACH_TIMEOUT_S = 10.0
MAX_CHAIN = 16
_DROP_TIMEOUT_S = 10.0
_DROP_POLL_S = 0.25
_POLL_S = 0.02

# Byte-range locks by which QEMU processes tell each other what they do with an image
# (block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE; include/block/block-common.h).
_LOCK_USES, _LOCK_FORBIDS = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK = "hhqqi4x"
"""struct flock of fcntl(2) on Linux with 64-bit offsets."""


class Attachment(NamedTuple):
    """An attached image: the loop device that shows it, and where it comes from."""

    device: str
    image: Image


def image_format(runner: Runner, path: str) -> Format:
    """Return the format of a disk image, from its own header.

    Raises UsageError when it is no image at all (a folder, empty, not there, not readable), and
    RescueError when its header is damaged. Nothing that the image refers to is opened.
    """
    runner.cancel.check()
    _, found, _ = _inspect(path)
    return found


def attach(
    runner: Runner, resources: Resources, path: str, *, writable: bool, overlay: str = ""
) -> Attachment:
    """Show a disk image as a block device with its partitions, until ``resources`` releases it.

    With ``overlay`` that file is made (it must not exist) as a copy-on-write layer: all writes go
    there, and the image, or the block device, at ``path`` is only read. The overlay is kept.
    Must be called from a thread that lives as long as the attachment, since QEMU's daemon ends
    with it (PR_SET_PDEATHSIG in prctl(2)). Raises UsageError, Refused (in use, or it leads out of
    its folder), ToolMissing, or RescueError with what the program said.
    """
    origin = os.path.realpath(path)
    head, found, is_device = _inspect(origin)
    if is_device and not overlay:
        raise UsageError(f"{path} is a block device and needs no attaching")
    _require_own_folder(origin, head, found)
    require(runner, "losetup", "partx")
    attached = Image(path=origin, format=found)
    with _all_or_nothing(resources):
        if overlay:
            _make_overlay(runner, origin, found, overlay)
            shown = _export(runner, resources, overlay, "qcow2", writable=True)
        elif found != "raw":
            shown = _export(runner, resources, origin, found, writable=writable)
        else:
            shown = origin
        lock = _lock(origin, writable=writable) if shown == origin else None
        device = _loop(runner, resources, shown, lock, origin=origin, read_only=not (writable or overlay))
        _show_partitions(runner, resources, device)
    return Attachment(device, attached)


@contextmanager
def _all_or_nothing(resources: Resources) -> Iterator[None]:
    """Give back what was taken inside the block when the block fails."""
    mark = resources.mark()
    try:
        yield
    except BaseException:
        resources.release_to(mark)
        raise


# --- looking at the file -------------------------------------------------------------------


def _inspect(path: str) -> tuple[bytes, Format, bool]:
    """Return the head of an image, its format, and whether it is a block device."""
    shown = printable(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"{shown} does not exist") from error
    except PermissionError as error:
        raise UsageError(
            f"{shown} may not be read: {error.strerror}", hint="run the agent as root"
        ) from error
    except OSError as error:
        raise UsageError(f"{shown} cannot be opened: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{shown} is a folder", hint="name a block device or a disk image")
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UsageError(f"{shown} is neither a file nor a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size == 0:
            raise UsageError(f"{shown} is empty", hint="was it copied completely?")
        head = os.pread(descriptor, HEAD_BYTES, 0)
        tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
    except OSError as error:
        raise RescueError(f"{shown} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if stat.S_ISBLK(mode):
        return head, "raw", True
    found = imageformats.parse_format(head, tail)
    if found == "raw" and size < 512:
        raise UsageError(f"{shown} has {size} bytes, less than one sector: that is no disk image")
    try:
        imageformats.parse_references(head, found)
    except RescueError as error:
        raise RescueError(f"{shown} cannot be opened as {found}: {error.message}") from error
    return head, found, False


def _require_own_folder(path: str, head: bytes, found: Format, depth: int = 0) -> None:
    """Refuse an image that refers to anything outside its own folder (see the module's rule)."""
    hint = "when you trust it, put it into one file first: qemu-img convert -O qcow2 IMAGE NEW.qcow2"
    if depth > MAX_CHAIN:
        raise Refused(f"{printable(path)} builds on a chain of more than {MAX_CHAIN} images", hint=hint)
    references = imageformats.parse_references(head, found)
    folder = os.path.dirname(path)
    for name in (*filter(None, (references.backing,)), *references.others):
        reason = imageformats.refuse_reason(name)
        target = "" if reason else os.path.realpath(os.path.join(folder, name))
        if not reason and not target.startswith(folder.rstrip("/") + "/"):
            reason = f"it builds on {name}, which lies outside its own folder {folder}"
        if reason:
            raise Refused(f"{printable(path)} is not opened: {reason}", hint=hint)
        below, kind, is_device = _inspect(target)
        if is_device:
            raise Refused(f"{printable(path)} is not opened: it builds on the device {target}", hint=hint)
        # What QEMU takes for a flat extent or data file, it reads as raw whatever its first bytes say.
        if name == references.backing:
            _require_own_folder(target, below, kind, depth + 1)


# --- a raw image in use ---------------------------------------------------------------------


def _lock(path: str, *, writable: bool) -> int:
    """Take QEMU's locks on a raw image, so that no virtual machine and no second agent works on it.

    Returns the descriptor that holds them; they end with it, so nothing is left by a killed run.
    Raises Refused when somebody else works on the image.
    """
    try:
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{printable(path)} may not be written: {error.strerror}") from error
    try:
        uses = (_READ, _WRITE) if writable else (_READ,)
        for use in uses:
            _set_lock(descriptor, _LOCK_USES + use)
        for forbidden in (_WRITE, _RESIZE):
            _set_lock(descriptor, _LOCK_FORBIDS + forbidden)
        # A conflict: somebody does what is forbidden here, or forbids what is done here.
        rivals = [_LOCK_USES + _WRITE, _LOCK_USES + _RESIZE, *(_LOCK_FORBIDS + use for use in uses)]
        if any(_is_locked(descriptor, byte) for byte in rivals):
            raise Refused(
                f"{printable(path)} is in use by a virtual machine or another program",
                hint="shut the machine down first; two writers destroy a filesystem",
            )
        _require_no_other_loop(path, writable=writable)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _set_lock(descriptor: int, byte: int) -> None:
    try:
        fcntl.fcntl(
            descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return  # somebody holds it exclusively: _is_locked finds that out
        if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF):
            raise
        # A filesystem without such locks: there QEMU has none to be told about either.


def _is_locked(descriptor: int, byte: int) -> bool:
    """Return whether another open file holds a lock on this byte (F_OFD_GETLK in fcntl(2))."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK


def _require_no_other_loop(path: str, *, writable: bool) -> None:
    for device in loops_of(path):
        if writable or _is_claimed(device):
            raise Refused(
                f"{printable(path)} is already attached as {device}",
                hint=f"work on {device} itself, or release it with: losetup -d {device}",
            )


def loops_of(path: str) -> tuple[str, ...]:
    """Return the loop devices that show this file.

    Told by inode (LOOP_GET_STATUS64 in loop(4)): the name in sysfs is that of the mount namespace in
    which the file was opened, and may lead nowhere when that is gone.
    """
    try:
        state = os.stat(path)
    except OSError:
        return ()
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = f"/dev/{entry.parent.parent.name}"
        try:
            same_name = os.path.basename(entry.read_text("utf-8", "surrogateescape").rstrip("\n"))
            number, inode = _backing_inode(device)
        except OSError:
            continue
        # A btrfs subvolume has a device number of its own (stat(2)); there the file's name decides.
        if inode == state.st_ino and (number == state.st_dev or same_name == os.path.basename(path)):
            found.append(device)
    return tuple(found)


def _backing_inode(device: str) -> tuple[int, int]:
    """Return device number and inode of the file behind a loop device (struct loop_info64)."""
    with open(device, "rb", buffering=0) as loop:
        answer = fcntl.ioctl(loop, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
    number, inode = struct.unpack_from("QQ", answer)
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)), inode


def _is_claimed(device: str) -> bool:
    """Return whether the kernel uses the device or a part of it (open(2): O_EXCL on block devices)."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


# --- QEMU ----------------------------------------------------------------------------------


def _make_overlay(runner: Runner, origin: str, found: Format, overlay: str) -> None:
    require(runner, "qemu-img")
    if os.path.lexists(overlay):
        raise UsageError(f"{printable(overlay)} exists already", hint="the overlay must be a new file")
    Path(overlay).parent.mkdir(parents=True, exist_ok=True)
    argv = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", found, "-b", origin, overlay)
    try:
        runner.run(argv)
    except CommandFailed as error:
        raise _explained(origin, error.stderr) from error


def _export(runner: Runner, resources: Resources, path: str, found: Format, *, writable: bool) -> str:
    """Show an image as a raw file through QEMU's FUSE export; return that file's path."""
    require(runner, "qemu-storage-daemon")
    EXPORT_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = EXPORT_DIR / f"{os.getpid()}-{time.monotonic_ns():x}"
    with resources.taking("export", str(place), ("umount", str(place))) as taken:
        place.touch(mode=0o600, exist_ok=False)
        said: list[str] = []
        argv = _daemon_argv(path, found, str(place), writable=writable)
        try:
            daemon = runner.start(argv, on_error_output=said.append)
        except ToolMissing as error:
            place.unlink()
            raise missing(error.name) from error
        taken.pid = int(daemon.pid)
        taken.release = lambda: _end_export(runner, daemon, place)
        _await_export(runner, daemon, path, place, said)
    return str(place)


def _daemon_argv(path: str, found: Format, place: str, *, writable: bool) -> tuple[str, ...]:
    """Return the command line of the export (qemu-storage-daemon(1)). Commas in options are doubled."""
    name = path.replace(",", ",,")
    read_only = "off" if writable else "on"
    return (
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=file,node-name=file,filename={name},read-only={read_only}",
        "--blockdev",
        f"driver={found},node-name=disk,file=file,read-only={read_only}",
        "--export",
        f"type=fuse,id=export,node-name=disk,mountpoint={place.replace(',', ',,')},"
        f"writable={'on' if writable else 'off'}",
    )


def _await_export(runner: Runner, daemon: Any, path: str, place: Path, said: Sequence[str]) -> None:
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    while not any(m.target == str(place) for m in mounts()) or place.stat().st_size == 0:
        runner.cancel.check()
        if not daemon.is_alive():
            daemon.wait()
            raise _explained(path, "".join(said))
        if time.monotonic() > deadline:
            raise CommandTimeout(("qemu-storage-daemon", path), EXPORT_TIMEOUT_S)
        time.sleep(_POLL_S)


def _end_export(runner: Runner, daemon: Any, place: Path) -> None:
    runner.stop(daemon)
    release(runner, str(place))
    place.unlink(missing_ok=True)


def _explained(path: str, said: str) -> RescueError:
    """Return the error for what QEMU said about an image that it would not open."""
    words = printable(" ".join(said.split())[-600:])
    shown = printable(path)
    if "lock" in said and ("another process" in said or "Failed to get" in said):
        return Refused(
            f"{shown} is in use by a virtual machine or another program: {words}",
            hint="shut the machine down first; two writers destroy a filesystem",
        )
    if "Permission denied" in said:
        return UsageError(f"{shown} may not be opened: {words}")
    return RescueError(
        f"QEMU cannot open {shown}: {words or 'it ended without a word'}",
        hint="look at it with: qemu-img check IMAGE",
    )


# --- loop devices and their partitions --------------------------------------------------------


def _loop(
    runner: Runner, resources: Resources, path: str, lock: int | None, *, origin: str, read_only: bool
) -> str:
    """Attach a file to a loop device and return its path; ``lock`` is closed with the release.

    The device's number follows from ``origin``, so that a plan for an image names the same device
    when it is carried out later.
    """
    with ExitStack() as stack:
        if lock is not None:
            stack.callback(os.close, lock)
        options = ["--partscan", *(["--read-only"] if read_only else []), *_sector_option(path)]
        first = _FIRST_LOOP + zlib.crc32(os.fsencode(origin)) % (_LAST_LOOP - _FIRST_LOOP - _LOOP_TRIES)
        for number in range(first, first + _LOOP_TRIES):
            device = f"/dev/loop{number}"
            if Path(f"/sys/block/loop{number}/loop/backing_file").exists():
                continue
            with resources.taking("loop", device, ("losetup", "-d", device), source=path) as taken:
                try:
                    runner.run(("losetup", *options, "--", device, path))
                except CommandFailed as error:
                    words = printable(" ".join(error.stderr.split()))
                    raise RescueError(
                        f"{printable(path)} cannot be attached to a loop device: {words}"
                    ) from error
                kept = stack.pop_all()
                taken.release = partial(_detach, runner, device, kept)
            return device
        raise RescueError(f"no loop device is free for {printable(path)}", hint="look at: losetup --list")


def _sector_option(path: str) -> Sequence[str]:
    """Return the option for a disk with 4096-byte sectors, told by where its GPT header lies."""
    with open(path, "rb") as file:
        head = file.read(8192)
    native = head[4096:4104] == b"EFI PART" and head[512:520] != b"EFI PART"
    return ["--sector-size", "4096"] if native else []


def _detach(runner: Runner, device: str, kept: ExitStack) -> None:
    """Detach a loop device and prove it: the kernel only marks it when somebody has it open."""
    attached = _incarnation(device)
    runner.run(("losetup", "-d", device), ok=ANY, ignore_cancel=True)
    deadline = time.monotonic() + DETACH_TIMEOUT_S
    # Somebody else may attach the device again at once: then it is no longer this one.
    while attached and _incarnation(device) == attached:
        if time.monotonic() > deadline:
            held = ", ".join(f"{h.command} ({h.pid}) has {h.path}" for h in holders_of((device,)))
            raise MountFailed(f"{device} could not be released", hint=f"held by: {held}" if held else "")
        time.sleep(_POLL_S)
    _forget_loop(device)
    kept.close()


def _forget_loop(device: str) -> None:
    """Take away the node of a free loop device, which was made for this one use (loop(4))."""
    try:
        with open("/dev/loop-control", "rb") as control:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, int(device.removeprefix("/dev/loop")))
    except OSError:
        pass  # somebody has it open; a free node does no harm


def _incarnation(device: str) -> tuple[str, ...]:
    """Return what tells one attachment of a loop device from the next; nothing when it is free."""
    place = Path(f"/sys/block/{os.path.basename(device)}")
    try:
        backing = (place / "loop/backing_file").read_text("utf-8", "surrogateescape")
    except OSError:
        return ()
    try:
        return backing, (place / "diskseq").read_text()
    except OSError:  # before Linux 5.15
        return (backing,)


def _show_partitions(runner: Runner, resources: Resources, device: str) -> None:
    """Make sure that the partitions have nodes, also under a kernel that reads no partition tables."""
    if not _partitions(device):
        with resources.taking("activation", f"partitions of {device}", ("partx", "-d", device)) as taken:
            runner.run(("partx", "-a", device), ok=ANY)
            taken.release = lambda: _drop_partitions(runner, device)
    deadline = time.monotonic() + NODE_TIMEOUT_S
    while absent := [p for p in _partitions(device) if not os.path.exists(p)]:
        if time.monotonic() > deadline:
            raise RescueError(
                f"no device node appeared for {absent[0]}",
                hint="/dev of the rescue system must be a devtmpfs, or udev must run",
            )
        time.sleep(_POLL_S)


def _partitions(device: str) -> tuple[str, ...]:
    """Return the partitions of a disk that the kernel knows."""
    name = os.path.basename(device)
    return tuple(f"/dev/{p.parent.name}" for p in sorted(Path(f"/sys/block/{name}").glob("*/partition")))


def _drop_partitions(runner: Runner, device: str) -> None:
    """Take the partitions off a disk; whoever looks at every disk (udev) may be busy with one a moment."""
    deadline = time.monotonic() + _DROP_TIMEOUT_S
    while _partitions(device):
        done = runner.run(("partx", "-d", device), ok=ANY, ignore_cancel=True)
        if not (left := _partitions(device)):
            return
        if time.monotonic() > deadline:
            raise MountFailed(f"{left[0]} is still in use: {done.stderr.strip()}")
        time.sleep(_DROP_POLL_S)
