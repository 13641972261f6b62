# SPDX-License-Identifier: GPL-3.0-or-later
"""ext2, ext3 and ext4.

The order is ``-fn`` (that was the look) → ``-fy`` until it changes nothing, at most four times → the
surface scan ``-fyc`` as a step of its own. ``-c`` first never ends on some damage, and exit codes prove
nothing: ``-fy`` says 0 after changes. Only ``-fn`` with 0, read back from the disk, does.
"""

from __future__ import annotations

from rescue_agent.model.facts import Facts, Filesystem
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import Operation, Run
from rescue_agent.model.plan import Risk, Step
from rescue_agent.model.queries import is_missing_tool, whole_disks
from rescue_agent.planning.estimates import check_s, in_words, is_rotating, scan_s, timeout_s
from rescue_agent.planning.proposal import Case, Proposal, because, refuse, short_name

MAX_PASSES = 4
"""7 of 228 broken images need more than one pass, none of those that end needs more than three."""

_ENDED = (0, 1, 2, 3, 4, 5, 6, 7)
"""e2fsck(8): 1 errors corrected, 2 reboot, 4 errors left. 8 and more: it did not do its work."""
_TRIED = tuple(range(16))
"""With an undo file some repairs are refused (8) or cut short; the next command does them without."""

_UNDO_BLOCKS = (
    "superblock",
    "bad magic number",
    "group descriptor",
    "not in group",
    "inode table",
    "relocate",
)
"""Words of the check that tell of damage which ``-z`` makes impossible to repair."""

_SUPERBLOCK_AREA_KIB = 1024
"""What is saved before a primary superblock is written: it, and the first group descriptors."""


def repair_ext(finding: Finding, case: Case) -> Proposal:
    """Plan the repair of a damaged or unclean ext filesystem, then its surface scan."""
    found = case.facts.filesystem(finding.device)
    assert found is not None
    program = _program(case.facts, found)
    if not program:
        return Proposal(
            refusals=(
                refuse(
                    f"{found.device} cannot be checked: e2fsck is not installed on this rescue system",
                    "Install the package e2fsprogs and start again.",
                    (finding,),
                ),
            )
        )
    repair = _repair(finding, found, case, program)
    if not case.policy.surface_scan:
        return Proposal(steps=(repair,))
    return Proposal(steps=(repair, _scan(finding, found, case, program, repair)))


def _program(facts: Facts, found: Filesystem) -> str:
    for name in (f"fsck.{found.type}", "e2fsck"):
        if not is_missing_tool(facts, name):
            return name
    return ""


def _repair(finding: Finding, found: Filesystem, case: Case, program: str) -> Step:
    device, name = found.device, short_name(found.device)
    estimate = check_s(case.facts, device)
    limit = timeout_s(estimate)
    folder = f"{case.policy.work_dir}/undo"
    operations: list[Operation] = [Run(argv=("mkdir", "-p", folder))]
    undo = ""
    if found.primary_superblock == "bad" and found.backups:
        backup = found.backups[0]
        operations += [
            Run(
                argv=(
                    "dd",
                    f"if={device}",
                    f"of={folder}/{name}.superblock",
                    "bs=1024",
                    f"count={_SUPERBLOCK_AREA_KIB}",
                    "conv=fsync",
                )
            ),
            Run(
                argv=(
                    program,
                    "-f",
                    "-y",
                    "-C",
                    "1",
                    "-b",
                    str(backup.block),
                    "-B",
                    str(backup.block_size),
                    device,
                ),
                ok=_ENDED,
                timeout_s=limit,
                progress="e2fsck",
            ),
        ]
        how = (
            f"The area of the primary superblock is saved first; then the copy at block {backup.block} "
            "takes its place."
        )
    elif may_undo(found, case):
        undo = f"{folder}/{_undo_name(found)}.e2undo"
        operations.append(
            Run(
                argv=(program, "-f", "-y", "-C", "1", "-z", undo, device),
                ok=_TRIED,
                timeout_s=limit,
                progress="e2fsck",
                inverse=("e2undo", undo, device),
            )
        )
        how = "The first pass keeps an undo file."
    else:
        how = "No undo file is kept: it would block this repair, or there is no room for it."
    operations.append(
        Run(
            argv=(program, "-f", "-y", "-C", "1", device),
            ok=_ENDED,
            timeout_s=limit,
            progress="e2fsck",
            until=(program, "-f", "-n", device),
            max_runs=MAX_PASSES,
        )
    )
    return Step(
        id=f"check-{name}",
        stage="filesystem",
        title=(
            f"Replay the journal of {device} and check it"
            if finding.code == "fs-needs-recovery"
            else f"Repair the {found.type} filesystem on {device}"
        ),
        why=f"{because(finding)} {how} It is repeated until a check without changes finds nothing.",
        findings=(finding.id,),
        risk=_risk(finding, undo),
        operations=tuple(operations),
        disks=whole_disks(case.facts, device),
        estimate_s=estimate,
    )


