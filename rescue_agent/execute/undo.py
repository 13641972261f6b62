# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting back what a run changed: files from their saved copies, checkers' writes from undo files.

In reverse order, on the device with the recorded identity wherever it is now, and only where the
run's own result still lies: what somebody changed since is left alone and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rescue_agent.errors import MountFailed, RescueError
from rescue_agent.execute.journal import JOURNAL_NAME, device_identities, read_journal
from rescue_agent.execute.saving import digest_at, former_digest, restore
from rescue_agent.model.operation import Run
from rescue_agent.model.run import Looked, OperationRecord, Record, Saved
from rescue_agent.system import mounts
from rescue_agent.system.guard import RUN_DIR
from rescue_agent.system.resources import Resources
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY, Runner

ALREADY = "it is as it was before the run"
CHANGED = "it was changed since"


class Place(NamedTuple):
    """Where a device identity is found now. ``busy``: why it must not be written to, or empty."""

    path: str
    type: str
    busy: str = ""


class Undone(NamedTuple):
    """Sentences on what was put back, and on what was left as it is and why."""

    restored: tuple[str, ...]
    refused: tuple[str, ...]


class Restorer:
    """Mounts the patient's filesystems by identity, as needed, and puts saved states back."""

    def __init__(self, runner: Runner, resources: Resources, places: Mapping[str, Place]) -> None:
        self._runner = runner
        self._resources = resources
        self._places = places
        self._mark = resources.mark()
        self._mounted: dict[tuple[str, str], str] = {}

    def put_back(self, saved: Saved, saved_dir: Path) -> str:
        """Put one saved state back; return an empty string, or why it was left alone.

        ``ALREADY``: nothing was to be done. ``CHANGED``: it is not what the run put there.
        """
        try:
            with TargetRoot(self._mount(saved)) as root:
                path = _below(saved.path, saved.mount_point)
                lies_there = digest_at(root, path)
                if saved.kind != "metadata" and lies_there == former_digest(saved, saved_dir):
                    return ALREADY
                if lies_there != saved.sha256_after:
                    return CHANGED
                restore(root, saved, saved_dir, path)
        except (RescueError, OSError) as error:
            return str(error)
        return ""

    def release(self) -> tuple[str, ...]:
        """Unmount everything again; return what would not."""
        self._mounted.clear()
        return self._resources.release_to(self._mark)

    def _mount(self, saved: Saved) -> str:
        key = (saved.device, saved.options)
        if key not in self._mounted:
            place = self._places.get(saved.device)
            if place is None:
                raise MountFailed(
                    f"no device here is {saved.device}", hint="attach the disk, or name its image"
                )
            if place.busy:
                raise MountFailed(f"{place.path} is not written to: {place.busy}")
            target = RUN_DIR / "undo" / str(len(self._mounted))
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._resources.taking("mount", str(target), ("umount", "--", str(target))) as taken:
                mounts.mount(self._runner, place.path, str(target), place.type, saved.options)
                taken.release = lambda: mounts.release(self._runner, str(target))
            self._mounted[key] = str(target)
        return self._mounted[key]


def _below(path: str, mount_point: str) -> str:
    """Return a path of the patient as a path on its own filesystem."""
    return path if mount_point == "/" else path.removeprefix(mount_point.rstrip("/")) or "/"


def undo(runner: Runner, resources: Resources, run_dir: Path, places: Mapping[str, Place]) -> Undone:
    """Take back the run in ``run_dir``, newest change first. Raises DocumentError without a journal.

    ``places``: where each ``BlockDevice.id`` of this machine is now.
    """
    records = read_journal(run_dir / JOURNAL_NAME)
    restored: list[str] = []
    refused: list[str] = []
    restorer = Restorer(runner, resources, places)
    for record in reversed(records):
        if isinstance(record, Saved):
            what = f"{record.path} on {record.device}"
            reason = restorer.put_back(record, run_dir / "saved")
        elif inverse := _inverse_of(record):
            refused += restorer.release()
            what = " ".join(inverse)
            reason = _run_inverse(runner, inverse, _identities(run_dir, records), places)
        else:
            continue
        if reason == ALREADY:
            continue
        if reason:
            refused.append(f"{what}: {reason}")
        else:
            restored.append(what)
    refused += restorer.release()
    return Undone(tuple(restored), tuple(refused))


def _inverse_of(record: Record) -> tuple[str, ...]:
    if isinstance(record, OperationRecord) and isinstance(record.operation, Run) and record.state != "intent":
        return record.operation.inverse
    return ()


def _identities(run_dir: Path, records: tuple[Record, ...]) -> dict[str, str]:
    known: dict[str, str] = {}
    for record in records:
        if isinstance(record, Looked):
            known |= device_identities(run_dir, record.file)
    return known


def _run_inverse(
    runner: Runner, argv: tuple[str, ...], identities: Mapping[str, str], places: Mapping[str, Place]
) -> str:
    """Run an inverse command with today's device names; return why it did not work, or nothing."""
    words = []
    for word in argv:
        if word not in identities:
            words.append(word)
            continue
        place = places.get(identities[word])
        if place is None:
            return f"no device here is {identities[word]}"
        if place.busy:
            return f"{place.path} is not written to: {place.busy}"
        words.append(place.path)
    done = runner.run(words, ok=ANY, timeout_s=3600, finish_when_cancelled=True)
    said = " ".join((done.stdout + done.stderr).split())
    if done.exit_code != 0 or "ncomplete" in said:  # e2undo says "Incomplete undo record" and exits 0
        return f"it ended with {done.exit_code}: {said[-300:]}"
    return ""
