# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts on logs as findings, and the logs' findings joined with what the disks show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from rescue_agent.diagnose.codes import UNKNOWN, Code, causes_of, find_code
from rescue_agent.diagnose.findings import EVIDENCE_LIMIT, make_finding
from rescue_agent.diagnose.logs.decode import explain_values
from rescue_agent.diagnose.logs.presence import find_named, is_about, is_gone
from rescue_agent.diagnose.logs.signature import Signature
from rescue_agent.diagnose.logs.verdict import RANK, Clue, Judgement, Verdict, explaining, judge
from rescue_agent.model.facts import Facts
from rescue_agent.model.finding import Confidence, Evidence, Finding, Severity
from rescue_agent.model.logs import Log

GIVEN = ("file", "dump")
"""Kinds of logs that the person gave: what they say is what the person asks about. A log that lies on
the patient is history: it explains what is found, and by itself it is only worth knowing."""

_OF_A_PAST_START = (
    "The machine's own log tells this of a past start; no look at the disk shows whether it is so now."
)
_WITHOUT_LINE_NUMBERS = ("journal", "pstore")
"""Kinds of logs that are put together from several parts: the time in a line tells where it stands."""

_LINES_PER_LOG = 6
_CONFIDENCE: dict[int, Confidence] = {1: "possible", 2: "likely", 3: "certain"}
_SAME_FAULT = {
    "fs-needs-recovery": ("ext-fs-corrupt", "xfs-fs-corrupt", "btrfs-fs-corrupt"),
    "package-tools-broken": ("init-missing-library",),
}
"""What the disk calls otherwise than the log does."""


def diagnose_logs(facts: Facts, signatures: Iterable[Signature]) -> tuple[Finding, ...]:
    """Return the findings of all logs of the facts; the same fault in two logs is one finding."""
    known = {s.id: s for s in signatures}
    found: dict[str, Finding] = {}
    for log in facts.logs:
        judged = judge(log.boots if log.kind in GIVEN else log.boots[-1:], known)
        for finding in _of_log(log, judged) if judged is not None else ():
            if log.kind not in GIVEN and is_gone(facts, finding):
                continue  # of interest to nobody, and no cause of anything
            other = found.get(finding.id)
            found[finding.id] = finding if other is None else _merged(other, finding)
        if log.problem:
            incomplete = _incomplete(log)
            found[incomplete.id] = incomplete
    return _with_causes(tuple(found.values()))


