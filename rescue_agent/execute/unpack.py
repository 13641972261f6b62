# SPDX-License-Identifier: GPL-3.0-or-later
"""Laying a package's files over the patient without its package manager.

Unlike ``dpkg-deb -x`` this keeps links to folders (/lib -> usr/lib), never follows a link out of
the patient, saves what it replaces, leaves configuration files that exist, and leaves what is
already right untouched, so that interrupted work can simply be done again.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rescue_agent.errors import CommandFailed, Interrupted, RescueError, UnsafePath
from rescue_agent.execute.context import Context
from rescue_agent.execute.package_rules import Rules, open_tar, probe_deb_rules
from rescue_agent.execute.saving import (
    FOLDER,
    digest_at,
    digest_of_link,
    digest_of_stream,
    make_folders,
    save,
)
from rescue_agent.model.operation import Unpack
from rescue_agent.model.rendering import pacman_to_tar
from rescue_agent.model.run import Progressed
from rescue_agent.system.root import TargetRoot

_IN_MEMORY = 4 << 20
_PAX_XATTR = "SCHILY.xattr."
_UNPACK_TIMEOUT_S = 1800.0


def unpack(operation: Unpack, context: Context) -> int:
    """Lay the package's files over the patient; return how many files and links were put there.

    Raises UnsafePath for members that would leave the patient, RescueError for an archive that is
    damaged or lacks a wanted member: what was put until then is complete, file by file.
    """
    with context.patient() as patient:
        rules = Rules()
        if operation.format == "deb":
            rules = probe_deb_rules(context.runner, operation.archive, patient)
        elif operation.format == "rpm":
            rules = Rules(conffiles=_rpm_conffiles(context, operation.archive))
        else:
            rules = Rules(conffiles=_pacman_conffiles(context, operation.archive))
        wanted = _wanted_members(operation, context, patient)
        layer = _Layer(context, patient, rules)
        with _members(operation, context) as members:
            for member in members:
                path = member_path(member.name)
                if context.runner.cancel.words > 1:
                    raise Interrupted(f"{operation.archive} was not laid out to its end")
                if wanted is None or path in wanted:
                    layer.lay(member, path, members)
        return layer.count


def member_path(name: str) -> str:
    """Return a member's name as an absolute path of the patient; UnsafePath when it leads elsewhere."""
    path = posixpath.normpath(name)
    if name.startswith("/") or ".." in name.split("/"):
        raise UnsafePath(f"the package holds {name!r}, which would lead out of the patient")
    return "/" if path == "." else f"/{path}"


@contextmanager
def _members(operation: Unpack, context: Context) -> Iterator[tarfile.TarFile]:
    if operation.format == "deb":
        argv, stdin = ["dpkg-deb", "--fsys-tarfile", operation.archive], os.devnull
    elif operation.format == "rpm":
        argv, stdin = ["rpm2archive", "-n", "-"], operation.archive
    else:
        argv, stdin = [*pacman_to_tar(operation.archive)], os.devnull
    try:
        with context.runner.stream(argv, timeout_s=_UNPACK_TIMEOUT_S, stdin=stdin) as stream:
            try:
                with open_tar(stream, operation.archive) as members:
                    yield members
            except (tarfile.TarError, EOFError) as error:
                raise RescueError(
                    f"{operation.archive} is damaged: {error}", hint="download it again"
                ) from error
    except CommandFailed as error:
        raise RescueError(
            f"{operation.archive} cannot be unpacked: {error.message}", hint="download it again"
        ) from error


def _rpm_conffiles(context: Context, archive: str) -> frozenset[str]:
    # A database of nothing: else rpm makes one in the home of whoever calls it.
    nothing = ("--dbpath", f"{context.work_dir}/no-rpmdb", "--nosignature")
    listed = context.runner.run(("rpm", *nothing, "-q", "-p", "--configfiles", "--", archive))
    return frozenset(line for line in listed.stdout.splitlines() if line.startswith("/"))


def _pacman_conffiles(context: Context, archive: str) -> frozenset[str]:
    """Return the paths that ``.PKGINFO`` calls backup files (PKGBUILD(5))."""
    told = context.runner.run(("bsdtar", "-x", "-O", "-f", archive, ".PKGINFO"))
    values = (line.partition(" = ") for line in told.stdout.splitlines())
    return frozenset(f"/{value.strip()}" for key, _, value in values if key == "backup")


def _wanted_members(operation: Unpack, context: Context, patient: TargetRoot) -> frozenset[str] | None:
    """Return the archive's own paths for the members asked for, with what their hard links need."""
    if not operation.members:
        return None
    asked = {
        _real(patient, "/" + member.strip("/").removeprefix("./")): member for member in operation.members
    }
    found: dict[str, str] = {}
    links: dict[str, str] = {}
    with _members(operation, context) as members:
        for member in members:
            path = member_path(member.name)
            found[path] = _real(patient, path)
            if member.islnk():
                links[path] = member_path(member.linkname)
    missing = sorted(name for real, name in asked.items() if real not in found.values())
    if missing:
        raise RescueError(f"{operation.archive} does not hold {', '.join(missing)}")
    wanted = {path for path, real in found.items() if real in asked}
    return frozenset(wanted | {links[path] for path in wanted if path in links})


def _real(patient: TargetRoot, path: str) -> str:
    """Return ``path`` with links before its last name followed, as far as they exist."""
    folder, name = posixpath.split(path)
    try:
        return posixpath.join(patient.resolve(folder), name)
    except (OSError, UnsafePath):
        return path


