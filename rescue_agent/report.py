# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a run, told from its journal alone; the journal may be that of a run that was killed."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence

from rescue_agent.errors import EXIT_FAILED
from rescue_agent.model.operation import Operation, RemoveFile, SetMetadata, Symlink, Unpack, WriteFile
from rescue_agent.model.plan import Plan
from rescue_agent.model.rendering import disk_names, is_held
from rescue_agent.model.run import (
    Acquired,
    Approved,
    Change,
    CommandRecord,
    Looked,
    OperationRecord,
    Outcome,
    Record,
    RunBegan,
    RunEnded,
    RunResult,
    Saved,
    StepRecord,
    StepResult,
    StepStatus,
)
from rescue_agent.verify import outcomes

_CHECKERS = frozenset({"e2fsck", "fsck", "xfs_repair", "btrfs", "dosfsck", "e2undo", "tune2fs"})
_ONLY_LOOKING = re.compile(r"-[A-Za-z]*n[A-Za-z]*|--readonly|--check")
_SET_UP = re.compile(r"^Setting up (\S+) \((\S+)\)", re.MULTILINE)
_UNPACKED_OVER = re.compile(r"^Unpacking (\S+) \((\S+)\) over \((\S+)\)", re.MULTILINE)
_TO_LOST_AND_FOUND = re.compile(r"/lost\+found\? yes")
_PACKAGE_TOOLS = frozenset({"apt-get", "apt", "dpkg"})
_RPM_TOOLS = frozenset({"dnf", "yum"})
_RPM_DONE = re.compile(
    r"^ {1,4}(Reinstalling|Upgrading|Updating|Installing|Downgrading) *: (\S+)", re.MULTILINE
)
_RPM_WORDS = {"Reinstalling": "reinstalled", "Installing": "installed", "Downgrading": "downgraded"}


def build_result(
    records: Sequence[Record],
    *,
    agent_version: str = "",
    leaks: Sequence[str] = (),
    journal: str = "",
) -> RunResult:
    """Return the result of the run that wrote ``records``.

    ``agent_version`` and ``journal`` default to what the records say; ``leaks`` are added to those
    that were recorded. A run without an end was killed: exit code 4, and what it still held is a leak
    (its mounts went away with its namespace).
    """
    began = next((r for r in records if isinstance(r, RunBegan)), None)
    ends = [r for r in records if isinstance(r, RunEnded)]
    plans = [r.plan for r in records if isinstance(r, Approved)]
    looks = [r.diagnosis for r in records if isinstance(r, Looked)]
    last_plan = plans[-1] if plans else None
    steps = _steps(records, killed=not ends)
    message = next((e.message for e in reversed(ends) if e.message), "")
    if not ends:
        message = "the run was killed before its end"
    return RunResult(
        agent_version=agent_version or (began.agent_version if began else ""),
        run=began.run if began else "",
        created=began.time if began else (records[0].time if records else ""),
        ended=ends[-1].time if ends else "",
        exit_code=ends[-1].exit_code if ends else EXIT_FAILED,
        rehearsal=began.rehearsal if began else False,
        disks=_disks(plans) or (looks[0].disks if looks else ()),
        system_name=last_plan.system_name if last_plan else "",
        steps=tuple(step for step, _ in steps),
        outcomes=_outcomes(records, plans, steps),
        changes=tuple(_changes(records)),
        leaks=tuple(dict.fromkeys((*leaks, *_leaks(records, killed=not ends)))),
        message=message,
        journal=journal or (f"{last_plan.policy.work_dir}/journal.jsonl" if last_plan else ""),
    )


def _disks(plans: Iterable[Plan]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for plan in plans for name in disk_names(plan)))


# --- steps --------------------------------------------------------------------------------------


def _steps(records: Sequence[Record], *, killed: bool) -> list[tuple[StepResult, tuple[str, ...]]]:
    """Return what became of each step, with the findings that it was for, plan after plan."""
    found: list[tuple[StepResult, tuple[str, ...]]] = []
    plan: Plan | None = None
    window: list[StepRecord] = []
    for record in records:
        if isinstance(record, Approved):
            found += _steps_of(plan, window, killed=False)
            plan, window = record.plan, []
        elif isinstance(record, StepRecord):
            window.append(record)
    return found + _steps_of(plan, window, killed=killed)


