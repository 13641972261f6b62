# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a running tool is, from what it prints. Pure; a fraction never falls within one task.

Formats: e2fsck(8) ``-C``; e2fsprogs misc/badblocks.c; APT's ``APT::Status-Fd`` (apt's
doc/progress-reporting.md); the phases of xfs_repair(8) and btrfs-check(8) as they print them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, assert_never

from rescue_agent.model.operation import Progress

_MAX_LINE = 64 << 10


class Reading(NamedTuple):
    """A state of progress."""

    fraction: float | None
    detail: str


Parse = Callable[[str], Reading | None]


class ProgressReader:
    """Takes the output of one command piece by piece and tells how far it is.

    ``feed`` returns the newest reading when something changed. Lines that only tell of progress are
    not given to ``on_line``, everything else is.
    """

    def __init__(self, kind: Progress, on_line: Callable[[str], None] | None = None) -> None:
        self._parse = _parser(kind)
        self._on_line = on_line
        self._rest = ""
        self._best: float | None = None
        self._last: Reading | None = None

    def feed(self, piece: str) -> Reading | None:
        """Take the next piece of output, of any length."""
        # Backspace and CR mean the same here: what comes next replaces what was shown.
        text = self._rest + piece
        parts = re.split(r"[\n\r\b]+", text)
        ends = re.findall(r"[\n\r\b]+", text)
        self._rest = parts.pop()[-_MAX_LINE:]
        news = None
        for part, end in zip(parts, ends, strict=True):
            news = self._take(part, whole="\n" in end) or news
        return news

    def end(self) -> None:
        """Hand over what was printed last without an end of line."""
        rest, self._rest = self._rest, ""
        if rest:
            self._take(rest, whole=True)

    def _take(self, line: str, *, whole: bool) -> Reading | None:
        reading = self._parse(line) if line.strip() else None
        if reading is None:
            if whole and line.strip() and self._on_line is not None:
                self._on_line(line)
            return None
        fraction = reading.fraction
        if fraction is not None:
            fraction = min(1.0, max(fraction, self._best or 0.0))
            self._best = fraction
        reading = Reading(self._best if fraction is None else fraction, reading.detail)
        if reading == self._last:
            return None
        self._last = reading
        return reading


def _parser(kind: Progress) -> Parse:
    match kind:
        case "":
            return lambda _: None
        case "e2fsck":
            return parse_e2fsck
        case "badblocks":
            return parse_badblocks
        case "apt":
            return AptProgress()
        case "xfs_repair":
            return parse_xfs_repair
        case "btrfs":
            return parse_btrfs
        case _:
            assert_never(kind)


# --- e2fsck -------------------------------------------------------------------------------------

_E2FSCK = re.compile(r"([1-5]) (\d+) (\d+) \S.*")
_E2FSCK_ENDS = (0.0, 0.70, 0.90, 0.92, 0.95, 1.0)
"""Where each pass ends, of the whole: the first two read the metadata and take nearly all the time
(the weights that systemd's fsck client uses)."""
_E2FSCK_PASSES = (
    "inodes, blocks and sizes",
    "directory structure",
    "directory connectivity",
    "reference counts",
    "group summary",
)


def parse_e2fsck(line: str) -> Reading | None:
    """Return the reading in a line ``pass current max device`` of ``-C``."""
    found = _E2FSCK.fullmatch(line)
    if found is None:
        return parse_badblocks(line)
    number, current, last = int(found[1]), int(found[2]), int(found[3])
    start, end = _E2FSCK_ENDS[number - 1], _E2FSCK_ENDS[number]
    share = min(1.0, current / last) if last else 1.0
    return Reading(start + (end - start) * share, f"pass {number} of 5: {_E2FSCK_PASSES[number - 1]}")


_BADBLOCKS = re.compile(
    r"(?:Checking for bad blocks[^:]*: *|Testing with[^:]*: *|Reading and comparing: *)?"
    r"(\d+\.\d+)% done, (?:(\d+:)?\d+:\d+) elapsed\. \((\d+)/(\d+)/(\d+) errors\)"
)


def parse_badblocks(line: str) -> Reading | None:
    """Return the reading in ``4.39% done, 0:01 elapsed. (0/0/0 errors)``: read, write, other."""
    found = _BADBLOCKS.search(line)
    if found is None:
        return None
    errors = int(found[3]) + int(found[4]) + int(found[5])
    return Reading(float(found[1]) / 100, f"surface scan, {errors} bad blocks")


# --- apt ----------------------------------------------------------------------------------------

_APT_STATUS = re.compile(r"(pmstatus|dlstatus|media-change|pmerror|pmconffile):([^:]*):([\d.]+):(.*)")
_APT_WORK = re.compile(r"(Unpacking|Setting up|Preparing to unpack|Selecting|Removing) (?:\S*/)?([^ :_]+)")
_APT_COUNTS = re.compile(r"(\d+) upgraded, (\d+) newly installed,(?: (\d+) reinstalled,)? (\d+) to remove")
_DOWNLOAD_SHARE = 0.4


class AptProgress:
    """APT's status lines, which it mixes into stdout with ``-o APT::Status-Fd=1``.

    Without them the steps that it names (unpacking, setting up) are counted against its summary.
    """

    def __init__(self) -> None:
        self._total = 0
        self._steps: set[tuple[str, str]] = set()

    def __call__(self, line: str) -> Reading | None:
        """Return the reading in one line."""
        found = _APT_STATUS.fullmatch(line)
        if found is not None:
            share = min(1.0, float(found[3]) / 100) if found[3].count(".") < 2 else 0.0
            if found[1] == "dlstatus":
                return Reading(_DOWNLOAD_SHARE * share, found[4])
            return Reading(_DOWNLOAD_SHARE + (1 - _DOWNLOAD_SHARE) * share, found[4])
        counts = _APT_COUNTS.search(line)
        if counts is not None:
            self._total = sum(int(number or 0) for number in counts.groups())
        work = _APT_WORK.match(line)
        if work is None or not self._total or work[1] not in ("Unpacking", "Setting up", "Removing"):
            return None
        self._steps.add((work[1], work[2]))
        done = len(self._steps) / (2 * self._total)
        return Reading(_DOWNLOAD_SHARE + (1 - _DOWNLOAD_SHARE) * min(1.0, done), line.strip())


# --- xfs_repair and btrfs check -----------------------------------------------------------------

_XFS_PHASE = re.compile(r"Phase ([1-7]) - (.*?)\.*")
_BTRFS_STEP = re.compile(r"\[(\d+)/(\d+)\] (\w[^(]*?)\s*(?:\((.*?)\))?")


def parse_xfs_repair(line: str) -> Reading | None:
    """Return the reading in ``Phase 3 - for each AG...``; phases 1 to 7 count alike."""
    found = _XFS_PHASE.fullmatch(line.strip())
    if found is None:
        return None
    return Reading((int(found[1]) - 1) / 7, f"phase {found[1]} of 7: {found[2]}")


def parse_btrfs(line: str) -> Reading | None:
    """Return the reading in ``[2/7] checking extents (0:00:01 elapsed, 7576 items checked)``."""
    found = _BTRFS_STEP.fullmatch(line.strip())
    if found is None or not int(found[2]):
        return None
    step, of = int(found[1]), int(found[2])
    return Reading(min(1.0, (step - 1) / of), f"step {step} of {of}: {found[3]}")
