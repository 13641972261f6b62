# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting and releasing. The state is what mountinfo says, never what somebody remembers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from rescue_agent.errors import CommandFailed, MountFailed
from rescue_agent.model.facts import Holder
from rescue_agent.system.protection import write_protected
from rescue_agent.system.runner import ANY, Runner

READ_ONLY_OPTIONS = {
    "ext2": "ro",
    "ext3": "ro,noload",
    "ext4": "ro,noload",
    "xfs": "ro,norecovery,nouuid",
    "btrfs": "ro,rescue=nologreplay",
}
"""How to look at a filesystem without replaying its log, since a plain ``ro`` writes (ext4(5),
xfs(5), btrfs(5)); every other type gets ``ro``. ext2 has no journal, and the kernel refuses ``noload``
for it (fs/ext4/super.c: "Mount option(s) incompatible with ext2")."""

_BUSY_DELAY_S = 0.2
SAFE_OPTIONS = "nosuid,nodev,noexec"


class MountInfo(NamedTuple):
    """A line of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

    device: str
    """``major:minor``."""
    root: str
    target: str
    options: str
    type: str
    source: str
    id: int = 0
    """Tells mounts apart that lie upon each other at one place."""


def parse_mountinfo(text: str) -> tuple[MountInfo, ...]:
    """Return the mounts of a mountinfo file, oldest first."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, after = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(after) < 2:
            continue
        found.append(
            MountInfo(
                fields[2],
                _unescape(fields[3]),
                _unescape(fields[4]),
                fields[5],
                after[0],
                _unescape(after[1]),
                int(fields[0]) if fields[0].isdecimal() else 0,
            )
        )
    return tuple(found)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def mounts(pid: int | str = "self") -> tuple[MountInfo, ...]:
    """Return the mounts that a process sees; none when it is gone."""
    try:
        data = Path(f"/proc/{pid}/mountinfo").read_bytes()
    except OSError:
        return ()
    return parse_mountinfo(os.fsdecode(data))


def mounts_below(path: str) -> tuple[MountInfo, ...]:
    """Return the mounts at ``path`` and below it, in the order in which they must be released."""
    prefix = path.rstrip("/") + "/"
    return tuple(m for m in reversed(mounts()) if m.target == path or m.target.startswith(prefix))


