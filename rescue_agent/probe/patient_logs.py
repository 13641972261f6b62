# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that lie on the patient: its journal, the text logs, and what a crashing kernel left.

They are read from the mount that is there for looking, the newest first, and never more than a bound:
of a long log the end counts.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import msgspec

from rescue_agent.errors import CommandFailed, CommandTimeout, UnsafePath, UsageError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import ProbeError
from rescue_agent.model.logs import Log, LogKind
from rescue_agent.model.queries import human_size
from rescue_agent.probe.history import Starts, probe_starts, utc_of_microseconds
from rescue_agent.probe.logs import PIECE_BYTES, Scan, scan_stream
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

TOTAL_BYTES = 64 << 20
"""So much is read of one system's logs, unpacked."""
TOTAL_S = 30.0
FILE_BYTES = 8 << 20
"""So much is read of one log, from its end."""
PACKED_BYTES = 32 << 20
"""So much of a packed one, which can only be read from its beginning."""
BOOTS_READ = 3
BOOT_LINES = 40_000
"""So many of the last lines of one boot are asked of journalctl."""

_ROTATED = ("/var/log/syslog", "/var/log/messages", "/var/log/kern.log")
_TEXT_LOGS = (*_ROTATED, "/var/log/boot.log", "/var/log/dmesg")
_PACKED = (".gz", ".xz", ".bz2", ".zst")
_OLDER_READ = 2
_NAMES_LIMIT = 4096

JOURNAL = "/var/log/journal"
PSTORE = "/var/lib/systemd/pstore"
CRASH = "/var/crash"
_DUMPS_READ = 3
_DUMPS_NAMED = 10
_PSTORE_DEPTH = 3
_PSTORE_FILES = 512

_BOOT_FIELDS = ("_TRANSPORT=kernel", "_PID=1", "SYSLOG_IDENTIFIER=systemd-fsck")
"""Fields of the lines that tell how a boot went (systemd.journal-fields(7))."""
_MACHINE_FOLDER = re.compile(r"[0-9a-f]{32}\Z")
_BOOT_TEXT = re.compile(r"^\s*-?\d+ ([0-9a-f]{32}) ")
_JOURNAL_TROUBLE = re.compile(r"corrupted|unsupported|ignoring file|Failed to open|Bad message|not supported")
_PART = re.compile(rb"([A-Za-z]{1,32})#(\d{1,9}) Part(\d{1,9})\r?\n?\Z")
"""The first line of a pstore record (kernel fs/pstore/platform.c, pstore_dump)."""


class Found(NamedTuple):
    """What the logs of one system brought."""

    logs: tuple[Log, ...] = ()
    dumps: tuple[str, ...] = ()
    starts: Starts = Starts()
    errors: tuple[ProbeError, ...] = ()


class _Enough(Exception):
    """The bound on bytes or time is reached while a command still prints."""


def probe_patient_logs(
    runner: Runner, root: TargetRoot, scan: Scan, *, system: str, device: str, machine_id: str
) -> Found:
    """Return what the logs of a mounted system say, and what could not be read.

    ``system`` is its id, ``device`` names its disk in the source of each log. Needs no journalctl:
    without it the journal is left out. Raises Interrupted.
    """
    return _Reader(runner, root, scan, system, device).read(machine_id)


