# SPDX-License-Identifier: GPL-3.0-or-later
"""What each kind of operation does to the machine. What is held goes onto ``Context.resources``."""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, assert_never

from rescue_agent.errors import CommandFailed, RescueError, UnsafePath
from rescue_agent.execute.context import Context, PatientMount, Place
from rescue_agent.execute.failpoints import passing
from rescue_agent.execute.progress import ProgressReader, Reading
from rescue_agent.execute.saving import (
    FOLDER,
    digest_at,
    digest_of_link,
    digest_of_stream,
    make_folders,
    restore,
    save,
)
from rescue_agent.execute.unpack import unpack
from rescue_agent.model.document import printable
from rescue_agent.model.operation import (
    Activate,
    Bind,
    Mount,
    Operation,
    RemoveFile,
    Run,
    SetMetadata,
    Symlink,
    Unpack,
    WriteFile,
)
from rescue_agent.model.rendering import bind_source, run_argv
from rescue_agent.model.run import Output, Progressed, Saved
from rescue_agent.system import mounts
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY

_KERNEL_TYPES = frozenset({"proc", "sysfs", "devtmpfs", "devpts", "efivarfs", "securityfs", "cgroup2"})
"""Filesystems that show the kernel: no file operation of a plan writes there."""


def apply(operation: Operation, context: Context, task: str) -> int | None:
    """Let the operation take effect; return the exit code of its (last) command, if it has one.

    ``task`` names the work in progress events. Raises RescueError or OSError when it did not work;
    then nothing is half-done but what a command itself left.
    """
    match operation:
        case Run():
            return _run(operation, context, task)
        case Mount():
            _mount(operation, context)
        case Bind():
            _bind(operation, context)
        case Activate():
            _activate(operation, context)
        case WriteFile():
            _write(operation, context)
        case RemoveFile():
            _remove(operation, context)
        case Symlink():
            _symlink(operation, context)
        case SetMetadata():
            _set_metadata(operation, context)
        case Unpack():
            unpack(operation, context)
        case _:
            assert_never(operation)
    return None


# --- commands -----------------------------------------------------------------------------------


def _run(operation: Run, context: Context, task: str) -> int:
    if operation.inside:
        context.need_root()
    if not operation.until:
        return _run_once(operation, context, task)
    check = run_argv(operation.until, operation, context.root)
    code = 0
    for count in range(operation.max_runs + 1):
        said = context.runner.run(check, ok=ANY, timeout_s=operation.timeout_s, finish_when_cancelled=True)
        if said.exit_code == 0:
            return code
        if count == operation.max_runs:
            raise CommandFailed(
                check,
                said.exit_code,
                said.stdout,
                said.stderr,
                hint=f"still so after {count} repairs; what can be saved should be copied off the disk",
            )
        # A fraction never falls within one task, so each run after the first is one of its own.
        code = _run_once(operation, context, task if count == 0 else f"{task}, run {count + 1}")
    return code


def _run_once(operation: Run, context: Context, task: str) -> int:
    def said(line: str) -> None:
        context.emit(Output(task=task, line=printable(line)))

    def told(reading: Reading) -> None:
        part = f"{task}: {reading.part}" if reading.part else task
        context.emit(Progressed(task=part, fraction=reading.fraction, detail=printable(reading.detail)))

    # Some tools tell their progress on one stream, some on the other (xfs_repair, badblocks).
    streams = [ProgressReader(operation.progress, on_line=said, on_reading=told) for _ in range(2)]
    try:
        done = context.runner.run(
            run_argv(operation.argv, operation, context.root),
            ok=operation.ok,
            timeout_s=operation.timeout_s,
            on_output=streams[0].feed,
            on_error_output=streams[1].feed,
            unbuffered=bool(operation.progress),
            finish_when_cancelled=True,
        )
    finally:
        for stream in streams:
            stream.end()
    return done.exit_code


# --- what is held -------------------------------------------------------------------------------


def _mount(operation: Mount, context: Context) -> None:
    if operation.path == "/":
        Path(context.root).mkdir(parents=True, exist_ok=True, mode=0o700)
        target = context.root
        if any(mount.target == target for mount in mounts.mounts()):
            raise RescueError(f"something is mounted at {target} already", hint="run: rescue-agent cleanup")
    else:
        target = _mount_point(operation.path, context, folder=True)
    with context.resources.taking("mount", target, ("umount", "--", target)) as taken:
        mounts.mount(context.runner, operation.source, target, operation.type, operation.options)
        taken.release = lambda: _release_mount(context, target)
    if operation.type not in _KERNEL_TYPES:
        lasts = operation.type != "tmpfs"
        with TargetRoot(target) as mounted:
            context.mounts[mounted.mount_id("/")] = PatientMount(
                mount_point=operation.path,
                device=context.identity(operation.source) if lasts else "",
                type=operation.type,
                options=operation.options,
            )


