# SPDX-License-Identifier: GPL-3.0-or-later
"""The packaged files of the patient compared with what its package database says of them.

``info/*.list`` says what must exist, ``info/*.md5sums`` and the status file's conffiles what must be
in it. As ``dpkg --verify`` does, a digest counts only for a path that the package still lists: a
file that another package took over is no longer on its list (deb-control(5), Replaces).

One sweep over the packages answers from folder listings whether everything exists, each folder read
once. Small files are hashed on the way; large ones by threads, since OpenSSL hashes and the kernel
reads without the interpreter's lock. (With small files the threads would only wait for that lock.)
What is held in memory does not grow with the number of files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import DamagedFile, Verification
from rescue_agent.probe.families import Level
from rescue_agent.probe.families.debian.dpkg import INFO, STATUS_LIMIT, Diversion
from rescue_agent.probe.families.debian.exclusion import Exclusions
from rescue_agent.system.guard import CancelToken
from rescue_agent.system.root import TargetRoot

Kind = Literal["missing", "changed", "empty", "wrong-type", "unreadable"]

MAX_READ_ERRORS = 20
"""After so many files that the medium cannot read, hashing stops: a failing disk is not worn out."""
MAX_DAMAGED = 50_000
MAX_LEFTOVERS = 1000
MAX_THREADS = 4
_CACHED_NAMES = 60_000
_SMALL_BYTES = 128 << 10
_BUFFER_BYTES = 256 << 10  # stays in the processor's second-level cache
_GRACE_S = 10.0

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LEFTOVERS = (".dpkg-new", ".dpkg-tmp")


class Verified(NamedTuple):
    """The fact, and files that an interrupted unpacking left (``*.dpkg-new``), come across on the way."""

    fact: Verification
    leftovers: tuple[str, ...]


class _Folder(NamedTuple):
    """A folder of the patient, listed once."""

    real: str
    """Its path on the rescue system, links resolved inside the patient."""
    names: frozenset[str]
    readable: bool = True


class _Wanted(NamedTuple):
    """A file to hash."""

    folder: str
    """Path on the rescue system."""
    name: str
    digest: str
    path: str
    """As the package lists it."""
    package: str


class _Large(NamedTuple):
    """A file too large to be hashed on the way, open at its start."""

    descriptor: int
    wanted: _Wanted


class _Folders:
    """Listings of the patient's folders; the least recently used are forgotten."""

    def __init__(self, root: TargetRoot) -> None:
        self._root = root
        self._known: OrderedDict[str, _Folder] = OrderedDict()
        self._names = 0
        self.leftovers: dict[str, None] = {}

    def __getitem__(self, path: str) -> _Folder:
        found = self._known.get(path)
        if found is not None:
            self._known.move_to_end(path)
            return found
        found = self._known[path] = self._list(path)
        self._names += len(found.names) + 8
        while self._names > _CACHED_NAMES and len(self._known) > 1:
            self._names -= len(self._known.popitem(last=False)[1].names) + 8
        return found

    def _list(self, path: str) -> _Folder:
        try:
            descriptor = self._root.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
            return _Folder("", frozenset(), readable=gone)
        except ValueError:  # a NUL in the list
            return _Folder("", frozenset())
        try:
            real = os.readlink(f"/proc/self/fd/{descriptor}")
            names = os.listdir(descriptor)
        except OSError:
            return _Folder("", frozenset(), readable=False)
        finally:
            os.close(descriptor)
        left = [name for name in names if name.endswith(_LEFTOVERS)]
        if left and len(self.leftovers) < MAX_LEFTOVERS:
            inside = self._root.resolve(path or "/").rstrip("/")
            self.leftovers.update((f"{inside}/{name}", None) for name in left[:MAX_LEFTOVERS])
        return _Folder(real, frozenset(names))


