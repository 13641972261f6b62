# SPDX-License-Identifier: GPL-3.0-or-later
"""What was changed on the patient last, told beside the faults that a change can bring about."""

from __future__ import annotations

import msgspec

from rescue_agent.diagnose.findings import EVIDENCE_LIMIT, listed
from rescue_agent.model.facts import Facts, PackageChange, System
from rescue_agent.model.finding import Evidence, Finding
from rescue_agent.model.queries import counted, patient_systems

_BY_A_CHANGE = frozenset(
    {
        "init-missing",
        "init-missing-library",
        "init-not-executable",
        "init-failed",
        "package-state-broken",
        "package-tools-broken",
        "package-files-damaged",
        "initramfs-missing-or-corrupt",
        "initramfs-missing-driver",
        "kernel-modules-missing",
        "kernel-fault",
        "third-party-module-crash",
        "root-device-not-found",
        "grub-kernel-not-found",
        "grub-modules-missing",
        "secure-boot-rejected",
        "auth-config-broken",
    }
)
"""Codes of kernels, initramfs, boot loaders, init, packages and libraries."""

_PAST = {
    "install": "installed",
    "upgrade": "upgraded",
    "downgrade": "downgraded",
    "remove": "removed",
    "reinstall": "reinstalled",
}


def with_changes(facts: Facts, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings; each root cause that a change of packages can bring about tells the last one.

    It is evidence and no more: that one came after the other proves nothing.
    """
    systems = patient_systems(facts)
    only = systems[0] if len(systems) == 1 else None

    def told(finding: Finding) -> Finding:
        system = facts.system(finding.system) or only
        fault = finding.severity in ("fatal", "error") and not finding.consequence_of
        if not fault or finding.code not in _BY_A_CHANGE or system is None or not system.changes:
            return finding
        more = (*finding.evidence[: EVIDENCE_LIMIT - 1], _last_change(system, system.changes[-1]))
        return msgspec.structs.replace(finding, evidence=more)

    return tuple(told(finding) for finding in findings)


def _last_change(system: System, change: PackageChange) -> Evidence:
    some = listed(change.packages[:4])
    more = f" and {change.count - 4} more" if change.count > 4 else ""
    words = f"the last change, {change.time}: {counted(change.count, 'package')} {_PAST[change.action]}"
    words += f" ({some}{more})"
    if change.command:
        words += f" by '{change.command}'"
    if not change.finished:
        words += "; the log does not say that it ended well"
    if system.came_up:
        order = "after" if system.came_up < change.time else "before"
        words += f"; {order} the last start that came up ({system.came_up})"
    elif system.last_start:
        order = "after" if system.last_start < change.time else "before"
        words += f"; {order} the last start ({system.last_start})"
    return Evidence(source=f"{change.log} on {system.device}", excerpt=words)
