# SPDX-License-Identifier: GPL-3.0-or-later
"""Releasing what a killed run left behind, by its journal.

Mounts are gone with the run's namespace. What outlives it are loop devices, image exports, storage
layers, the read-only flag of devices that were looked at, and files that were shown to the patient
for the time of a stage only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from msgspec.structs import replace

from rescue_agent.errors import DocumentError, RescueError
from rescue_agent.execute.journal import JOURNAL_NAME, Journal, beginning, has_ended, read_journal, unreleased
from rescue_agent.execute.undo import ALREADY, CHANGED, Place, Restorer
from rescue_agent.model.document import printable
from rescue_agent.model.operation import TARGET_ROOT, Mount
from rescue_agent.model.run import Acquired, OperationRecord, Record, RunEnded, Saved
from rescue_agent.system import mounts, protection
from rescue_agent.system.images import loops_of
from rescue_agent.system.resources import Resources, now
from rescue_agent.system.runner import ANY, Runner

_EXIT_KILLED = 4


class Cleaned(NamedTuple):
    """Sentences on what was released, and on what is still held and why."""

    released: tuple[str, ...]
    leaks: tuple[str, ...]


def cleanup(
    runner: Runner, state_dirs: tuple[Path, ...], places: Mapping[str, Place], *, but: Path
) -> Cleaned:
    """Finish every run below ``state_dirs`` that never ended, ``but`` the caller's own, who holds the lock.

    ``places``: where each ``BlockDevice.id`` is now, to put files of the patient back; what lies on
    a disk that is not here stays on record and is put back by the next repair of that disk.
    """
    released = [f"{device} is writable again" for device in protection.lift_left_behind()]
    leaks: list[str] = []
    unfinished: list[tuple[Path, tuple[Record, ...]]] = []
    for run_dir in _run_dirs(state_dirs, but):
        try:
            records = read_journal(run_dir / JOURNAL_NAME)
        except DocumentError as error:
            leaks.append(str(error))
            continue
        if unreleased(records) or not has_ended(records):
            unfinished.append((run_dir, records))
            released += _end_orphans(records, run_dir.name)
    # First the files: the killed run's own loop device may be the way to their disk.
    restored, waiting = put_back_held(runner, Resources(), state_dirs, places, but=but)
    for run_dir, records in unfinished:
        journal = Journal.reopen(run_dir)
        try:
            for thing in unreleased(records):
                if thing.kind == "file":
                    continue
                problem = _release(runner, thing)
                if problem:
                    leaks.append(problem)
                elif problem is not None:
                    released.append(f"{thing.what} of run {run_dir.name}")
                _settle(journal, thing, "leaked" if problem else "released")
            if not has_ended(records):
                journal.append(
                    RunEnded(time=now(), exit_code=_EXIT_KILLED, message="killed; cleaned up later")
                )
        finally:
            journal.close()
    return Cleaned((*released, *restored), (*leaks, *waiting))


def put_back_held(
    runner: Runner,
    resources: Resources,
    state_dirs: tuple[Path, ...],
    places: Mapping[str, Place],
    *,
    but: Path,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put back files that killed runs had replaced for the time of a stage only, where their disk is here.

    Returns what was put back, and what could not be although the disk is here.
    """
    restored: list[str] = []
    failed: list[str] = []
    for run_dir in _run_dirs(state_dirs, but):
        try:
            records = read_journal(run_dir / JOURNAL_NAME)
        except DocumentError:
            continue
        held = [(thing, _saved_for(thing, records)) for thing in unreleased(records) if thing.kind == "file"]
        wanted = [(thing, saved) for thing, saved in held if saved is not None and saved.device in places]
        if not wanted:
            continue
        restorer = Restorer(runner, resources, places)
        journal = Journal.reopen(run_dir)
        try:
            for thing, saved in wanted:
                reason = restorer.put_back(saved, run_dir / "saved")
                if reason in ("", ALREADY, CHANGED):
                    restored.append(f"{saved.path} on {places[saved.device].path}, as it was before")
                    _settle(journal, thing, "released")
                else:
                    failed.append(f"{saved.path} on {places[saved.device].path}: {reason}")
            failed += restorer.release()
        finally:
            journal.close()
    return tuple(restored), tuple(failed)


def _run_dirs(state_dirs: tuple[Path, ...], but: Path) -> list[Path]:
    found = (path.parent for folder in state_dirs for path in folder.glob(f"runs/*/{JOURNAL_NAME}"))
    return sorted(path for path in found if path != but)


def _end_orphans(records: tuple[Record, ...], run: str) -> list[str]:
    """End what a killed run had started: a package command can outlive the agent, and its mount
    namespace, with the patient mounted in it, lives as long as the command."""
    began = beginning(records)
    if began is None or not began.namespace or psutil.pid_exists(began.pid):
        return []
    mounted = {
        record.operation.source
        for record in records
        if isinstance(record, OperationRecord) and isinstance(record.operation, Mount)
    }
    ended = mounts.end_processes_of(began.namespace, TARGET_ROOT, mounted)
    return [f"process {stray.pid} ({printable(stray.command)}) of run {run}" for stray in ended]


def _settle(journal: Journal, thing: Acquired, state: Literal["released", "leaked"]) -> None:
    journal.append(replace(thing, time=now(), state=state))


def _saved_for(thing: Acquired, records: tuple[Record, ...]) -> Saved | None:
    """Return the former state of a held file: the first that was saved after the intent to hold it."""
    after = False
    for record in records:
        if isinstance(record, Acquired) and record.key == thing.key:
            after = True
        elif after and isinstance(record, Saved) and record.path == thing.what:
            return record
    return None


def _release(runner: Runner, thing: Acquired) -> str | None:
    """Release one thing; return an empty string, why it would not, or None when it was gone already."""
    try:
        match thing.kind:
            case "mount":
                if not mounts.mounts_below(thing.what):
                    return None
                mounts.release_tree(runner, thing.what)
            case "export":
                return _end_export(runner, thing)
            case "loop" if thing.what not in loops_of(thing.source):
                return None
            case "loop" | "activation":
                if not thing.release:
                    return None
                done = runner.run(thing.release, ok=ANY, ignore_cancel=True)
                if done.exit_code != 0 and Path(thing.what).exists():
                    return f"{thing.what}: {' '.join(done.stderr.split())}"
                return "" if done.exit_code == 0 else None
            case _:
                return None
    except (RescueError, OSError) as error:
        return f"{thing.what}: {error}"
    return ""


def _end_export(runner: Runner, thing: Acquired) -> str | None:
    """End the daemon of an image export, when the process of that number still is that daemon."""
    ended = False
    try:
        process = psutil.Process(thing.pid) if thing.pid else None
        if process is not None and any(thing.what in word for word in process.cmdline()):
            os.kill(thing.pid, signal.SIGTERM)
            process.wait(10)
            ended = True
    except psutil.Error:
        pass
    if mounts.mounts_below(thing.what):
        mounts.release_tree(runner, thing.what)
        ended = True
    Path(thing.what).unlink(missing_ok=True)
    return "" if ended else None
