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
_STEP = 0.002
_ENDS = re.compile(r"[\n\r\b]+")
_PROGRESS_LINE = re.compile(r"[1-5] \d+ \d+ \S+|(?:dl|pm)status:.*")


class Reading(NamedTuple):
    """A state of progress."""

    fraction: float | None
    detail: str
    part: str = ""
    """Names a part of the work that has a fraction of its own; empty for the work as a whole."""


Parse = Callable[[str], Reading | None]


class ProgressReader:
    """Takes one output stream of a command piece by piece.

    ``on_reading`` gets every noticeable step, ``on_line`` every line that tells of anything else.
    """

    def __init__(
        self,
        kind: Progress,
        *,
        on_line: Callable[[str], None],
        on_reading: Callable[[Reading], None],
    ) -> None:
        self._parse = _parser(kind)
        self._on_line = on_line
        self._on_reading = on_reading
        self._rest = ""
        self._best: dict[str, float] = {}
        self._told: Reading | None = None

    def feed(self, piece: str) -> None:
        """Take the next piece of output, of any length."""
        # Backspace and CR mean the same here: what comes next is drawn over what was shown.
        text = self._rest + piece
        *parts, rest = _ENDS.split(text)
        self._rest = rest[-_MAX_LINE:]
        for part in parts:
            self._take(part)

    def end(self) -> None:
        """Hand over what was printed last without an end of line."""
        rest, self._rest = self._rest, ""
        self._take(rest)

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        reading = self._parse(line)
        if reading is None:
            self._on_line(line.rstrip())
            return
        fraction = reading.fraction
        if fraction is not None:
            fraction = min(1.0, max(fraction, self._best.get(reading.part, 0.0)))
            self._best[reading.part] = fraction
        reading = reading._replace(fraction=fraction)
        if self._is_news(reading):
            self._told = reading
            self._on_reading(reading)

    def _is_news(self, reading: Reading) -> bool:
        """A million steps that nobody can see are not worth telling."""
        told = self._told
        if told is None or (told.part, told.detail) != (reading.part, reading.detail):
            return True
        if told.fraction is None or reading.fraction is None:
            return told.fraction != reading.fraction
        return reading.fraction - told.fraction >= _STEP or reading.fraction == 1.0 != told.fraction


def without_progress(text: str) -> str:
    """Return what a command printed without what only told of progress, and was drawn over."""
    kept = []
    for line in text.split("\n"):
        if _PROGRESS_LINE.fullmatch(line):
            continue
        if "\b" in line:
            shown = (part for part in line.split("\b") if part and "% done, " not in part)
            kept.append("".join(shown))
        elif "\r" in line:
            kept.append(line.rstrip("\r").rpartition("\r")[2])
        else:
            kept.append(line)
    return "\n".join(kept)


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
        case "dnf":
            return parse_dnf
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
    return Reading(float(found[1]) / 100, f"{errors} bad blocks found", "surface scan")


# --- dnf and yum --------------------------------------------------------------------------------

_DNF = re.compile(r" {1,4}([A-Z][A-Za-z ]*?) *: (\S+) +(\d+)/(\d+) *")


def parse_dnf(line: str) -> Reading | None:
    """Return the reading in a line ``  Installing : PACKAGE  3/8`` of dnf or yum."""
    found = _DNF.fullmatch(line)
    if found is None or not 0 < int(found[3]) <= int(found[4]):
        return None
    # The verification at the end counts from the beginning again.
    if found[1] == "Verifying":
        return None
    return Reading(int(found[3]) / int(found[4]), detail=f"{found[1]} {found[2]}")


# --- apt ----------------------------------------------------------------------------------------

_APT_STATUS = re.compile(r"(pmstatus|dlstatus|media-change|pmerror|pmconffile):([^:]*):(\d+(?:\.\d+)?):(.*)")
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
            share = min(1.0, float(found[3]) / 100)
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
_BTRFS_STEP = re.compile(r"\[(\d+)/(\d+)\] (\w.*?)\s*(?:\([^()]* elapsed,[^()]*\))?")


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