class _Damage:
    """Collects what is wrong, from several threads."""

    def __init__(self, conffiles: Mapping[str, str]) -> None:
        self._conffiles = conffiles
        self._lock = threading.Lock()
        self._found: list[DamagedFile] = []
        self._read_errors = 0

    def add(self, path: str, package: str, kind: Kind) -> None:
        damaged = DamagedFile(
            path=printable(path), package=printable(package), kind=kind, conffile=path in self._conffiles
        )
        with self._lock:
            self._read_errors += kind == "unreadable"
            if len(self._found) < MAX_DAMAGED:
                self._found.append(damaged)

    @property
    def is_hopeless(self) -> bool:
        """So much cannot be read that the medium must be failing."""
        return self._read_errors >= MAX_READ_ERRORS

    def sorted(self) -> tuple[DamagedFile, ...]:
        return tuple(sorted(self._found, key=lambda d: (d.package, d.path)))


def verify(
    root: TargetRoot,
    packages: tuple[str, ...],
    *,
    level: Level,
    conffiles: Mapping[str, str],
    diversions: Mapping[str, Diversion],
    exclusions: Exclusions,
    cancel: CancelToken | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
    processors: int = 0,
) -> Verified:
    """Compare the files of ``packages`` (names of file lists) with the disk.

    ``level`` ``existence`` looks only whether each listed path is there; ``full`` reads every file
    as well. The fact says ``existence`` when the medium could not be read to the end. ``processors``
    0: as many as there are. Raises Interrupted when ``cancel`` is set.
    """
    start = time.monotonic()
    if level == "none":
        return Verified(Verification(level="none"), ())
    cancel = cancel or CancelToken()
    damage = _Damage(conffiles)
    folders = _Folders(root)
    missing: list[tuple[str, str]] = []
    count = 0
    hasher = _Hasher(damage, min(processors or os.cpu_count() or 1, MAX_THREADS) - 1)
    try:
        for number, package in enumerate(packages):
            cancel.check()
            on_progress(number / len(packages))
            listed = _listed(root, package)
            count += len(listed)
            digests = _digests(root, package, listed, conffiles) if level == "full" else {}
            hasher.hash(_compare(package, listed, digests, diversions, folders, missing, damage))
        hasher.finish(cancel)
    finally:
        hasher.stop()
    left_out = exclusions.left_out(missing, lambda: (p for name in packages for p in _listed(root, name)))
    for path, package in missing:
        if path not in left_out:
            damage.add(path, package, "missing")
    on_progress(1.0)
    return Verified(
        Verification(
            level="existence" if damage.is_hopeless else level,
            files=count,
            packages=len(packages),
            duration_s=round(time.monotonic() - start, 3),
            damaged=damage.sorted(),
        ),
        tuple(printable(path) for path in folders.leftovers),
    )


def _listed(root: TargetRoot, package: str) -> list[str]:
    """Return the paths of a package's file list; its first line is ``/.``."""
    lines = _text(root, f"{INFO}/{package}.list").split("\n")
    return [line for line in lines if line.startswith("/") and line not in ("/.", "/")]


def _digests(
    root: TargetRoot, package: str, listed: list[str], conffiles: Mapping[str, str]
) -> dict[str, str]:
    """Return MD5 by path; a line is ``digest  path`` without the leading slash (dh_md5sums(1))."""
    lines = _text(root, f"{INFO}/{package}.md5sums").split("\n")
    found = {"/" + line[34:]: line[:32] for line in lines if len(line) > 34}
    found.update((path, conffiles[path]) for path in listed if path in conffiles)
    return found


def _text(root: TargetRoot, path: str) -> str:
    try:
        return root.read_bytes(path, STATUS_LIMIT).decode("utf-8", "surrogateescape")
    except (OSError, UnsafePath):
        return ""


def _compare(
    package: str,
    listed: list[str],
    digests: Mapping[str, str],
    diversions: Mapping[str, Diversion],
    folders: _Folders,
    missing: list[tuple[str, str]],
    damage: _Damage,
) -> list[_Wanted]:
    """Note what does not exist; return what is to be hashed."""
    wanted = []
    owner = package.partition(":")[0]
    last, folder = "", folders[""]
    for path in listed:
        diversion = diversions.get(path)
        kept_off = diversion is not None and diversion.package != owner
        parent, _, name = (diversion.diverted_to if diversion and kept_off else path).rpartition("/")
        if parent != last:
            folder, last = folders[parent], parent
        if name in folder.names:
            digest = digests.get(path)
            if digest:
                wanted.append(_Wanted(folder.real, name, digest, path, package))
        elif folder.readable:
            missing.append((path, package))
        else:
            damage.add(path, package, "unreadable")
    return wanted


