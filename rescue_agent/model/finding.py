# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong, with the evidence for it."""

from __future__ import annotations

from typing import Literal

from rescue_agent.model.document import Model
from rescue_agent.model.facts import Crash

DIAGNOSIS_SCHEMA: Literal["rescue-agent/diagnosis/1"] = "rescue-agent/diagnosis/1"

Severity = Literal["fatal", "error", "warning", "info"]
"""``fatal``: the machine can't boot with it. ``error``: a fault that must be mended, boot or not.
``warning``: worth knowing, nothing to mend. ``info``: an observation."""
SEVERITIES: tuple[Severity, ...] = ("fatal", "error", "warning", "info")
"""The worst first."""

Confidence = Literal["certain", "likely", "possible"]
CONFIDENCES: tuple[Confidence, ...] = ("certain", "likely", "possible")
Repair = Literal["automatic", "advice", "none"]
"""``automatic``: the cause lies on the patient's own disks, and mending it means changing them.
``advice``: it does not, or only a person may decide."""


class Evidence(Model, frozen=True, kw_only=True):
    """Where a conclusion comes from: a file, a command, a device; and the words found there."""

    source: str
    excerpt: str


DATABASE = "package database"
"""How the subject of a finding about a lost package database begins."""


class Finding(Model, frozen=True, kw_only=True):
    """One fault. ``code`` is a label of the taxonomy or a disk-side code in the same style."""

    id: str
    """``code:subject``; the same fault found again has the same id."""
    code: str
    severity: Severity
    confidence: Confidence
    subject: str
    """What is at fault, for people: a device, a package, a path, a system."""
    device: str = ""
    system: str = ""
    """Id of the installed system that it concerns; empty when it concerns a disk alone."""
    title: str
    """One line: the cause in plain words."""
    explanation: str = ""
    """What happened, in two or three sentences, with the decoded numbers of the decisive line."""
    evidence: tuple[Evidence, ...]
    repair: Repair
    advice: str = ""
    """What the person can do, when the agent can't or should not."""
    check: str = ""
    """What to look at if that does not help."""
    consequence_of: str = ""
    """Id of the finding that explains this one; empty for a root cause."""
    packages: tuple[str, ...] = ()
    """The packages to put in order, for findings of that kind."""
    paths: tuple[str, ...] = ()
    """Files of the patient that it is about."""


class Diagnosis(Model, frozen=True, kw_only=True):
    """All findings, root causes first and the worst of them foremost."""

    schema: Literal["rescue-agent/diagnosis/1"] = DIAGNOSIS_SCHEMA
    agent_version: str
    created: str
    disks: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    """Names of the systems found, ``Debian GNU/Linux 12 (bookworm) on /dev/vda1``."""
    logs: tuple[str, ...] = ()
    """The logs that were read, as they were named."""
    crashes: tuple[Crash, ...] = ()
    """What memory dumps tell."""
    findings: tuple[Finding, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that stand between the machine and health (fatal and error)."""
        return tuple(f for f in self.findings if f.severity in ("fatal", "error"))
