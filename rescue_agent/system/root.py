# SPDX-License-Identifier: GPL-3.0-or-later
"""The patient's file tree. Every path given here is resolved *inside* it.

The disk is hostile: any component may be a link to the rescue system, any file a FIFO. Resolution
is done by the kernel (openat2(2), RESOLVE_IN_ROOT) or, before Linux 5.6, by an equivalent walk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from rescue_agent.errors import UnsafePath

RESOLVE_NO_MAGICLINKS = 0x02  # linux/openat2.h
RESOLVE_IN_ROOT = 0x10
SYS_OPENAT2 = 437  # the same number on every architecture
MAX_LINKS = 40  # linux/namei.h MAXSYMLINKS
READ_LIMIT: Final = 64 << 20
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(directory: int, path: str, flags: int, mode: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    while True:
        descriptor = _libc.syscall(
            SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return int(descriptor)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with the resolution
            raise OSError(code, os.strerror(code), path)


class TargetRoot:
    """A mounted root, or any folder that stands for one.

    Paths are absolute as the patient sees them (``/etc/fstab``). Methods raise OSError as their
    ``os`` namesakes do, and UnsafePath where a path is not what it must be. Use as a context
    manager, or call ``close``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._has_openat2 = True

    def __enter__(self) -> TargetRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back; the object is of no use afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- resolving -------------------------------------------------------------------------

    def open(self, path: str, flags: int = _READ_FLAGS, mode: int = 0) -> int:
        """Return a descriptor of what ``path`` leads to inside the root (links are followed)."""
        relative = path.lstrip("/") or "."
        if self._has_openat2:
            try:
                return _openat2(self._fd, relative, flags, mode)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._has_openat2 = False
        return self._walk_open(path, flags, mode)

    def _walk_open(self, path: str, flags: int, mode: int) -> int:
        """Resolve by hand: each component opened without following, links pushed back in."""
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        opened = [os.dup(self._fd)]
        links = 0
        try:
            while pending:
                name = pending.pop()
                if name == "..":
                    if len(opened) > 1:
                        os.close(opened.pop())
                    continue
                if not pending and flags & os.O_CREAT and flags & os.O_EXCL:
                    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=opened[-1])
                try:
                    peek = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened[-1])
                except FileNotFoundError:
                    if pending or not flags & os.O_CREAT:
                        raise
                    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=opened[-1])
                kind = os.fstat(peek).st_mode
                if stat.S_ISLNK(kind) and (pending or not flags & os.O_NOFOLLOW):
                    target = os.readlink("", dir_fd=peek)
                    os.close(peek)
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    if target.startswith("/"):
                        while len(opened) > 1:
                            os.close(opened.pop())
                    pending += [part for part in target.split("/") if part not in ("", ".")][::-1]
                    continue
                if pending:
                    opened.append(peek)
                    continue
                os.close(peek)
                return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=opened[-1])
            return os.open(".", flags | os.O_CLOEXEC, mode, dir_fd=opened[-1])
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def resolve(self, path: str) -> str:
        """Return ``path`` with every link followed inside the root, as the patient sees it."""
        descriptor = self.open(path, os.O_PATH)
        try:
            return self._inside(os.readlink(f"/proc/self/fd/{descriptor}"), path)
        finally:
            os.close(descriptor)

    def _inside(self, real: str, path: str) -> str:
        base = os.readlink(f"/proc/self/fd/{self._fd}").rstrip("/")
        if real == base or real.startswith(base + "/"):
            return real[len(base) :] or "/"
        raise UnsafePath(f"{path} leads out of the patient, to {real}")

    @contextmanager
    def parent_of(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Give a descriptor of the folder that holds ``path``, and the last name in it.

        The last component is not followed. ``create`` makes missing folders (mode 0755).
        """
        folder, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise UnsafePath(f"{path} does not name a file")
        if create:
            self.make_folders(folder)
        descriptor = self.open(folder or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)

    # --- looking ---------------------------------------------------------------------------

    def stat(self, path: str) -> os.stat_result:
        """Return the state of what ``path`` leads to."""
        descriptor = self.open(path, os.O_PATH)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def lstat(self, path: str) -> os.stat_result:
        """Return the state of ``path`` itself, a link not followed."""
        if path.strip("/") == "":
            return os.fstat(self._fd)
        with self.parent_of(path) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        """Return whether ``path`` leads to anything."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def lexists(self, path: str) -> bool:
        """Return whether there is an entry of this name, be it a dangling link."""
        try:
            self.lstat(path)
        except OSError:
            return False
        return True

    def is_file(self, path: str) -> bool:
        """Return whether ``path`` leads to a regular file."""
        try:
            return stat.S_ISREG(self.stat(path).st_mode)
        except OSError:
            return False

    def is_folder(self, path: str) -> bool:
        """Return whether ``path`` leads to a folder."""
        try:
            return stat.S_ISDIR(self.stat(path).st_mode)
        except OSError:
            return False

    def readlink(self, path: str) -> str:
        """Return the text of a link."""
        with self.parent_of(path) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def names(self, path: str) -> tuple[str, ...]:
        """Return the sorted names in a folder; none when it does not exist or is no folder."""
        try:
            descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return ()
        try:
            return tuple(sorted(os.listdir(descriptor)))
        finally:
            os.close(descriptor)

    @contextmanager
    def open_file(self, path: str) -> Iterator[IO[bytes]]:
        """Open a regular file for reading; anything else raises UnsafePath, nothing ever blocks."""
        descriptor = self.open(path)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnsafePath(f"{path} is not a regular file")
            os.set_blocking(descriptor, True)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                yield file
        finally:
            os.close(descriptor)

    def read_bytes(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """Return the content of a regular file; UnsafePath when it is larger than ``limit`` bytes."""
        with self.open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UnsafePath(f"{path} is larger than {limit} bytes")
            return file.read(size)  # not ``limit``: a reader lays out a buffer of what is asked for

    def read_text(self, path: str, limit: int = 4 << 20) -> str:
        """Return a text file; bytes that are not UTF-8 become backslash escapes."""
        return self.read_bytes(path, limit).decode("utf-8", "backslashreplace")

    # --- mount points ----------------------------------------------------------------------

    def mount_point(self, path: str) -> str:
        """Return the path on the rescue system of a folder or file to mount on.

        Raises UnsafePath when ``path`` itself is a symbolic link, or leads anywhere else than its
        own name says: mounting there could cover the rescue system (schroot's rule).
        """
        if path.strip("/") == "":
            return self.path
        real = self.resolve(path)
        if real != "/" + path.strip("/"):
            raise UnsafePath(f"{path} of the patient is a link to {real}; nothing is mounted over it")
        return self.path.rstrip("/") + real

    # --- changing --------------------------------------------------------------------------

    def make_folders(self, path: str, mode: int = 0o755) -> tuple[str, ...]:
        """Create a folder and its missing parents inside the root; return those that it made."""
        made = []
        parts = [part for part in path.split("/") if part]
        for count in range(1, len(parts) + 1):
            here = "/" + "/".join(parts[:count])
            if not self.is_folder(here):
                with self.parent_of(here) as (folder, name):
                    os.mkdir(name, mode, dir_fd=folder)
                made.append(here)
        return tuple(made)

    def replace_file(
        self,
        path: str,
        content: IO[bytes],
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        xattrs: tuple[tuple[str, bytes], ...] = (),
        mtime_ns: int | None = None,
    ) -> None:
        """Put a regular file at ``path``: temporary file, fsync, rename, fsync of the folder.

        The last component is replaced, not followed. Parents must exist.
        """
        with self.parent_of(path) as (folder, name):
            temporary = temporary_name(name)
            _unlink_quietly(temporary, folder)  # of a run that was killed
            descriptor = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=folder,
            )
            try:
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    while piece := content.read(1 << 20):
                        file.write(piece)
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                for key, value in xattrs:
                    os.setxattr(descriptor, key, value)
                if mtime_ns is not None:
                    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                os.fsync(descriptor)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                _unlink_quietly(temporary, folder)
                raise
            finally:
                os.close(descriptor)
            _sync_folder(folder)

    def replace_link(self, path: str, target: str, *, uid: int = 0, gid: int = 0) -> None:
        """Put a symbolic link at ``path`` in place of whatever file or link was there."""
        with self.parent_of(path) as (folder, name):
            temporary = temporary_name(name)
            _unlink_quietly(temporary, folder)
            os.symlink(target, temporary, dir_fd=folder)
            os.chown(temporary, uid, gid, dir_fd=folder, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            _sync_folder(folder)

    def replace_with_hard_link(self, path: str, existing: str) -> None:
        """Make ``path`` another name of the file ``existing``, in place of what was there."""
        with self.parent_of(existing) as (from_folder, from_name), self.parent_of(path) as (folder, name):
            temporary = temporary_name(name)
            _unlink_quietly(temporary, folder)
            os.link(from_name, temporary, src_dir_fd=from_folder, dst_dir_fd=folder, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            _unlink_quietly(temporary, folder)  # rename(2) of two names of one file does nothing
            _sync_folder(folder)

    def set_metadata(
        self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None
    ) -> None:
        """Set mode and owner of a regular file or folder; a link is refused, not followed."""
        with self._pinned(path) as (magic, state):
            if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
                raise UnsafePath(f"{path} is neither a file nor a folder")
            if uid is not None or gid is not None:
                os.chown(magic, -1 if uid is None else uid, -1 if gid is None else gid)
            if mode is not None:  # after chown(2), which clears the set-user-id bit
                os.chmod(magic, mode)

    def xattrs(self, path: str) -> tuple[tuple[str, bytes], ...]:
        """Return the extended attributes of a file; none where the filesystem has no such thing."""
        with self._pinned(path) as (magic, state):
            if stat.S_ISLNK(state.st_mode):
                return ()
            try:
                return tuple((name, os.getxattr(magic, name)) for name in os.listxattr(magic))
            except OSError:
                return ()

    def mount_id(self, path: str) -> int:
        """Return the id of the mount that ``path`` leads to (proc_pid_mountinfo(5), first field)."""
        descriptor = self.open(path, os.O_PATH)
        try:
            return mount_id_of(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _pinned(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Give a name under /proc that stays with the file at ``path``, itself not followed."""
        descriptor = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            yield f"/proc/self/fd/{descriptor}", os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        """Remove a file or link, never a folder."""
        with self.parent_of(path) as (folder, name):
            os.unlink(name, dir_fd=folder)
            _sync_folder(folder)


def temporary_name(name: str) -> str:
    """Return the name under which a new file waits to replace ``name``: the same in every run."""
    return os.fsdecode(b"." + os.fsencode(name)[:200] + b".rescue")


def mount_id_of(descriptor: int) -> int:
    """Return the id of the mount that an open file lies on (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def _unlink_quietly(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _sync_folder(folder: int) -> None:
    """fsync a folder that was opened with O_PATH."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
