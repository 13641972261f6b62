# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to processes.

argv lists, never a shell; null stdin; the C locale; explicit exit codes; always a timeout. Children
live in a session of their own, so that Ctrl-C reaches the agent alone, which decides.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import sh

from rescue_agent.errors import CommandFailed, CommandTimeout, Interrupted, ToolMissing
from rescue_agent.system.guard import CancelToken, end_with_parent

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENVIRONMENT: Mapping[str, str] = {"PATH": PATH, "LC_ALL": "C.UTF-8", "LANGUAGE": "", "HOME": "/root"}
ANY = range(-64, 256)
"""For ``ok``: every exit code (and signal) is taken; the caller reads it."""

GRACE_S = 5.0
POLL_S = 0.2
_KEEP_BYTES = 16 << 20


class Completed(NamedTuple):
    """A command that ended with an acceptable code. Negative: it was ended by that signal."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float


Log = Callable[[Completed], None]


class _Sink:
    """Collects what a command prints, up to a bound; hands each piece to a listener as well."""

    def __init__(self, limit: int, listener: Callable[[str], None] | None) -> None:
        self._pieces: list[str] = []
        self._room = limit
        self._listener = listener
        self.dropped = 0

    def __call__(self, piece: str) -> None:
        if self._room >= len(piece):
            self._pieces.append(piece)
            self._room -= len(piece)
        else:
            self.dropped += len(piece)
        if self._listener is not None:
            self._listener(piece)

    @property
    def text(self) -> str:
        end = f"\n[{self.dropped} more characters]\n" if self.dropped else ""
        return "".join(self._pieces) + end


class Runner:
    """Starts commands and waits for them. Thread-safe.

    ``log`` is called with every ended command, before anything is raised about it.
    """

    def __init__(self, *, cancel: CancelToken | None = None, log: Log | None = None) -> None:
        self.cancel = cancel or CancelToken()
        self._log = log

    def which(self, name: str) -> str:
        """Return the path of a program of the rescue system, or an empty string."""
        return shutil.which(name, path=PATH) or ""

    def run(
        self,
        argv: Sequence[str],
        *,
        ok: Collection[int] = (0,),
        timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        on_error_output: Callable[[str], None] | None = None,
        unbuffered: bool = False,
        pass_fds: Collection[int] = (),
        finish_when_cancelled: bool = False,
        ignore_cancel: bool = False,
    ) -> Completed:
        """Run ``argv`` to its end and return what it said.

        ``on_output``: called with each line (each character when ``unbuffered``) of stdout.
        ``finish_when_cancelled``: after the person's first word the command may still end by
        itself; only the second word stops it. ``ignore_cancel``: for releases, which are never
        skipped. Raises ToolMissing, CommandFailed, CommandTimeout or Interrupted.
        """
        argv = tuple(argv)
        if not ignore_cancel:
            self.cancel.check()
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        out, err = _Sink(_KEEP_BYTES, on_output), _Sink(_KEEP_BYTES, on_error_output)
        ended = threading.Event()
        start = time.monotonic()
        with open(os.devnull, "rb") as nothing:
            process = sh.Command(program)(
                *argv[1:],
                _in=nothing,
                _out=out,
                _err=err,
                _out_bufsize=0 if unbuffered else 1,
                _done=lambda *_: ended.set(),
                **self._spawn_options(environment, pass_fds),
            )
        stopped = self._wait(process, ended, start + timeout_s, finish_when_cancelled, ignore_cancel)
        process.wait()
        done = Completed(argv, process.exit_code, out.text, err.text, time.monotonic() - start)
        if self._log is not None:
            self._log(done)
        if stopped == "timeout":
            raise CommandTimeout(argv, timeout_s, done.stdout, done.stderr)
        if stopped == "cancel":
            raise Interrupted(f"{argv[0]} was stopped as asked")
        if done.exit_code not in ok:
            raise CommandFailed(argv, done.exit_code, done.stdout, done.stderr)
        return done

    @contextmanager
    def stream(self, argv: Sequence[str], *, timeout_s: float = 600.0) -> Iterator[IO[bytes]]:
        """Run ``argv`` and give its standard output as a binary file to read.

        On a normal exit from the block the rest is read away and the code must be 0.
        """
        argv = tuple(argv)
        self.cancel.check()
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        err = _Sink(_KEEP_BYTES, None)
        ended = threading.Event()
        start = time.monotonic()
        with (
            os.fdopen(read_end, "rb") as reader,
            open(os.devnull, "rb") as nothing,
        ):
            with os.fdopen(write_end, "wb") as writer:
                process = sh.Command(program)(
                    *argv[1:],
                    _in=nothing,
                    _out=writer,
                    _err=err,
                    _timeout=timeout_s,
                    _done=lambda *_: ended.set(),
                    **self._spawn_options(None, ()),
                )
            try:
                yield reader
                while reader.read(1 << 16):
                    pass
            except BaseException:
                _signal_group(process, signal.SIGKILL)
                ended.wait(GRACE_S)
                raise
        self._wait(process, ended, start + timeout_s, False, False)
        process.wait()
        done = Completed(argv, process.exit_code, "", err.text, time.monotonic() - start)
        if self._log is not None:
            self._log(done)
        if done.exit_code != 0:
            raise CommandFailed(argv, done.exit_code, "", done.stderr)

    def start(self, argv: Sequence[str]) -> Any:
        """Start a helper that goes on while the agent works; it ends with the agent.

        Returns a handle for ``stop``; ``handle.pid`` is its process.
        """
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        with open(os.devnull, "rb") as nothing:
            return sh.Command(program)(
                *argv[1:],
                _in=nothing,
                _out=_Sink(1 << 16, None),
                _err=_Sink(1 << 16, None),
                **self._spawn_options(None, ()),
            )

    @staticmethod
    def stop(handle: Any) -> None:
        """End a helper from ``start``: SIGTERM, and SIGKILL when that does not do."""
        _signal_group(handle, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while handle.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if handle.is_alive():
            _signal_group(handle, signal.SIGKILL)
        handle.wait()

    @staticmethod
    def _spawn_options(environment: Mapping[str, str] | None, pass_fds: Collection[int]) -> dict[str, Any]:
        return {
            "_bg": True,
            "_bg_exc": False,
            "_ok_code": ANY,
            "_tty_out": False,
            "_truncate_exc": False,
            "_no_out": True,
            "_no_err": True,
            "_encoding": "utf-8",
            "_decode_errors": "backslashreplace",
            "_new_session": True,
            "_preexec_fn": end_with_parent,
            "_env": {**BASE_ENVIRONMENT, **(environment or {})},
            "_pass_fds": set(pass_fds),
            "_return_cmd": True,
        }

    def _wait(self, process: Any, ended: threading.Event, deadline: float, finish: bool, ignore: bool) -> str:
        """Wait for the end; return why the command had to be stopped, or an empty string."""
        while not ended.wait(POLL_S):
            words = 0 if ignore else self.cancel.words
            reason = "timeout" if time.monotonic() > deadline else "cancel" if words > int(finish) else ""
            if reason:
                _signal_group(process, signal.SIGTERM)
                if not ended.wait(GRACE_S):
                    _signal_group(process, signal.SIGKILL)
                    ended.wait(GRACE_S)
                return reason
        return ""


def _signal_group(process: Any, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def shell_line(argv: Sequence[str]) -> str:
    """Return the command as a person would type it."""
    return shlex.join(argv)
