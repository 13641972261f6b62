# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened: events on the way, results at the end, journal records for whoever comes after."""

from __future__ import annotations

from typing import Literal

from rescue_agent.model.document import Model
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.operation import Operation
from rescue_agent.model.plan import Plan, Stage

RUN_SCHEMA: Literal["rescue-agent/run/1"] = "rescue-agent/run/1"

StepStatus = Literal["done", "failed", "skipped", "interrupted"]


# --- events: what a frontend is told while it happens ---------------------------------------


class StageStarted(Model, frozen=True, kw_only=True, tag_field="event", tag="stage"):
    """``stage`` also names the looking (``observe``) and the release between the stages."""

    stage: str
    detail: str = ""


class StepStarted(Model, frozen=True, kw_only=True, tag_field="event", tag="step-started"):
    step: str
    title: str
    number: int
    of: int


class StepEnded(Model, frozen=True, kw_only=True, tag_field="event", tag="step-ended"):
    step: str
    status: StepStatus
    duration_s: float
    message: str = ""


class OperationStarted(Model, frozen=True, kw_only=True, tag_field="event", tag="operation"):
    step: str
    text: str
    """The operation in one line, its command where it is one (``rendering.headline``)."""


class Progressed(Model, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """``fraction`` is between 0 and 1 and never falls within one ``task``; None: not known."""

    task: str
    fraction: float | None = None
    detail: str = ""


class Output(Model, frozen=True, kw_only=True, tag_field="event", tag="output"):
    """A line that a command printed, safe to show."""

    task: str
    line: str


class Notice(Model, frozen=True, kw_only=True, tag_field="event", tag="notice"):
    level: Literal["info", "warning", "error"]
    message: str
    hint: str = ""


Event = StageStarted | StepStarted | StepEnded | OperationStarted | Progressed | Output | Notice


# --- journal: one JSON line each, fsynced, intent before effect -------------------------------


class RunBegan(Model, frozen=True, kw_only=True, tag_field="record", tag="began"):
    time: str
    run: str
    agent_version: str
    pid: int
    command: tuple[str, ...]
    rehearsal: bool = False
    namespace: str = ""
    """Its mount namespace, as the link ``/proc/PID/ns/mnt`` reads: whose processes are its own."""


class Approved(Model, frozen=True, kw_only=True, tag_field="record", tag="plan"):
    time: str
    plan: Plan


class Acquired(Model, frozen=True, kw_only=True, tag_field="record", tag="acquired"):
    """Something that outlives the process unless released: written *before* the effect with
    ``state="intent"``, and again when it is held and when it is released."""

    time: str
    key: str
    kind: Literal["mount", "loop", "export", "activation", "file"]
    state: Literal["intent", "held", "released", "leaked"]
    what: str
    """The mount point, device, or file."""
    release: tuple[str, ...] = ()
    """The command that releases it by hand."""
    source: str = ""
    """The file behind a loop device; the device is ours only as long as it shows that file."""
    pid: int = 0
    """The process that provides it (an image export); 0 for none."""


class StepRecord(Model, frozen=True, kw_only=True, tag_field="record", tag="step"):
    time: str
    step: str
    state: Literal["intent", "done", "failed", "interrupted"]
    message: str = ""


class OperationRecord(Model, frozen=True, kw_only=True, tag_field="record", tag="operation"):
    time: str
    step: str
    index: int
    state: Literal["intent", "done", "failed"]
    operation: Operation
    exit_code: int | None = None
    message: str = ""


class Saved(Model, frozen=True, kw_only=True, tag_field="record", tag="saved"):
    """The former state of a path of the patient, kept before it was changed."""

    time: str
    device: str
    """Identity of the filesystem's device (``BlockDevice.id``), for undo after a reboot."""
    path: str
    kind: Literal["absent", "file", "symlink", "metadata"]
    copy: str = ""
    """File name below the run's ``saved/`` folder."""
    target: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    sha256_after: str = ""
    """Digest of what the run put there; undo refuses when it was changed since."""
    mount_point: str = "/"
    """Where the filesystem of ``device`` was mounted, as the patient sees it."""
    options: str = ""
    """The options that it was mounted with (a subvolume)."""


class CommandRecord(Model, frozen=True, kw_only=True, tag_field="record", tag="command"):
    """One command that was run, with what replays it by hand."""

    time: str
    argv: tuple[str, ...]
    exit_code: int | None
    duration_s: float
    stdout: str = ""
    stderr: str = ""


class Looked(Model, frozen=True, kw_only=True, tag_field="record", tag="looked"):
    """Facts were gathered; the document lies beside the journal in ``file``."""

    time: str
    file: str
    diagnosis: Diagnosis


class RunEnded(Model, frozen=True, kw_only=True, tag_field="record", tag="ended"):
    time: str
    exit_code: int
    message: str = ""


Record = (
    RunBegan | Approved | Acquired | StepRecord | OperationRecord | Saved | CommandRecord | Looked | RunEnded
)


# --- result ------------------------------------------------------------------------------------


class StepResult(Model, frozen=True, kw_only=True):
    step: str
    stage: Stage
    title: str
    status: StepStatus
    duration_s: float = 0.0
    message: str = ""


class Outcome(Model, frozen=True, kw_only=True):
    """What became of one finding."""

    finding: Finding
    result: Literal["mended", "not-mended", "refused", "new"]
    """``mended``: it was there, and a later look did not find it. ``new``: only a later look found
    it, and it is still there."""
    reason: str = ""


class Change(Model, frozen=True, kw_only=True):
    """One thing that is now different on the disk."""

    path: str
    """A file of the patient, or a device."""
    how: str


class RunResult(Model, frozen=True, kw_only=True):
    """The end of a repair, the document of ``repair --json`` and ``report --json``."""

    schema: Literal["rescue-agent/run/1"] = RUN_SCHEMA
    agent_version: str
    run: str
    created: str
    ended: str = ""
    exit_code: int
    rehearsal: bool = False
    disks: tuple[str, ...] = ()
    system_name: str = ""
    steps: tuple[StepResult, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    changes: tuple[Change, ...] = ()
    leaks: tuple[str, ...] = ()
    """What could not be released, each with what holds it."""
    message: str = ""
    journal: str = ""
    """Path of the journal."""