class _Layer:
    """Lays members, one at a time, in the order of the archive."""

    def __init__(self, context: Context, patient: TargetRoot, rules: Rules) -> None:
        self.context = context
        self.patient = patient
        self.rules = rules
        self.count = 0

    def lay(self, member: tarfile.TarInfo, path: str, members: tarfile.TarFile) -> None:
        """Put one member where it belongs on this patient."""
        if path == "/" or self.rules.excluded(path):
            return
        if path in self.rules.conffiles and self.patient.lexists(self.rules.diverted(path)):
            return  # the owner's
        target = path if member.isdir() else self.rules.diverted(path)
        if member.isdir():
            self._folder(member, target)
        elif member.isreg():
            self._file(member, target, members)
        elif member.issym():
            self._link(member, target)
        elif member.islnk():
            self._hard_link(member, target)
        else:
            raise UnsafePath(f"the package holds {path}, a device or pipe, which no package should")

    def _folder(self, member: tarfile.TarInfo, path: str) -> None:
        if self.patient.is_folder(path):
            return
        if not self.patient.lexists(path):
            self._parents(path)
            place = self.context.place(self.patient, path)
            save(self.context, self.patient, place, FOLDER)
            self.patient.make_folders(place.path)
            self.patient.set_metadata(
                place.path, mode=stat.S_IMODE(member.mode), uid=member.uid, gid=member.gid
            )
        else:
            make_folders(self.context, self.patient, path)

    def _parents(self, path: str) -> None:
        folder = posixpath.dirname(path)
        if not self.patient.is_folder(folder):
            make_folders(self.context, self.patient, folder)

    def _file(self, member: tarfile.TarInfo, path: str, members: tarfile.TarFile) -> None:
        source = members.extractfile(member)
        assert source is not None
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self.context.journal.directory)) as spool:
            while piece := source.read(1 << 20):
                spool.write(piece)
            if spool.tell() != member.size:
                raise RescueError(f"the package is cut off within {path}")
            spool.seek(0)
            digest = digest_of_stream(spool)
            spool.seek(0)
            if not self._is_there(member, path, digest):
                self._put_file(member, path, digest, spool)

    def _put_file(self, member: tarfile.TarInfo, path: str, digest: str, content: IO[bytes]) -> None:
        self._parents(path)
        place = self.context.place(self.patient, path)
        save(self.context, self.patient, place, digest)
        self.patient.replace_file(
            place.path,
            content,
            mode=stat.S_IMODE(member.mode),
            uid=member.uid,
            gid=member.gid,
            xattrs=(*self._label(place.path), *_xattrs(member)),
            mtime_ns=int(member.mtime) * 1_000_000_000,
        )
        self._told(place.path)

    def _label(self, path: str) -> tuple[tuple[str, bytes], ...]:
        """Return the SELinux label of the file that is replaced; archives carry none."""
        if not self.patient.lexists(path):
            return ()
        return tuple((name, value) for name, value in self.patient.xattrs(path) if name == "security.selinux")

    def _is_there(self, member: tarfile.TarInfo, path: str, digest: str) -> bool:
        try:
            state = self.patient.lstat(path)
        except OSError:
            return False
        if not stat.S_ISREG(state.st_mode) or state.st_size != member.size:
            return False
        right = (stat.S_IMODE(member.mode), member.uid, member.gid)
        if (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) != right:
            return False
        try:
            return digest_at(self.patient, path) == digest
        except OSError:  # it cannot be read: the blocks below it are bad
            return False

    def _link(self, member: tarfile.TarInfo, path: str) -> None:
        digest = digest_of_link(member.linkname)
        if self.patient.is_folder(path) and not _is_link(self.patient, path):
            return  # a folder where the package has a link: dpkg leaves it as well
        if self.patient.lexists(path) and digest_at(self.patient, path) == digest:
            return
        self._parents(path)
        place = self.context.place(self.patient, path)
        save(self.context, self.patient, place, digest)
        self.patient.replace_link(place.path, member.linkname, uid=member.uid, gid=member.gid)
        self._told(place.path)

    def _hard_link(self, member: tarfile.TarInfo, path: str) -> None:
        existing = self.context.place(self.patient, self.rules.diverted(member_path(member.linkname)))
        state = self.patient.lstat(existing.path)
        try:
            there = self.patient.lstat(path)
            if (there.st_dev, there.st_ino) == (state.st_dev, state.st_ino):
                return
        except OSError:
            pass
        self._parents(path)
        place = self.context.place(self.patient, path)
        save(self.context, self.patient, place, digest_at(self.patient, existing.path))
        self.patient.replace_with_hard_link(place.path, existing.path)
        self._told(place.path)

    def _told(self, path: str) -> None:
        self.count += 1
        self.context.emit(Progressed(task="unpack", detail=path))


def _is_link(patient: TargetRoot, path: str) -> bool:
    return stat.S_ISLNK(patient.lstat(path).st_mode)


def _xattrs(member: tarfile.TarInfo) -> tuple[tuple[str, bytes], ...]:
    """Return the extended attributes that a pax header carries (capabilities, for one)."""
    return tuple(
        (key.removeprefix(_PAX_XATTR), os.fsencode(value))
        for key, value in member.pax_headers.items()
        if key.startswith(_PAX_XATTR)
    )
