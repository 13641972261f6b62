# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recipe gets and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rescue_agent.model.facts import Facts, System
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.plan import Deferred, Policy, Refusal, Step


class Case(NamedTuple):
    """All that a recipe may look at."""

    facts: Facts
    diagnosis: Diagnosis
    policy: Policy
    system: System | None
    """The system to mend; None when none was found or none was chosen."""


class Proposal(NamedTuple):
    """Steps to take, what has to wait, what is not done and why."""

    steps: tuple[Step, ...] = ()
    deferred: tuple[Deferred, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.deferred or self.refusals)


def merge(proposals: Iterable[Proposal]) -> Proposal:
    """Return all proposals as one, each thing once, in order."""
    every = tuple(proposals)
    return Proposal(
        tuple(dict.fromkeys(step for p in every for step in p.steps)),
        tuple(dict.fromkeys(wait for p in every for wait in p.deferred)),
        tuple(dict.fromkeys(no for p in every for no in p.refusals)),
    )


def refuse(
    reason: str, advice: str, findings: Iterable[Finding] = (), *, everything: bool = False
) -> Refusal:
    """Return a refusal about some findings."""
    return Refusal(
        reason=reason.rstrip("."),
        advice=advice,
        findings=tuple(finding.id for finding in findings),
        blocks_everything=everything,
    )


def because(finding: Finding, count: int = 2) -> str:
    """Return the reason for a step: the finding's title and the first words that were seen."""
    seen = [f"{e.source}: {e.excerpt}" for e in finding.evidence[:count]]
    return f"{finding.title}. Seen: {'; '.join(seen)}." if seen else f"{finding.title}."


def short_name(device: str) -> str:
    """Return a device's name for step ids and file names: ``mapper-vg-root`` of ``/dev/mapper/vg-root``."""
    return device.removeprefix("/dev/").replace("/", "-")
