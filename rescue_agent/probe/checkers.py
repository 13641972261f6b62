# SPDX-License-Identifier: GPL-3.0-or-later
"""What the filesystem checkers say when they are asked to change nothing, and what it means.

One table of command lines, and one pure function per tool from exit code and text to a verdict.
Exit codes: e2fsck(8) (a bit mask), xfs_repair(8), btrfs-check(8), fsck.fat(8). The texts are those of
e2fsprogs 1.47, xfsprogs 6.1, btrfs-progs 6.2 and dosfstools 4.2, in the C locale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from rescue_agent.errors import CommandTimeout, ToolMissing
from rescue_agent.model.document import printable
from rescue_agent.model.facts import BackupSuperblock, Check
from rescue_agent.system.runner import ANY, Completed, Runner
from rescue_agent.system.tools import missing

Verdict = Literal["clean", "needs-recovery", "damaged", "unrepairable", "unreadable", "unknown"]

MAX_MESSAGES = 20
MAX_LINE = 300
BASE_TIMEOUT_S = 120.0
BYTES_PER_S = 100_000_000
"""A check reads metadata only; a disk that gives less than that is not going to end in time."""


class Judgement(NamedTuple):
    """The meaning of one checker's run."""

    verdict: Verdict
    reason: str = ""


class Told(NamedTuple):
    """What the superblock says, and a checker's words have to be read with."""

    log_waits: bool = False
    """A journal waits for replay: what the checker finds may be what the replay would put right."""
    blocks: int = 0
    """How many blocks the filesystem has; 0 when that is not known."""


class _Checker(NamedTuple):
    argv: tuple[str, ...]
    judge: Callable[[int, str, Told], Judgement]
    noise: re.Pattern[str]
    """Lines that say what it is doing, not what it found."""


def has_checker(fstype: str) -> bool:
    """Return whether there is a checker for filesystems of this type."""
    return fstype in _CHECKERS


def run_check(
    runner: Runner,
    device: str,
    fstype: str,
    *,
    size_bytes: int,
    told: Told,
    backup: BackupSuperblock | None = None,
) -> Check:
    """Run the checker of ``fstype`` on a device; it changes nothing.

    ``size_bytes``: of the device. ``backup``: the copy of the superblock that e2fsck shall use.
    Time limit: two minutes and one more second per 100 MB. A tool that is missing, crashes or
    does not end is a verdict ``unknown`` with its reason.
    """
    checker = _CHECKERS[fstype]
    where = ("-b", str(backup.block), "-B", str(backup.block_size)) if backup else ()
    argv = (*checker.argv, *where, device)
    timeout_s = BASE_TIMEOUT_S + size_bytes / BYTES_PER_S
    try:
        done = runner.run(argv, ok=ANY, timeout_s=timeout_s)
    except ToolMissing as error:
        return Check(tool=argv[0], argv=argv, verdict="unknown", reason=str(missing(error.name)))
    except CommandTimeout as error:
        messages, more = decisive_lines(checker.noise, error.stdout + error.stderr)
        return Check(
            tool=argv[0],
            argv=argv,
            verdict="unknown",
            reason=error.message,
            messages=messages,
            truncated=more,
            duration_s=timeout_s,
        )
    return check_of(done, fstype, told)


def check_of(done: Completed, fstype: str, told: Told) -> Check:
    """Return the fact about an ended checker."""
    checker = _CHECKERS[fstype]
    text = done.stdout + done.stderr
    judgement = _crash(done) or checker.judge(done.exit_code, text, told)
    messages, more = decisive_lines(checker.noise, text)
    return Check(
        tool=done.argv[0],
        argv=done.argv,
        exit_code=done.exit_code,
        verdict=judgement.verdict,
        reason=judgement.reason,
        messages=messages,
        truncated=more,
        duration_s=round(done.duration_s, 3),
    )