class _Reader:
    def __init__(self, runner: Runner, root: TargetRoot, scan: Scan, system: str, device: str) -> None:
        self._runner = runner
        self._root = root
        self._scan = scan
        self._system = system
        self._device = device
        self._room = TOTAL_BYTES
        self._deadline = time.monotonic() + TOTAL_S
        self._logs: list[Log] = []
        self._errors: list[ProbeError] = []

    def read(self, machine_id: str) -> Found:
        folder = self._journal_folder(machine_id) if self._runner.which("journalctl") else ""
        began = self._journal(folder) if folder else ""
        for path in _TEXT_LOGS:
            self._text_log(path)
        self._pstore()
        dumps = self._crash()
        starts = probe_starts(self._runner, self._root, self._place(folder) if folder else "", began)
        return Found(tuple(self._logs), dumps, starts, tuple(self._errors))

    # --- bounds and errors --------------------------------------------------------------------

    def _left(self) -> int:
        """Return how many bytes may still be read; none when the time is over."""
        self._runner.cancel.check()
        return self._room if time.monotonic() < self._deadline else 0

    def _keep(self, log: Log) -> None:
        self._room -= log.size_bytes
        if log.lines and log.size_bytes:
            self._logs.append(log)

    def _error(self, path: str, message: str, hint: str = "") -> None:
        words = printable(f"{path}: {message}")
        self._errors.append(ProbeError(probe="logs", subject=self._device, message=words, hint=hint))

    def _source(self, path: str) -> str:
        return f"{printable(path)} on {self._device}"

    # --- text logs ----------------------------------------------------------------------------

    def _text_log(self, path: str) -> None:
        """Read a log, and older ones of its name as long as no start of a machine was seen."""
        for name in (path, *self._older(path)):
            log = self._file(name, "syslog")
            if log is not None and any(boot.kernel for boot in log.boots):
                return

    def _older(self, path: str) -> list[str]:
        """Return the rotated logs of a name, the newest first (logrotate(8): .1, -20260131, and .gz)."""
        if path not in _ROTATED:
            return []
        folder, _, base = path.rpartition("/")
        names = self._names(folder)
        rotated = re.compile(re.escape(base) + r"(?:\.\d{1,4}|-\d{8}(?:-\d+)?)(?:\.(?:gz|xz|bz2|zst))?\Z")
        return self._newest(f"{folder}/{name}" for name in names if rotated.match(name))[:_OLDER_READ]

    def _file(self, path: str, kind: LogKind) -> Log | None:
        """Read the end of one file; None when it is not there, is no file, or there is no room left."""
        packed = path.endswith(_PACKED)
        left = min(self._left(), PACKED_BYTES if packed else FILE_BYTES)
        if not left:
            return None
        try:
            with self._root.open_file(path) as file:
                log = self._bounded(file, path, kind, left)
        except (UnsafePath, UsageError):
            return None  # a link to /dev/null, a FIFO, only zero bytes: nothing to read
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._error(path, error.strerror or str(error))
            return None
        self._keep(log)
        return log

    def _bounded(self, file: IO[bytes], path: str, kind: LogKind, limit: int) -> Log:
        size = os.fstat(file.fileno()).st_size
        source = self._source(path)
        if size > limit and not path.endswith(_PACKED):
            file.seek(size - limit)
            file.readline(PIECE_BYTES)  # the rest of a line that the cut went through
            source = f"the last {human_size(limit)} of {source}"
        log = scan_stream(self._scan, file, source=source, kind=kind, system=self._system, limit_bytes=limit)
        if log.size_bytes < limit:
            return log
        # Bounded by decision, which is no trouble: the source says so.
        source = (
            log.source if not path.endswith(_PACKED) else f"the first {human_size(limit)} of {log.source}"
        )
        return msgspec.structs.replace(log, problem="", source=source)

    # --- the journal ----------------------------------------------------------------------------

    def _place(self, folder: str) -> str:
        return self._root.path.rstrip("/") + folder

    def _journal(self, folder: str) -> str:
        """Read the last boots of the journal; return when the newest of them began."""
        place = self._place(folder)
        command = ("journalctl", f"--directory={place}", "--no-pager", "--quiet", "--utc")
        try:
            listed = self._runner.run(
                (*command, "--list-boots", "--output=json"), ok=range(256), timeout_s=TOTAL_S
            )
        except CommandTimeout:
            self._error(folder, f"journalctl did not list its boots within {TOTAL_S:.0f} s")
            return ""
        trouble = [line for line in listed.stderr.splitlines() if _JOURNAL_TROUBLE.search(line)]
        boots = parse_boots(listed.stdout)
        if trouble or (listed.exit_code and listed.stderr.strip()):
            words = "; ".join(trouble[:3] or listed.stderr.splitlines()[:1]).replace(place, folder)
            self._error(
                folder,
                f"journalctl could not read all of it: {words}",
                "a newer rescue system may read it" if "unsupported" in words else "",
            )
        if boots:
            self._boots(command, folder, [boot.id for boot in boots[-BOOTS_READ:]])
        return boots[-1].began if boots else ""

    def _boots(self, command: tuple[str, ...], folder: str, boots: Sequence[str]) -> None:
        scanner = self._scan()
        room = min(self._left(), TOTAL_BYTES // 2) // len(boots)
        problems = []
        for boot in boots:
            # What journalctl itself prints between boots: the only mark of one whose beginning is not kept.
            scanner.feed(f"-- Boot {boot} --\n".encode())
            try:
                text = self._boot(command, f"_BOOT_ID={boot}", room)
            except (CommandFailed, CommandTimeout) as error:
                problems.append(f"journalctl could not read boot {boot}: {error.message}")
            else:
                scanner.feed(text)
        problem = printable("; ".join(problems))
        self._keep(
            scanner.finish(source=self._source(folder), kind="journal", system=self._system, problem=problem)
        )

    def _boot(self, command: tuple[str, ...], boot: str, limit: int) -> bytes:
        """Return the lines of one boot. Of one that went on for long, those of the kernel and init."""
        asked = (*command, "--output=short-precise", f"--lines={BOOT_LINES}")
        text = self._output((*asked, boot), limit)
        if len(text) < limit and text.count(b"\n") < BOOT_LINES:
            return text
        matches = [word for field in _BOOT_FIELDS for word in ("+", boot, field)][1:]
        return self._output((*asked, *matches), limit)

    def _output(self, argv: tuple[str, ...], limit: int) -> bytes:
        """Return what a command prints, no more than ``limit`` bytes and no longer than there is time."""
        pieces: list[bytes] = []
        size = 0
        try:
            with self._runner.stream(argv, timeout_s=max(1.0, self._deadline - time.monotonic())) as out:
                while piece := out.read(min(PIECE_BYTES, limit - size)):
                    pieces.append(piece)
                    size += len(piece)
                    if size >= limit or not self._left():
                        raise _Enough
        except _Enough:
            pass
        return b"".join(pieces)

    def _journal_folder(self, machine_id: str) -> str:
        """Return the folder of the system's own journal with every link resolved, or an empty string.

        An image that was made from a running machine brings that machine's journal too. What is no
        regular file there would lead journalctl out of the patient.
        """
        names = [name for name in self._names(JOURNAL) if _MACHINE_FOLDER.match(name)]
        ordered = self._newest(f"{JOURNAL}/{name}" for name in names)
        own = f"{JOURNAL}/{machine_id}"
        chosen = own if own in ordered else ordered[0] if ordered else ""
        if not chosen:
            return ""
        try:
            folder = self._root.resolve(chosen)
            entries = self._names(folder)
            if any(not stat.S_ISREG(self._root.lstat(f"{folder}/{e}").st_mode) for e in entries):
                self._error(chosen, "it holds what is no regular file, so it is not given to journalctl")
                return ""
        except (OSError, UnsafePath) as error:
            self._error(chosen, str(error))
            return ""
        return folder if any(e.endswith((".journal", ".journal~")) for e in entries) else ""

    # --- what a crashing kernel left --------------------------------------------------------------

    def _pstore(self) -> None:
        """Read the newest dumps that systemd-pstore(8) put away, each in the order of its parts."""
        files = self._walk(PSTORE, _PSTORE_DEPTH)
        dumps: dict[tuple[str, bytes], list[tuple[int, str]]] = {}
        for path in files:
            folder, _, name = path.rpartition("/")
            if name.startswith(("dmesg-", "console-ramoops")) and not name.endswith(".enc.z"):
                dump, part = self._part_of(path)
                dumps.setdefault((folder, dump or name.encode()), []).append((part, path))
        # systemd-pstore writes the parts once more, joined: needed only where the parts are not kept.
        with_parts = {_dump_folder(parts[0][1]) for parts in dumps.values()}
        whole = [f for f in files if f.endswith("/dmesg.txt") and _dump_folder(f) not in with_parts]
        ordered = {parts[0][1]: [p for _, p in sorted(parts, reverse=True)] for parts in dumps.values()}
        ordered |= {path: [path] for path in whole}
        for first in self._newest(ordered)[:_DUMPS_READ]:
            self._parts(ordered[first])

    def _parts(self, parts: Sequence[str]) -> None:
        left = min(self._left(), FILE_BYTES)
        scanner = self._scan()
        for path in parts:
            try:
                piece = self._root.read_bytes(path, left)
            except (OSError, UnsafePath) as error:
                self._error(path, str(error))
                continue
            left -= len(piece)
            scanner.feed(piece.rstrip(b"\n") + b"\n")
        where = parts[0] if len(parts) == 1 else parts[0].rpartition("/")[0]
        self._keep(scanner.finish(source=self._source(where), kind="pstore", system=self._system))

    def _part_of(self, path: str) -> tuple[bytes, int]:
        """Return which dump a record belongs to, and its part; the highest part is the oldest."""
        try:
            with self._root.open_file(path) as file:
                match = _PART.match(file.readline(80))
        except (OSError, UnsafePath):
            return b"", 0
        return (match[1] + b"#" + match[2], int(match[3])) if match else (b"", 0)

    def _crash(self) -> tuple[str, ...]:
        """Read the kernel logs that kdump wrote; return the dumps and reports themselves by name."""
        files = self._walk(CRASH, 2)
        logs = [f for f in files if re.search(r"/(?:vmcore-dmesg(?:-incomplete)?\.txt|dmesg\.\d{6,14})\Z", f)]
        for path in self._newest(logs)[:_DUMPS_READ]:
            self._file(path, "crash")
        dumps = [
            f for f in files if re.search(r"/(?:vmcore(?:[.-][\w.]+)?|dump\.\d{6,14}|[^/]+\.crash)\Z", f)
        ]
        dumps = [f for f in dumps if f not in logs]
        return tuple(printable(f) for f in self._newest(dumps)[:_DUMPS_NAMED])

    # --- folders ------------------------------------------------------------------------------------

    def _names(self, folder: str) -> tuple[str, ...]:
        try:
            return self._root.names(folder)[:_NAMES_LIMIT]
        except OSError as error:
            self._error(folder, error.strerror or str(error))
            return ()

    def _walk(self, folder: str, depth: int) -> list[str]:
        """Return the regular files below a folder, links not followed, never more than a bound."""
        found: list[str] = []
        for path, mode in self._entries(folder):
            if stat.S_ISREG(mode):
                found.append(path)
            elif stat.S_ISDIR(mode) and depth > 1:
                found += self._walk(path, depth - 1)
            if len(found) >= _PSTORE_FILES:
                break
        return found[:_PSTORE_FILES]

    def _entries(self, folder: str) -> Iterator[tuple[str, int]]:
        for name in self._names(folder):
            path = f"{folder}/{name}"
            try:
                yield path, self._root.lstat(path).st_mode
            except (OSError, UnsafePath):
                continue

    def _newest(self, paths: Iterable[str]) -> list[str]:
        """Return what is there, the newest first."""
        dated = []
        for path in paths:
            try:
                dated.append((self._root.stat(path).st_mtime, path))
            except (OSError, UnsafePath):
                continue
        return [path for _, path in sorted(dated, reverse=True)]


def _dump_folder(path: str) -> str:
    """Return the folder directly below PSTORE that a file lies in, or an empty string."""
    return path.removeprefix(f"{PSTORE}/").rpartition("/")[0].partition("/")[0]


class JournalBoot(NamedTuple):
    """One boot that a journal knows."""

    id: str
    began: str = ""
    """UTC, ISO 8601; empty where journalctl does not say it in numbers."""


def parse_boots(text: str) -> tuple[JournalBoot, ...]:
    """Return the boots of ``journalctl --list-boots``, the newest last.

    From version 251 on it prints JSON when asked to; older ones print their table all the same.
    """
    try:
        listed = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        found = [match[1] for line in text.splitlines() if (match := _BOOT_TEXT.match(line))]
        return tuple(JournalBoot(boot) for boot in dict.fromkeys(found))
    boots = []
    for entry in listed if isinstance(listed, list) else ():
        boot = entry.get("boot_id") if isinstance(entry, dict) else None
        if isinstance(boot, str) and _MACHINE_FOLDER.match(boot):
            boots.append(JournalBoot(boot, utc_of_microseconds(entry.get("first_entry"))))
    return tuple(boots)
