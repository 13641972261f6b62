# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed systems: each is mounted for looking, with its own other filesystems below it.

Nothing of a patient is started, and nothing is written: every mount is read-only without log replay.
What lies behind a filesystem that cannot be mounted is not reported as missing, it is not reported.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

import msgspec

from rescue_agent.errors import Interrupted, MountFailed, RescueError, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import (
    BlockDevice,
    ElfFault,
    Filesystem,
    FstabEntry,
    Kernel,
    PackageChange,
    PackageDatabase,
    ProbeError,
    Program,
    System,
    SystemMount,
)
from rescue_agent.model.families import every_family
from rescue_agent.model.logs import Log
from rescue_agent.model.run import Progressed
from rescue_agent.probe import fstab, hibernation, installed, os_release, patient_logs
from rescue_agent.probe.closure import Closures
from rescue_agent.probe.families import FindOwners, Level, PackageLook, find_probe
from rescue_agent.probe.history import probe_changes
from rescue_agent.probe.logs import Scan
from rescue_agent.system import mounts
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

MAX_MOUNTS = 32
SUBVOLUMES = ("@", "@rootfs", "root")
"""Where Ubuntu, Debian and Fedora put the root, when the default subvolume does not hold it."""

_PROGRAM_FOLDERS = (
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64"),
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc"),
)
"""What programs and their libraries are looked for in; unseen, nothing can be said about them."""
_DATABASE_FOLDERS = tuple(folder for family in every_family() for folder in family.database_folders)
_MOUNTED_ON_DEMAND = ("/boot", "/efi", "/usr")
"""``noauto`` there only means that the machine mounts it later or by automount."""

T = TypeVar("T")
Progress = Callable[[Progressed], None]


def probe_systems(
    runner: Runner,
    devices: tuple[BlockDevice, ...],
    filesystems: tuple[Filesystem, ...],
    *,
    packages_dir: str,
    verify: str,
    mount_dir: Path,
    progress: Progress,
    ask_dir: str = "",
    scan: Scan | None = None,
) -> Installed:
    """Return the systems installed on the readable ``filesystems``, and what could not be found out.

    ``verify``: ``none``, ``existence`` or ``full`` (see probe.families.PackageLook). ``mount_dir``: where the
    filesystems are mounted, in the private namespace. ``ask_dir``: a folder for package lists; the
    sources of a system that needs mending are asked what they offer (see probe.families). ``scan``
    reads the logs that lie on them. Raises Interrupted.
    """
    look = _Look(
        runner, devices, filesystems, packages_dir, cast(Level, verify), mount_dir, progress, ask_dir, scan
    )
    live = {device.path for device in devices if device.live_medium}
    seen: set[str] = set()
    for filesystem in filesystems:
        # Every member of a btrfs filesystem carries its UUID; one of them shows it all.
        twin = filesystem.type == "btrfs" and filesystem.uuid in seen
        if filesystem.readable and filesystem.device not in live and not twin:
            seen.add(filesystem.uuid)
            look.at(filesystem)
    return Installed(tuple(look.systems), tuple(look.logs), tuple(look.errors))


class Installed(NamedTuple):
    """What the readable filesystems hold."""

    systems: tuple[System, ...] = ()
    logs: tuple[Log, ...] = ()
    errors: tuple[ProbeError, ...] = ()


class _Entry(NamedTuple):
    """A filesystem of the patient that belongs below its root."""

    mount: SystemMount
    filesystem: Filesystem | None


