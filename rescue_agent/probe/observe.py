# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at the machine. It never writes, and what cannot be found out is a fact of its own."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import rescue_agent
from rescue_agent.errors import Interrupted, MountFailed, RescueError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import BlockDevice, Facts, Filesystem, Health, Image, ProbeError
from rescue_agent.model.run import Progressed
from rescue_agent.probe.block import probe_blocks, select_disks, with_heads
from rescue_agent.probe.filesystem import may_hold_filesystem, probe_filesystem, user_of
from rescue_agent.probe.health import probe_health, probe_kernel_log
from rescue_agent.probe.logs import ProgressSink, Scan, silent
from rescue_agent.probe.rescue import probe_rescue
from rescue_agent.system.guard import RUN_DIR
from rescue_agent.system.protection import lift_left_behind, write_protected
from rescue_agent.system.resources import now
from rescue_agent.system.runner import Runner

if TYPE_CHECKING:
    from rescue_agent.probe.systems import Installed

PROBE_DIR = RUN_DIR / "probe"
"""Where a filesystem is mounted to be looked at."""

TASK = "looking at the disks"


class Request(NamedTuple):
    """What to look at, and how closely."""

    work_dir: str
    """Folder of the run on the rescue system; its room is a fact."""
    disks: tuple[str, ...] = ()
    """Block devices; a partition stands for its disk. Empty: the images, or without any, every
    disk that may be a patient."""
    images: Mapping[str, Image] = {}
    """Attached loop device → the image that it shows."""
    packages_dir: str = ""
    verify: Literal["none", "existence", "full"] = "full"
    check_filesystems: bool = True
    ask_sources: bool = False
    """Ask the patient's package sources, over the network, what they offer of what it needs."""
    scan: Scan | None = None
    """Reads the logs that lie on the patient; None: they are left alone."""


class _Disk(NamedTuple):
    """What one disk brought."""

    devices: tuple[BlockDevice, ...]
    filesystems: tuple[Filesystem, ...]
    errors: tuple[ProbeError, ...]


def observe(runner: Runner, request: Request, *, progress: ProgressSink = silent) -> Facts:
    """Return the facts about the machine. Nothing is written to any disk.

    The devices are write-protected meanwhile, in the kernel. Different disks are looked at side by
    side, one disk in sequence. Raises UsageError when a disk that was asked for is not there,
    ToolMissing without blkid, and Interrupted; everything else that goes wrong is a ProbeError in
    the facts.
    """
    lift_left_behind()
    blocks = probe_blocks(runner, request.images, removable_too=request.disks)
    disks = select_disks(blocks.devices, request.disks or tuple(request.images))
    by_disk = {disk: [d for d in blocks.devices if d.disk == disk] for disk in disks}
    looker = _Looker(runner, request, progress, by_disk)
    with ExitStack() as stack:
        protection_errors = _protect(stack, by_disk)
        with ThreadPoolExecutor(max(1, len(disks))) as pool:
            results = dict(zip(disks, pool.map(looker.look_at, disks), strict=True))
        seen = {d.path: d for result in results.values() for d in result.devices}
        devices = tuple(seen.get(d.path, d) for d in blocks.devices)
        filesystems = tuple(f for result in results.values() for f in result.filesystems)
        installed = _systems(runner, request, devices, filesystems, progress)
    errors = [*blocks.errors, *protection_errors, *(e for r in results.values() for e in r.errors)]
    health, health_errors = _health(runner, by_disk)
    return Facts(
        agent_version=rescue_agent.__version__,
        created=now(),
        rescue=probe_rescue(runner, request.work_dir),
        disks=disks,
        devices=devices,
        containers=blocks.containers,
        filesystems=filesystems,
        systems=installed.systems,
        health=health,
        logs=installed.logs,
        errors=(*errors, *health_errors, *installed.errors),
    )


