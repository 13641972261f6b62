# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out one stage of a plan: steps in order, on record, cancellable, and everything released."""

from __future__ import annotations

import os
import posixpath
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from rescue_agent.errors import Interrupted, RescueError, UnsafePath
from rescue_agent.execute.context import Context
from rescue_agent.execute.failpoints import passing
from rescue_agent.execute.journal import JOURNAL_NAME, Journal
from rescue_agent.execute.operations import apply
from rescue_agent.model.document import printable
from rescue_agent.model.operation import Operation, Run
from rescue_agent.model.plan import WORKSPACE, Plan, Stage, Step
from rescue_agent.model.rendering import headline, is_held
from rescue_agent.model.run import (
    Event,
    OperationRecord,
    OperationStarted,
    StageStarted,
    StepEnded,
    StepRecord,
    StepResult,
    StepStarted,
    StepStatus,
)
from rescue_agent.system import mounts
from rescue_agent.system.resources import Resources, now
from rescue_agent.system.runner import Runner

PATIENT_LOG_DIR = "/var/log/rescue-agent"
_SPARE_BYTES = 8 << 20
"""Room that the copy of the journal must leave free on the patient."""


class Executor:
    """Runs the stages of one plan. ``leaks`` names what could not be released."""

    def __init__(
        self,
        runner: Runner,
        journal: Journal,
        resources: Resources,
        plan: Plan,
        emit: Callable[[Event], None],
    ) -> None:
        self.leaks: list[str] = []
        self._context = Context(runner, journal, resources, plan, emit)
        self._results: dict[str, StepResult] = {}
        self._lock = threading.Lock()
        self._mark = resources.mark()
        self._mounts_before = {mount.id for mount in mounts.mounts()}

    def run_stage(self, stage: Stage) -> tuple[StepResult, ...]:
        """Carry out the steps of one stage and release what they held; return what became of each.

        Never raises for a step that failed or was interrupted: that is in the results. Steps of the
        filesystem stage that work on different disks run side by side.
        """
        steps = tuple(step for step in self._context.plan.steps if step.stage == stage)
        self._context.emit(StageStarted(stage=stage))
        self._mark = self._context.resources.mark()
        try:
            if stage == "filesystem":
                self._side_by_side(steps)
            else:
                self._one_by_one(steps, steps)
        finally:
            self.release()
        return tuple(self._results[step.id] for step in steps)

    def open_workspace(self) -> None:
        """Take what the step ``workspace`` holds; the caller must ``release`` whatever happens."""
        self._mark = self._context.resources.mark()
        for step in self._context.plan.steps:
            if step.id == WORKSPACE:
                for index, operation in enumerate(step.operations):
                    if is_held(operation):
                        self._operate(step, index, operation)

    def release(self) -> None:
        """Give back all that the stage holds, newest first, and prove it from mountinfo."""
        self._context.emit(StageStarted(stage="release"))
        if self._context.root_is_mounted():
            for stray in mounts.end_processes_in(self._context.plan.root):
                self._context.notice(
                    f"process {stray.pid} ({printable(stray.command)}) was left in the patient and was ended"
                )
            self._leave_journal()
        os.sync()
        passing("release")
        self.leaks += self._context.resources.release_to(self._mark)
        for left in reversed(mounts.mounts()):
            # A command of the plan may have mounted it, or somebody in the shell.
            if left.id not in self._mounts_before:
                self._release_stray_mount(left.target)
        passing("released")

    def _release_stray_mount(self, target: str) -> None:
        try:
            mounts.release(self._context.runner, target)
        except RescueError as error:
            if not any(leak.startswith(f"{target}: ") for leak in self.leaks):
                self.leaks.append(f"{target}: {error}")

    # --- order ---------------------------------------------------------------------------------

    def _side_by_side(self, steps: tuple[Step, ...]) -> None:
        """Run groups of steps that share no disk at the same time, and each group in order."""
        groups = _groups(steps)
        if len(groups) < 2:
            self._one_by_one(steps, steps)
            return
        failures: list[BaseException] = []

        def work(group: tuple[Step, ...]) -> None:
            try:
                self._one_by_one(group, steps)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(group,)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _one_by_one(self, steps: tuple[Step, ...], all_steps: Sequence[Step]) -> None:
        for step in steps:
            missing = [need for need in step.needs if self._is_unmet(need, step.stage)]
            if self._context.runner.cancel.cancelled:
                result = self._result(step, "skipped", 0.0, "a stop was asked for")
            elif missing:
                titles = ", ".join(other.title for other in self._context.plan.steps if other.id in missing)
                result = self._result(step, "skipped", 0.0, f"it needs what did not work: {titles}")
            else:
                result = self._step(step, all_steps.index(step) + 1, len(all_steps))
            with self._lock:
                self._results[step.id] = result

    def _is_unmet(self, step_id: str, stage: Stage) -> bool:
        """Return whether a needed step did not work, in this stage or in an earlier one of the plan."""
        with self._lock:
            result = self._results.get(step_id)
        if result is not None:
            return result.status != "done"
        needed = next((step for step in self._context.plan.steps if step.id == step_id), None)
        if needed is None or needed.stage == stage:
            return False
        return self._context.journal.steps.get(step_id, "done") != "done"

    # --- one step ------------------------------------------------------------------------------

    def _step(self, step: Step, number: int, of: int) -> StepResult:
        self._context.emit(StepStarted(step=step.id, title=step.title, number=number, of=of))
        self._record(step, "intent")
        start = time.monotonic()
        status: StepStatus = "done"
        message = ""
        try:
            for index, operation in enumerate(step.operations):
                self._context.runner.cancel.check()
                self._operate(step, index, operation)
        except Interrupted as error:
            status, message = "interrupted", error.message
        except (RescueError, OSError) as error:
            status, message = "failed", printable(str(error))
        self._record(step, status, message)
        duration = time.monotonic() - start
        self._context.emit(StepEnded(step=step.id, status=status, duration_s=duration, message=message))
        return self._result(step, status, duration, message)

    def _operate(self, step: Step, index: int, operation: Operation) -> None:
        text = headline(operation, self._context.plan.root, self._context.plan.policy.work_dir)
        self._context.emit(OperationStarted(step=step.id, text=text))
        self._note(step, index, operation, "intent")
        passing("operation-intent")
        code = None
        try:
            code = apply(operation, self._context, step.title)
        except BaseException as error:
            self._note(step, index, operation, "failed", message=printable(str(error)))
            raise
        passing("operation-effect")
        self._note(step, index, operation, "done", exit_code=code)
        passing("operation-done")

    # --- records -------------------------------------------------------------------------------

    def _record(self, step: Step, status: StepStatus | Literal["intent"], message: str = "") -> None:
        if status != "skipped":
            self._context.journal.append(StepRecord(time=now(), step=step.id, state=status, message=message))

    def _note(
        self,
        step: Step,
        index: int,
        operation: Operation,
        state: Literal["intent", "done", "failed"],
        *,
        exit_code: int | None = None,
        message: str = "",
    ) -> None:
        self._context.journal.append(
            OperationRecord(
                time=now(),
                step=step.id,
                index=index,
                state=state,
                operation=operation,
                exit_code=exit_code if isinstance(operation, Run) else None,
                message=message,
            )
        )

    def _result(self, step: Step, status: StepStatus, duration_s: float, message: str) -> StepResult:
        return StepResult(
            step=step.id,
            stage=step.stage,
            title=step.title,
            status=status,
            duration_s=round(duration_s, 3),
            message=message,
        )

    def _leave_journal(self) -> None:
        """Leave a copy of the journal in the patient, for whoever looks at it after its next boot."""
        folder = posixpath.join(PATIENT_LOG_DIR, self._context.journal.directory.name)
        try:
            room = os.statvfs(self._context.plan.root)
            if room.f_flag & os.ST_RDONLY:
                return
            with (
                open(self._context.journal.directory / JOURNAL_NAME, "rb") as file,
                self._context.patient() as root,
            ):
                if room.f_bavail * room.f_frsize < os.fstat(file.fileno()).st_size + _SPARE_BYTES:
                    self._context.notice("the patient gets no copy of the journal: its root is full")
                    return
                for made in (PATIENT_LOG_DIR, folder):
                    if root.lexists(made) and not stat.S_ISDIR(root.lstat(made).st_mode):
                        raise UnsafePath(f"{made} of the patient is not a folder")
                    self._context.make_folders(root, made)
                    root.set_metadata(made, mode=0o700)
                place = self._context.place(root, posixpath.join(folder, JOURNAL_NAME))
                if place.lasts:
                    root.replace_file(place.path, file, mode=0o600)
        except (RescueError, OSError) as error:
            self._context.notice(f"the patient gets no copy of the journal: {printable(str(error))}")


def _groups(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """Return the steps in groups that share neither a disk nor a need."""
    groups: list[tuple[set[str], list[Step]]] = []
    for step in steps:
        marks = {*step.disks, *(f"step:{name}" for name in (step.id, *step.needs))}
        merged: list[Step] = []
        apart = []
        for own, members in groups:
            if own & marks:
                marks |= own
                merged += members
            else:
                apart.append((own, members))
        groups = [*apart, (marks, [*merged, step])]
    order = {step.id: index for index, step in enumerate(steps)}
    return [tuple(sorted(members, key=lambda step: order[step.id])) for _, members in groups]
