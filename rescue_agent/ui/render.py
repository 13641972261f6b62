# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts, diagnosis, plan and result as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rescue_agent.diagnose.codes import Code
from rescue_agent.model.facts import BlockDevice, Check, Crash, Facts, Filesystem, System, Verification
from rescue_agent.model.finding import Diagnosis, Finding, Severity
from rescue_agent.model.operation import Operation
from rescue_agent.model.plan import STAGES, Plan, Refusal, Step
from rescue_agent.model.rendering import describe, disk_names, is_held, quote, release_lines
from rescue_agent.model.run import Outcome, RunResult
from rescue_agent.ui.page import Page, Tone, counted, human_duration, human_size, with_variable
from rescue_agent.ui.shell_script import plan_shell

__all__ = ["diagnosis_text", "facts_text", "plan_shell", "plan_text", "result_text"]

EVIDENCE_SHOWN = 4
FILES_SHOWN = 12

_TONES: dict[str, Tone] = {
    "fatal": "bad",
    "error": "bad",
    "warning": "warn",
    "damaged": "bad",
    "mended": "good",
    "not-mended": "bad",
    "new": "bad",
    "refused": "warn",
    "done": "good",
    "failed": "bad",
    "interrupted": "bad",
}
_SEVERITY: dict[Severity, str] = {"fatal": "FATAL", "error": "ERROR", "warning": "WARNING", "info": "note"}
_RESULTS = {
    "mended": "mended, proved",
    "not-mended": "NOT MENDED",
    "refused": "refused",
    "new": "NEW, NOT MENDED",
}
REPAIRS = {
    "automatic": "it lies on the disk, and mending it means changing the disk",
    "advice": "it does not lie on the disk, or only a person may decide",
    "none": "there is nothing to mend",
}
_RISKS = {
    "read-only": "changes nothing",
    "reversible": "reversible (undo puts it back)",
    "lossy": "can discard damaged data for good; only a copy of the disk brings that back",
}


# --- facts --------------------------------------------------------------------------------------


def facts_text(facts: Facts, *, color: bool = False) -> str:
    """Return what one look brought: the rescue system, disks, filesystems, systems, troubles."""
    page = Page(color=color)
    _rescue(page, facts)
    page.heading("Disks")
    disks = [d for d in facts.devices if d.path in facts.disks] or [
        d for d in facts.devices if d.disk == d.path
    ]
    for disk in disks:
        _tree(page, facts, disk, "", "")
    if not disks:
        page.put("none that may be a patient", indent=2)
    if facts.filesystems:
        page.heading("Filesystems")
        for filesystem in facts.filesystems:
            _filesystem(page, filesystem)
    page.heading("Installed systems")
    for system in facts.systems:
        _system(page, system)
    if not facts.systems:
        page.put("none that can be read", indent=2)
    _health(page, facts)
    if facts.errors:
        page.heading("What could not be looked at")
        for error in facts.errors:
            hint = f" ({error.hint})" if error.hint else ""
            page.put(f"{error.subject}: {error.message}{hint}", indent=2, label=f"{error.probe}:")
    return page.text()


def _rescue(page: Page, facts: Facts) -> None:
    rescue = facts.rescue
    page.heading("Rescue system")
    kernel = f"Linux {rescue.kernel}" if rescue.kernel else ""
    firmware = {"uefi": "UEFI", "bios": "BIOS", "unknown": ""}[rescue.firmware]
    memory = f"{human_size(rescue.memory_bytes)} of memory" if rescue.memory_bytes else ""
    parts = (kernel, rescue.architecture, firmware, counted(rescue.cpus, "CPU"), memory)
    page.put(", ".join(p for p in parts if p), indent=2)
    page.field("room", f"{human_size(rescue.work_free_bytes)} for saved copies and downloads")
    page.field("lacks", ", ".join(t.name for t in rescue.tools if not t.path))


