# SPDX-License-Identifier: GPL-3.0-or-later
"""What was seen on the machine. One ``Facts`` document can be replayed with no disk at all.

Device paths (``/dev/…``) join the facts of one document together; they are not identities. What
must be found again later carries an identity: partition UUID, filesystem UUID, WWN, image path.
Text that comes from a disk is already safe to print (see ``document.printable``).
"""

from __future__ import annotations

from typing import Literal

from rescue_agent.model.document import Model
from rescue_agent.model.logs import Log

FACTS_SCHEMA: Literal["rescue-agent/facts/1"] = "rescue-agent/facts/1"

DeviceKind = Literal["disk", "partition", "loop", "dm", "md", "rom", "other"]


class Mount(Model, frozen=True, kw_only=True):
    """One line of somebody's mountinfo (proc_pid_mountinfo(5))."""

    source: str
    target: str
    type: str
    options: str = ""


class Holder(Model, frozen=True, kw_only=True):
    """A process that keeps a device busy, and what it has open."""

    pid: int
    command: str
    path: str


class Partition(Model, frozen=True, kw_only=True):
    """An entry of a partition table. ``start_bytes`` and ``size_bytes`` are on the whole disk."""

    number: int
    start_bytes: int
    size_bytes: int
    type: str = ""
    """GPT type GUID, or the DOS type byte as ``0x83``."""
    uuid: str = ""
    """PARTUUID; for a DOS table ``<disk id>-<number>``."""
    name: str = ""


class Content(Model, frozen=True, kw_only=True):
    """What ``blkid -p`` says a device holds."""

    type: str
    """``ext4``, ``xfs``, ``swap``, ``swsuspend``, ``crypto_LUKS``, ``LVM2_member``, … or ``""``."""
    usage: str = ""
    """``filesystem``, ``raid``, ``crypto``, ``other``; ``ambivalent`` (with an empty type) when the
    device carries signatures that contradict each other."""
    uuid: str = ""
    label: str = ""
    version: str = ""


class Image(Model, frozen=True, kw_only=True):
    """The file that a loop device shows as a disk."""

    path: str
    format: Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]


class BlockDevice(Model, frozen=True, kw_only=True):
    """A block device as the kernel shows it (sysfs) with what it holds."""

    path: str
    id: str
    """Identity that survives a reboot: ``partuuid:…``, ``wwn:…``, ``serial:…``, ``image:/…``,
    ``fsuuid:…``; ``path:/dev/…`` when nothing better is known."""
    kind: DeviceKind
    disk: str
    """Path of the whole disk that it lies on; its own path for a whole disk."""
    size_bytes: int
    parents: tuple[str, ...] = ()
    """Devices it is made of (a partition's disk, a volume's physical volumes)."""
    holders: tuple[str, ...] = ()
    """Devices stacked upon it (sysfs ``holders``)."""
    sector_bytes: int = 512
    read_only: bool = False
    removable: bool = False
    rotational: bool = False
    model: str = ""
    serial: str = ""
    wwn: str = ""
    table: Literal["", "gpt", "dos", "other"] = ""
    partition: Partition | None = None
    content: Content | None = None
    image: Image | None = None
    mounts: tuple[Mount, ...] = ()
    """Where it is mounted by anyone but this run."""
    held_by: tuple[Holder, ...] = ()
    """Processes that have it open for writing; process 0 is the kernel, with a use that nothing shows."""
    head_sha256: str = ""
    """SHA-256 of its first MiB (or all, when smaller): tells whether a plan still fits. Taken for
    whole disks and for everything that holds a filesystem; empty elsewhere."""
    live_medium: bool = False
    """It carries the rescue system that the agent runs on."""


class Container(Model, frozen=True, kw_only=True):
    """A device whose contents are reached only through another one."""

    device: str
    kind: Literal["luks", "lvm", "md", "bcache", "zfs", "other"]
    name: str = ""
    state: Literal["open", "locked", "inactive", "degraded", "unknown"] = "unknown"


