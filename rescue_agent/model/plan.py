# SPDX-License-Identifier: GPL-3.0-or-later
"""What will be done, why, and for which disk exactly."""

from __future__ import annotations

from typing import Literal

from rescue_agent.model.document import Model
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import TARGET_ROOT, Operation

PLAN_SCHEMA: Literal["rescue-agent/plan/1"] = "rescue-agent/plan/1"

Stage = Literal["storage", "filesystem", "fstab", "packages", "initramfs", "bootloader"]
STAGES: tuple[Stage, ...] = ("storage", "filesystem", "fstab", "packages", "initramfs", "bootloader")
"""In the order in which they run; the facts are gathered anew after each."""

WORKSPACE = "workspace"
"""Id of the step that mounts the patient and holds what the steps needing it work in."""

Risk = Literal["read-only", "reversible", "lossy"]
"""``reversible``: undo puts it back. ``lossy``: it can discard data that was there before (e2fsck
clearing what it cannot save), and only a copy of the disk brings that back."""


class Policy(Model, frozen=True, kw_only=True):
    """What the person allows and asks for."""

    surface_scan: bool = True
    accept_log_loss: bool = False
    upgrade: bool = False
    system: str = ""
    """Id (or a unique beginning of it) of the system to mend; empty: the only one."""
    packages_dir: str = ""
    network: bool = True
    work_dir: str = "/var/lib/rescue-agent/runs/plan"
    """Folder of the run on the rescue system: journal, saved copies, undo files, downloads."""


class DiskIdentity(Model, frozen=True, kw_only=True):
    """Which device a plan is for, and how it looked then."""

    device: str
    id: str
    size_bytes: int
    head_sha256: str
    image: str = ""
    """Path of the disk image that ``device`` shows; empty for a real disk."""
    image_format: str = ""


class Step(Model, frozen=True, kw_only=True):
    """Some operations with one purpose. They run in order; the first failure ends the step."""

    id: str
    stage: Stage
    title: str
    why: str
    findings: tuple[str, ...] = ()
    risk: Risk
    operations: tuple[Operation, ...]
    needs: tuple[str, ...] = ()
    """Ids of steps that must have succeeded before."""
    disks: tuple[str, ...] = ()
    """Disks that it works on. Steps of the filesystem stage on different disks run side by side."""
    estimate_s: float | None = None
    """How long it is expected to take; None when nothing is known."""


class Deferred(Model, frozen=True, kw_only=True):
    """Something that cannot be planned yet, and what has to happen first."""

    stage: Stage
    reason: str
    findings: tuple[str, ...] = ()


class Refusal(Model, frozen=True, kw_only=True):
    """Something the agent will not do, why, and what the person can do instead."""

    reason: str
    advice: str
    findings: tuple[str, ...] = ()
    blocks_everything: bool = False
    """True: nothing at all may be written (in use, hibernated, failing medium, …): exit code 3."""


class Plan(Model, frozen=True, kw_only=True):
    """The dry run. What it prints is what runs."""

    schema: Literal["rescue-agent/plan/1"] = PLAN_SCHEMA
    agent_version: str
    created: str
    policy: Policy
    disks: tuple[DiskIdentity, ...] = ()
    system: str = ""
    system_name: str = ""
    root: str = TARGET_ROOT
    findings: tuple[Finding, ...] = ()
    steps: tuple[Step, ...] = ()
    deferred: tuple[Deferred, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def refused(self) -> bool:
        """Nothing may be written, whatever else was found."""
        return any(r.blocks_everything for r in self.refusals)
