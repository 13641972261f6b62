# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the former state of what is changed, and putting it back."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

from msgspec.structs import replace

from rescue_agent.errors import RescueError, UnsafePath
from rescue_agent.execute.context import Context, Place
from rescue_agent.execute.failpoints import passing
from rescue_agent.model.run import Saved
from rescue_agent.system.resources import now
from rescue_agent.system.root import TargetRoot

FOLDER = "folder"
"""``Saved.sha256_after`` of a folder that the run made."""

_PIECE = 1 << 20


def digest_of_stream(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def digest_of_link(target: str) -> str:
    """Return what stands for a symbolic link where a file has its digest."""
    return hashlib.sha256(b"link\0" + os.fsencode(target)).hexdigest()


def digest_at(root: TargetRoot, path: str) -> str:
    """Return the digest of what lies at ``path``, itself not followed; empty when nothing does."""
    try:
        mode = root.lstat(path).st_mode
    except OSError:
        return ""
    if stat.S_ISLNK(mode):
        return digest_of_link(root.readlink(path))
    if stat.S_ISDIR(mode):
        return FOLDER
    if not stat.S_ISREG(mode):  # a device is not even opened
        raise UnsafePath(f"{path} of the patient is neither a file nor a link")
    with root.open_file(path) as file:
        return digest_of_stream(file)


def save(
    context: Context, root: TargetRoot, place: Place, sha256_after: str, *, metadata_only: bool = False
) -> Saved:
    """Keep the state of ``place``, on record and synced, before it is changed; return the record.

    ``sha256_after`` is the digest of what will lie there. Raises UnsafePath for what is neither a
    file nor a link, RescueError when there is no room for the copy: then nothing may be changed.
    """
    absent = Saved(
        time=now(),
        device=place.mount.device,
        path=place.path,
        kind="absent",
        mount_point=place.mount.mount_point,
        options=place.mount.options,
        sha256_after=sha256_after,
    )
    saved = _with_former_state(absent, context, root, metadata_only)
    if place.lasts:
        context.journal.append(saved)
        passing("saved")
    return saved


def make_folders(context: Context, root: TargetRoot, path: str) -> None:
    """Make a folder and its parents where they are missing, on record, so that undo removes them."""
    for place in context.missing_folders(root, path):
        save(context, root, place, FOLDER)
        root.make_folders(place.path)


def _with_former_state(absent: Saved, context: Context, root: TargetRoot, metadata_only: bool) -> Saved:
    path = absent.path
    try:
        state = root.lstat(path)
    except FileNotFoundError:
        return absent
    owned = replace(absent, mode=stat.S_IMODE(state.st_mode), uid=state.st_uid, gid=state.st_gid)
    if metadata_only:
        return replace(owned, kind="metadata")
    if stat.S_ISLNK(state.st_mode):
        return replace(owned, kind="symlink", target=root.readlink(path))
    if not stat.S_ISREG(state.st_mode):
        raise UnsafePath(f"{path} of the patient is neither a file nor a link; it is left alone")
    try:
        return replace(owned, kind="file", copy=_copy_out(root, path, context.saved_dir))
    except OSError as error:
        raise RescueError(
            f"{path} cannot be saved to {context.saved_dir} before it is changed: {error.strerror}",
            hint="so it is not changed; make room there, or check the medium",
        ) from error


def _copy_out(root: TargetRoot, path: str, folder: Path) -> str:
    """Copy a file of the patient to the run's folder, synced; return its name there."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f"{os.path.basename(path)[:60]}.")
    try:
        with root.open_file(path) as source, os.fdopen(descriptor, "wb") as copy:
            while piece := source.read(_PIECE):
                copy.write(piece)
            copy.flush()
            for key, value in root.xattrs(path):
                try:
                    os.setxattr(copy.fileno(), key, value)
                except OSError:
                    pass  # the rescue system's filesystem may have no such attributes
            state = os.fstat(source.fileno())
            os.utime(copy.fileno(), ns=(state.st_mtime_ns, state.st_mtime_ns))
            os.fsync(copy.fileno())
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except BaseException:
        os.unlink(name)
        raise
    return os.path.basename(name)


def former_digest(saved: Saved, saved_dir: Path) -> str:
    """Return the digest of the state that ``saved`` keeps, comparable to ``digest_at``."""
    if saved.kind == "symlink":
        return digest_of_link(saved.target)
    if saved.kind == "file":
        with open(saved_dir / saved.copy, "rb") as file:
            return digest_of_stream(file)
    return ""


def restore(root: TargetRoot, saved: Saved, saved_dir: Path, path: str) -> None:
    """Put the saved state back at ``path`` of ``root``, atomically. OSError when it cannot be done."""
    match saved.kind:
        case "absent":
            _remove(root, path)
        case "file":
            copy = saved_dir / saved.copy
            with open(copy, "rb") as file:
                root.replace_file(
                    path,
                    file,
                    mode=saved.mode,
                    uid=saved.uid,
                    gid=saved.gid,
                    xattrs=tuple((name, os.getxattr(copy, name)) for name in os.listxattr(copy)),
                    mtime_ns=os.fstat(file.fileno()).st_mtime_ns,
                )
        case "symlink":
            root.replace_link(path, saved.target, uid=saved.uid, gid=saved.gid)
        case "metadata":
            root.set_metadata(path, mode=saved.mode, uid=saved.uid, gid=saved.gid)


def _remove(root: TargetRoot, path: str) -> None:
    if digest_at(root, path) == FOLDER:
        with root.parent_of(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)
    elif root.lexists(path):
        root.remove(path)
