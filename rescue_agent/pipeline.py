# SPDX-License-Identifier: GPL-3.0-or-later
"""observe → diagnose → plan → (approve) → execute → observe again, until nothing is wrong or nothing helps.

The same for every face of the agent: the command line, the guided screen and the unattended mode
differ in their ``Frontend`` alone.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

import rescue_agent
from rescue_agent.diagnose import LogScanner, diagnose, make_matcher
from rescue_agent.diagnose.logs.signature import Signature, read_signatures
from rescue_agent.errors import (
    EXIT_FAILED,
    EXIT_FAULTS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REFUSED,
    Interrupted,
    Refused,
    RescueError,
    StalePlan,
    UsageError,
)
from rescue_agent.execute.cleanup import Cleaned, cleanup, put_back_held
from rescue_agent.execute.executor import Executor
from rescue_agent.execute.journal import JOURNAL_NAME, Journal, read_journal
from rescue_agent.execute.undo import Place, Undone, undo
from rescue_agent.model.document import encode
from rescue_agent.model.facts import BlockDevice, Crash, Facts, Image
from rescue_agent.model.finding import Diagnosis
from rescue_agent.model.logs import Log
from rescue_agent.model.operation import Run
from rescue_agent.model.plan import STAGES, WORKSPACE, Plan, Policy, Stage, Step
from rescue_agent.model.rendering import run_argv
from rescue_agent.model.run import (
    Approved,
    CommandRecord,
    Event,
    Looked,
    Notice,
    RunBegan,
    RunEnded,
    RunResult,
    StageStarted,
)
from rescue_agent.planning import make_plan, make_workspace_plan
from rescue_agent.planning.stale import stale_reason
from rescue_agent.probe.logs import ProgressSink, read_log, silent
from rescue_agent.probe.observe import Request, observe
from rescue_agent.probe.rescue import probe_rescue
from rescue_agent.report import build_result
from rescue_agent.system import guard, images
from rescue_agent.system.resources import Resources, now
from rescue_agent.system.runner import Completed, Runner

MAX_ROUNDS = 12
"""More stages than any machine needs; a bound against a plan that never settles."""

OWN_SIGNATURES = "/etc/rescue-agent/signatures"

Verify = Literal["none", "existence", "full"]


class Frontend(Protocol):
    """Whoever shows the run to a person, or answers for one."""

    def emit(self, event: Event) -> None:
        """Show that something happened. Called from several threads."""

    def approve(self, plan: Plan) -> bool:
        """Return whether this plan may be carried out."""


class Look(NamedTuple):
    """One look at the machine and what follows from it."""

    facts: Facts
    diagnosis: Diagnosis


class Given(NamedTuple):
    """What the person gave beside the disks."""

    logs: tuple[Log, ...] = ()
    crashes: tuple[Crash, ...] = ()


class Session:
    """One use of the machine: the lock, the journal, the attached images, and what is held.

    A context manager. ``disks`` are block devices or disk images; none: every disk that may be a
    patient. ``writable=False`` attaches images read-only. ``rehearse`` puts a copy-on-write layer
    over every disk; the disks themselves are then only read.
    """

    def __init__(
        self,
        frontend: Frontend,
        disks: Sequence[str] = (),
        *,
        command: Sequence[str] = (),
        writable: bool = False,
        rehearse: bool = False,
        work_dir: str = "",
    ) -> None:
        self.frontend = frontend
        self.rehearse = rehearse
        self.cancel = guard.CancelToken()
        self.leaks: list[str] = []
        self.exit_code = EXIT_OK
        self.disks: tuple[str, ...] = ()
        self._asked = tuple(disks)
        self._command = tuple(command)
        self._writable = writable
        self._images: Mapping[str, Image] = {}
        self._looks = 0
        self._ended = False
        self._stack = ExitStack()
        home = guard.STATE_DIR if writable else guard.RUN_DIR
        self.work_dir = Path(work_dir) if work_dir else home / "runs" / new_run_name()
        self.run_name = self.work_dir.name

    def __enter__(self) -> Session:
        if os.geteuid() != 0:
            raise Refused(
                "looking at disks needs root", hint="run it with sudo, or use --facts with a saved scan"
            )
        if not guard.in_private_namespace():
            raise Refused("the agent has no mount namespace of its own, so a crash could leave mounts behind")
        with ExitStack() as stack:
            stack.enter_context(guard.exclusive_lock())
            stack.enter_context(guard.cancel_on_signals(self.cancel))
            self.journal = Journal.create(self.work_dir)
            stack.callback(self._close_journal)
            self.journal.append(
                RunBegan(
                    time=now(),
                    run=self.run_name,
                    agent_version=rescue_agent.__version__,
                    pid=os.getpid(),
                    command=self._command,
                    rehearsal=self.rehearse,
                    namespace=guard.mount_namespace(),
                )
            )
            self.runner = Runner(cancel=self.cancel, log=self._log_command)
            self.resources = Resources(self.journal.append)
            stack.callback(self._release)
            self._attach()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RescueError):
            self.exit_code = error.exit_code
        elif error is not None and not isinstance(error, SystemExit):
            self.exit_code = EXIT_FAILED
        self._stack.close()

    def _release(self) -> None:
        self.leaks += self.resources.release_to(0)
        for leak in self.leaks:
            self.frontend.emit(Notice(level="error", message=f"not released: {leak}"))

    def end(self, exit_code: int, message: str) -> None:
        """Write the run's end into its journal, once; what comes later is only the release."""
        self.exit_code = exit_code
        if not self._ended:
            self._ended = True
            self.journal.append(RunEnded(time=now(), exit_code=exit_code, message=message))

    def _close_journal(self) -> None:
        self.end(self.exit_code, "; ".join(self.leaks))
        self.journal.close()
        if not self._writable and not self.leaks:
            self.journal.discard()

    def _log_command(self, done: Completed) -> None:
        self.journal.append(
            CommandRecord(
                time=now(),
                argv=done.argv,
                exit_code=done.exit_code,
                duration_s=round(done.duration_s, 3),
                stdout=done.stdout,
                stderr=done.stderr,
            )
        )

    def _attach(self) -> None:
        attached: dict[str, Image] = {}
        devices = []
        for number, name in enumerate(self._asked):
            overlay = str(self.work_dir / f"overlay-{number}.qcow2") if self.rehearse else ""
            if is_block_device(name) and not overlay:
                devices.append(str(Path(name).resolve()))
                continue
            attachment = images.attach(
                self.runner, self.resources, name, writable=self._writable, overlay=overlay
            )
            attached[attachment.device] = attachment.image
            devices.append(attachment.device)
        if self.rehearse and not devices:
            raise UsageError(
                "a rehearsal needs to know which disk", hint="name the disk: repair --rehearse /dev/vdb"
            )
        self._images = attached
        self.disks = tuple(dict.fromkeys(devices))

    def look(
        self,
        *,
        verify: Verify = "full",
        packages_dir: str = "",
        check: bool = True,
        ask_sources: bool = False,
        given: Given | None = None,
        own: tuple[Signature, ...] = (),
    ) -> Look:
        """Observe and diagnose; the facts are kept beside the journal.

        ``ask_sources``: over the network, the patient's package sources too, if it needs packages.
        ``given``: logs and dumps beside the disks. ``own``: the person's own signatures.
        """
        self._looks += 1
        self.frontend.emit(StageStarted(stage="observe", detail=f"look {self._looks}"))
        request = Request(
            disks=self.disks,
            images=self._images,
            packages_dir=packages_dir,
            verify=verify,
            work_dir=str(self.work_dir),
            check_filesystems=check,
            ask_sources=ask_sources,
            scan=lambda: LogScanner(make_matcher(own)),
        )
        facts = observe(self.runner, request, progress=self.frontend.emit)
        if given is not None:
            facts = msgspec.structs.replace(facts, logs=(*given.logs, *facts.logs), crashes=given.crashes)
        diagnosis = diagnose(facts, own)
        name = f"facts-{self._looks}.json"
        self.journal.write_file(name, encode(facts))
        self.journal.append(Looked(time=now(), file=name, diagnosis=diagnosis))
        return Look(facts, diagnosis)


