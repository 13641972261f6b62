# SPDX-License-Identifier: GPL-3.0-or-later
"""From proposals to a plan: which recipe for which finding, what has to wait, and the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from rescue_agent import __version__
from rescue_agent.model.facts import Facts, System
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.operation import Activate, Bind, Mount, Operation, Run
from rescue_agent.model.plan import (
    STAGES,
    Deferred,
    DiskIdentity,
    Plan,
    Policy,
    Refusal,
    Step,
)
from rescue_agent.model.queries import (
    is_live,
    patient_devices,
    patient_systems,
    program_devices,
    system_devices,
    whole_disks,
)
from rescue_agent.planning.proposal import Case, Proposal, merge, refuse
from rescue_agent.planning.recipes.filesystems import CODES as FILESYSTEM_CODES
from rescue_agent.planning.recipes.filesystems import repair_filesystem
from rescue_agent.planning.recipes.packages import CODES as PACKAGE_CODES
from rescue_agent.planning.recipes.packages import repair_packages, upgrade_packages
from rescue_agent.planning.recipes.workspace import runs_inside, workspace_step
from rescue_agent.planning.refusals import blocking_refusals, find_systems

_TROUBLE = (*FILESYSTEM_CODES, "fs-corrupt", "fs-size-mismatch")


def make_plan(facts: Facts, diagnosis: Diagnosis, policy: Policy) -> Plan:
    """Return what will be done about the findings, what waits, and what is not done and why.

    Pure: the same facts always give the same plan. A machine without faults gets an empty one.
    """
    systems = find_systems(facts, policy)
    system = systems[0] if len(systems) == 1 else None
    blocking = tuple(dict.fromkeys(blocking_refusals(facts, diagnosis, policy)))
    case = Case(facts, diagnosis, policy, system)
    proposal = Proposal(refusals=blocking) if blocking else _propose(case)
    return _plan(case, proposal)


def make_workspace_plan(facts: Facts, diagnosis: Diagnosis, policy: Policy) -> Plan:
    """Return a plan that only opens the workspace, for work inside the system by hand.

    Refused like any other work, and while a filesystem of the system is not in order.
    """
    systems = find_systems(facts, policy)
    system = systems[0] if len(systems) == 1 else None
    case = Case(facts, diagnosis, policy, system)
    blocking = tuple(
        dict.fromkeys(blocking_refusals(facts, diagnosis, msgspec.structs.replace(policy, upgrade=True)))
    )
    if blocking:
        return _plan(case, Proposal(refusals=blocking))
    if system is None:
        no = refuse("no installed system was found here", "Look at what is here with: scan.", everything=True)
        return _plan(case, Proposal(refusals=(no,)))
    hidden = tuple(_unreliable(case, system))
    if hidden:
        no = refuse(
            f"{hidden[0].title}; it is not mounted writable like that",
            f"Mend it first: rescue-agent repair. {hidden[0].advice}".strip(),
            hidden,
            everything=True,
        )
        return _plan(case, Proposal(refusals=(no,)))
    return _plan(case, Proposal((workspace_step(case, system, (), inside=True),)))


def _plan(case: Case, proposal: Proposal) -> Plan:
    facts, system = case.facts, case.system
    steps = order(proposal.steps)
    _forbid_live_medium(facts, steps)
    return Plan(
        agent_version=__version__,
        created=facts.created,
        policy=case.policy,
        disks=_identities(facts),
        system=system.id if system is not None else "",
        system_name=f"{system.name} on {system.device}" if system is not None else "",
        findings=case.diagnosis.findings,
        steps=steps,
        deferred=proposal.deferred,
        refusals=proposal.refusals,
    )


def _propose(case: Case) -> Proposal:
    parts = [_filesystems(case), _packages(case)]
    whole = merge(parts)
    return Proposal(whole.steps, whole.deferred, (*whole.refusals, *_left_over(case, whole)))


# --- filesystem stage --------------------------------------------------------------------------


def _filesystems(case: Case) -> Proposal:
    """Every damaged or unclean filesystem of the machine, except those of systems that were not chosen."""
    proposals = []
    foreign = _foreign_devices(case)
    for finding in case.diagnosis.findings:
        if finding.code not in FILESYSTEM_CODES:
            continue
        if finding.device in foreign:
            no = refuse(
                f"{finding.title}; it belongs to {foreign[finding.device]}, which was not chosen",
                "Choose that system with --system ID to mend it.",
                (finding,),
            )
            proposals.append(Proposal(refusals=(no,)))
        else:
            proposals.append(repair_filesystem(finding, case))
    return merge(proposals)


def _foreign_devices(case: Case) -> dict[str, str]:
    own = set(system_devices(case.system)) if case.system is not None else set()
    return {
        device: other.name or other.id
        for other in patient_systems(case.facts)
        if case.system is not None and other.id != case.system.id
        for device in system_devices(other)
        if device not in own
    }


# --- packages stage ----------------------------------------------------------------------------


def _packages(case: Case) -> Proposal:
    system = case.system
    waits = tuple(_waiting(case))
    if system is None:
        return Proposal(deferred=waits)
    findings = tuple(f for f in case.diagnosis.findings if f.system == system.id and f.code in PACKAGE_CODES)
    hidden = tuple(_unreliable(case, system))
    if hidden:
        return _behind(hidden, findings, case, waits)
    proposal = repair_packages(findings, case, system)
    if case.policy.upgrade:
        faulty = [f for f in findings if f.severity in ("fatal", "error")]
        if not faulty:
            proposal = merge((proposal, upgrade_packages(case, system)))
        else:
            wait = Deferred(stage="packages", reason="packages are upgraded once all of them are in order")
            proposal = merge((proposal, Proposal(deferred=(wait,))))
    if any(step.stage == "packages" for step in proposal.steps):
        ids = dict.fromkeys(i for step in proposal.steps for i in step.findings)
        inside = any(runs_inside(step) for step in proposal.steps)
        workspace = workspace_step(case, system, tuple(ids), inside=inside)
        proposal = Proposal((workspace, *proposal.steps), proposal.deferred, proposal.refusals)
    return merge((proposal, Proposal(deferred=waits)))


def _unreliable(case: Case, system: System) -> Iterator[Finding]:
    """Yield the findings that make what was seen of the system's programs untrustworthy."""
    devices = program_devices(system)
    for finding in case.diagnosis.findings:
        if finding.device not in devices:
            continue
        found = case.facts.filesystem(finding.device)
        # A check that gave no answer is no leave to write; a type without any checker is another thing.
        unknown = finding.code == "fs-not-checked" and found is not None and found.check is not None
        if finding.code in _TROUBLE or unknown:
            yield finding


