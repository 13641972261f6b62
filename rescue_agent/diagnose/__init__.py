# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts in, findings out. Pure: runs from a saved facts file with no disk at all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from rescue_agent import __version__
from rescue_agent.diagnose.causes import explain
from rescue_agent.diagnose.changes import with_changes
from rescue_agent.diagnose.devices import diagnose_devices
from rescue_agent.diagnose.filesystems import diagnose_filesystems
from rescue_agent.diagnose.findings import make_finding, saw
from rescue_agent.diagnose.fstab import diagnose_fstab
from rescue_agent.diagnose.logs.findings import diagnose_logs, join
from rescue_agent.diagnose.logs.scan import LogScanner, Matcher
from rescue_agent.diagnose.logs.signature import Signature, builtin_signatures, combine
from rescue_agent.diagnose.packages import diagnose_packages
from rescue_agent.diagnose.space import diagnose_space
from rescue_agent.diagnose.systems import diagnose_systems
from rescue_agent.model.facts import Facts
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.queries import is_patient, patient_systems

__all__ = ["LogScanner", "diagnose", "make_matcher"]

_AREAS = (
    diagnose_devices,
    diagnose_filesystems,
    diagnose_systems,
    diagnose_fstab,
    diagnose_packages,
    diagnose_space,
)


@cache
def make_matcher(own: tuple[Signature, ...] = ()) -> Matcher:
    """Return the matcher of the built-in signatures and the person's own, which replace those of their id."""
    return Matcher(combine(builtin_signatures(), own))


def diagnose(facts: Facts, own: tuple[Signature, ...] = ()) -> Diagnosis:
    """Return every finding that the facts support, root causes first and the worst of them foremost.

    ``own``: the person's own signatures, as they were when the logs were read.

    Only the disks that were asked for are judged, never the live medium. Every probe that could not
    do its work is a warning: an empty answer is not a healthy answer.
    """
    found: dict[str, Finding] = {}
    for area in _AREAS:
        for finding in area(facts):
            found.setdefault(finding.id, finding)
    for finding in _probe_errors(facts):
        found.setdefault(finding.id, finding)
    findings = tuple(found.values())
    if facts.logs:
        logged = diagnose_logs(facts, make_matcher(own).signatures)
        findings = join(facts, findings, logged)
    return Diagnosis(
        agent_version=__version__,
        created=facts.created,
        disks=facts.disks,
        logs=tuple(log.source for log in facts.logs),
        crashes=facts.crashes,
        systems=tuple(f"{s.name or 'an unnamed system'} on {s.device}" for s in patient_systems(facts)),
        findings=with_changes(facts, explain(facts, findings)),
    )


def _probe_errors(facts: Facts) -> Iterator[Finding]:
    for error in facts.errors:
        if error.subject.startswith("/dev/") and not is_patient(facts, error.subject):
            continue  # another device of this machine
        yield make_finding(
            "probe-failed",
            f"{error.probe} of {error.subject}",
            f"{error.subject} could not be looked at ({error.probe})",
            saw(error.probe, error.message),
            severity="warning",
            confidence="possible",
            repair="advice" if error.hint else "none",
            advice=error.hint,
        )