class BackupSuperblock(Model, frozen=True, kw_only=True):
    """Where e2fsck can find a copy of a lost superblock: its ``-b`` and ``-B``."""

    block: int
    block_size: int


class Check(Model, frozen=True, kw_only=True):
    """What a filesystem's own checker said when it was asked to change nothing."""

    tool: str
    argv: tuple[str, ...]
    exit_code: int | None = None
    """None: it did not run or did not end."""
    verdict: Literal["clean", "needs-recovery", "damaged", "unrepairable", "unreadable", "unknown"]
    """``needs-recovery``: only a log replay is due. ``unrepairable``: the checker itself cannot
    work on it. ``unreadable``: the *medium* returned read errors. ``unknown``: see ``reason``."""
    reason: str = ""
    messages: tuple[str, ...] = ()
    """The decisive lines of its output, at most 20."""
    truncated: int = 0
    """How many more lines there were."""
    duration_s: float = 0.0


class Space(Model, frozen=True, kw_only=True):
    """Room on a filesystem, as statfs(2) gives it to root."""

    total_bytes: int
    free_bytes: int
    inodes_total: int = 0
    """0: the filesystem has no fixed number of inodes."""
    inodes_free: int = 0


class Filesystem(Model, frozen=True, kw_only=True):
    """A filesystem and the state it was found in; never mounted writable to find out."""

    device: str
    type: str
    state: Literal["clean", "dirty", "needs-recovery", "error", "damaged", "unknown"]
    """From the superblock and the check. ``dirty``: not unmounted cleanly. ``needs-recovery``: a
    journal or log waits for replay. ``error``: the kernel recorded errors in it. ``damaged``: the
    checker found faults, or the primary superblock is gone."""
    uuid: str = ""
    label: str = ""
    size_bytes: int = 0
    """The size that the filesystem believes it has; 0 when unknown."""
    block_size: int = 0
    check: Check | None = None
    primary_superblock: Literal["ok", "bad", "unknown"] = "unknown"
    backups: tuple[BackupSuperblock, ...] = ()
    recorded: tuple[str, ...] = ()
    """What its superblock tells of trouble: errors that the kernel noted, why it cannot be believed."""
    space: Space | None = None
    readable: bool = False
    """It could be mounted read-only without log replay."""
    read_error: str = ""


class FstabEntry(Model, frozen=True, kw_only=True):
    """A line of the patient's /etc/fstab (fstab(5)) and the device that it names here."""

    line: int
    spec: str
    mount_point: str
    type: str
    options: tuple[str, ...] = ()
    passno: int = 0
    device: str = ""
    """Path of the device that the entry resolves to; empty when none here fits."""


class Kernel(Model, frozen=True, kw_only=True):
    """One installed kernel: the files that belong to one release string."""

    release: str
    image: str = ""
    initramfs: str = ""
    modules: bool = False


class ElfFault(Model, frozen=True, kw_only=True):
    """Why the loader could not start a program (ld.so(8))."""

    kind: Literal[
        "missing",
        "not-executable",
        "not-elf",
        "truncated",
        "wrong-architecture",
        "missing-interpreter",
        "missing-library",
        "unreadable",
        "link-loop",
    ]
    path: str
    """The file that is at fault; for ``missing-library`` the soname, for ``missing-interpreter``
    the interpreter's path."""
    needed_by: str = ""
    expected: str = ""
    """For a missing library: the path at which it was last expected to lie, when known."""
    package: str = ""
    """The package that brings the file, as the database's file lists name it; empty when none does."""


class Program(Model, frozen=True, kw_only=True):
    """An executable of the patient with all that the loader needs to start it."""

    name: str
    """The path it is called by, ``/sbin/init``."""
    path: str = ""
    """The file that it leads to inside the patient."""
    objects: tuple[str, ...] = ()
    """Every file of its closure that was found: itself, interpreter, libraries."""
    faults: tuple[ElfFault, ...] = ()