def read_logs(
    paths: Sequence[str], own: tuple[Signature, ...] = (), *, progress: ProgressSink = silent
) -> tuple[Log, ...]:
    """Return what saved logs say. Needs no root. Raises UsageError for one that cannot be read."""
    matcher = make_matcher(own)
    return tuple(read_log(lambda: LogScanner(matcher), path, progress=progress) for path in paths)


def read_dumps(
    paths: Sequence[str], own: tuple[Signature, ...] = (), *, debuginfo: str = "", save_dmesg: str = ""
) -> Given:
    """Return what memory dumps tell, and what their kernel logs say. Needs no root.

    ``debuginfo``: a vmlinux, or the package that holds it, for crash(8). ``save_dmesg``: a file that
    takes the kernel log of the one dump; it must not exist. Raises UsageError for what cannot be read.
    """
    from rescue_agent.probe.vmcore import read_crash  # heavy, and seldom needed

    if save_dmesg and len(paths) != 1:
        raise UsageError("--save-dmesg takes the log of one dump", hint="name one --vmcore")
    matcher = make_matcher(own)
    given = Given()
    for path in paths:
        crash, lines = read_crash(Runner(), path, work_dir=Path(tempfile.gettempdir()), debuginfo=debuginfo)
        text = "".join(f"{line}\n" for line in lines)
        if save_dmesg:
            _save_new(save_dmesg, text)
        scanner = LogScanner(matcher)
        scanner.feed(text.encode("utf-8", "backslashreplace"))
        log = scanner.finish(source=f"kernel log of {path}", kind="dump")
        given = Given((*given.logs, log), (*given.crashes, crash))
    return given


