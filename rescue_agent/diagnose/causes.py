# SPDX-License-Identifier: GPL-3.0-or-later
"""Which finding explains which: a table of rules, and the order in which findings are told.

The first rule that fits names the cause. A cause is nearer to the metal than its effect, so a chain
(failing disk, damaged filesystem, missing library) is told one link at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from rescue_agent.diagnose.codes import depth_of
from rescue_agent.model.facts import Facts
from rescue_agent.model.finding import CONFIDENCES, SEVERITIES, Finding
from rescue_agent.model.queries import program_devices, system_devices, whole_disks

FS_CORRUPT = (
    "ext-fs-corrupt",
    "xfs-fs-corrupt",
    "btrfs-fs-corrupt",
    "vfat-fs-corrupt",
    "fs-corrupt",
)
FS_TROUBLE = (*FS_CORRUPT, "fs-needs-recovery")
_LOCKED = ("luks-not-unlocked", "volume-group-unavailable", "md-array-not-assembled")
_SYSTEM = (
    "init-missing",
    "init-missing-library",
    "init-not-executable",
    "init-not-checked",
    "package-tools-broken",
    "package-state-broken",
    "package-files-damaged",
    "packages-not-verified",
    "configuration-changed",
)

Link = Callable[[Facts, Finding, Finding], bool]
"""Whether the first finding (cause) and the second (effect) are about the same thing."""


def _same_device(_: Facts, cause: Finding, effect: Finding) -> bool:
    return bool(cause.device) and cause.device == effect.device


def _same_disk(facts: Facts, cause: Finding, effect: Finding) -> bool:
    ours = set(whole_disks(facts, cause.device) or (cause.device,))
    return bool(ours & set(whole_disks(facts, effect.device) or (effect.device,)))


def _holds_programs(facts: Facts, cause: Finding, effect: Finding) -> bool:
    system = facts.system(effect.system)
    return system is not None and cause.device in program_devices(system)


def _holds_system(facts: Facts, cause: Finding, effect: Finding) -> bool:
    system = facts.system(effect.system)
    return system is not None and cause.device in system_devices(system)


def _same_packages(_: Facts, cause: Finding, effect: Finding) -> bool:
    return cause.system == effect.system and bool(set(cause.packages) & set(effect.packages))


def _anywhere(_facts: Facts, _cause: Finding, _effect: Finding) -> bool:
    return True


class Rule(NamedTuple):
    """Findings with a code in ``causes`` explain those with a code in ``effects`` when ``link`` holds."""

    causes: tuple[str, ...]
    effects: tuple[str, ...]
    link: Link
    why: str


RULES: tuple[Rule, ...] = (
    Rule(
        ("disk-failing",),
        (*FS_TROUBLE, "fs-not-checked", "disk-read-only"),
        _same_disk,
        "unreadable or unwritten blocks look like damage, and a failing drive turns itself read-only",
    ),
    Rule(
        ("fs-size-mismatch",),
        (*FS_TROUBLE, "fs-not-checked", "fs-not-readable"),
        _same_device,
        "what lies beyond the end of the device cannot be read, so the checker calls it damaged",
    ),
    Rule(
        FS_TROUBLE,
        (*_SYSTEM, "disk-full", "fstab-bad-entry"),
        _holds_programs,
        "files seen through a damaged or not yet replayed filesystem are not the files that are there",
    ),
    Rule(
        ("disk-failing",),
        _SYSTEM,
        _same_disk,
        "files on a failing disk cannot be read",
    ),
    Rule(
        (*_LOCKED, "disk-failing", *FS_CORRUPT),
        ("no-system-found",),
        _anywhere,
        "the system may lie on what cannot be read",
    ),
    Rule(_LOCKED, ("fstab-bad-entry",), _anywhere, "the device that the entry names may lie inside"),
    Rule(
        ("disk-full",),
        ("package-state-broken",),
        _holds_system,
        "dpkg stops half-way, or leaves its database empty, when there is no room",
    ),
    Rule(
        ("package-state-broken",),
        ("init-missing", "init-missing-library", "init-not-executable", "package-tools-broken"),
        _same_packages,
        "the package was left half-installed",
    ),
    Rule(
        ("package-state-broken",),
        ("package-files-damaged",),
        _same_packages,
        "the package was left half-installed",
    ),
    Rule(
        ("init-missing", "init-missing-library", "init-not-executable"),
        ("package-tools-broken",),
        _same_packages,
        "the same library is missing for both",
    ),
    Rule(
        ("package-files-damaged",),
        ("package-tools-broken",),
        _same_packages,
        "the program's own package lost the file",
    ),
)


def explain(facts: Facts, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings with their causes named: roots first, of these the worst foremost.

    A cause that is named already (logs name their own) stays.
    """
    told = tuple(msgspec.structs.replace(f, consequence_of=_cause(facts, f, findings)) for f in findings)
    return tuple(sorted(told, key=_order))


def _cause(facts: Facts, effect: Finding, findings: tuple[Finding, ...]) -> str:
    if effect.consequence_of:
        return effect.consequence_of
    for rule in RULES:
        if effect.code not in rule.effects:
            continue
        for cause in findings:
            if cause.id != effect.id and cause.code in rule.causes and rule.link(facts, cause, effect):
                return cause.id
    return ""


def _order(finding: Finding) -> tuple[bool, int, int, int, str]:
    return (
        bool(finding.consequence_of),
        SEVERITIES.index(finding.severity),
        CONFIDENCES.index(finding.confidence),
        depth_of(finding.code),
        finding.id,
    )
