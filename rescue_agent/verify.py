# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of each finding: told from later looks alone, never from exit codes of repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.plan import Refusal
from rescue_agent.model.run import Outcome

MENDED_REASON = "a later look at the same disk did not find it any more"


def compare(
    before: Diagnosis,
    after: Diagnosis,
    *,
    refusals: Sequence[Refusal] = (),
    reasons: Mapping[str, str] | None = None,
) -> tuple[Outcome, ...]:
    """Return what became of the findings of ``before``, and what is new in ``after``."""
    return outcomes((before, after), refusals=refusals, reasons=reasons)


def outcomes(
    looks: Sequence[Diagnosis],
    *,
    refusals: Sequence[Refusal] = (),
    reasons: Mapping[str, str] | None = None,
) -> tuple[Outcome, ...]:
    """Return what became of everything that any look found, in the order in which it was found.

    ``looks``: oldest first; with one alone nothing can be proved. ``reasons``: by finding id, why a
    repair did not do, when that is known. Observations that ask for no repair are left out.
    """
    if not looks:
        return ()
    first, last = looks[0], looks[-1]
    at_first = {f.id for f in first.findings}
    remaining = {f.id: f for f in last.findings}
    refused = {finding: refusal for refusal in refusals for finding in refusal.findings}
    known = reasons or {}
    found: list[Outcome] = []
    for finding in _all_findings(looks):
        if finding.id in refused and (finding.id in remaining or len(looks) == 1):
            refusal = refused[finding.id]
            found.append(Outcome(finding=finding, result="refused", reason=_sentences(refusal)))
        elif finding.id in remaining:
            reason = known.get(finding.id) or finding.advice
            known_before = finding.id in at_first
            found.append(
                Outcome(finding=finding, result="not-mended" if known_before else "new", reason=reason)
            )
        elif hidden := _hidden(finding, looks):
            found.append(Outcome(finding=finding, result="not-mended", reason=hidden))
        else:
            found.append(Outcome(finding=finding, result="mended", reason=MENDED_REASON))
    return tuple(found)


def _all_findings(looks: Sequence[Diagnosis]) -> tuple[Finding, ...]:
    """Return each finding once, in its latest form, faults and what has an automatic repair only."""
    found: dict[str, Finding] = {}
    for look in looks:
        for finding in look.findings:
            if finding.severity in ("fatal", "error") or finding.repair == "automatic":
                found[finding.id] = finding
    return tuple(found.values())


def _hidden(finding: Finding, looks: Sequence[Diagnosis]) -> str:
    """Return why the last look could not have seen the finding although it may still be there."""
    last = looks[-1]
    seen_in = next(look for look in reversed(looks) if any(f.id == finding.id for f in look.findings))
    unseen = [d for d in seen_in.disks if d not in last.disks and finding.device.startswith(d)]
    if unseen:
        return f"{unseen[0]} was not there any more when it was looked for again"
    if finding.system and len(last.systems) < len(seen_in.systems):
        return "the installed system could not be read when it was looked for again"
    return ""


def _sentences(refusal: Refusal) -> str:
    return " ".join(s if s.endswith(".") else s + "." for s in (refusal.reason, refusal.advice) if s)