def _release_mount(context: Context, target: str) -> None:
    mounts.release_tree(context.runner, target)  # with what package scripts or a person mounted below it
    context.forget_mounts()


def _mount_point(path: str, context: Context, *, folder: bool) -> str:
    """Return where to mount on; make it in the patient when it is missing."""
    with context.patient() as root:
        if not root.lexists(path):
            if folder:
                context.make_folders(root, path)
            else:
                context.make_folders(root, posixpath.dirname(path))
                place = context.place(root, path)
                save(context, root, place, digest_of_stream(io.BytesIO()))
                root.replace_file(place.path, io.BytesIO(), mode=0o644)
        return root.mount_point(path)


def _bind(operation: Bind, context: Context) -> None:
    source = bind_source(operation, str(context.work_dir))
    if not operation.source:
        Path(source).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(source).write_text(operation.content, encoding="utf-8")
    if not (os.path.isdir(source) if operation.folder else os.path.exists(source)):
        raise RescueError(f"{source} of the rescue system cannot be shown: it is not there")
    with context.patient() as root:
        absent = not root.lexists(operation.path)
    target = _mount_point(operation.path, context, folder=operation.folder)
    with context.resources.taking("mount", target, ("umount", "--", target)) as taken:
        kind, down = mounts.bind_argv(source, target, recursive=operation.recursive)
        context.runner.run(kind)
        made = absent and not operation.folder
        taken.release = lambda: _release_bind(context, operation, target, made=made)
        context.runner.run(down)
        if operation.read_only:
            context.runner.run(("mount", "-o", "remount,bind,ro", "--", target))


def _release_bind(context: Context, operation: Bind, target: str, *, made: bool) -> None:
    mounts.release_tree(context.runner, target)
    if made:
        with context.patient() as root:
            root.remove(operation.path)


def _activate(operation: Activate, context: Context) -> None:
    with context.resources.taking("activation", operation.device, operation.release) as taken:
        context.runner.run(operation.argv, timeout_s=operation.timeout_s)
        taken.release = lambda: _deactivate(operation, context)


def _deactivate(operation: Activate, context: Context) -> None:
    context.runner.run(operation.release, timeout_s=operation.timeout_s, ignore_cancel=True)


# --- files of the patient -------------------------------------------------------------------------


def _write(operation: WriteFile, context: Context) -> None:
    with context.patient() as root:
        make_folders(context, root, posixpath.dirname(operation.path))
        place = context.place(root, operation.path)
        with _content(operation, root) as content:
            after = digest_of_stream(content)
        if not operation.held:
            if digest_at(root, place.path) != after:  # else an interrupted run did it already
                save(context, root, place, after)
                _put(operation, root, place)
                passing("written")
            return
    with context.resources.taking("file", place.path) as taken:
        with context.patient() as root:
            saved = save(context, root, place, after)
            _put(operation, root, place)
        taken.release = lambda: _put_back(context, place, after, saved)


def _put_back(context: Context, place: Place, after: str, saved: Saved) -> None:
    with context.patient() as root:
        if digest_at(root, place.path) == after:
            restore(root, saved, context.saved_dir, place.path)


def _put(operation: WriteFile, root: TargetRoot, place: Place) -> None:
    """Put the new content in place, with mode, owner and attributes of the file that was there."""
    mode, uid, gid = operation.mode, 0, 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    if root.lexists(place.path):
        state = root.lstat(place.path)
        if stat.S_ISREG(state.st_mode):
            mode, uid, gid = stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid
            xattrs = root.xattrs(place.path)
    with _content(operation, root) as content:
        root.replace_file(place.path, content, mode=mode, uid=uid, gid=gid, xattrs=xattrs)


@contextmanager
def _content(operation: WriteFile, root: TargetRoot) -> Iterator[IO[bytes]]:
    if operation.copy_of:
        with root.open_file(operation.copy_of) as file:
            yield file
    else:
        yield io.BytesIO(operation.content.encode())


def _remove(operation: RemoveFile, context: Context) -> None:
    with context.patient() as root:
        if not root.lexists(operation.path):
            return
        place = context.place(root, operation.path)
        if digest_at(root, place.path) == FOLDER:
            raise UnsafePath(f"{operation.path} of the patient is a folder; it is left alone")
        save(context, root, place, "")
        root.remove(place.path)


def _symlink(operation: Symlink, context: Context) -> None:
    with context.patient() as root:
        place = context.place(root, operation.path)
        after = digest_of_link(operation.target)
        if digest_at(root, place.path) != after:
            save(context, root, place, after)
            root.replace_link(place.path, operation.target)


def _set_metadata(operation: SetMetadata, context: Context) -> None:
    with context.patient() as root:
        place = context.place(root, operation.path)
        save(context, root, place, digest_at(root, place.path), metadata_only=True)
        root.set_metadata(place.path, mode=operation.mode, uid=operation.uid, gid=operation.gid)