def _undo_name(found: Filesystem) -> str:
    """Return a file name of this filesystem alone: an undo file of another one stops e2fsck."""
    mark = "".join(c for c in found.uuid if c.isalnum())[:8]
    return f"{short_name(found.device)}-{mark}" if mark else short_name(found.device)


def _risk(finding: Finding, undo: str) -> Risk:
    """A repair clears what it cannot save; a replay only finishes what was written."""
    return "reversible" if finding.code == "fs-needs-recovery" and undo else "lossy"


def may_undo(found: Filesystem, case: Case) -> bool:
    """Return whether an undo file helps: enough room, and no damage that ``-z`` leaves unrepaired.

    An undo file on a full disk makes the repair stop half-way, so the room is asked for generously:
    1/64 of the filesystem, between 64 MiB and 1 GiB. The largest seen was 6.8 MB, for 2 TB.
    """
    check = found.check
    if found.primary_superblock == "bad" or is_missing_tool(case.facts, "e2undo"):
        return False
    if check is not None and (check.exit_code or 0) & 8 and check.verdict == "damaged":
        return False
    said = " ".join(check.messages).lower() if check is not None else ""
    if any(words in said for words in _UNDO_BLOCKS):
        return False
    needed = max(64 << 20, min(found.size_bytes // 64, 1 << 30))
    return case.facts.rescue.work_free_bytes >= needed


def _scan(finding: Finding, found: Filesystem, case: Case, program: str, repair: Step) -> Step:
    device, name = found.device, short_name(found.device)
    estimate = scan_s(case.facts, device)
    kind = "a rotating disk" if is_rotating(case.facts, device) else "a disk without moving parts"
    undo = f"{case.policy.work_dir}/undo/{_undo_name(found)}.scan.e2undo" if may_undo(found, case) else ""
    # A file from an earlier scan fits no more: e2fsck would refuse to work with it.
    operations: list[Operation] = [Run(argv=("rm", "-f", "--", undo))] if undo else []
    operations.append(
        Run(
            argv=(program, "-f", "-y", "-c", "-C", "1", *(("-z", undo) if undo else ()), device),
            ok=(0, 1, 2, 3),
            timeout_s=timeout_s(estimate),
            progress="badblocks",
            inverse=("e2undo", undo, device) if undo else (),
        )
    )
    return Step(
        id=f"scan-{name}",
        stage="filesystem",
        title=f"Read the whole surface of {device} and set bad blocks aside",
        why=(
            f"{device} was not in order; blocks that the medium can no longer read would bring the damage "
            f"back. Every block is read: about {in_words(estimate)} on {kind}. --no-surface-scan leaves "
            "this step out."
        ),
        findings=(finding.id,),
        risk="reversible" if undo else "lossy",
        operations=tuple(operations),
        needs=(repair.id,),
        disks=repair.disks,
        estimate_s=estimate,
    )