def _crash(done: Completed) -> Judgement | None:
    """Return the verdict for a checker that fell over: by signal, or by e2fsck's own handler."""
    if done.exit_code < 0:
        return Judgement("unknown", f"{done.argv[0]} crashed (signal {-done.exit_code})")
    if handled := re.search(r"^Signal \((\d+)\)", done.stdout + done.stderr, re.MULTILINE):
        return Judgement("unknown", f"{done.argv[0]} crashed (signal {handled[1]})")
    return None


_QUESTION = re.compile(r"\s*\b[A-Z][A-Za-z' -]*\? no$")
"""What e2fsck would have asked; ``-n`` answers by itself."""


def decisive_lines(noise: re.Pattern[str], text: str) -> tuple[tuple[str, ...], int]:
    """Return the lines that say what was found, safe to print, and how many more there were."""
    lines = [_QUESTION.sub("", line).strip() for line in text.splitlines()]
    chosen = [line for line in lines if line and not noise.search(line)]
    kept = tuple(printable(line)[:MAX_LINE] for line in chosen[:MAX_MESSAGES])
    return kept, len(chosen) - len(kept)


# --- ext ------------------------------------------------------------------------------------

E2FSCK_UNCORRECTED = 4
E2FSCK_OPERATIONAL = 8

_BUSY = re.compile(r"is mounted|is in use|Device or resource busy|MMP: ", re.IGNORECASE)
_FORBIDDEN = re.compile(r"Permission denied|Operation not permitted|No such (?:file|device)", re.IGNORECASE)
_MEDIUM = re.compile(r"Input/output error|Remote I/O error|No data available", re.IGNORECASE)
_EXT_SHORT_READ = re.compile(
    r"(?:[Ee]rror reading block (\d+) \()?Attempt to read block from filesystem resulted"
)
_TOO_NEW = re.compile(r"unsupported feature|Get a newer version|unknown.*feature", re.IGNORECASE)
_EXT_NO_SUPERBLOCK = re.compile(r"The superblock could not be read")


def judge_e2fsck(exit_code: int, text: str, told: Told) -> Judgement:
    """Return what ``e2fsck -fn`` means. A waiting journal outranks what it finds: it did not replay it.

    A short read is a read error of the medium, unless it is one beyond the end: a damaged block
    number leads there. The caller has made sure that the filesystem fits on its device.
    """
    short_reads = [match[1] for match in _EXT_SHORT_READ.finditer(text)]
    if _MEDIUM.search(text) or any(n is None or int(n) < told.blocks for n in short_reads):
        return Judgement("unreadable", "blocks of the device could not be read")
    if exit_code == 0:
        return Judgement("needs-recovery" if told.log_waits else "clean")
    if exit_code & ~(E2FSCK_UNCORRECTED | E2FSCK_OPERATIONAL):
        return Judgement("unknown", f"e2fsck ended with {exit_code}")
    if exit_code & E2FSCK_UNCORRECTED:
        return Judgement("needs-recovery" if told.log_waits else "damaged")
    if _BUSY.search(text):
        return Judgement("unknown", "the filesystem is in use, here or on another machine")
    if _TOO_NEW.search(text):
        return Judgement("unknown", "it has features that this e2fsck does not know")
    if _FORBIDDEN.search(text):
        return Judgement("unknown", "the device could not be opened")
    if _EXT_NO_SUPERBLOCK.search(text):
        return Judgement("unrepairable", "e2fsck finds no superblock that it can work with")
    # It began and could not go on, since it was not allowed to mend what it met first.
    return Judgement("needs-recovery" if told.log_waits else "damaged")


# --- xfs -------------------------------------------------------------------------------------


def judge_xfs_repair(exit_code: int, text: str, told: Told) -> Judgement:
    """Return what ``xfs_repair -n`` means: 1 is damage, unless a log waits and explains it."""
    if _MEDIUM.search(text):
        return Judgement("unreadable", "blocks of the device could not be read")
    if _BUSY.search(text) or "contains a mounted" in text:
        return Judgement("unknown", "the filesystem is in use")
    if "valuable metadata changes in a log" in text or told.log_waits:
        return Judgement("needs-recovery")
    if exit_code == 0:
        return Judgement("clean")
    if _TOO_NEW.search(text):
        return Judgement("unknown", "it has features that this xfs_repair does not know")
    if _FORBIDDEN.search(text):
        return Judgement("unknown", "the device could not be opened")
    if "cannot validate filesystem geometry" in text:
        return Judgement("unknown", "xfs_repair does not check a filesystem of one allocation group")
    if "could not find valid secondary superblock" in text:
        return Judgement("unrepairable", "no usable superblock was found")
    if exit_code == 1:
        return Judgement("damaged")
    return Judgement("unknown", f"xfs_repair ended with {exit_code}")


