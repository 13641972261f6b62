# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems other than ext, and which recipe is for which finding."""

from __future__ import annotations

from rescue_agent.model.facts import Filesystem
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import Operation, Run
from rescue_agent.model.plan import Deferred, Step
from rescue_agent.model.queries import is_missing_tool, whole_disks
from rescue_agent.planning.estimates import check_s, timeout_s
from rescue_agent.planning.proposal import Case, Proposal, because, refuse, short_name
from rescue_agent.planning.recipes.ext import repair_ext

REPLAY_DIR = "/run/rescue-agent/replay"
"""Below it a filesystem is mounted for as long as the kernel takes to replay its log."""

CODES = (
    "ext-fs-corrupt",
    "xfs-fs-corrupt",
    "btrfs-fs-corrupt",
    "vfat-fs-corrupt",
    "fs-needs-recovery",
)
_FAILED_MOUNT = 32
"""mount(8): the mount failed; umount(8): nothing was mounted there."""
_PACKAGES = {"xfs_repair": "xfsprogs", "fsck.fat": "dosfstools"}


def repair_filesystem(finding: Finding, case: Case) -> Proposal:
    """Plan what brings one damaged or unclean filesystem into order."""
    found = case.facts.filesystem(finding.device)
    if found is None or finding.repair != "automatic":
        return Proposal()
    if found.type in ("ext2", "ext3", "ext4"):
        return repair_ext(finding, case)
    if found.type == "xfs":
        return _needing("xfs_repair", finding, found, case) or _xfs(finding, found, case)
    if found.type == "vfat":
        return _needing("fsck.fat", finding, found, case) or _vfat(finding, found, case)
    if found.type == "btrfs" and finding.code == "fs-needs-recovery":
        return Proposal(steps=(_replay(finding, found, case),))
    return Proposal()


def _needing(tool: str, finding: Finding, found: Filesystem, case: Case) -> Proposal:
    if not is_missing_tool(case.facts, tool):
        return Proposal()
    no = refuse(
        f"{found.device} cannot be repaired: {tool} is not installed on this rescue system",
        f"Install the package {_PACKAGES[tool]} and start again.",
        (finding,),
    )
    return Proposal(refusals=(no,))


# --- logs ----------------------------------------------------------------------------------------


def _replay_operations(found: Filesystem, *, may_fail: bool = False) -> tuple[Operation, ...]:
    """Mount and unmount: the kernel alone can replay these logs."""
    folder = f"{REPLAY_DIR}/{short_name(found.device)}"
    ok = (0, _FAILED_MOUNT) if may_fail else (0,)
    options = "rw,nosuid,nodev,noexec"
    return (
        Run(argv=("mkdir", "-p", folder)),
        Run(
            argv=("mount", "-t", found.type, "-o", options, "--", found.device, folder), ok=ok, timeout_s=1800
        ),
        Run(argv=("umount", "--", folder), ok=ok, timeout_s=600),
    )


def _replay(finding: Finding, found: Filesystem, case: Case) -> Step:
    return Step(
        id=f"replay-{short_name(found.device)}",
        stage="filesystem",
        title=f"Replay the log of {found.device} by mounting it once",
        why=f"{because(finding)} Only the kernel can replay it; what it holds is lost otherwise.",
        findings=(finding.id,),
        risk="reversible",
        operations=_replay_operations(found),
        disks=whole_disks(case.facts, found.device),
        estimate_s=5.0,
    )


# --- xfs -----------------------------------------------------------------------------------------


def _xfs(finding: Finding, found: Filesystem, case: Case) -> Proposal:
    """Replay, then repair. ``-e`` makes xfs_repair say 4 when it mended something; it says 0 otherwise."""
    device = found.device
    estimate = check_s(case.facts, device)
    log_waits = finding.code == "fs-needs-recovery" or found.state == "needs-recovery"
    replay = _replay(finding, found, case) if log_waits and not case.policy.accept_log_loss else None
    repair = Run(
        argv=("xfs_repair", "-e", device),
        ok=(0, 4),
        timeout_s=timeout_s(estimate),
        progress="xfs_repair",
        until=("xfs_repair", "-n", device),
        max_runs=2,
    )
    operations: tuple[Operation, ...] = (repair,)
    how = ""
    if log_waits and case.policy.accept_log_loss:
        # Mounting comes first all the same; -L on a log that was replayed throws nothing away.
        operations = (
            *_replay_operations(found, may_fail=True),
            Run(
                argv=("xfs_repair", "-e", "-L", device),
                ok=(0, 4),
                timeout_s=timeout_s(estimate),
                progress="xfs_repair",
            ),
        )
        how = (
            " A log that cannot be replayed is thrown away, as you allowed (--accept-log-loss): the newest "
            "changes are lost then."
        )
    step = Step(
        id=f"check-{short_name(device)}",
        stage="filesystem",
        title=f"Repair the xfs filesystem on {device}",
        why=because(finding) + how,
        findings=(finding.id,),
        risk="lossy",
        operations=operations,
        needs=(replay.id,) if replay is not None else (),
        disks=whole_disks(case.facts, device),
        estimate_s=estimate,
    )
    if replay is None:
        return Proposal(steps=(step,))
    waits = Deferred(
        stage="filesystem",
        reason=(
            f"if the log of {device} cannot be replayed, the agent stops there: throwing it away "
            "(xfs_repair -L) loses the newest changes and needs --accept-log-loss"
        ),
        findings=(finding.id,),
    )
    return Proposal(steps=(replay, step), deferred=(waits,))


# --- vfat ----------------------------------------------------------------------------------------


def _vfat(finding: Finding, found: Filesystem, case: Case) -> Proposal:
    """``fsck.fat`` says 1 for both *found* and *fixed*: only a second look with ``-n`` tells them apart."""
    device = found.device
    estimate = check_s(case.facts, device)
    step = Step(
        id=f"check-{short_name(device)}",
        stage="filesystem",
        title=f"Repair the FAT filesystem on {device}",
        why=f"{because(finding)} It is repaired in place, never formatted anew.",
        findings=(finding.id,),
        risk="lossy",
        operations=(
            Run(
                argv=("fsck.fat", "-a", device),
                ok=(0, 1),
                timeout_s=timeout_s(estimate),
                until=("fsck.fat", "-n", device),
                max_runs=2,
            ),
        ),
        disks=whole_disks(case.facts, device),
        estimate_s=estimate,
    )
    return Proposal(steps=(step,))