def _tree(page: Page, facts: Facts, device: BlockDevice, here: str, below: str) -> None:
    page.put(_device_words(device, facts), label=here + device.path)
    for mount in device.mounts:
        page.put(f"mounted on {mount.target} by this system", indent=len(below) + 4)
    children = [d for d in facts.devices if device.path in d.parents and d.path != device.path]
    for child in children:
        last = child is children[-1]
        _tree(page, facts, child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def _device_words(device: BlockDevice, facts: Facts) -> str:
    words = [human_size(device.size_bytes)]
    if device.image:
        words.append(f"{device.image.format} image {device.image.path}")
    if device.model:
        words.append(device.model)
    if device.table:
        words.append({"gpt": "GPT", "dos": "DOS partition table"}.get(device.table, "partition table"))
    if device.content and device.content.type:
        words.append(device.content.type)
        if device.content.label:
            words.append(f'"{device.content.label}"')
    container = next((c for c in facts.containers if c.device == device.path), None)
    if container:
        words.append(f"{container.kind} {container.name} {container.state}".replace("  ", " "))
    filesystem = facts.filesystem(device.path)
    if filesystem:
        words.append(filesystem.state)
    words += ["read-only"] if device.read_only else []
    words += ["the rescue system's own medium"] if device.live_medium else []
    words += [f"in use by {h.command} ({h.pid})" for h in device.held_by]
    return ", ".join(words)


def _filesystem(page: Page, filesystem: Filesystem) -> None:
    tone: Tone = "bad" if filesystem.state in ("damaged", "error") else ""
    page.put(f"{filesystem.type}, {filesystem.state}", indent=2, label=filesystem.device, tone=tone)
    page.field("uuid", filesystem.uuid, indent=4)
    page.field("label", filesystem.label, indent=4)
    if filesystem.primary_superblock == "bad":
        backups = ", ".join(f"{b.block} (of {b.block_size} bytes)" for b in filesystem.backups)
        page.field(
            "superblock", f"the primary one is bad; backups at block {backups or 'none found'}", indent=4
        )
    if filesystem.check:
        page.field("check", _check_words(filesystem.check), indent=4)
        for line in filesystem.check.messages[:EVIDENCE_SHOWN]:
            page.put(line, indent=16)
    if filesystem.space:
        space = filesystem.space
        words = f"{human_size(space.free_bytes)} of {human_size(space.total_bytes)} free"
        if space.inodes_total:
            words += f", {space.inodes_free} of {space.inodes_total} inodes free"
        page.field("space", words, indent=4)
    if not filesystem.readable and filesystem.read_error:
        page.field("unreadable", filesystem.read_error, indent=4)


def _check_words(check: Check) -> str:
    code = "did not end" if check.exit_code is None else f"exit code {check.exit_code}"
    reason = f"; {check.reason}" if check.reason else ""
    return f"{check.verdict} ({check.tool}, {code}, {human_duration(check.duration_s)}){reason}"


def _system(page: Page, system: System) -> None:
    page.put(f"on {system.device}", indent=2, label=system.name or "unknown system")
    page.field("id", system.id, indent=4)
    page.field("name", system.hostname, indent=4)
    page.field(
        "kind",
        ", ".join(x for x in (system.family, system.package_manager, system.architecture) if x),
        indent=4,
    )
    if system.init:
        faults = "; ".join(f"{f.kind.replace('-', ' ')}: {f.path}" for f in system.init.faults)
        way = f" → {system.init.path}" if system.init.path and system.init.path != system.init.name else ""
        page.field("init", system.init.name + way + (f"  CANNOT START: {faults}" if faults else ""), indent=4)
    page.field(
        "kernels",
        ", ".join(k.release + ("" if k.initramfs else " (no initramfs)") for k in system.kernels),
        indent=4,
    )
    page.field("fstab", "" if system.fstab_state == "ok" else system.fstab_state, indent=4)
    if system.database:
        database = system.database
        detail = f" ({database.detail})" if database.detail else ""
        page.field(
            "packages",
            f"{database.manager} database {database.state}{detail}, {len(database.packages)} packages known, "
            f"{database.listed} file lists",
            indent=4,
        )
        page.field("interrupted", ", ".join(database.interrupted), indent=4)
        _verification(page, database.verification)
    for change in system.changes[-1:]:
        page.field(
            "last change",
            f"{change.time}: {change.action} of {counted(change.count, 'package')} ({change.log})",
            indent=4,
        )
    starts = {"last start": system.last_start, "came up last": system.came_up}
    page.field("starts", ", ".join(f"{what} {when}" for what, when in starts.items() if when), indent=4)
    page.field("dumps", ", ".join(system.dumps), indent=4)
    if system.hibernated:
        page.field("hibernated", "its memory waits on swap; nothing may be written", indent=4)
    for line in system.unusual:
        page.field("unusual", line, indent=4)


def _verification(page: Page, seen: Verification) -> None:
    if seen.level == "none":
        return
    how = {"existence": "for presence", "full": "against their checksums"}[seen.level]
    page.field(
        "files",
        f"{seen.files} files of {seen.packages} packages checked {how} in {human_duration(seen.duration_s)}: "
        + (f"{len(seen.damaged)} not as they should be" if seen.damaged else "all as they should be"),
        indent=4,
    )
    for file in seen.damaged[:FILES_SHOWN]:
        owner = f" ({file.package})" if file.package else ""
        page.put(f"{file.path}{owner}", indent=16, label=f"{file.kind}:")
    _and_more(page, len(seen.damaged) - FILES_SHOWN, 16)


def _and_more(page: Page, count: int, indent: int) -> None:
    if count > 0:
        page.put(f"and {count} more", indent=indent)


def _health(page: Page, facts: Facts) -> None:
    ill = [h for h in facts.health if h.io_errors or h.smart == "failing" or h.read_only]
    if ill:
        page.heading("Media in trouble")
    for health in ill:
        words = ["read-only"] if health.read_only else []
        words += [counted(health.io_errors, "I/O error")] if health.io_errors else []
        words += (
            [f"SMART: {health.smart} {health.smart_detail}".rstrip()] if health.smart != "unknown" else []
        )
        page.put(", ".join(words), indent=2, label=health.device, tone="bad")
        for line in health.io_error_lines:
            page.put(line, indent=4)


# --- diagnosis ----------------------------------------------------------------------------------


def diagnosis_text(diagnosis: Diagnosis, *, color: bool = False) -> str:
    """Return the findings, each root cause with what follows from it."""
    page = Page(color=color)
    for name in diagnosis.systems:
        page.put(name, label="System:")
    if diagnosis.disks or not diagnosis.logs:
        page.put(", ".join(diagnosis.disks) or "none", label="Disks:")
    if diagnosis.logs:
        page.put(", ".join(diagnosis.logs), label="Logs:")
    for crash in diagnosis.crashes:
        _crash(page, crash)
    page.blank()
    if not diagnosis.findings:
        only_logs = diagnosis.logs and not diagnosis.disks
        page.put("No fault was found in the logs." if only_logs else "Nothing is wrong.", tone="good")
        return page.text()
    _findings(page, diagnosis.findings)
    faults = len(diagnosis.faults)
    page.blank()
    page.put(f"{counted(faults, 'fault')}, {counted(len(diagnosis.findings) - faults, 'note')}.")
    return page.text()


def _crash(page: Page, crash: Crash) -> None:
    page.heading(f"Memory dump {crash.source}")
    page.field(
        "kernel", " ".join(x for x in (crash.release, crash.build_id and f"build-id {crash.build_id}") if x)
    )
    page.field("format", f"{crash.format}; the log was found by {crash.how}, {counted(crash.lines, 'line')}")
    after = "" if crash.uptime_s is None else f"{crash.uptime_s:.0f} s after the start"
    page.field("died", " ".join(x for x in (crash.crash_time, after) if x))
    page.field("panic", crash.panic)
    page.field("task", crash.task)
    for line in crash.remarks:
        page.field("remark", line)
    for line in (*crash.system, *crash.backtrace[:FILES_SHOWN], *crash.running[:FILES_SHOWN]):
        page.put(line, indent=4)
    _and_more(page, len(crash.backtrace) - FILES_SHOWN, 4)


def _findings(page: Page, findings: tuple[Finding, ...]) -> None:
    known = {f.id for f in findings}
    shown: set[str] = set()

    def show(finding: Finding, indent: int) -> None:
        if finding.id in shown:
            return
        shown.add(finding.id)
        _finding(page, finding, indent)
        consequences = [f for f in findings if f.consequence_of == finding.id and f.id not in shown]
        if consequences:
            page.put("which explains:", indent=indent + 2)
        for other in consequences:
            show(other, min(indent + 4, 16))

    for finding in findings:
        if finding.consequence_of not in known:
            show(finding, 0)
    for finding in findings:  # chains that bite their own tail
        show(finding, 0)


def _finding(page: Page, finding: Finding, indent: int) -> None:
    page.put(
        finding.title, indent=indent, label=_SEVERITY[finding.severity], tone=_TONES.get(finding.severity, "")
    )
    sure = "" if finding.confidence == "certain" else f", {finding.confidence}"
    page.put(f"{finding.subject} [{finding.code}{sure}]", indent=indent + 2)
    for evidence in finding.evidence[:EVIDENCE_SHOWN]:
        page.put(evidence.excerpt, indent=indent + 2, label=f"{evidence.source}:")
    _and_more(page, len(finding.evidence) - EVIDENCE_SHOWN, indent + 2)
    if finding.packages:
        page.put(", ".join(finding.packages), indent=indent + 2, label="packages:")
    if finding.explanation and not finding.consequence_of:
        page.put(finding.explanation, indent=indent + 2)
    if finding.advice and not (finding.check and finding.consequence_of):
        label = "remedy:" if finding.check and finding.repair == "automatic" else "advice:"
        page.put(finding.advice, indent=indent + 2, label=label)
    if finding.check and not finding.consequence_of:
        page.put(finding.check, indent=indent + 2, label="if that does not help:")


def codes_text(codes: Iterable[Code]) -> str:
    """Return a line for every code."""
    page = Page(color=False)
    for code in codes:
        page.put(code.what.partition(". ")[0].rstrip(".") + ".", label=code.code)
    return page.text()


def code_text(code: Code) -> str:
    """Return the page of one code."""
    page = Page(color=False)
    page.heading(code.code)
    page.put(code.what)
    page.put(code.remedy, label="what is done about it:")
    page.put(code.check, label="if that does not help:")
    page.put(REPAIRS[code.repair], label="repair:")
    if code.explained_by:
        page.put(", ".join(code.explained_by), label="may be brought about by:")
    return page.text()


# --- plan ---------------------------------------------------------------------------------------


def plan_text(plan: Plan, *, color: bool = False) -> str:
    """Return the dry run: what is wrong, what will be done and why, what will not be done and why."""
    page = Page(color=color)
    page.put(plan.system_name or "no installed system", label="Plan for")
    page.put(", ".join(disk_names(plan)) or "none", label="Disks:")
    page.heading("What is wrong")
    if plan.findings:
        _findings(page, plan.findings)
    else:
        page.put("Nothing.", tone="good")
    if plan.refused:
        page.heading("Refused: nothing will be written")
    elif plan.refusals:
        page.heading("What will not be done")
    for refusal in plan.refusals:
        _refusal(page, refusal)
    if not plan.refused:
        _steps(page, plan)
    if plan.deferred:
        page.heading("What cannot be planned yet")
        for deferred in plan.deferred:
            page.put(deferred.reason, indent=2, label=f"{deferred.stage}:")
    return page.text()


def _refusal(page: Page, refusal: Refusal) -> None:
    page.put(refusal.reason, indent=2, label="-", tone="warn")
    page.put(refusal.advice, indent=4, label="Instead:")


def _steps(page: Page, plan: Plan) -> None:
    page.heading("What will be done")
    if not plan.steps:
        if plan.refusals:
            reason = "Nothing: what was found is only to be mended by a person, as said above."
        elif plan.findings:
            reason = "Nothing: none of what was found asks for a repair."
        else:
            reason = "Nothing: no fault was found, so every command would change a sound system."
        page.put(reason, indent=2)
        return
    short = _short_names(plan)
    for path, name in short.items():
        page.command(f"{name}={path}")
    total = [s.estimate_s for s in plan.steps if s.estimate_s is not None]
    number = 0
    for stage in STAGES:
        for step in (s for s in plan.steps if s.stage == stage):
            number += 1
            page.blank()
            _step(page, step, number, plan, short)
    page.blank()
    longer = "" if len(total) == len(plan.steps) else " or more"
    if total:
        page.put(
            f"Expected to take {human_duration(sum(total))}{longer}. "
            "The facts are gathered anew after each stage."
        )
    page.put(
        'All commands run as root in a private mount namespace; "plan --shell" prints them as one script with'
        " the checks around each."
    )


def _short_names(plan: Plan) -> dict[str, str]:
    """Return the variables that keep the commands readable; only for paths that need no quotes."""
    named = {plan.root: "T", plan.policy.work_dir: "W"}
    text = [line for step in plan.steps for o in step.operations for line in _lines(o, plan)]
    return {
        path: name
        for path, name in named.items()
        if quote(path) == path and any(with_variable(line, path, name) != line for line in text)
    }


def _lines(operation: Operation, plan: Plan) -> tuple[str, ...]:
    return describe(operation, plan.root, plan.policy.work_dir)


def _step(page: Page, step: Step, number: int, plan: Plan, short: Mapping[str, str]) -> None:
    page.put(f"{step.title} [{step.stage}]", label=f"{number} of {len(plan.steps)}", tone="bold")
    page.field("why", step.why, width=6)
    page.field("risk", _RISKS[step.risk], width=6)
    if step.estimate_s is not None:
        page.field("time", f"about {human_duration(step.estimate_s)}", width=6)
    for operation in step.operations:
        for line in _lines(operation, plan):
            page.command(line, short=short)
    held = [o for o in step.operations if is_held(o)]
    if held:
        page.put("and at the end of the stage, whatever happens:", indent=2)
        for operation in reversed(held):
            for line in release_lines(operation, plan.root, plan.policy.work_dir):
                page.command(line, short=short)


# --- result -------------------------------------------------------------------------------------


def result_text(result: RunResult, *, color: bool = False) -> str:
    """Return what became of each finding, what is different now, and how to take it back."""
    page = Page(color=color)
    where = ", ".join(result.disks) or "no disk"
    label = "Rehearsal for" if result.rehearsal else "Repair of"
    page.put(result.system_name or "no installed system", label=label, tone="bold")
    page.field("disks", where, indent=0, width=7)
    page.field("run", result.run, indent=0, width=7)
    page.field(
        "time",
        f"{result.created} to {result.ended or 'unknown: it did not end by itself'}",
        indent=0,
        width=7,
    )
    _outcomes(page, result.outcomes)
    if result.steps:
        page.heading("Steps")
        for step in result.steps:
            took = f" ({human_duration(step.duration_s)})" if step.duration_s else ""
            said = f": {step.message}" if step.message else ""
            label = step.status.ljust(11)
            page.put(f"{step.title}{took}{said}", indent=2, label=label, tone=_TONES.get(step.status, ""))
    page.heading(
        "What would be different on the disk" if result.rehearsal else "What is different on the disk"
    )
    for change in result.changes:
        page.put(change.how, indent=2, label=f"{change.path}:")
    if not result.changes:
        page.put("nothing", indent=2)
    if result.leaks:
        page.heading("NOT RELEASED")
        for leak in result.leaks:
            page.put(leak, indent=2, label="-", tone="bad")
        page.put('What holds it must end first; then "rescue-agent cleanup" releases it.', indent=2)
    page.blank()
    if result.message:
        page.put(
            result.message[:1].upper() + result.message[1:] + ("" if result.message.endswith(".") else ".")
        )
    if result.changes and not result.rehearsal:
        page.put(f"rescue-agent undo {result.run}", label="To take back what can be taken back:")
    if result.journal:
        page.put(result.journal, label="Journal:")
    return page.text()


def _outcomes(page: Page, outcomes: Iterable[Outcome]) -> None:
    page.heading("Findings")
    shown = list(outcomes)
    for outcome in shown:
        word = _RESULTS[outcome.result].ljust(max(len(w) for w in _RESULTS.values()))
        tone = _TONES[outcome.result]
        page.put(f"{outcome.finding.title} ({outcome.finding.subject})", indent=2, label=word, tone=tone)
        if outcome.reason:
            page.put(outcome.reason, indent=3 + len(word))
    if not shown:
        page.put("nothing was wrong", indent=2)