def processes_rooted_in(path: str) -> tuple[psutil.Process, ...]:
    """Return the processes whose root is the folder ``path`` (what was started in the chroot)."""
    try:
        wanted = Path(path).stat()
    except OSError:
        return ()
    found = []
    for process in psutil.process_iter():
        try:
            root = os.stat(f"/proc/{process.pid}/root")  # a link that only the kernel follows
        except OSError:
            continue
        if (root.st_dev, root.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(process)
    return tuple(found)


def end_processes_in(path: str, grace_s: float = 5.0) -> tuple[Holder, ...]:
    """End what was left running in the chroot at ``path``: SIGTERM, then SIGKILL. Returns who it was.

    Never ends anything when ``path`` is the rescue system's own root.
    """
    if Path(path).samefile("/"):
        return ()
    return _end(processes_rooted_in(path), path, grace_s)


def end_processes_of(
    namespace: str, path: str, sources: Collection[str], grace_s: float = 10.0
) -> tuple[Holder, ...]:
    """End what lives on in a mount namespace whose owner is dead: SIGTERM, then SIGKILL.

    ``namespace`` is the text of the link ``/proc/PID/ns/mnt``. Its number may belong to somebody else
    by now, so only processes count that have one of ``sources`` mounted at or below ``path``, or as
    their root when they were started in the chroot: mountinfo is relative to it. Returns who it was.
    """
    if namespace == _namespace_of("self"):
        return ()
    prefix = path.rstrip("/") + "/"
    strays = tuple(
        process
        for process in psutil.process_iter()
        if _namespace_of(process.pid) == namespace
        and any(
            m.source in sources and (m.target == "/" or f"{m.target}/".startswith(prefix))
            for m in mounts(process.pid)
        )
    )
    return _end(strays, path, grace_s)


def _namespace_of(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _end(strays: tuple[psutil.Process, ...], path: str, grace_s: float) -> tuple[Holder, ...]:
    named = tuple(_holder(p, path) for p in strays)
    for process in strays:
        _quietly(process.terminate)
    for process in psutil.wait_procs(strays, timeout=grace_s)[1]:
        _quietly(process.kill)
    psutil.wait_procs(strays, timeout=grace_s)
    return named


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except psutil.Error:
        pass


def _holder(process: psutil.Process, path: str) -> Holder:
    try:
        name = process.name()
    except psutil.Error:
        name = "?"
    return Holder(pid=process.pid, command=name, path=path)


def holders_of(paths: Iterable[str]) -> tuple[Holder, ...]:
    """Return the processes that have a file at or below one of ``paths`` open, as root, as working
    folder, or a device of that name open."""
    prefixes = tuple(paths)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        for link in _links_of(process.pid):
            if any(link == p or link.startswith(p.rstrip("/") + "/") for p in prefixes):
                found.append(_holder(process, link))
                break
    return tuple(found)


def _links_of(pid: int) -> Iterator[str]:
    base = Path(f"/proc/{pid}")
    try:
        for name in (base / "root", base / "cwd", *(base / "fd").iterdir()):
            try:
                yield str(name.readlink())
            except OSError:
                continue
    except OSError:
        return


def mount(runner: Runner, source: str, target: str, fstype: str, options: str) -> None:
    """Mount ``source``; raise MountFailed with the kernel's words."""
    try:
        runner.run(mount_argv(source, target, fstype, options), timeout_s=300)
    except CommandFailed as error:
        words = " ".join(error.stderr.split()) or str(error.exit_code_of_command)
        raise MountFailed(f"{source} cannot be mounted as {fstype}: {words}") from error


def mount_argv(source: str, target: str, fstype: str, options: str) -> tuple[str, ...]:
    """Return the mount(8) command line."""
    chosen = ("-o", options) if options else ()
    return ("mount", "-t", fstype, *chosen, "--", source, target)


def release(runner: Runner, target: str, tries: int = 5) -> None:
    """Unmount what lies at ``target``, never lazily; raise MountFailed naming who holds it.

    Nothing to do is success. A mount that is busy for a moment (udev, a process that is ending) is
    tried again. Proved by reading mountinfo again.
    """
    last = ""
    for attempt in range(tries):
        if not _is_mount_point(target):
            return
        if attempt:
            time.sleep(_BUSY_DELAY_S * attempt)
        done = runner.run(("umount", "--", target), ok=ANY, timeout_s=300, ignore_cancel=True)
        last = done.stderr.strip()
    if _is_mount_point(target):
        held = ", ".join(f"{h.command} ({h.pid}) has {h.path}" for h in holders_of((target,)))
        raise MountFailed(
            f"{target} could not be released: {last}",
            hint=f"held by: {held}" if held else "a mount in another namespace may hold it",
        )


def release_tree(runner: Runner, target: str) -> None:
    """Unmount everything below ``target`` and itself, one mount at a time, newest first.

    Goes on after a failure, so that as much as possible is given back; then raises MountFailed.
    """
    failures = []
    tried: set[int] = set()
    while left := [m for m in mounts_below(target) if m.id not in tried]:
        tried.add(left[0].id)
        try:
            release(runner, left[0].target)
        except MountFailed as error:
            failures.append(error)
    if failures and mounts_below(target):
        raise failures[0]


def _is_mount_point(target: str) -> bool:
    return any(m.target == target for m in mounts())


@contextmanager
def mounted_read_only(runner: Runner, device: str, target: Path, fstype: str) -> Iterator[Path]:
    """Mount ``device`` for looking: read-only, without log replay, nothing executable.

    The device itself is write-protected meanwhile (see ``protection``): a mount option alone does
    not keep ext4 from noting damage in the superblock.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = f"{READ_ONLY_OPTIONS.get(fstype, 'ro')},{SAFE_OPTIONS}"
    with ExitStack() as stack:
        stack.callback(_remove_folder, target)
        stack.enter_context(write_protected(device))
        mount(runner, device, str(target), fstype, options)
        stack.callback(release, runner, str(target))
        yield target


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        pass


def bind_argv(source: str, target: str, *, recursive: bool) -> tuple[tuple[str, ...], ...]:
    """Return the command lines of a bind mount that sends nothing back to its source."""
    kind, down = ("--rbind", "--make-rslave") if recursive else ("--bind", "--make-slave")
    return (("mount", kind, "--", source, target), ("mount", down, "--", target))
