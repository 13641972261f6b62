# SPDX-License-Identifier: GPL-3.0-or-later
"""What forbids all work on the patient, whatever else is wrong with it (design section 5, rules 6 and 8)."""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.model.facts import Facts, System
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.plan import Policy, Refusal
from rescue_agent.model.queries import patient_systems
from rescue_agent.planning.proposal import refuse

ALWAYS = ("disk-failing", "system-hibernated", "disk-in-use", "fs-size-mismatch")
"""Codes that forbid every write, also when nothing else is wrong: even looking may have misled."""

ONLY_FOR_WORK = ("disk-read-only", "duplicate-uuid")
"""Codes that matter only when there is something to write."""

HIDING = ("luks-not-unlocked", "volume-group-unavailable", "md-array-not-assembled")
"""Codes that forbid work as long as no system is in sight: it may be the one that needs it."""


def blocking_refusals(facts: Facts, diagnosis: Diagnosis, policy: Policy) -> Iterator[Refusal]:
    """Yield the reasons why nothing at all may be written."""
    work = bool(diagnosis.faults) or policy.upgrade
    systems = patient_systems(facts)
    for finding in diagnosis.findings:
        hides = finding.code in HIDING and finding.severity == "error" and not systems
        if finding.code in ALWAYS or hides or (work and finding.code in ONLY_FOR_WORK):
            yield _because_of(finding)
    if not work:
        return
    if policy.system:
        chosen = find_systems(facts, policy)
        if len(chosen) != 1:
            yield refuse(
                f"{'no' if not chosen else 'more than one'} system here has an id that begins with "
                f"{policy.system}",
                f"The systems are: {_named(systems) or 'none'}.",
                everything=True,
            )
    elif len(systems) > 1:
        yield refuse(
            f"{len(systems)} systems are installed here, and none was chosen",
            f"Name the one to mend with --system ID: {_named(systems)}.",
            (f for f in diagnosis.findings if f.code == "several-systems"),
            everything=True,
        )


def find_systems(facts: Facts, policy: Policy) -> tuple[System, ...]:
    """Return the systems that the policy means; all when it names none."""
    return tuple(s for s in patient_systems(facts) if s.id.lower().startswith(policy.system.lower()))


def _because_of(finding: Finding) -> Refusal:
    return refuse(finding.title, finding.advice, (finding,), everything=True)


def _named(systems: tuple[System, ...]) -> str:
    return ", ".join(f"{s.id} ({s.name or 'unnamed'} on {s.device})" for s in systems)