def _steps_of(
    plan: Plan | None, records: Sequence[StepRecord], *, killed: bool
) -> list[tuple[StepResult, tuple[str, ...]]]:
    """Return the results of the stages of one plan that were begun."""
    if plan is None:
        return []
    begun = {r.step: r for r in records if r.state == "intent"}
    ended = {r.step: r for r in records if r.state != "intent"}
    stages = {step.stage for step in plan.steps if step.id in begun or step.id in ended}
    found = []
    for step in (s for s in plan.steps if s.stage in stages):
        status: StepStatus = "skipped"
        message = "a step before it did not succeed"
        duration_s = 0.0
        if step.id in ended:
            end = ended[step.id]
            status, message = _status(end), end.message
            if step.id in begun:
                duration_s = _seconds_between(begun[step.id].time, end.time)
        elif step.id in begun:
            status = "interrupted"
            message = "the run was killed while it was at work" if killed else "it did not end"
        result = StepResult(
            step=step.id,
            stage=step.stage,
            title=step.title,
            status=status,
            duration_s=duration_s,
            message=message,
        )
        found.append((result, step.findings))
    return found


def _status(record: StepRecord) -> StepStatus:
    return "interrupted" if record.state == "intent" else record.state


def _seconds_between(start: str, end: str) -> float:
    try:
        return (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return 0.0


# --- findings -----------------------------------------------------------------------------------


def _outcomes(
    records: Sequence[Record], plans: Sequence[Plan], steps: Sequence[tuple[StepResult, tuple[str, ...]]]
) -> tuple[Outcome, ...]:
    looks = [r.diagnosis for r in records if isinstance(r, Looked)]
    last_plan = plans[-1] if plans else None
    reasons: dict[str, str] = {}
    for deferred in last_plan.deferred if last_plan else ():
        reasons |= dict.fromkeys(deferred.findings, f"could not be planned: {deferred.reason}")
    for step, findings in steps:
        for finding in findings:
            if step.status == "done":
                reasons.setdefault(finding, f"{step.title}: done, and still it is there")
            else:
                reasons[finding] = f"{step.title}: {step.status}" + (
                    f", {step.message}" if step.message else ""
                )
    return outcomes(looks, refusals=last_plan.refusals if last_plan else (), reasons=reasons)


# --- what is different now ----------------------------------------------------------------------


def _changes(records: Sequence[Record]) -> Iterator[Change]:
    yield from _checker_changes(records)
    yield from _file_changes(records)
    yield from _package_changes(records)
    yield from _rpm_changes(records)


def _program(argv: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the program that a command line starts in the end, past env and chroot, and its words."""
    words = list(argv)
    while words:
        name = words[0].rpartition("/")[2]
        if name == "env":
            words = [w for i, w in enumerate(words) if i and not (w == "-i" or re.match(r"[A-Za-z_]+=", w))]
        elif name == "chroot":
            words = words[2:]
        else:
            return name, tuple(words[1:])
    return "", ()


def _checker_changes(records: Iterable[Record]) -> Iterator[Change]:
    """Tell of each checker that was allowed to write, by device."""
    runs: dict[str, list[str]] = {}
    lost: dict[str, int] = {}
    for record in records:
        if not isinstance(record, CommandRecord):
            continue
        name, words = _program(record.argv)
        device = next((w for w in reversed(words) if w.startswith("/dev/")), "")
        if not device or not (name in _CHECKERS or name.startswith("fsck.")):
            continue
        if any(_ONLY_LOOKING.fullmatch(w) for w in words) or (name == "btrfs" and "check" in words):
            continue
        options = " ".join((name, *(w for w in words if w not in (device, "--"))))
        code = "did not end" if record.exit_code is None else f"exit code {record.exit_code}"
        runs.setdefault(device, []).append(f"{options} ({code})")
        lost[device] = lost.get(device, 0) + len(_TO_LOST_AND_FOUND.findall(record.stdout))
    for device, said in runs.items():
        how = "the filesystem went through " + ", ".join(said)
        if lost[device]:
            how += f"; {lost[device]} entries without a name were put into lost+found"
        yield Change(path=device, how=how)


def _file_changes(records: Sequence[Record]) -> Iterator[Change]:
    """Tell of each path that was saved before it was changed; those of one package are counted.

    The first record of a path holds its state before the run.
    """
    current: dict[str, Operation] = {}
    first: dict[str, tuple[Saved, Operation | None]] = {}
    unpacked: dict[str, list[Saved]] = {}
    for record in records:
        if isinstance(record, OperationRecord):
            if record.state == "intent":
                current[record.step] = record.operation
            else:
                current.pop(record.step, None)
        elif isinstance(record, Saved):
            operation = next(reversed(current.values()), None)
            if isinstance(operation, Unpack):
                unpacked.setdefault(operation.archive, []).append(record)
            elif not (operation is not None and is_held(operation)):
                first.setdefault(record.path, (record, operation))
    for archive, saved in unpacked.items():
        new = sum(1 for s in saved if s.kind == "absent")
        yield Change(
            path=archive.rpartition("/")[2],
            how=f"laid over the root; missing files put back: {new}, "
            f"others replaced: {len(saved) - new} (saved)",
        )
    for path, (record, operation) in first.items():
        yield Change(path=path, how=_how(record, operation))


def _how(saved: Saved, operation: Operation | None) -> str:
    kept = f"; the former one is kept as saved/{saved.copy}" if saved.copy else ""
    match operation:
        case RemoveFile():
            return f"removed{kept}"
        case Symlink(target=target):
            return f"now a link to {target}{kept}"
        case SetMetadata():
            return f"mode or owner set; it was {saved.mode:04o}, {saved.uid}:{saved.gid}"
        case WriteFile(copy_of=source) if source:
            return f"now a copy of {source}{kept}"
        case _:
            return "created" if saved.kind == "absent" else f"replaced{kept}"


def _package_changes(records: Iterable[Record]) -> Iterator[Change]:
    """Tell of each package that dpkg set up, by what it said itself."""
    former: dict[str, str] = {}
    now: dict[str, str] = {}
    for record in records:
        if isinstance(record, CommandRecord) and _program(record.argv)[0] in _PACKAGE_TOOLS:
            for name, _, old in _UNPACKED_OVER.findall(record.stdout):
                former.setdefault(name, old)
            for name, version in _SET_UP.findall(record.stdout):
                now[name] = version
    for name, version in now.items():
        if name not in former:
            how = f"set up, version {version}"
        elif former[name] == version:
            how = f"reinstalled, version {version}"
        else:
            how = f"version {former[name]} replaced by {version}"
        yield Change(path=f"package {name}", how=how)


def _rpm_changes(records: Iterable[Record]) -> Iterator[Change]:
    """Tell of each package that dnf or yum worked on, and of those that rpm erased."""
    told: dict[str, str] = {}
    for record in records:
        if not isinstance(record, CommandRecord):
            continue
        name, words = _program(record.argv)
        if name in _RPM_TOOLS:
            for word, label in _RPM_DONE.findall(record.stdout):
                told[label] = _RPM_WORDS.get(word, "brought up to date")
        elif name == "rpm" and "-e" in words and record.exit_code == 0:
            told.update((word, "the old half of an upgrade, removed") for word in words if word[0] != "-")
    for label, how in told.items():
        yield Change(path=f"package {label}", how=how)


# --- what is still held -------------------------------------------------------------------------


def _leaks(records: Iterable[Record], *, killed: bool) -> Iterator[str]:
    latest: dict[str, Acquired] = {}
    for record in records:
        if isinstance(record, Acquired):
            latest[record.key] = record
    for held in latest.values():
        by_hand = f"; release it with: {' '.join(held.release)}" if held.release else ""
        if killed and held.state in ("intent", "held") and held.kind != "mount":
            yield f"{held.what} was still held when the run was killed{by_hand}"