class _Look:
    def __init__(
        self,
        runner: Runner,
        devices: tuple[BlockDevice, ...],
        filesystems: tuple[Filesystem, ...],
        packages_dir: str,
        level: Level,
        mount_dir: Path,
        progress: Progress,
        ask_dir: str,
        scan: Scan | None,
    ) -> None:
        self._runner = runner
        self._devices = devices
        self._filesystems = {f.device: f for f in filesystems}
        self._packages_dir = packages_dir
        self._level: Level = level
        self._mount_dir = mount_dir
        self._progress = progress
        self._ask_dir = ask_dir
        self._scan = scan
        self.systems: list[System] = []
        self.logs: list[Log] = []
        self.errors: list[ProbeError] = []

    def at(self, filesystem: Filesystem) -> None:
        """Look for a system on one filesystem."""

        def look() -> None:
            found = self._look_in(filesystem, "")
            if not found and filesystem.type == "btrfs":
                for name in self._subvolumes(filesystem):
                    self._look_in(filesystem, name)

        self._guarded("systems", filesystem.device, look, None)

    # --- mounting ----------------------------------------------------------------------------

    @contextmanager
    def _mounted(self, filesystem: Filesystem, option: str = "") -> Iterator[Path]:
        place = self._mount_dir / ("system-" + printable(filesystem.device).strip("/").replace("/", "-"))
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._mount(filesystem, str(place), option)
            try:
                yield place
            finally:
                mounts.release_tree(self._runner, str(place))
        finally:
            _remove_folder(place)

    def _mount(self, filesystem: Filesystem, target: str, option: str) -> None:
        quiet = mounts.READ_ONLY_OPTIONS.get(filesystem.type, "ro")
        options = ",".join(part for part in (quiet, mounts.SAFE_OPTIONS, option) if part)
        mounts.mount(self._runner, filesystem.device, target, filesystem.type, options)

    def _subvolumes(self, filesystem: Filesystem) -> tuple[str, ...]:
        with self._mounted(filesystem, "subvolid=5") as place, TargetRoot(place) as top:
            names = [name for name in SUBVOLUMES if top.is_folder(f"/{name}")]
            found = []
            for name in names:
                with TargetRoot(place / name) as root:
                    if installed.is_system(root):
                        found.append(name)
        return tuple(found)

    def _look_in(self, filesystem: Filesystem, subvolume: str) -> bool:
        """Look at one root; return whether a system is there."""
        option = f"subvol={subvolume}" if subvolume else ""
        with self._mounted(filesystem, option) as place, TargetRoot(place) as root:
            if not installed.is_system(root):
                return False
            self.systems.append(self._system(filesystem, subvolume, root))
            return True

    # --- one system --------------------------------------------------------------------------

    def _system(self, filesystem: Filesystem, subvolume: str, root: TargetRoot) -> System:
        device = filesystem.device
        state, raw = _read_fstab(root)
        entries = fstab.resolve_entries(raw, self._devices, device)
        wanted = self._below(entries, raw, filesystem)
        hidden = self._mount_below(device, wanted, entries, root)
        release = os_release.read_os_release(root) or {}
        family = os_release.find_family(root, release)
        closures = Closures(root)
        programs_seen = not any(_overlap(point, _PROGRAM_FOLDERS) for point in hidden)
        init: Program | None = None
        tools: tuple[Program, ...] = ()
        kernels: tuple[Kernel, ...] = ()
        database: PackageDatabase | None = None
        native = ""
        if programs_seen:
            init = self._guarded("init", device, lambda: installed.probe_init(root, closures), init)
            tools = self._guarded(
                "tools", device, lambda: installed.probe_tools(root, closures, family), tools
            )
        probe = find_probe(family)
        if probe is not None and not any(_overlap(point, probe.folders) for point in hidden):
            with self._package_look(device, root, release, hidden) as look:
                packages = self._guarded("packages", device, lambda: probe.look(look), None)
                if packages is not None:
                    native = packages.architecture
                    database = _visible(packages.fact, hidden)
                    owners = packages.find_owners
                    init, tools = self._guarded(
                        "packages", device, lambda: _with_owners(owners, init, tools), (init, tools)
                    )
        if "/boot" not in hidden:
            kernels = self._guarded("kernels", device, lambda: installed.probe_kernels(root), kernels)
        changes: tuple[PackageChange, ...] = ()
        traces = patient_logs.Found()
        name = self._id(filesystem, subvolume)
        machine_id = installed.probe_machine_id(root)
        if not any(_overlap(point, ("/var/log",)) for point in hidden):
            changes = self._guarded("history", device, lambda: probe_changes(root), changes)
            traces = self._traces(root, name, device, machine_id)
        return System(
            id=name,
            device=device,
            subvolume=subvolume,
            os_id=printable(release.get("ID", ""))[:255],
            os_version=printable(release.get("VERSION_ID", ""))[:255],
            name=printable(release.get("PRETTY_NAME") or release.get("NAME") or "")[:255],
            family=family,
            package_manager=os_release.find_manager(root, family),
            architecture=native or installed.find_architecture(closures),
            hostname=installed.first_line(root, "/etc/hostname"),
            machine_id=machine_id,
            fstab=entries,
            fstab_state=state,
            mounts=tuple(entry.mount for entry in wanted),
            kernels=kernels,
            init=init,
            tools=tools,
            database=database,
            hibernated=self._guarded(
                "hibernation",
                device,
                lambda: hibernation.is_hibernated(root, entries, self._devices, device),
                False,
            ),
            network_configured=installed.is_network_configured(root),
            resolv_conf=installed.probe_resolv_conf(root),
            file_contexts=installed.probe_file_contexts(root),
            unusual=installed.probe_unusual(root),
            changes=changes,
            last_start=traces.starts.last_start,
            came_up=traces.starts.came_up,
            dumps=traces.dumps,
        )

    def _traces(self, root: TargetRoot, name: str, device: str, machine_id: str) -> patient_logs.Found:
        """Read the system's logs."""
        scan = self._scan
        found = patient_logs.Found()
        if scan is None:
            return found
        self._progress(Progressed(task=f"reading the logs on {device}"))
        found = self._guarded(
            "logs",
            device,
            lambda: patient_logs.probe_patient_logs(
                self._runner, root, scan, system=name, device=device, machine_id=machine_id
            ),
            found,
        )
        self.logs += found.logs
        self.errors += found.errors
        return found

    def _id(self, filesystem: Filesystem, subvolume: str) -> str:
        name = filesystem.uuid or filesystem.device
        taken = {system.id for system in self.systems}
        if name in taken:  # another subvolume, or the clone of a disk
            name = f"{name}:{subvolume}" if subvolume else filesystem.device
        return name

    def _below(
        self, entries: tuple[FstabEntry, ...], raw: tuple[fstab.RawEntry, ...], root: Filesystem
    ) -> list[_Entry]:
        """Return the patient's own other filesystems, upper mount points first."""
        found: dict[str, _Entry] = {}
        for entry, original in zip(entries, raw, strict=True):
            point = posixpath.normpath(entry.mount_point) if entry.mount_point.startswith("/") else ""
            if not entry.device or entry.type == "swap" or point in ("", "/", "//") or point in found:
                continue
            if entry.mount_point != original.mount_point or ".." in point.split("/"):
                continue  # nothing is mounted at a place that cannot even be printed
            if "noauto" in entry.options and not _overlap(point, _MOUNTED_ON_DEMAND):
                continue
            filesystem = self._filesystems.get(entry.device)
            if filesystem is root and not any(o.startswith("subvol") for o in entry.options):
                continue
            kind = filesystem.type if filesystem and filesystem.type else entry.type
            mount = SystemMount(device=entry.device, mount_point=point, type=kind, options=entry.options)
            found[point] = _Entry(mount, filesystem)
        return sorted(found.values(), key=lambda e: e.mount.mount_point.count("/"))[:MAX_MOUNTS]

    def _mount_below(
        self, device: str, wanted: list[_Entry], entries: tuple[FstabEntry, ...], root: TargetRoot
    ) -> tuple[str, ...]:
        """Mount them; return the mount points behind which nothing can be seen."""
        hidden = [
            entry.mount_point
            for entry in entries
            if fstab.names_device(entry.spec) and not entry.device and entry.type != "swap"
            if entry.mount_point.startswith("/") and entry.mount_point != "/"
        ]
        for point in hidden:
            if _overlap(point, (*_PROGRAM_FOLDERS, *_DATABASE_FOLDERS)):
                message = f"{point} is on a device that is not here, so what lies there was not looked at"
                self._error("systems", device, message)
        for mount, filesystem in wanted:
            point = mount.mount_point
            reason = ""
            if any(_overlap(point, (other,)) and point != other for other in hidden):
                reason = "what it lies on cannot be read"
            elif filesystem is None or not filesystem.readable:
                reason = f"{mount.device} cannot be read"
            else:
                try:
                    chosen = [o for o in mount.options if o.startswith(("subvol=", "subvolid="))]
                    self._mount(filesystem, root.mount_point(point), ",".join(chosen))
                except (OSError, UnsafePath, MountFailed) as error:
                    reason = printable(str(error))
            if reason:
                hidden.append(point)
                self._error("systems", device, f"{point} was not looked at: {reason}")
        return tuple(hidden)

    # --- packages ----------------------------------------------------------------------------

    @contextmanager
    def _package_look(
        self, device: str, root: TargetRoot, release: Mapping[str, str], hidden: tuple[str, ...]
    ) -> Iterator[PackageLook]:
        """Give what the look at the packages may use."""
        level: Level = "none" if any(_overlap(p, _PROGRAM_FOLDERS) for p in hidden) else self._level
        work = self._mount_dir / "packages"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, mode=0o700)
        try:
            yield PackageLook(
                runner=self._runner,
                root=root,
                device=device,
                level=level,
                packages_dir=self._packages_dir,
                ask_dir=self._ask_dir,
                work_dir=work,
                release=release,
                report=self._reporter(),
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _reporter(self) -> Callable[[str, float], None]:
        last = ("", -1.0)

        def report(task: str, fraction: float) -> None:
            nonlocal last
            if task != last[0] or fraction >= 1.0 or fraction - last[1] >= 0.01:
                last = (task, fraction)
                self._progress(Progressed(task=task, fraction=fraction))

        return report

    # --- what goes wrong ---------------------------------------------------------------------

    def _guarded(self, probe: str, subject: str, action: Callable[[], T], otherwise: T) -> T:
        """Let a part of the look fail by itself: its error is a fact, the rest goes on."""
        try:
            return action()
        except Interrupted:
            raise
        except RescueError as error:
            self._error(probe, subject, error.message, error.hint)
        except (OSError, ValueError, RecursionError) as error:
            self._error(probe, subject, f"the {probe} on {subject} cannot be read: {error}")
        return otherwise

    def _error(self, probe: str, subject: str, message: str, hint: str = "") -> None:
        self.errors.append(
            ProbeError(probe=probe, subject=subject, message=printable(message), hint=printable(hint))
        )


def _read_fstab(
    root: TargetRoot,
) -> tuple[Literal["ok", "missing", "empty", "unreadable"], tuple[fstab.RawEntry, ...]]:
    try:
        text = root.read_text("/etc/fstab", fstab.FSTAB_LIMIT)
    except FileNotFoundError:
        return "missing", ()
    except (OSError, UnsafePath):
        return "unreadable", ()
    if text and not text.strip("\0\n "):
        return ("unreadable" if "\0" in text else "empty"), ()
    entries = fstab.parse_fstab(text)
    return ("ok" if entries else "empty"), entries


def _visible(fact: PackageDatabase, hidden: tuple[str, ...]) -> PackageDatabase:
    """Return the fact without damage at places that nobody could look at."""
    seen = tuple(d for d in fact.verification.damaged if not any(_overlap(d.path, (p,)) for p in hidden))
    return msgspec.structs.replace(
        fact, verification=msgspec.structs.replace(fact.verification, damaged=seen)
    )


def _with_owners(
    find_owners: FindOwners, init: Program | None, tools: tuple[Program, ...]
) -> tuple[Program | None, tuple[Program, ...]]:
    """Return the programs with each fault's file found in the package lists, by whom and where."""
    programs = [*((init,) if init else ()), *tools]
    wanted = {_file_of(fault) for program in programs for fault in program.faults}
    owners = find_owners(wanted) if wanted else {}

    def named(program: Program) -> Program:
        faults = []
        for fault in program.faults:
            package, path = owners.get(_file_of(fault), ("", ""))
            expected = fault.expected or (path if fault.kind == "missing-library" else "")
            faults.append(
                msgspec.structs.replace(fault, package=printable(package), expected=printable(expected))
            )
        return msgspec.structs.replace(program, faults=tuple(faults))

    return (named(init) if init else None), tuple(named(tool) for tool in tools)


def _file_of(fault: ElfFault) -> str:
    return fault.expected or fault.path


def _overlap(path: str, folders: tuple[str, ...]) -> bool:
    """Return whether ``path`` is, lies below, or lies above one of ``folders``."""
    return any(
        path == folder or path.startswith(folder + "/") or folder.startswith(path + "/") for folder in folders
    )


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        pass
