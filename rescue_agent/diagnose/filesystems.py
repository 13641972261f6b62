# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems: damaged, waiting for a replay, not checked.

An unclean filesystem without further damage is a fault as well (``fs-needs-recovery``): what can be
seen of it without a replay is older than what is true, and the mission checks every unclean one.
"""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import CORRUPT_CODES, command_line, make_finding, saw
from rescue_agent.model.facts import Check, Facts, Filesystem
from rescue_agent.model.finding import Evidence, Finding, Severity
from rescue_agent.model.queries import mount_point_of, patient_filesystems, patient_systems

_REPAIRED_TYPES = ("ext2", "ext3", "ext4", "xfs", "vfat")
_REPLAYED_TYPES = (*_REPAIRED_TYPES, "btrfs")
_BOOT_MOUNTS = ("/", "/usr", "/var", "/boot", "/etc")

_BAD_JOURNAL = ("journal superblock is corrupt", "superblock has an invalid journal")
"""What e2fsck says of a journal that it cannot use (e2fsck/problem.c, PR_0_JOURNAL_BAD_INODE and others)."""

BTRFS_ADVICE = (
    "'btrfs check --repair' is not run by itself: on some damage it makes things worse and still says 0. "
    "Copy what can be read first (mount -o ro,rescue=all, or 'btrfs restore DEVICE FOLDER'), then "
    "'btrfs scrub start -B -r' on the mounted filesystem shows what has a good copy; rehearse "
    "'btrfs check --repair' on a copy of the disk and believe only a later 'btrfs check --readonly'."
)
UNREPAIRABLE_ADVICE = (
    "The checker cannot work on it, so nothing is written. Take a copy of the device, try a newer version "
    "of the checker on the copy, or restore from a backup."
)


def diagnose_filesystems(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with each filesystem of the patient."""
    for found in patient_filesystems(facts):
        verdict = found.check.verdict if found.check is not None else ""
        if verdict == "unreadable":
            continue  # the medium, not the filesystem: said by the devices' own findings
        if (
            verdict in ("damaged", "unrepairable")
            or found.state in ("damaged", "error")
            or found.primary_superblock == "bad"
            or _journal_is_damaged(found)
        ):
            yield _damaged(facts, found)
        elif verdict == "needs-recovery" or found.state in ("dirty", "needs-recovery"):
            yield _unclean(facts, found)
        elif verdict == "unknown" or (verdict == "" and _is_used(facts, found)):
            yield _not_checked(facts, found)
        if verdict == "clean" and not found.readable and found.read_error and _is_used(facts, found):
            yield _not_readable(found)


def _journal_is_damaged(found: Filesystem) -> bool:
    """Return whether the journal that waits for replay is itself damaged: nothing can be replayed."""
    said = " ".join(found.check.messages).lower() if found.check is not None else ""
    return any(words in said for words in _BAD_JOURNAL)


def _damaged(facts: Facts, found: Filesystem) -> Finding:
    check = found.check
    hopeless = check is not None and check.verdict == "unrepairable" and not found.backups
    if hopeless:
        repair, advice = "advice", UNREPAIRABLE_ADVICE
    elif found.type == "btrfs":
        repair, advice = "advice", BTRFS_ADVICE.replace("DEVICE", found.device)
    elif found.type in _REPAIRED_TYPES:
        repair, advice = "automatic", ""
    else:
        repair, advice = "advice", f"Use the repair program of {found.type} on a copy of the device first."
    if found.primary_superblock == "bad":
        what = "has lost its primary superblock"
    elif found.state == "error" and (check is None or check.verdict == "clean"):
        what = "carries errors that the kernel recorded in it"
    elif hopeless:
        what = "is damaged beyond what its checker can repair"
    else:
        what = "is damaged"
    return make_finding(
        CORRUPT_CODES.get(found.type, "fs-corrupt"),
        found.device,
        f"The {found.type or 'unknown'} filesystem on {_place(facts, found)} {what}",
        _evidence(found),
        severity=_severity(facts, found),
        device=found.device,
        repair=repair,  # type: ignore[arg-type]
        advice=advice,
    )


