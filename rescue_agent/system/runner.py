# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to processes.

argv lists, never a shell; null stdin; the C locale; explicit exit codes; always a timeout. Children
live in a session of their own, so that Ctrl-C reaches the agent alone, which decides.
"""

from __future__ import annotations

import codecs
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
_PIECE_BYTES = 1 << 16
_BLIND_POLL_S = 0.02


class Completed(NamedTuple):
    """A command that ended with an acceptable code. Negative: it was ended by that signal."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float


Log = Callable[[Completed], None]


class _Sink:
    """Collects what a command prints, up to a bound, and hands it to a listener as it comes.

    The listener gets whole lines with their end, or every piece as it arrives when ``pieces``.
    """

    def __init__(self, limit: int, listener: Callable[[str], None] | None, *, pieces: bool = False) -> None:
        self._pieces: list[str] = []
        self._room = limit
        self._listener = listener
        self._whole_lines = not pieces
        self._line = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes; empty at the end of the stream."""
        text = self._decode(data, final=not data)
        if self._room >= len(text):
            self._pieces.append(text)
            self._room -= len(text)
        else:
            self.dropped += len(text)
        if self._listener is None:
            return
        if self._whole_lines:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._listener(line + "\n")
            text, self._line = ("", self._line) if data else (self._line, "")
        if text:
            self._listener(text)

    def __call__(self, piece: str) -> None:
        self.feed(piece.encode("utf-8", "surrogateescape"))

    @property
    def text(self) -> str:
        end = f"\n[{self.dropped} more characters]\n" if self.dropped else ""
        return "".join(self._pieces) + end


class _Pipe:
    """One output stream of a command, read by the thread that waits for it."""

    def __init__(self, sink: _Sink) -> None:
        self.sink = sink
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        self.read_end = read_end
        self.writer = os.fdopen(write_end, "wb")
        self.open = True

    def pump(self) -> None:
        """Take everything that waits in the pipe."""
        while self.open:
            try:
                data = os.read(self.read_end, _PIECE_BYTES)
            except BlockingIOError:
                return
            self.sink.feed(data)
            self.open = bool(data)

    def close(self) -> None:
        """Give the descriptors back; a line that has no end yet still reaches the listener."""
        if self.open:
            self.sink.feed(b"")
            self.open = False
        self.writer.close()
        os.close(self.read_end)


class _Child:
    """A started command, watched by a descriptor that becomes readable when it ends (pidfd_open(2)).

    ``sh`` itself looks only once a second when it does not read the output.
    """

    def __init__(self, process: Any, pipes: Collection[_Pipe] = ()) -> None:
        self.process = process
        self._pipes = pipes
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:  # it has ended, or the kernel is older than 5.3
            self._pidfd = -1

    def ended_within(self, seconds: float) -> bool:
        """Take what the command prints until it ends or the time is over; return whether it ended."""
        waiting = select.poll()
        if self._pidfd >= 0:
            waiting.register(self._pidfd, select.POLLIN)
        else:
            seconds = min(seconds, _BLIND_POLL_S)
        for pipe in self._pipes:
            if pipe.open:
                waiting.register(pipe.read_end, select.POLLIN)
        waiting.poll(seconds * 1000)
        for pipe in self._pipes:
            pipe.pump()
        return not self.process.is_alive()

    def signal(self, number: int) -> None:
        """Send a signal to the command and everything it started in its session."""
        _signal_group(self.process, number)

    def end(self) -> None:
        """SIGTERM, and SIGKILL when that does not do within the grace."""
        self.signal(signal.SIGTERM)
        stop_at = time.monotonic() + GRACE_S
        while not self.ended_within(POLL_S):
            if time.monotonic() > stop_at:
                self.signal(signal.SIGKILL)
                stop_at = time.monotonic() + GRACE_S

    def close(self) -> None:
        """Collect the command, which must have ended, and what it printed last."""
        self.process.wait()
        # Not until end of file: a daemon that the command left behind may keep the pipe open.
        for pipe in self._pipes:
            pipe.pump()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


@contextmanager
def _limited(child: _Child, timeout_s: float) -> Iterator[None]:
    """Kill the command when the block has not ended by itself; ``sh`` looks for that ten times a second,
    and waits as long for its watching thread even when the command has ended at once."""
    timer = threading.Timer(timeout_s, child.signal, (signal.SIGKILL,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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

        ``on_output``, ``on_error_output``: called with each line of stdout or stderr, in the calling
        thread; with each piece as it arrives when ``unbuffered``.
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
        out = _Sink(_KEEP_BYTES, on_output, pieces=unbuffered)
        err = _Sink(_KEEP_BYTES, on_error_output, pieces=unbuffered)
        start = time.monotonic()
        with (
            closing(_Pipe(out)) as out_pipe,
            closing(_Pipe(err)) as err_pipe,
            open(os.devnull, "rb") as nothing,
        ):
            process = sh.Command(program)(
                *argv[1:],
                _in=nothing,
                _out=out_pipe.writer,
                _err=err_pipe.writer,
                **self._spawn_options(environment, pass_fds),
            )
            out_pipe.writer.close()
            err_pipe.writer.close()
            with closing(_Child(process, (out_pipe, err_pipe))) as child:
                stopped = self._wait(child, start + timeout_s, finish_when_cancelled, ignore_cancel)
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
    def stream(
        self, argv: Sequence[str], *, timeout_s: float = 600.0, stdin: str = os.devnull
    ) -> Iterator[IO[bytes]]:
        """Run ``argv`` and give its standard output as a binary file to read; ``stdin`` is a file's path.

        On a normal exit from the block the rest is read away and the code must be 0.
        """
        argv = tuple(argv)
        self.cancel.check()
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        start = time.monotonic()
        with (
            os.fdopen(read_end, "rb") as reader,
            open(stdin, "rb") as given,
            # A file takes all that is said while nobody listens.
            tempfile.TemporaryFile() as err,
        ):
            with os.fdopen(write_end, "wb") as writer:
                process = sh.Command(program)(
                    *argv[1:],
                    _in=given,
                    _out=writer,
                    _err=err,
                    **self._spawn_options(None, ()),
                )
            with closing(_Child(process)) as child, _limited(child, timeout_s):
                try:
                    yield reader
                    while reader.read(1 << 16):
                        pass
                except BaseException:
                    child.end()
                    raise
                self._wait(child, start + timeout_s, False, False)
            err.seek(0)
            said = err.read(_KEEP_BYTES).decode("utf-8", "backslashreplace")
        done = Completed(argv, process.exit_code, "", said, time.monotonic() - start)
        if self._log is not None:
            self._log(done)
        if done.exit_code != 0:
            raise CommandFailed(argv, done.exit_code, "", done.stderr)

    def interact(self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
        """Give the terminal to ``argv`` until it ends; return its exit code (negative for a signal).

        The only way in which a command gets the agent's own stdin, stdout and stderr.
        """
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        start = time.monotonic()
        try:
            sh.Command(program)(*argv[1:], _fg=True, _env={**BASE_ENVIRONMENT, **(environment or {})})
            code = 0
        except sh.ErrorReturnCode as error:
            code = int(error.exit_code)
        if self._log is not None:
            self._log(Completed(tuple(argv), code, "", "", time.monotonic() - start))
        return code

    def start(self, argv: Sequence[str], *, on_error_output: Callable[[str], None] | None = None) -> Any:
        """Start a helper that goes on while the agent works; it ends with the agent.

        Returns a handle for ``stop``; ``handle.pid`` is its process. ``on_error_output``: called
        with each line of stderr, from another thread; all of them have come when the handle's
        ``wait`` returns.
        """
        program = self.which(argv[0])
        if not program:
            raise ToolMissing(argv[0])
        with open(os.devnull, "rb") as nothing:
            return sh.Command(program)(
                *argv[1:],
                _in=nothing,
                _out=_Sink(1 << 16, None),
                _err=_Sink(1 << 16, on_error_output),
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

    def _wait(self, child: _Child, deadline: float, finish: bool, ignore: bool) -> str:
        """Wait for the end; return why the command had to be stopped, or an empty string."""
        try:
            while not child.ended_within(POLL_S):
                words = 0 if ignore else self.cancel.words
                reason = "timeout" if time.monotonic() > deadline else "cancel" if words > int(finish) else ""
                if reason:
                    child.end()
                    return reason
        except BaseException:
            child.end()
            raise
        return ""


def _signal_group(process: Any, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