class _Hasher:
    """Hashes small files at once; large ones are left to threads that run beside."""

    def __init__(self, damage: _Damage, threads: int) -> None:
        self._damage = damage
        self._large: queue.Queue[_Large | None] = queue.Queue(maxsize=64)
        self._stopped = False
        self._error: Exception | None = None
        self._small = memoryview(bytearray(_SMALL_BYTES))
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def hash(self, files: list[_Wanted]) -> None:
        """Compare files with their digests, now or later."""
        files.sort(key=itemgetter(0))
        for folder, group in groupby(files, key=itemgetter(0)):
            if self._damage.is_hopeless:
                return
            try:
                descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                for wanted in group:
                    self._damage.add(wanted.path, wanted.package, "unreadable")
                continue
            try:
                for wanted in group:
                    if not self._damage.is_hopeless:
                        self._hash_one(descriptor, wanted)
            finally:
                os.close(descriptor)

    def _hash_one(self, folder: int, wanted: _Wanted) -> None:
        descriptor = -1
        try:
            descriptor = _open(wanted.name, folder)
            size = os.readv(descriptor, (self._small,))
            if size < _SMALL_BYTES:  # a regular file gives less only at its end (read(2))
                digest = hashlib.md5(self._small[:size], usedforsecurity=False).hexdigest()
                if digest != wanted.digest:
                    self._damage.add(wanted.path, wanted.package, _kind(descriptor, size))
                return
            os.lseek(descriptor, 0, os.SEEK_SET)
            large, descriptor = _Large(descriptor, wanted), -1
            try:
                self._large.put_nowait(large)
            except queue.Full:
                self._hash_large(large, self._buffer)
        except OSError as error:
            self._damage.add(wanted.path, wanted.package, _kind_of_error(error))
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _hash_large(self, large: _Large, buffer: memoryview) -> None:
        descriptor, wanted = large
        digest = hashlib.md5(usedforsecurity=False)
        try:
            if self._stopped or self._damage.is_hopeless:
                return
            while size := os.readv(descriptor, (buffer,)):
                digest.update(buffer[:size])
                if self._stopped:
                    return
            if digest.hexdigest() != wanted.digest:
                self._damage.add(wanted.path, wanted.package, "changed")
        except OSError as error:
            self._damage.add(wanted.path, wanted.package, _kind_of_error(error))
        finally:
            os.close(descriptor)

    def _work(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while (large := self._large.get()) is not None:
            try:
                self._hash_large(large, buffer)
            except Exception as error:  # raised again by finish(); the queue must go on being emptied
                self._error, self._stopped = error, True

    def finish(self, cancel: CancelToken) -> None:
        """Help with what is left; return when everything is hashed."""
        while True:
            cancel.check()
            try:
                large = self._large.get_nowait()
            except queue.Empty:
                break
            if large is not None:
                self._hash_large(large, self._buffer)
        for _ in self._threads:
            self._large.put(None)
        for thread in self._threads:
            while thread.is_alive():
                cancel.check()
                thread.join(0.1)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the threads, whatever is left to do. Threads that wait for a dead medium end with the agent."""
        self._stopped = True
        while True:
            try:
                large = self._large.get_nowait()
            except queue.Empty:
                break
            if large is not None:
                os.close(large.descriptor)
        for _ in self._threads:
            self._large.put(None)
        for thread in self._threads:
            thread.join(_GRACE_S)


def _open(name: str, folder: int) -> int:
    try:
        return os.open(name, _FLAGS | os.O_NOATIME, dir_fd=folder)
    except PermissionError:  # not ours (open(2), O_NOATIME)
        return os.open(name, _FLAGS, dir_fd=folder)


def _kind(descriptor: int, size: int) -> Kind:
    """Return how a small file differs: what cannot be told from a FIFO by reading is asked."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return "wrong-type"
    return "changed" if size else "empty"


def _kind_of_error(error: OSError) -> Kind:
    """Return what an error of open(2) or read(2) on a name that is there says about it."""
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.EAGAIN, errno.ENXIO, errno.EINVAL, errno.EACCES):
        return "wrong-type"  # a link, a folder, a FIFO, a socket, a device on a mount without devices
    return "unreadable"