def _with_causes(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings with their causes named.

    What follows from a cause is mended with it, or not at all: damage that a dropping link or a short
    device brings about must not lead to a check of its own.
    """
    causes = {finding.id: _cause(finding, findings) for finding in findings}
    by_id = {finding.id: finding for finding in findings}

    def told(finding: Finding) -> Finding:
        root, seen = finding.id, {finding.id}
        while causes[root] and causes[root] not in seen:
            root = causes[root]
            seen.add(root)
        if root == finding.id:
            return finding
        return msgspec.structs.replace(
            finding,
            consequence_of=causes[finding.id],
            repair=by_id[root].repair,
            advice=f"Mend its cause first: {by_id[root].title}.",
        )

    return tuple(told(finding) for finding in findings)


def _cause(finding: Finding, others: Iterable[Finding]) -> str:
    """Return the id of the finding, of this log or another, that brings this one about."""
    # What the patient's own logs tell of another start is no cause of what the person asks about.
    fitting = (f for f in others if f.severity != "warning" or finding.severity == "warning")
    surest = {f.code: f for f in sorted(fitting, key=_rank)}
    code = explaining(finding.code, _rank(finding), [(c, _rank(f)) for c, f in surest.items()])
    return surest[code].id if code else ""


def _rank(finding: Finding) -> int:
    return RANK[finding.confidence]


def _of_log(log: Log, judged: Judgement) -> Iterator[Finding]:
    for verdict in judged.verdicts:
        page = find_code(verdict.code)
        if page is None:
            continue
        finding = make_finding(
            verdict.code,
            _subject(verdict),
            _title(page, verdict.device),
            _evidence(log, judged, verdict),
            severity=_severity(log, judged, verdict),
            confidence="possible" if verdict.code == UNKNOWN else _CONFIDENCE[verdict.rank],
            device=verdict.device,
            repair=page.repair,
            advice=page.remedy,
        )
        yield msgspec.structs.replace(
            finding,
            system=log.system,
            explanation=_explanation(log, page, verdict),
            check=page.check,
        )


def _title(page: Code, device: str) -> str:
    return page.title.replace("{on}", device and f" on {device}").replace("{named}", device and f" {device}")


def _severity(log: Log, judged: Judgement, verdict: Verdict) -> Severity:
    if log.kind not in GIVEN:
        return "warning"
    return "fatal" if judged.stopped and not verdict.explained_by else "error"


def _subject(verdict: Verdict) -> str:
    return verdict.device or "the machine"


def _explanation(log: Log, page: Code, verdict: Verdict) -> str:
    details: list[str] = []
    for clue in verdict.clues[:_LINES_PER_LOG]:
        details += explain_values(clue.hit.values)
    details = list(dict.fromkeys(details))[:3]
    told = [f"{detail[:1].upper()}{detail[1:]}." for detail in details]
    return " ".join([page.what, *told, *((_OF_A_PAST_START,) if log.kind not in GIVEN else ())])


def _evidence(log: Log, judged: Judgement, verdict: Verdict) -> Iterator[Evidence]:
    for clue in _distinct(verdict.clues)[:_LINES_PER_LOG]:
        times = f" ({clue.hit.count} times)" if clue.hit.count > 1 else ""
        where = "" if log.kind in _WITHOUT_LINE_NUMBERS else f" line {clue.hit.line}"
        yield Evidence(source=f"{log.source}{where}{times}", excerpt=clue.hit.text)
    position = [boot.first_line for boot in log.boots].index(judged.boot.first_line)
    later = len(log.boots) - position - 1
    if later:
        words = f"the log goes on with {later} later start{'s' if later > 1 else ''} without this fault"
        yield Evidence(source=log.source, excerpt=words)


def _distinct(clues: Sequence[Clue]) -> list[Clue]:
    """Return the clues, one for each line."""
    return list({clue.hit.line: clue for clue in reversed(clues)}.values())[::-1]


def _incomplete(log: Log) -> Finding:
    return make_finding(
        "log-incomplete",
        log.source,
        f"{log.source} could not be read whole",
        (Evidence(source=log.source, excerpt=log.problem),),
        severity="warning",
        confidence="certain",
        repair="none",
        advice="What comes after that was not looked at: take the log again." if log.kind in GIVEN else "",
    )


def _merged(one: Finding, other: Finding) -> Finding:
    """Return one finding with the evidence of both; the surer one speaks."""
    first, second = sorted((one, other), key=lambda f: -_rank(f))
    return _with_evidence(first, second)


def _with_evidence(finding: Finding, other: Finding) -> Finding:
    """Return the finding with the evidence of another beside its own: the best of both first."""
    own, more = finding.evidence, other.evidence
    evidence = tuple(dict.fromkeys((*own[:2], *more[:2], *own[2:], *more[2:])))
    return msgspec.structs.replace(finding, evidence=evidence[:EVIDENCE_LIMIT])


# --- logs and disks together ----------------------------------------------------------------------


def join(facts: Facts, disk: Sequence[Finding], logs: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings of disk and logs as one list.

    A fault that both show is one finding, with the evidence of both. What only a log shows, and a
    look at the disk would show too if it were so, is *not present now*: an observation, no fault.
    """
    joined = {finding.id: finding for finding in disk}
    renamed: dict[str, str] = {}
    rest: list[Finding] = []
    for finding in logs:
        same = _same_on_disk(facts, finding, disk)
        if same is not None:
            renamed[finding.id] = same.id
            joined[same.id] = _with_evidence(joined[same.id], finding)
        elif is_gone(facts, finding):
            rest.append(_not_present(finding))
        else:
            rest.append(finding)
    for finding in rest:
        cause = renamed.get(finding.consequence_of, finding.consequence_of)
        if not cause and finding.severity != "info":
            cause = _explained_by(finding, disk)
        joined[finding.id] = msgspec.structs.replace(finding, consequence_of=cause)
    for finding in logs:
        # A cause that only the log shows explains what the disk shows as well.
        own, cause = renamed.get(finding.id, ""), renamed.get(finding.consequence_of, finding.consequence_of)
        if own and cause != own and cause in joined and joined[cause].severity in ("fatal", "error"):
            joined[own] = msgspec.structs.replace(joined[own], consequence_of=cause)
    return tuple(joined.values())


def _same_on_disk(facts: Facts, finding: Finding, disk: Sequence[Finding]) -> Finding | None:
    """Return the disk's own finding of the same fault, or None."""
    named = find_named(facts, finding)
    for other in disk:
        if finding.code not in (other.code, *_SAME_FAULT.get(other.code, ())):
            continue
        if is_about(facts, named, other.device) and finding.system in ("", other.system or finding.system):
            return other
    return None


def _not_present(finding: Finding) -> Finding:
    return msgspec.structs.replace(
        finding,
        severity="info",
        repair="none",
        title=f"Not present now: {finding.title}",
        explanation=f"{finding.explanation} The disk was looked at and does not show this any more.",
    )


def _explained_by(finding: Finding, disk: Sequence[Finding]) -> str:
    """Return the id of a fault of the disk that brings about what the log shows, or an empty string."""
    causes = causes_of(finding.code)
    for other in disk:
        if other.severity in ("fatal", "error") and other.code in causes:
            return other.id
    return ""
