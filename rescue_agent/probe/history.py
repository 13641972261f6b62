# SPDX-License-Identifier: GPL-3.0-or-later
"""What was changed on the patient last, and when it last came up: by the package managers' logs and wtmp."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from rescue_agent.errors import CommandFailed, CommandTimeout, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import PackageChange
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

CHANGES_KEPT = 6
PACKAGES_KEPT = 12
TAIL_BYTES = 1 << 20
"""So much of the end of a package manager's log is read."""
LINE_LIMIT = 512
"""No line about one package is longer; what is longer would only keep a pattern busy."""
WTMP = "/var/log/wtmp"
GAP_S = 600
"""Lines of a log that names no transactions belong together when they are not further apart."""

STARTUP_FINISHED = "b07a249cd024414a82dd00cd181378ff"
"""SD_MESSAGE_STARTUP_FINISHED (systemd src/systemd/sd-messages.h): the default target is reached."""

_BOOT_PACKAGES = re.compile(
    r"(?:linux-(?:image|modules|firmware)|kernel|vmlinuz|grub|shim|dracut|initramfs|mkinitcpio|systemd|udev|"
    r"glibc|libc6|lvm2|mdadm|cryptsetup|kmod|e2fsprogs|xfsprogs|btrfs|util-linux|dbus|"
    r"libselinux|selinux-policy|pam|libpam|openssl|libssl|linux\Z)"
)
"""Packages without which a machine does not come up."""


_EPOCH = datetime.fromtimestamp(0, UTC)
_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M")


Action = Literal["install", "upgrade", "downgrade", "remove", "reinstall"]


class Step(NamedTuple):
    """One package's part of a transaction."""

    time: datetime
    action: Action
    package: str


# --- the package managers ---------------------------------------------------------------------------


def probe_changes(root: TargetRoot) -> tuple[PackageChange, ...]:
    """Return the last package transactions of a mounted system, the newest last.

    The first log that names any is believed: apt's and dpkg's tell of the same work. Times of logs
    without a zone are the patient's own (/etc/localtime); an unreadable one is taken as UTC.
    """
    zone = _zone(root)
    for name, parse in _LOGS:
        found: list[PackageChange] = []
        for path in (name, f"{name}.1", f"{name}.1.gz"):
            text, changed = _tail(root, path)
            if text:
                found = [*parse(text, zone, changed, path), *found]
            if len(found) >= CHANGES_KEPT:
                break
        if found:
            return tuple(sorted(found, key=lambda change: change.time)[-CHANGES_KEPT:])
    return ()


def parse_apt(text: str, zone: tzinfo, _changed: datetime, path: str) -> Iterator[PackageChange]:
    """Read apt's history.log: paragraphs with Start-Date, Commandline, the actions, End-Date."""
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        begun = _time(fields.get("Start-Date", ""), zone)
        actions = {action: fields[key] for key, action in _APT_ACTIONS.items() if key in fields}
        if begun is None or not actions:
            continue
        steps = [
            Step(begun, action, match[1])
            for action, listed in actions.items()
            for match in re.finditer(r"(?:^|, )([^\s:,()]+)(?::[\w-]+)? \(", listed)
        ]
        finished = "End-Date" in fields and "Error" not in fields
        yield _change(steps, path, command=fields.get("Commandline", ""), finished=finished)


def parse_lines(pattern: re.Pattern[str]) -> Callable[[str, tzinfo, datetime, str], Iterator[PackageChange]]:
    """Return a reader of logs with a line for each package; ``time``, ``action``, ``package`` are groups."""

    def parse(text: str, zone: tzinfo, changed: datetime, path: str) -> Iterator[PackageChange]:
        steps: list[Step] = []
        for line in text.splitlines():
            match = pattern.match(line) if len(line) <= LINE_LIMIT else None
            at = _time(match["time"], zone, changed) if match is not None else None
            if match is None or at is None:
                continue
            action = _ACTIONS[match["action"].lower()]
            if steps and abs((at - steps[-1].time).total_seconds()) > GAP_S:
                yield _change(steps, path)
                steps = []
            steps.append(Step(at, action, match["package"]))
        if steps:
            yield _change(steps, path)

    return parse


