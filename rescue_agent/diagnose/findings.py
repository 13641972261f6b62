# SPDX-License-Identifier: GPL-3.0-or-later
"""How a finding is put together, and the codes that mean damage to a filesystem."""

from __future__ import annotations

from collections.abc import Iterable

from rescue_agent.model.facts import System
from rescue_agent.model.finding import Confidence, Evidence, Finding, Repair, Severity

CORRUPT_CODES = {
    "ext2": "ext-fs-corrupt",
    "ext3": "ext-fs-corrupt",
    "ext4": "ext-fs-corrupt",
    "xfs": "xfs-fs-corrupt",
    "btrfs": "btrfs-fs-corrupt",
    "vfat": "vfat-fs-corrupt",
}
"""Code for damaged contents by filesystem type; every other type is ``fs-corrupt``."""

EVIDENCE_LIMIT = 20
"""A finding shows at most so many excerpts; it says how many it left out."""


def make_finding(
    code: str,
    subject: str,
    title: str,
    evidence: Iterable[Evidence],
    *,
    severity: Severity,
    confidence: Confidence = "certain",
    device: str = "",
    system: System | None = None,
    repair: Repair = "none",
    advice: str = "",
    packages: Iterable[str] = (),
    paths: Iterable[str] = (),
) -> Finding:
    """Return a finding with its id and with as much of its evidence as a person will read."""
    shown = tuple(evidence)
    if len(shown) > EVIDENCE_LIMIT:
        left = len(shown) - EVIDENCE_LIMIT + 1
        rest = Evidence(source=shown[-1].source, excerpt=f"and {left} more of this kind")
        shown = (*shown[: EVIDENCE_LIMIT - 1], rest)
    return Finding(
        id=f"{code}:{subject}",
        code=code,
        severity=severity,
        confidence=confidence,
        subject=subject,
        device=device or (system.device if system is not None else ""),
        system=system.id if system is not None else "",
        title=title,
        evidence=shown,
        repair=repair,
        advice=advice,
        packages=tuple(dict.fromkeys(packages)),
        paths=tuple(dict.fromkeys(paths)),
    )


def saw(source: str, *excerpts: str) -> tuple[Evidence, ...]:
    """Return one piece of evidence for each excerpt from the same source."""
    return tuple(Evidence(source=source, excerpt=excerpt) for excerpt in excerpts if excerpt)


def command_line(argv: tuple[str, ...]) -> str:
    """Return a command as the source of evidence."""
    return " ".join(argv)


def listed(items: Iterable[str], limit: int = 5) -> str:
    """Return a short list for a sentence, ``a, b and 3 more``."""
    every = list(dict.fromkeys(items))
    if len(every) <= limit:
        return ", ".join(every)
    return f"{', '.join(every[:limit])} and {len(every) - limit} more"