class InstalledPackage(Model, frozen=True, kw_only=True):
    """A package that the patient's database knows."""

    name: str
    version: str
    architecture: str = ""
    state: str = "installed"
    """dpkg's third status word (dpkg-query(1)): ``installed``, ``unpacked``, ``half-configured``,
    ``half-installed``, ``triggers-pending``, …"""
    reinstall_required: bool = False
    essential: bool = False
    held: bool = False
    installed_bytes: int = 0
    """Its Installed-Size (deb-control(5)) in bytes; 0 when not known."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names by which package managers mean exactly this one: dpkg's two, and rpm's."""
        bare = self.version.rpartition(":")[2]
        return (self.name, f"{self.name}:{self.architecture}", f"{self.name}-{bare}.{self.architecture}")


class DamagedFile(Model, frozen=True, kw_only=True):
    """A packaged file that is not as its package left it."""

    path: str
    package: str
    """``name``, ``name:arch`` or ``name-version-release.arch``, as the database writes it; empty when
    no package owns it."""
    kind: Literal["missing", "changed", "empty", "wrong-type", "unreadable", "attributes"]
    """``attributes``: only its mode, owner or capabilities are others."""
    conffile: bool = False
    """A configuration file: the owner's change is kept, not damage (deb-conffiles(5))."""
    mode: int | None = None
    """The permissions that it is to have, when they are known: of a configuration file those that its owner
    has given it in place of the packaged ones; of another file the packaged ones."""
    uid: int | None = None
    gid: int | None = None


class DatabaseBackup(Model, frozen=True, kw_only=True):
    """An older copy of the package database."""

    path: str
    packages: int
    """How many packages it names; 0 when it cannot be parsed."""
    listed: int = 0
    """How many of the file lists on the disk belong to a package that it names as installed."""
    age_s: int = 0
    """Seconds between its modification and that of the newest file list."""


class Archive(Model, frozen=True, kw_only=True):
    """A package file at hand: in the patient's own cache or in a folder that the person named."""

    path: str
    """For the cache: the path inside the patient; for a folder: on the rescue system."""
    package: str
    version: str
    architecture: str
    origin: Literal["cache", "folder"]
    refused: str = ""
    """Why it is not used, though it is whole: ``is not signed by a key that the system trusts``."""


class Offer(Model, frozen=True, kw_only=True):
    """A version of a package that the patient's own sources offer now."""

    package: str
    version: str
    architecture: str


class Verification(Model, frozen=True, kw_only=True):
    """How far the packaged files were compared with the database's checksums."""

    level: Literal["none", "existence", "full"]
    files: int = 0
    packages: int = 0
    duration_s: float = 0.0
    damaged: tuple[DamagedFile, ...] = ()


class PackageDatabase(Model, frozen=True, kw_only=True):
    """The patient's package database and what it says."""

    manager: str
    """``dpkg``, ``rpm``, …"""
    state: Literal["ok", "missing", "empty", "damaged"]
    detail: str = ""
    format: str = ""
    """rpm: ``sqlite``, ``ndb`` or ``bdb``."""
    folder: str = ""
    """rpm: where it lies in the patient, links followed."""
    files: tuple[str, ...] = ()
    """rpm: the names in that folder."""
    keys: tuple[str, ...] = ()
    """Public keys on the patient that its own packages have put there, by path."""
    signed: bool = True
    """The patient's configuration demands that packages are signed."""
    listed: int = 0
    """Packages with a file list on the disk, or that the manager's own history says are installed: the
    number that the database ought to know about."""
    recorded: tuple[InstalledPackage, ...] = ()
    """What the manager's own history says is installed, when the database knows less or is lost."""
    packages: tuple[InstalledPackage, ...] = ()
    backups: tuple[DatabaseBackup, ...] = ()
    interrupted: tuple[str, ...] = ()
    """Signs of an interrupted run (files in ``updates/``, ``*.dpkg-new``, a lock's holder)."""
    verification: Verification = Verification(level="none")
    archives: tuple[Archive, ...] = ()
    sources: tuple[str, ...] = ()
    """Configured download sources, one line each, credentials removed."""
    offers: tuple[Offer, ...] | None = None
    """What the sources offer of the packages that need mending, newest first; None: not known."""
    sources_error: str = ""
    """Why the sources could not be asked; empty when they were, or when nobody tried."""