def _save_new(path: str, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name a file that does not exist yet") from error


def diagnose_given(given: Given, own: tuple[Signature, ...] = ()) -> Look:
    """Return what logs and dumps tell by themselves, with no disk and no root."""
    facts = Facts(
        agent_version=rescue_agent.__version__,
        created=now(),
        rescue=probe_rescue(Runner(), ""),
        logs=given.logs,
        crashes=given.crashes,
    )
    return Look(facts, diagnose(facts, own))


def load_signatures(folder: str = "") -> tuple[Signature, ...]:
    """Return the person's own signatures: those of ``folder``, and of /etc/rescue-agent/signatures.

    Raises UsageError when ``folder`` is not there, DocumentError for a file that is not right.
    """
    if folder and not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder", hint="--signatures takes a folder with .toml files")
    files = [f for place in (OWN_SIGNATURES, folder) if place for f in sorted(Path(place).glob("*.toml"))]
    found: list[Signature] = []
    for file in files:
        try:
            found += read_signatures(file.read_text("utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
    return tuple(found)


def require_new(plan: Plan) -> None:
    """Raise StalePlan when a plan was carried out already: its folder holds the journal of that run."""
    folder = Path(plan.policy.work_dir)
    if (folder / JOURNAL_NAME).exists():
        raise StalePlan(
            f"this plan was carried out already, as run {folder.name}", hint="make a new one with plan"
        )


def is_block_device(path: str) -> bool:
    """Return whether ``path`` names a block device; raise UsageError when there is nothing."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", hint="name a block device (/dev/vdb) or a disk image"
        ) from error


def new_run_name() -> str:
    """Return a name for a run: the time in UTC and four random digits."""
    return now().replace(":", "").replace("-", "") + "-" + secrets.token_hex(2)


def repair(session: Session, policy: Policy, saved: Plan | None = None) -> RunResult:
    """Do the whole loop on the session's disks and return what came of it.

    With ``saved`` exactly that plan is carried out, after the proof that it still fits (StalePlan
    otherwise). Never raises for a fault of the patient; Interrupted and errors of the agent become
    a result as well, since what was done so far must be told.
    """
    loop = _Loop(session, policy)
    try:
        exit_code, message = loop.run(saved)
    except Interrupted as error:
        exit_code, message = EXIT_INTERRUPTED, error.message
    except (Refused, UsageError) as error:
        exit_code, message = error.exit_code, str(error)
    session.leaks += loop.leaks
    session.leaks += session.resources.release_to(0)
    if session.leaks:
        exit_code = EXIT_FAILED
    session.end(exit_code, message)
    journal = session.work_dir / JOURNAL_NAME
    result = build_result(read_journal(journal), leaks=session.leaks, journal=str(journal))
    session.journal.write_file("result.json", encode(result))
    return result


class _Loop:
    """The rounds of one repair."""

    def __init__(self, session: Session, policy: Policy) -> None:
        self.session = session
        self.policy = policy
        self.leaks: list[str] = []
        self._tried: set[tuple[object, ...]] = set()

    def run(self, saved: Plan | None) -> tuple[int, str]:
        look = self._look(saved)
        if saved is not None:
            reason = stale_reason(saved, look.facts)
            if reason:
                raise StalePlan(f"this plan does not fit any more: {reason}", hint="make a new one with plan")
        _put_back_held(self.session, look.facts)
        plan = saved or make_plan(look.facts, look.diagnosis, self.policy)
        for _ in range(MAX_ROUNDS):
            self.session.journal.append(Approved(time=now(), plan=plan))
            if plan.refused:
                blocking = next(r for r in plan.refusals if r.blocks_everything)
                return EXIT_REFUSED, f"{blocking.reason}. {blocking.advice}"
            stage, plan = self._next(plan)
            if stage is None:
                break
            if not self.session.frontend.approve(plan):
                return EXIT_FAULTS, "not approved; nothing of this plan was done"
            look, plan = self._carry_out(plan, stage, saved)
        remaining = look.diagnosis.faults
        if not remaining:
            return EXIT_OK, "nothing is wrong (any more)"
        return EXIT_FAULTS, f"{len(remaining)} fault(s) remain"

    def _look(self, saved: Plan | None) -> Look:
        # What the sources offer matters only to a plan that is still to be made.
        ask = self.policy.network and saved is None
        return self.session.look(packages_dir=self.policy.packages_dir, ask_sources=ask)

    def _next(self, plan: Plan) -> tuple[Stage | None, Plan]:
        """Return the first stage with something that was not tried yet, and the plan for it."""
        steps = [s for s in plan.steps if s.id == WORKSPACE or self._key(s) not in self._tried]
        fresh = msgspec.structs.replace(plan, steps=tuple(steps))
        for stage in STAGES:
            if any(step.stage == stage and step.id != WORKSPACE for step in steps):
                return stage, fresh
        return None, fresh

    def _carry_out(self, plan: Plan, stage: Stage, saved: Plan | None) -> tuple[Look, Plan]:
        session = self.session
        executor = Executor(session.runner, session.journal, session.resources, plan, session.frontend.emit)
        try:
            executor.run_stage(stage)
        finally:
            self.leaks += executor.leaks
        self._tried |= {self._key(step) for step in plan.steps if step.stage == stage}
        session.cancel.check()
        look = self._look(saved)
        if saved is not None:
            return look, plan
        return look, make_plan(look.facts, look.diagnosis, self.policy)

    @staticmethod
    def _key(step: Step) -> tuple[object, ...]:
        return (step.stage, step.id, *step.operations)


# --- beside the loop -------------------------------------------------------------------------------


def run_inside(session: Session, policy: Policy, command: tuple[str, ...]) -> int:
    """Open the prepared chroot of the patient, give the terminal to ``command``, release everything.

    Returns the command's exit code (128 + N for signal N). Raises Refused when working inside is
    not safe.
    """
    policy = msgspec.structs.replace(policy, work_dir=str(session.work_dir))
    look = session.look(verify="none")
    plan = make_workspace_plan(look.facts, look.diagnosis, policy)
    if plan.refused:
        raise Refused(plan.refusals[0].reason, hint=plan.refusals[0].advice)
    _put_back_held(session, look.facts)
    executor = Executor(session.runner, session.journal, session.resources, plan, session.frontend.emit)
    try:
        executor.open_workspace()
        run = Run(argv=command or ("/bin/sh", "-i"), inside=True)
        code = session.runner.interact(run_argv(run.argv, run, plan.root))
    finally:
        executor.release()
        session.leaks += executor.leaks
    return code if code >= 0 else 128 - code


def undo_run(session: Session, run: str) -> Undone:
    """Take back what the run of that name changed, on the disks that are here."""
    directory = _run_dir(run)
    look = session.look(verify="none", check=False)
    return undo(session.runner, session.resources, directory, _places(session, look.facts))


def clean_up(frontend: Frontend) -> Cleaned:
    """Finish the runs that were killed; files of the patient are put back where its disk is here."""
    with Session(frontend, command=("cleanup",)) as session:
        look = session.look(verify="none", check=False)
        return cleanup(
            session.runner,
            (guard.STATE_DIR, guard.RUN_DIR),
            _places(session, look.facts),
            but=session.work_dir,
        )


def load_result(run: str) -> RunResult:
    """Return the result of a run, also of one that was killed; the latest when ``run`` is empty."""
    journal = _run_dir(run) / JOURNAL_NAME
    return build_result(read_journal(journal), journal=str(journal))


def _run_dir(run: str) -> Path:
    runs = guard.STATE_DIR / "runs"
    if run and Path(run).name == run and (runs / run / JOURNAL_NAME).is_file():
        return runs / run
    known = sorted(path.parent.name for path in runs.glob(f"*/{JOURNAL_NAME}"))
    if not run and known:
        return runs / known[-1]
    raise UsageError(
        f"there is no run {run!r} in {runs}" if run else f"there is no run in {runs}",
        hint=f"the latest are: {', '.join(known[-5:])}" if known else "",
    )


def _put_back_held(session: Session, facts: Facts) -> None:
    restored, failed = put_back_held(
        session.runner, session.resources, (guard.STATE_DIR,), _places(session, facts), but=session.work_dir
    )
    for line in restored:
        session.frontend.emit(Notice(level="info", message=f"put back after a killed run: {line}"))
    for line in failed:
        session.frontend.emit(Notice(level="warning", message=f"not put back after a killed run: {line}"))


def _places(session: Session, facts: Facts) -> dict[str, Place]:
    """Return where each device identity is now, and why it must not be written to.

    Among the session's own disks where it has some: a clone elsewhere on the host does not matter.
    """
    named = set(session.disks)
    devices = [d for d in facts.devices if not named or {d.path, d.disk} & named]
    count = Counter(device.id for device in devices)
    return {
        device.id: Place(
            path=device.path,
            type=device.content.type if device.content is not None else "",
            busy=_why_busy(device, count[device.id]),
        )
        for device in devices
    }


def _why_busy(device: BlockDevice, count: int) -> str:
    if count > 1:
        return f"{count} devices here carry the identity {device.id}; leave one of them attached"
    if device.live_medium:
        return "it carries the rescue system"
    return "it is in use" if device.mounts or device.held_by else ""