# --- btrfs -----------------------------------------------------------------------------------


def judge_btrfs(exit_code: int, text: str, told: Told) -> Judgement:
    """Return what ``btrfs check --readonly`` means.

    "Input/output error" is no sign of a bad medium here: btrfs says it for a wrong checksum too.
    """
    if exit_code == 0:
        return Judgement("needs-recovery" if told.log_waits else "clean")
    if "currently mounted" in text or _BUSY.search(text):
        return Judgement("unknown", "the filesystem is in use")
    if re.search(r"dev(?:id|ice)? \d+ (?:is )?missing|some devices missing", text):
        return Judgement("unknown", "it lies on several devices, and not all of them are here")
    if _FORBIDDEN.search(text):
        return Judgement("unknown", "the device could not be opened")
    if exit_code != 1:
        return Judgement("unknown", f"btrfs check ended with {exit_code}")
    if re.search(r"cannot open file system|couldn't open file system|no valid btrfs", text, re.IGNORECASE):
        return Judgement("unrepairable", "btrfs check cannot open it")
    return Judgement("damaged")


# --- FAT --------------------------------------------------------------------------------------


def judge_fat(exit_code: int, text: str, told: Told) -> Judgement:
    """Return what ``fsck.fat -n`` means: 1 stands for a set dirty flag as well as for damage."""
    del told  # FAT has no log
    if _MEDIUM.search(text):
        return Judgement("unreadable", "blocks of the device could not be read")
    if exit_code == 0:
        return Judgement("clean")
    if _FORBIDDEN.search(text) or _BUSY.search(text):
        return Judgement("unknown", "the device could not be opened")
    if exit_code != 1:
        return Judgement("unknown", f"fsck.fat ended with {exit_code}")
    # It prints the count of files and clusters at the end of every check that it could make.
    if not re.search(r"\d+ files, \d+/\d+ clusters", text):
        return Judgement("unrepairable", "fsck.fat cannot work on it")
    found, _ = decisive_lines(_CHECKERS["vfat"].noise, text)
    if found and all(re.match(r"Dirty bit is set|Automatically removing dirty bit", line) for line in found):
        return Judgement("clean", "only the mark of an unclean end is set")
    return Judgement("damaged")


_E2FSCK = _Checker(
    ("e2fsck", "-fn"),
    judge_e2fsck,
    re.compile(
        r"^e2fsck \d|^Pass \d|^Running additional passes|^\S.*: \d+/\d+ files \("
        r"|WARNING: Filesystem still has"
    ),
)
_CHECKERS: Mapping[str, _Checker] = {
    "ext2": _E2FSCK,
    "ext3": _E2FSCK,
    "ext4": _E2FSCK,
    "xfs": _Checker(
        ("xfs_repair", "-n"),
        judge_xfs_repair,
        re.compile(
            r"^Phase \d|^- |^No modify flag|^Cannot get host filesystem|^Repair may fail|^the image and|^\.+$"
        ),
    ),
    "btrfs": _Checker(
        ("btrfs", "check", "--readonly"),
        judge_btrfs,
        re.compile(
            r"^Opening filesystem|^Checking filesystem|^UUID: |^\[\d/\d\]|^found \d+ bytes used"
            r"|^(?:total|file data blocks|btree space|referenced) "
        ),
    ),
    "vfat": _Checker(
        ("fsck.fat", "-n"),
        judge_fat,
        re.compile(r"^fsck\.fat \d|^Leaving filesystem unchanged|\d+ files, \d+/\d+ clusters$"),
    ),
}