_APT_ACTIONS: dict[str, Action] = {
    "Install": "install",
    "Reinstall": "reinstall",
    "Upgrade": "upgrade",
    "Downgrade": "downgrade",
    "Remove": "remove",
    "Purge": "remove",
}
_WORDS: dict[Action, tuple[str, ...]] = {
    "install": ("install", "installed"),
    "upgrade": ("upgrade", "upgraded", "updated"),
    "downgrade": ("downgrade", "downgraded"),
    "remove": ("remove", "removed", "purge", "erase", "erased"),
    "reinstall": ("reinstall", "reinstalled"),
}
_ACTIONS = {word: action for action, words in _WORDS.items() for word in words}
_NEVRA = r"(?:\d+:)?(?P<package>\S+?)-(?:\d+:)?[^\s-]+-[^\s-]+"
_LOGS: tuple[tuple[str, Callable[[str, tzinfo, datetime, str], Iterator[PackageChange]]], ...] = (
    ("/var/log/apt/history.log", parse_apt),
    (
        "/var/log/dpkg.log",
        parse_lines(
            re.compile(
                r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?P<action>install|upgrade|remove|purge)"
                r" (?P<package>[^\s:]+)",
            )
        ),
    ),
    (
        "/var/log/dnf.rpm.log",
        parse_lines(
            re.compile(
                r"^(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d{4})) \w+ "
                r"(?P<action>Install|Installed|Upgrade|Erase|Reinstall|Downgrade): " + _NEVRA + r"\s*$",
            )
        ),
    ),
    (
        "/var/log/yum.log",
        parse_lines(
            re.compile(
                r"^(?P<time>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (?P<action>[A-Z][a-z]+): "
                r"(?:\d+:)?(?P<package>\S+?)(?:-(?:\d+:)?[^\s-]+-[^\s-]+)?\s*$",
            )
        ),
    ),
    (
        "/var/log/zypp/history",
        parse_lines(
            re.compile(
                r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\|(?P<action>install|remove) *"
                r"\|(?P<package>[^|\s]+)\|",
            )
        ),
    ),
    (
        "/var/log/pacman.log",
        parse_lines(
            re.compile(
                r"^\[(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[+-]\d{4})?)\] \[ALPM\] "
                r"(?P<action>installed|upgraded|reinstalled|downgraded|removed) (?P<package>\S+) ",
            )
        ),
    ),
)
"""Formats: apt history.log; dpkg(1) --log; dnf's log of rpm; yum.log; zypper's history; pacman(8)."""


def _change(steps: Sequence[Step], path: str, *, command: str = "", finished: bool = True) -> PackageChange:
    names = sorted(dict.fromkeys(step.package for step in steps), key=_importance)
    return PackageChange(
        time=_utc(steps[0].time),
        log=printable(path),
        action=Counter(step.action for step in steps).most_common(1)[0][0],
        count=len(names),
        packages=tuple(printable(name)[:100] for name in names[:PACKAGES_KEPT]),
        command=printable(command)[:200],
        finished=finished,
    )


def _importance(name: str) -> bool:
    return _BOOT_PACKAGES.match(name) is None


def _tail(root: TargetRoot, path: str) -> tuple[str, datetime]:
    """Return the end of a log, and when it was changed last; nothing when it cannot be read."""
    try:
        with root.open_file(path) as file:
            state = os.fstat(file.fileno())
            if path.endswith(".gz"):
                data = gzip.GzipFile(fileobj=file).read(TAIL_BYTES)
            else:
                file.seek(max(0, state.st_size - TAIL_BYTES))
                data = file.read(TAIL_BYTES)
    except (OSError, EOFError, zlib.error, UnsafePath):
        return "", _EPOCH
    try:
        changed = datetime.fromtimestamp(state.st_mtime, UTC)
    except (ValueError, OverflowError, OSError):
        changed = _EPOCH
    return data.decode("utf-8", "backslashreplace"), changed


# --- when it came up ----------------------------------------------------------------------------------


class Starts(NamedTuple):
    """Times in UTC, ISO 8601; empty when no trace is left."""

    last_start: str = ""
    came_up: str = ""