class SystemMount(Model, frozen=True, kw_only=True):
    """A filesystem of the patient beside its root, by its own fstab, in mount order."""

    device: str
    mount_point: str
    type: str
    options: tuple[str, ...] = ()


class PackageChange(Model, frozen=True, kw_only=True):
    """One transaction of the package manager, as its log tells it."""

    time: str
    """UTC, ISO 8601: when it began."""
    log: str
    """Path on the patient of the log."""
    action: Literal["install", "upgrade", "downgrade", "remove", "reinstall"]
    """The most frequent one of several."""
    count: int
    """How many packages were changed."""
    packages: tuple[str, ...] = ()
    """Their names; those that a machine needs to boot come first, and not all of many are kept."""
    command: str = ""
    """What was typed, where the log says so."""
    finished: bool = True
    """False: the log shows the beginning and no end."""


class System(Model, frozen=True, kw_only=True):
    """An installed operating system."""

    id: str
    """UUID of its root filesystem, or the device path when it has none."""
    device: str
    """Device of the root filesystem."""
    subvolume: str = ""
    os_id: str = ""
    os_version: str = ""
    name: str = ""
    family: str = "unknown"
    """``debian``, ``rhel``, ``suse``, ``arch``, … : a name of ``model.families``."""
    package_manager: str = "unknown"
    """``apt``, ``yum``, ``dnf``, ``zypper``, ``pacman``, …"""
    architecture: str = ""
    """dpkg's or uname's name of it, ``amd64``; empty when not known."""
    hostname: str = ""
    machine_id: str = ""
    fstab: tuple[FstabEntry, ...] = ()
    fstab_state: Literal["ok", "missing", "empty", "unreadable"] = "ok"
    mounts: tuple[SystemMount, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    init: Program | None = None
    tools: tuple[Program, ...] = ()
    """The programs that package repair inside a chroot stands on (sh, dpkg, apt-get, tar, …)."""
    database: PackageDatabase | None = None
    hibernated: bool = False
    network_configured: bool = False
    resolv_conf: str = ""
    """Where /etc/resolv.conf leads inside the patient, every link followed there, whether or not
    anything lies at that path; empty when it cannot be told (a loop, an unreadable folder)."""
    file_contexts: str = ""
    """The file that says which SELinux label each path has (selinux_config(5)); empty where SELinux
    is off or unknown."""
    unusual: tuple[str, ...] = ()
    """Things in the patient that make work inside it unsafe, each a sentence (``/dev is a link``)."""
    changes: tuple[PackageChange, ...] = ()
    """The last package transactions, the newest last."""
    last_start: str = ""
    """UTC, ISO 8601: the last start that left a trace; empty when none did."""
    came_up: str = ""
    """UTC, ISO 8601: the last time that it came up whole (default target, runlevel or a login)."""
    dumps: tuple[str, ...] = ()
    """Memory dumps and crash reports that lie on it, paths on the patient, the newest first; not read."""


class Health(Model, frozen=True, kw_only=True):
    """How the medium under a disk is doing."""

    device: str
    read_only: bool = False
    io_errors: int = 0
    io_error_lines: tuple[str, ...] = ()
    """Lines of this kernel's log about it, newest last, at most 10."""
    smart: Literal["passed", "failing", "unknown"] = "unknown"
    smart_detail: str = ""


class Tool(Model, frozen=True, kw_only=True):
    """A program that probes or recipes may call; ``path`` is empty when it is not installed."""

    name: str
    path: str = ""


class Rescue(Model, frozen=True, kw_only=True):
    """The system that the agent runs on."""

    firmware: Literal["uefi", "bios", "unknown"] = "unknown"
    architecture: str = ""
    """``uname -m``."""
    kernel: str = ""
    memory_bytes: int = 0
    cpus: int = 1
    tools: tuple[Tool, ...] = ()
    work_free_bytes: int = 0
    """Room for undo files and downloads beside the patient."""
    network: bool | None = None
    """None: not tried."""
    udev: bool = False
    """/run/udev/data is there: programs in the chroot can ask it about devices."""


class ProbeError(Model, frozen=True, kw_only=True):
    """A probe that could not do its work: a fact too."""

    probe: str
    subject: str
    message: str
    hint: str = ""


class Crash(Model, frozen=True, kw_only=True):
    """What a memory dump tells of the kernel that panicked."""

    source: str
    """Path of the dump as it was given."""
    format: str
    """``ELF``, ``kdump-compressed (flattened)``, … or what the file is when only the text beside it
    could be read."""
    release: str = ""
    """The kernel's ``uname -r``; empty when the dump does not tell."""
    build_id: str = ""
    crash_time: str = ""
    """UTC, ISO 8601; only kdump's own dumps tell it."""
    uptime_s: float | None = None
    """Time of the last line of the log."""
    panic: str = ""
    """The line with which the kernel died; empty when the log holds none (a dump of a live machine)."""
    how: str = ""
    """How the log was found: ``note``, ``memory scan``, ``makedumpfile``, ``crash``, or the name of the
    text file beside the dump."""
    lines: int = 0
    """Lines of the log."""
    lost: int = 0
    """Records of the log whose memory is not in the dump; 1 when its chain breaks off."""
    remarks: tuple[str, ...] = ()
    """What is wrong with the dump or could not be done, each a sentence's end."""
    system: tuple[str, ...] = ()
    """``NAME: value`` lines of crash(8)'s ``sys``; this and what follows only with a debug kernel."""
    task: str = ""
    """The task that panicked: ``systemd, PID 1, on CPU 0``."""
    backtrace: tuple[str, ...] = ()
    """Its stack frames, innermost first."""
    running: tuple[str, ...] = ()
    """The table of the tasks that were on a CPU, its heading first."""


class Facts(Model, frozen=True, kw_only=True):
    """Everything that one look at the machine brought."""

    schema: Literal["rescue-agent/facts/1"] = FACTS_SCHEMA
    agent_version: str
    created: str
    """UTC, ISO 8601."""
    rescue: Rescue
    disks: tuple[str, ...] = ()
    """Paths of the disks that were asked for, or of all that may be patients."""
    devices: tuple[BlockDevice, ...] = ()
    containers: tuple[Container, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    systems: tuple[System, ...] = ()
    health: tuple[Health, ...] = ()
    logs: tuple[Log, ...] = ()
    """What logs say: those that the person gave, and those that lie on the patient."""
    crashes: tuple[Crash, ...] = ()
    """The memory dumps that were named."""
    errors: tuple[ProbeError, ...] = ()

    def device(self, path: str) -> BlockDevice | None:
        """Return the device with this path, or None."""
        return next((d for d in self.devices if d.path == path), None)

    def filesystem(self, device: str) -> Filesystem | None:
        """Return the filesystem on this device path, or None."""
        return next((f for f in self.filesystems if f.device == device), None)

    def system(self, system_id: str) -> System | None:
        """Return the installed system with this id, or None."""
        return next((s for s in self.systems if s.id == system_id), None)

    def tool(self, name: str) -> bool:
        """Return whether the rescue system has this program."""
        return any(t.name == name and t.path for t in self.rescue.tools)
