# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a run from harming the system around it: the private mount namespace, signals, the lock."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescue_agent.errors import Interrupted, Refused, RescueError

RUN_DIR = Path("/run/rescue-agent")
"""Mount points and the lock: gone after a reboot, as they should be."""

STATE_DIR = Path(os.environ.get("RESCUE_AGENT_STATE", "/var/lib/rescue-agent"))
"""Journals and saved copies: kept where the rescue system keeps anything."""

CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_REC = 0x4000  # linux/mount.h
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)
_entered = ""


class CancelToken:
    """Set by signal handlers, read by whoever works. ``words``: how often the person asked."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.words = 0

    def cancel(self) -> None:
        """Ask for a stop; called again, ask more urgently."""
        self.words += 1
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise Interrupted when a stop was asked for."""
        if self._event.is_set():
            raise Interrupted("stopped as asked; everything that was held is released")


@contextmanager
def cancel_on_signals(token: CancelToken) -> Iterator[CancelToken]:
    """Let SIGINT, SIGTERM and SIGHUP set ``token`` and do nothing else (design section 5, rule 4)."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: token.cancel()) for number in wanted}
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def enter_private_namespace() -> None:
    """Move this process to its own mount namespace and make every mount in it private.

    Must be called before any thread exists: namespaces are per thread (unshare(2)). Afterwards
    not even SIGKILL can leave a mount behind. Raises RescueError when the kernel refuses.
    """
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise RescueError(
            f"no private mount namespace: {os.strerror(ctypes.get_errno())}",
            hint="run the agent as root, in a container with CAP_SYS_ADMIN if it must be one",
        )
    if _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise RescueError(f"the mount namespace stays shared: {os.strerror(ctypes.get_errno())}")
    global _entered  # noqa: PLW0603  a property of the process, as the namespace is
    _entered = mount_namespace()


def in_private_namespace() -> bool:
    """Return whether ``enter_private_namespace`` has succeeded in this process."""
    return _entered == mount_namespace()


def mount_namespace() -> str:
    """Return the name of this process's mount namespace (``mnt:[4026531841]``)."""
    return str(Path("/proc/self/ns/mnt").readlink())


def end_with_parent() -> None:
    """In a child, between fork and exec: be ended by SIGTERM when the agent dies (prctl(2))."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def exclusive_lock(directory: Path = RUN_DIR) -> Iterator[None]:
    """Hold the one lock that lets two runs never work at the same time; Refused when it is taken."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise Refused(
                f"another run of the agent is at work (process {holder})",
                hint="wait for it, or stop it with Ctrl-C",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