def _behind(
    hidden: tuple[Finding, ...], findings: tuple[Finding, ...], case: Case, waits: tuple[Deferred, ...]
) -> Proposal:
    """Nothing seen through a damaged filesystem is acted upon: it waits, or is refused for good."""
    ids = tuple(f.id for f in findings)
    never = [f for f in hidden if f.repair != "automatic"]
    if never:
        if not ids and not case.policy.upgrade:
            return Proposal()
        no = refuse(
            f"packages are not touched while {never[0].device} is not known to be in order",
            "Mend the filesystem first, as advised; what is seen through it may not be what is there.",
            findings,
        )
        return Proposal(refusals=(no,))
    if not ids:
        return Proposal(deferred=waits)
    devices = ", ".join(dict.fromkeys(f.device for f in hidden))
    wait = Deferred(
        stage="packages",
        reason=f"what was seen of the packages through {devices} counts only once it is in order",
        findings=ids,
    )
    return Proposal(deferred=(wait,))


def _waiting(case: Case) -> Iterator[Deferred]:
    """Yield what cannot be known before the filesystem stage is done."""
    devices = set(program_devices(case.system)) if case.system is not None else None
    for finding in case.diagnosis.findings:
        if finding.code not in FILESYSTEM_CODES or finding.repair != "automatic":
            continue
        found = case.facts.filesystem(finding.device)
        if devices is not None and finding.device not in devices:
            continue
        if found is not None and found.readable and devices is None:
            continue
        readable = found is not None and found.readable
        yield Deferred(
            stage="packages",
            reason=(
                f"{finding.device} is looked at again once it is in order"
                if readable
                else f"{finding.device} can't be read before it is mended: whether a system lies on it, and "
                "what is wrong there, is planned then"
            ),
        )