def _protect(stack: ExitStack, by_disk: Mapping[str, Sequence[BlockDevice]]) -> list[ProbeError]:
    """Write-protect what is going to be checked and mounted, for as long as it is looked at.

    What somebody else uses is not touched. What cannot be protected will not be mounted either.
    """
    errors = []
    for device in (d for devices in by_disk.values() for d in devices):
        if may_hold_filesystem(device) and not user_of(device):
            try:
                stack.enter_context(write_protected(device.path))
            except MountFailed as error:
                errors.append(ProbeError(probe="filesystem", subject=device.path, message=error.message))
    return errors


class _Looker:
    """Looks at the disks; each call of ``look_at`` runs in a thread of its own."""

    def __init__(
        self,
        runner: Runner,
        request: Request,
        progress: ProgressSink,
        by_disk: Mapping[str, Sequence[BlockDevice]],
    ) -> None:
        self._runner = runner
        self._request = request
        self._progress = progress
        self._by_disk = by_disk
        self._lock = threading.Lock()
        everything = [d for devices in by_disk.values() for d in devices]
        self._total = sum(1 for d in everything if may_hold_filesystem(d))
        self._done = 0
        self._same_btrfs = Counter(
            d.content.uuid for d in everything if d.content is not None and d.content.type == "btrfs"
        )

    def look_at(self, disk: str) -> _Disk:
        devices, errors = with_heads(self._by_disk[disk])
        filesystems = []
        collected = list(errors)
        for device in devices:
            if not may_hold_filesystem(device):
                continue
            self._tell(device.path)
            found, problems = self._filesystem(device)
            collected += problems
            if found is not None:
                filesystems.append(found)
            self._tell(device.path, ended=True)
        return _Disk(devices, tuple(filesystems), tuple(collected))

    def _filesystem(self, device: BlockDevice) -> tuple[Filesystem | None, tuple[ProbeError, ...]]:
        content = device.content
        unique = content is None or content.type != "btrfs" or self._same_btrfs[content.uuid] == 1
        try:
            return probe_filesystem(
                self._runner,
                device,
                PROBE_DIR / _folder_name(device.path),
                check=self._request.check_filesystems,
                may_mount=unique,
            )
        except Interrupted:
            raise
        except RescueError as error:
            problem = ProbeError(
                probe="filesystem", subject=device.path, message=printable(error.message), hint=error.hint
            )
            return None, (problem,)

    def _tell(self, device: str, *, ended: bool = False) -> None:
        with self._lock:
            self._done += ended
            fraction = self._done / self._total if self._total else 1.0
            self._progress(Progressed(task=TASK, fraction=fraction, detail=device))


def _folder_name(device: str) -> str:
    return printable(device.removeprefix("/dev/")).replace("/", "-")


def _health(
    runner: Runner, by_disk: Mapping[str, Sequence[BlockDevice]]
) -> tuple[tuple[Health, ...], tuple[ProbeError, ...]]:
    """Return the health of the disks; after the checks, so that the errors which those met are seen."""
    log, errors = probe_kernel_log()
    found = []
    for disk, devices in by_disk.items():
        whole = next((d for d in devices if d.path == disk), None)
        if whole is not None:
            names = [os.path.basename(os.path.realpath(d.path)) for d in devices]
            found.append(probe_health(runner, whole, names, log))
    return tuple(found), errors


def _systems(
    runner: Runner,
    request: Request,
    devices: tuple[BlockDevice, ...],
    filesystems: tuple[Filesystem, ...],
    progress: ProgressSink,
) -> Installed:
    from rescue_agent.probe.systems import Installed, probe_systems

    if not any(f.readable for f in filesystems):
        return Installed()
    return probe_systems(
        runner,
        devices,
        filesystems,
        packages_dir=request.packages_dir,
        verify=request.verify,
        mount_dir=Path(PROBE_DIR),
        ask_dir=request.work_dir if request.ask_sources else "",
        progress=progress,
        scan=request.scan,
    )