def _unclean(facts: Facts, found: Filesystem) -> Finding:
    automatic = found.type in _REPLAYED_TYPES
    return make_finding(
        "fs-needs-recovery",
        found.device,
        f"The {found.type} filesystem on {_place(facts, found)} was not unmounted cleanly",
        _evidence(found),
        severity="error",
        device=found.device,
        repair="automatic" if automatic else "advice",
        advice="" if automatic else "Mount and unmount it on the system that it belongs to.",
    )


def _not_checked(facts: Facts, found: Filesystem) -> Finding:
    check = found.check
    if check is not None:
        why = check.reason or "the check gave no answer"
        evidence = saw(command_line(check.argv), why, *check.messages)
    else:
        why = "no checker for it was run"
        evidence = saw(f"blkid -p {found.device}", f"TYPE={found.type}", why)
    return make_finding(
        "fs-not-checked",
        found.device,
        f"The {found.type or 'unknown'} filesystem on {_place(facts, found)} could not be checked: {why}",
        evidence,
        severity="warning",
        confidence="possible",
        device=found.device,
        repair="advice",
        advice="It may be sound or not. Check it by hand before you trust it; a check that does not end is "
        "no proof of damage.",
    )


def _not_readable(found: Filesystem) -> Finding:
    return make_finding(
        "fs-not-readable",
        found.device,
        f"The {found.type} filesystem on {found.device} passes its check but cannot be mounted here",
        saw(f"mount -o ro {found.device}", found.read_error),
        severity="warning",
        confidence="possible",
        device=found.device,
        repair="advice",
        advice="The kernel of this rescue system may lack the driver; what lies on it was not looked at.",
    )


def _evidence(found: Filesystem) -> tuple[Evidence, ...]:
    seen: list[Evidence] = []
    source = f"superblock of {found.device}"
    if found.primary_superblock == "bad":
        words = "the primary superblock cannot be read"
        if found.backups:
            first = found.backups[0]
            words += f"; a backup is at block {first.block} (block size {first.block_size})"
        seen += saw(source, words)
    elif found.state in ("dirty", "needs-recovery", "error"):
        words = {
            "dirty": "state: not unmounted cleanly",
            "needs-recovery": "a journal or log waits to be replayed",
            "error": "state: the kernel recorded errors",
        }[found.state]
        seen += saw(source, words)
    if found.check is not None:
        seen += _check_evidence(found.check)
    return tuple(seen) or saw(source, f"state: {found.state}")


def _check_evidence(check: Check) -> tuple[Evidence, ...]:
    if check.verdict == "clean":
        return ()
    code = "did not end" if check.exit_code is None else f"exit code {check.exit_code}"
    more = (f"and {check.truncated} more lines",) if check.truncated else ()
    words = check.messages or ((check.reason,) if check.reason else ())
    return saw(command_line(check.argv), *words, *more, code)


def _severity(facts: Facts, found: Filesystem) -> Severity:
    for system in patient_systems(facts):
        if mount_point_of(system, found.device) in _BOOT_MOUNTS:
            return "fatal"
        for entry in system.fstab:
            waited_for = not {"nofail", "noauto"} & set(entry.options)
            if entry.device == found.device and entry.passno > 0 and waited_for:
                return "fatal"
    # Nobody could look into it: it may well be the root of the machine.
    return "error" if found.readable else "fatal"


def _is_used(facts: Facts, found: Filesystem) -> bool:
    return any(mount_point_of(system, found.device) for system in patient_systems(facts))


def _place(facts: Facts, found: Filesystem) -> str:
    for system in patient_systems(facts):
        where = mount_point_of(system, found.device)
        if where:
            return f"{found.device} ({where})"
    return found.device