_RUN_LEVEL, _BOOT_TIME, _USER = 1, 2, 7  # utmp(5)
_SHUTDOWN = b"shutdown"
_RECORD = struct.Struct("<hxxi32s4s32s256shhi")
_SIZES = ((384, "<ii"), (400, "<qq"))
"""Size of a wtmp record and layout of its time: where 32-bit programs share it, and elsewhere (glibc)."""


def probe_starts(runner: Runner, root: TargetRoot, journal: str, began: str) -> Starts:
    """Return when the system last started and last came up, by wtmp and its journal.

    ``journal``: the folder of the journal's files on the rescue system; empty: there is none.
    ``began``: when the newest boot in it began.
    """
    by_wtmp = parse_wtmp(_wtmp(root))
    if not journal:
        return by_wtmp
    base = ("journalctl", f"--directory={journal}", "--no-pager", "--quiet", "--output=json", "--lines=1")
    finished = _journal_time(runner, (*base, "_PID=1", f"MESSAGE_ID={STARTUP_FINISHED}"))
    return Starts(max(by_wtmp.last_start, began), max(by_wtmp.came_up, finished))


def parse_wtmp(data: bytes) -> Starts:
    """Read the records of wtmp (utmp(5)); a start that was followed by a runlevel or a login came up."""
    for size, layout in _SIZES:
        if not data or len(data) % size:
            continue
        start = came_up = ""
        for at in range(0, len(data), size):
            record = data[at : at + size]
            kind, _pid, _line, _id, user, *_ = _RECORD.unpack_from(record)
            # Beside the exit status comes the session, then the time, each of the layout's width.
            seconds = struct.unpack_from(layout, record, 340 if size == 384 else 344)[0]
            if not 0 <= kind <= 9:
                break
            if not 0 < seconds < 1 << 33:
                continue
            if kind == _BOOT_TIME:
                start = _utc(datetime.fromtimestamp(seconds, UTC))
            elif start and (kind == _USER or (kind == _RUN_LEVEL and not user.startswith(_SHUTDOWN))):
                came_up = start
        else:
            return Starts(start, came_up)
    return Starts()


def _wtmp(root: TargetRoot) -> bytes:
    try:
        with root.open_file(WTMP) as file:
            size = os.fstat(file.fileno()).st_size
            # A whole number of records of either size: 9600 is their least common multiple.
            file.seek(max(0, size - TAIL_BYTES) // 9600 * 9600)
            return file.read(2 * TAIL_BYTES)
    except (OSError, UnsafePath):
        return b""


def _journal_time(runner: Runner, argv: Sequence[str]) -> str:
    try:
        said = runner.run(argv, timeout_s=20.0).stdout
        entry = msgspec.json.decode(said.splitlines()[-1])
        return utc_of_microseconds(int(entry["__REALTIME_TIMESTAMP"]))
    except (CommandFailed, CommandTimeout, IndexError, KeyError, TypeError, ValueError):
        return ""


# --- times ------------------------------------------------------------------------------------------


def _zone(root: TargetRoot) -> tzinfo:
    """Return the patient's time zone (localtime(5)), UTC when it is not there or damaged."""
    try:
        return ZoneInfo.from_file(io.BytesIO(root.read_bytes("/etc/localtime", 1 << 16)))
    except (OSError, UnsafePath, ValueError, struct.error, EOFError, IndexError):
        return UTC


def _time(text: str, zone: tzinfo, changed: datetime = _EPOCH) -> datetime | None:
    """Return a log's time in UTC.

    A log that names no year is not younger than its last change, ``changed``.
    """
    words = " ".join(text.split())
    for form in _FORMS:
        try:
            found = datetime.strptime(words, form)
            return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            continue
    for year in (changed.year, changed.year - 1):
        try:
            found = datetime.strptime(f"{year} {words}", "%Y %b %d %H:%M:%S").replace(tzinfo=zone)
        except (ValueError, OverflowError):
            continue
        if found <= changed:
            return found.astimezone(UTC)
    return None


def utc_of_microseconds(count: object) -> str:
    """Return a time of the journal (microseconds since 1970) in UTC, ISO 8601; empty when it is none."""
    try:
        return _utc(datetime.fromtimestamp(count / 1e6, UTC)) if isinstance(count, int) else ""
    except (ValueError, OverflowError, OSError):
        return ""


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