# --- nothing is left unsaid --------------------------------------------------------------------


def _left_over(case: Case, whole: Proposal) -> Iterator[Refusal]:
    """Yield a refusal for each fault that no step, deferral or refusal is about."""
    told = {i for step in whole.steps for i in step.findings}
    told |= {i for wait in whole.deferred for i in wait.findings}
    told |= {i for no in whole.refusals for i in no.findings}
    for finding in case.diagnosis.faults:
        if finding.id in told:
            continue
        foreign = bool(finding.system) and case.system is not None and finding.system != case.system.id
        if foreign:
            advice = "It is another system's; choose that one with --system ID to mend it."
        elif finding.advice:
            advice = finding.advice
        else:
            advice = "No way to mend it safely was found; look at it in 'rescue-agent shell'."
        yield refuse(finding.title, advice, (finding,))


# --- order -------------------------------------------------------------------------------------


def order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps by stage, and within a stage each after those that it needs; else as proposed.

    ``needs`` that name no step of the plan are dropped. Raises ValueError when steps need each other.
    """
    waiting = sorted(steps, key=lambda step: STAGES.index(step.stage))
    ids = {step.id for step in waiting}
    waiting = [
        msgspec.structs.replace(step, needs=tuple(n for n in step.needs if n in ids)) for step in waiting
    ]
    done: list[Step] = []
    while waiting:
        names = {step.id for step in done}
        ready = next((step for step in waiting if set(step.needs) <= names), None)
        if ready is None:
            raise ValueError(f"steps need each other: {', '.join(step.id for step in waiting)}")
        waiting.remove(ready)
        done.append(ready)
    return tuple(sorted(done, key=lambda step: STAGES.index(step.stage)))


# --- identity ----------------------------------------------------------------------------------


def _identities(facts: Facts) -> tuple[DiskIdentity, ...]:
    """Return how the disks and filesystems of the patient looked when the plan was made."""
    found = []
    asked = {disk for path in facts.disks for disk in (path, *whole_disks(facts, path))}
    for device in patient_devices(facts):
        if device.path in asked or facts.filesystem(device.path) is not None:
            found.append(
                DiskIdentity(
                    device=device.path,
                    id=device.id,
                    size_bytes=device.size_bytes,
                    head_sha256=device.head_sha256,
                    image=device.image.path if device.image is not None else "",
                    image_format=device.image.format if device.image is not None else "",
                )
            )
    return tuple(found)


# --- the last look -----------------------------------------------------------------------------


def devices_named(operation: Operation) -> tuple[str, ...]:
    """Return every word of an operation that may be a device of the rescue system."""
    match operation:
        case Run():
            words: tuple[str, ...] = () if operation.inside else (*operation.argv, *operation.inverse)
        case Mount() | Bind():
            words = (operation.source,)
        case Activate():
            words = (*operation.argv, operation.device)
        case _:
            words = ()
    return tuple(word.partition("=")[2] if "=/dev/" in word else word for word in words)


def _forbid_live_medium(facts: Facts, steps: tuple[Step, ...]) -> None:
    """Raise ValueError when a step names the medium that the agent runs from: a fault of the planner."""
    live = {device.path for device in facts.devices if is_live(facts, device.path)}
    for step in steps:
        for operation in step.operations:
            named = live & set(devices_named(operation))
            if named:
                raise ValueError(f"step {step.id} names the live medium {', '.join(sorted(named))}")
