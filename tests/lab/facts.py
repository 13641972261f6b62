# SPDX-License-Identifier: GPL-3.0-or-later
"""Builders of facts for tests: a healthy Debian machine, and the same machine with one thing changed.

Each ``with_…`` takes facts and returns new ones, so that faults can be combined:
``with_check(with_damaged_files(healthy(), libc()), ROOT, "damaged")``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rescue_agent.model.facts import (
    Archive,
    BackupSuperblock,
    BlockDevice,
    Check,
    Container,
    Content,
    DamagedFile,
    DatabaseBackup,
    ElfFault,
    Facts,
    Filesystem,
    FstabEntry,
    Health,
    Holder,
    InstalledPackage,
    Kernel,
    Mount,
    PackageDatabase,
    Partition,
    Program,
    Rescue,
    Space,
    System,
    SystemMount,
    Tool,
    Verification,
)

DISK = "/dev/vda"
ESP = "/dev/vda1"
ROOT = "/dev/vda2"
HOME = "/dev/vda3"
SWAP = "/dev/vda4"
LIVE_DISK = "/dev/vdb"
LIVE = "/dev/vdb1"

ROOT_UUID = "6d2f7f0e-5a51-4f0c-9a3c-2f6c1d1b7a10"
HOME_UUID = "0c1f63b5-93c2-4a5d-8f0e-7b7b3a0e51aa"
ESP_UUID = "8F3A-1C2D"
SWAP_UUID = "b9a3f7de-4b0c-45d1-8a43-1fd4a7f2c9b3"

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
LIBC = f"{LIBRARIES}/libc.so.6"
LIBC_LISTED = "/lib/x86_64-linux-gnu/libc.so.6"
"""As the file list of libc6 in Debian 12 names it: the path before the merge of /usr."""

GIB = 1 << 30
CREATED = "2026-01-02T03:04:05Z"

_VERSIONS = {
    "apt": "2.6.2",
    "bash": "5.2.15-2+b13",
    "coreutils": "9.1-1",
    "dash": "0.5.12-2",
    "dpkg": "1.21.23",
    "gpgv": "2.2.40-1.1+deb12u2",
    "init-system-helpers": "1.65.2+deb12u1",
    "libacl1": "2.3.1-3",
    "libc-bin": "2.36-9+deb12u14",
    "libc6": "2.36-9+deb12u14",
    "libgcrypt20": "1.10.1-3+deb12u1",
    "libpam0g": "1.5.2-6+deb12u1",
    "libpcre2-8-0": "10.42-1+deb12u2",
    "libselinux1": "3.4-1+b6",
    "libsystemd-shared": "252.39-1~deb12u2",
    "libsystemd0": "252.39-1~deb12u2",
    "openssh-server": "1:9.2p1-2+deb12u10",
    "perl-base": "5.36.0-7+deb12u4",
    "systemd": "252.39-1~deb12u2",
    "systemd-sysv": "252.39-1~deb12u2",
    "tar": "1.34+dfsg-1.2+deb12u1",
    "udev": "252.39-1~deb12u2",
    "zlib1g": "1:1.2.13.dfsg-1",
}
_ESSENTIAL = {"bash", "coreutils", "dash", "dpkg", "init-system-helpers", "libc-bin", "perl-base", "tar"}
_RESCUE_TOOLS = (
    "apt-get",
    "blkid",
    "btrfs",
    "dd",
    "dpkg-deb",
    "dumpe2fs",
    "e2fsck",
    "e2undo",
    "fsck.ext2",
    "fsck.ext3",
    "fsck.ext4",
    "fsck.fat",
    "losetup",
    "mke2fs",
    "mount",
    "smartctl",
    "tar",
    "umount",
    "xfs_repair",
)


def packages() -> tuple[InstalledPackage, ...]:
    """The packages of the healthy machine, with versions of Debian 12."""
    return tuple(
        InstalledPackage(
            name=name,
            version=version,
            architecture="all" if name == "init-system-helpers" else "amd64",
            essential=name in _ESSENTIAL,
        )
        for name, version in _VERSIONS.items()
    )


def version_of(name: str) -> str:
    return _VERSIONS[name]


def init() -> Program:
    return Program(
        name="/sbin/init",
        path="/usr/lib/systemd/systemd",
        objects=(
            "/usr/lib/systemd/systemd",
            f"{LIBRARIES}/ld-linux-x86-64.so.2",
            LIBC,
            f"{LIBRARIES}/systemd/libsystemd-shared-252.so",
            f"{LIBRARIES}/libacl.so.1.1.2301",
            f"{LIBRARIES}/libselinux.so.1",
            f"{LIBRARIES}/libpam.so.0.85.1",
        ),
    )


def tools() -> tuple[Program, ...]:
    """The programs of the patient that package repair inside it stands on."""
    loader = f"{LIBRARIES}/ld-linux-x86-64.so.2"
    own = {
        "/bin/sh": ("/usr/bin/dash", ()),
        "/usr/bin/dpkg": ("/usr/bin/dpkg", (f"{LIBRARIES}/libselinux.so.1",)),
        "/usr/bin/apt-get": ("/usr/bin/apt-get", (f"{LIBRARIES}/libz.so.1.2.13",)),
        "/usr/bin/tar": (
            "/usr/bin/tar",
            (f"{LIBRARIES}/libacl.so.1.1.2301", f"{LIBRARIES}/libselinux.so.1"),
        ),
        "/usr/bin/perl": ("/usr/bin/perl", ()),
    }
    return tuple(
        Program(name=name, path=path, objects=(path, loader, LIBC, *more))
        for name, (path, more) in own.items()
    )


def clean_check(device: str, kind: str) -> Check:
    """What a checker of this type says about a filesystem that is in order."""
    if kind == "xfs":
        return Check(
            tool="xfs_repair", argv=("xfs_repair", "-n", device), exit_code=0, verdict="clean", duration_s=0.4
        )
    if kind == "btrfs":
        return Check(
            tool="btrfs",
            argv=("btrfs", "check", "--readonly", device),
            exit_code=0,
            verdict="clean",
            duration_s=0.6,
        )
    if kind == "vfat":
        return Check(
            tool="fsck.fat", argv=("fsck.fat", "-n", device), exit_code=0, verdict="clean", duration_s=0.1
        )
    return Check(
        tool="e2fsck", argv=("e2fsck", "-f", "-n", device), exit_code=0, verdict="clean", duration_s=0.9
    )


def filesystem(device: str, kind: str, uuid: str, size_bytes: int, *, used: float = 0.4) -> Filesystem:
    return Filesystem(
        device=device,
        type=kind,
        state="clean",
        uuid=uuid,
        size_bytes=size_bytes,
        block_size=4096,
        check=clean_check(device, kind),
        primary_superblock="ok",
        space=Space(
            total_bytes=size_bytes,
            free_bytes=int(size_bytes * (1 - used)),
            inodes_total=size_bytes // 16384,
            inodes_free=size_bytes // 32768,
        ),
        readable=True,
    )


def healthy(root_type: str = "ext4", *, work_free_bytes: int = 4 * GIB) -> Facts:
    """A Debian 12 machine on one GPT disk (ESP, root, /home, swap) beside the live medium."""
    devices = (
        BlockDevice(
            path=DISK,
            id="serial:QM00001",
            kind="disk",
            disk=DISK,
            size_bytes=20 * GIB,
            model="QEMU HARDDISK",
            serial="QM00001",
            table="gpt",
            head_sha256="a" * 64,
        ),
        _partition(1, ESP, GIB // 2, Content(type="vfat", usage="filesystem", uuid=ESP_UUID)),
        _partition(2, ROOT, 12 * GIB, Content(type=root_type, usage="filesystem", uuid=ROOT_UUID)),
        _partition(3, HOME, 6 * GIB, Content(type="ext4", usage="filesystem", uuid=HOME_UUID)),
        _partition(4, SWAP, GIB, Content(type="swap", usage="other", uuid=SWAP_UUID), head=False),
        BlockDevice(
            path=LIVE_DISK,
            id="serial:LIVE",
            kind="disk",
            disk=LIVE_DISK,
            size_bytes=2 * GIB,
            table="dos",
            removable=True,
            live_medium=True,
        ),
        BlockDevice(
            path=LIVE,
            id="partuuid:11223344-01",
            kind="partition",
            disk=LIVE_DISK,
            size_bytes=GIB,
            parents=(LIVE_DISK,),
            content=Content(type="ext4", usage="filesystem", uuid="11111111-2222-3333-4444-555555555555"),
            live_medium=True,
        ),
    )
    fstab = (
        FstabEntry(
            line=2,
            spec=f"UUID={ROOT_UUID}",
            mount_point="/",
            type=root_type,
            options=("errors=remount-ro",),
            passno=1,
            device=ROOT,
        ),
        FstabEntry(
            line=3,
            spec=f"UUID={ESP_UUID}",
            mount_point="/boot/efi",
            type="vfat",
            options=("umask=0077",),
            passno=1,
            device=ESP,
        ),
        FstabEntry(
            line=4,
            spec=f"UUID={HOME_UUID}",
            mount_point="/home",
            type="ext4",
            options=("defaults",),
            passno=2,
            device=HOME,
        ),
        FstabEntry(
            line=5, spec=f"UUID={SWAP_UUID}", mount_point="none", type="swap", options=("sw",), device=SWAP
        ),
    )
    database = PackageDatabase(
        manager="dpkg",
        state="ok",
        listed=len(packages()),
        packages=packages(),
        backups=(
            DatabaseBackup(
                path="/var/lib/dpkg/status-old",
                packages=len(packages()),
                listed=len(packages()),
                age_s=3600,
            ),
            DatabaseBackup(
                path="/var/backups/dpkg.status.0",
                packages=len(packages()),
                listed=len(packages()),
                age_s=86400,
            ),
        ),
        verification=Verification(level="full", files=6967, packages=len(packages()), duration_s=1.1),
        sources=("deb http://deb.debian.org/debian bookworm main",),
    )
    system = System(
        id=ROOT_UUID,
        device=ROOT,
        os_id="debian",
        os_version="12",
        name="Debian GNU/Linux 12 (bookworm)",
        family="debian",
        package_manager="apt",
        architecture="amd64",
        hostname="host",
        machine_id="0123456789abcdef0123456789abcdef",
        fstab=fstab,
        mounts=(
            SystemMount(device=ESP, mount_point="/boot/efi", type="vfat", options=("umask=0077",)),
            SystemMount(device=HOME, mount_point="/home", type="ext4", options=("defaults",)),
        ),
        kernels=(
            Kernel(
                release="6.1.0-40-amd64",
                image="/boot/vmlinuz-6.1.0-40-amd64",
                initramfs="/boot/initrd.img-6.1.0-40-amd64",
                modules=True,
            ),
        ),
        init=init(),
        tools=tools(),
        database=database,
        network_configured=True,
        resolv_conf="/etc/resolv.conf",
    )
    return Facts(
        agent_version="0",
        created=CREATED,
        rescue=Rescue(
            firmware="uefi",
            architecture="x86_64",
            kernel="6.18.44",
            memory_bytes=2 * GIB,
            cpus=2,
            tools=tuple(Tool(name=name, path=f"/usr/sbin/{name}") for name in _RESCUE_TOOLS),
            work_free_bytes=work_free_bytes,
            network=True,
            udev=True,
        ),
        disks=(DISK,),
        devices=devices,
        filesystems=(
            filesystem(ESP, "vfat", ESP_UUID, GIB // 2),
            filesystem(ROOT, root_type, ROOT_UUID, 12 * GIB),
            filesystem(HOME, "ext4", HOME_UUID, 6 * GIB),
        ),
        systems=(system,),
        health=(Health(device=DISK, smart="passed"),),
    )


def _partition(
    number: int, path: str, size_bytes: int, content: Content, *, head: bool = True
) -> BlockDevice:
    uuid = f"5f7a0d7e-0000-4000-8000-00000000000{number}"
    return BlockDevice(
        path=path,
        id=f"partuuid:{uuid}",
        kind="partition",
        disk=DISK,
        size_bytes=size_bytes,
        parents=(DISK,),
        partition=Partition(number=number, start_bytes=number * GIB, size_bytes=size_bytes, uuid=uuid),
        content=content,
        head_sha256=str(number) * 64 if head else "",
    )


# --- changing one thing --------------------------------------------------------------------


def with_device(facts: Facts, device: str, **changes: Any) -> Facts:
    devices = tuple(msgspec.structs.replace(d, **changes) if d.path == device else d for d in facts.devices)
    return msgspec.structs.replace(facts, devices=devices)


def with_filesystem(facts: Facts, device: str, **changes: Any) -> Facts:
    changed = tuple(
        msgspec.structs.replace(f, **changes) if f.device == device else f for f in facts.filesystems
    )
    return msgspec.structs.replace(facts, filesystems=changed)


def with_rescue(facts: Facts, **changes: Any) -> Facts:
    return msgspec.structs.replace(facts, rescue=msgspec.structs.replace(facts.rescue, **changes))


def with_system(facts: Facts, **changes: Any) -> Facts:
    """Change the first system."""
    first, *rest = facts.systems
    return msgspec.structs.replace(facts, systems=(msgspec.structs.replace(first, **changes), *rest))


def with_database(facts: Facts, **changes: Any) -> Facts:
    database = facts.systems[0].database
    assert database is not None
    return with_system(facts, database=msgspec.structs.replace(database, **changes))


def with_package(facts: Facts, name: str, **changes: Any) -> Facts:
    database = facts.systems[0].database
    assert database is not None
    changed = tuple(msgspec.structs.replace(p, **changes) if p.name == name else p for p in database.packages)
    return with_database(facts, packages=changed)


def with_damaged_files(facts: Facts, *files: DamagedFile) -> Facts:
    database = facts.systems[0].database
    assert database is not None
    verification = msgspec.structs.replace(
        database.verification, damaged=(*database.verification.damaged, *files)
    )
    return with_database(facts, verification=verification)


def with_archives(facts: Facts, *archives: Archive) -> Facts:
    return with_database(facts, archives=archives)


def with_init_fault(facts: Facts, *faults: ElfFault) -> Facts:
    return with_system(facts, init=msgspec.structs.replace(init(), faults=faults))


def with_tool_faults(facts: Facts, *faults: ElfFault) -> Facts:
    """Let every program of the patient stumble over the same faults."""
    return with_system(
        facts,
        tools=tuple(msgspec.structs.replace(t, faults=faults) for t in facts.systems[0].tools),
    )


def with_health(facts: Facts, device: str, **changes: Any) -> Facts:
    changed = tuple(msgspec.structs.replace(h, **changes) if h.device == device else h for h in facts.health)
    return msgspec.structs.replace(facts, health=changed)


# --- whole faults ------------------------------------------------------------------------------

Verdict = Literal["clean", "needs-recovery", "damaged", "unrepairable", "unreadable", "unknown"]

_SAID: dict[str, tuple[str, ...]] = {
    "damaged": (
        "Inode 12 has an invalid extent node (blk 1040, lblk 0)",
        "Free blocks count wrong (2913451, counted=2913440).",
    ),
    "needs-recovery": ("Warning: skipping journal recovery because doing a read-only filesystem check.",),
    "unrepairable": ("e2fsck: Bad magic number in super-block while trying to open the device",),
    "unreadable": ("Error reading block 1057 (Input/output error) while getting next inode from scan.",),
}
_STATES: dict[str, str] = {
    "clean": "clean",
    "needs-recovery": "needs-recovery",
    "damaged": "damaged",
    "unrepairable": "damaged",
    "unreadable": "unknown",
    "unknown": "unknown",
}


def with_check(facts: Facts, device: str, verdict: Verdict, **changes: Any) -> Facts:
    """Let the checker of the filesystem on ``device`` come to this verdict."""
    found = facts.filesystem(device)
    assert found is not None
    check = msgspec.structs.replace(
        clean_check(device, found.type),
        verdict=verdict,
        exit_code={"clean": 0, "needs-recovery": 12, "unrepairable": 8, "unknown": None}.get(verdict, 4),
        messages=_SAID.get(verdict, ()),
        reason="the check did not end within 150 s" if verdict == "unknown" else "",
    )
    return with_filesystem(
        facts,
        device,
        check=msgspec.structs.replace(check, **changes),
        state=_STATES[verdict],
        readable=verdict in ("clean", "needs-recovery", "damaged"),
    )


def with_bad_superblock(facts: Facts, device: str) -> Facts:
    """The primary superblock is gone; a backup at 32768 was found."""
    return with_filesystem(
        with_check(
            facts, device, "damaged", exit_code=8, messages=("e2fsck: Bad magic number in super-block",)
        ),
        device,
        primary_superblock="bad",
        backups=(BackupSuperblock(block=32768, block_size=4096),),
        readable=False,
    )


def missing_libc() -> DamagedFile:
    return DamagedFile(path=LIBC_LISTED, package="libc6:amd64", kind="missing")


def with_missing_libc(facts: Facts) -> Facts:
    """The fault of the report that began this project: nothing in the patient can start."""
    fault = ElfFault(
        kind="missing-library",
        path="libc.so.6",
        needed_by="/usr/lib/systemd/systemd",
        expected=LIBC,
    )
    facts = with_init_fault(facts, fault)
    facts = with_tool_faults(facts, msgspec.structs.replace(fault, needed_by="/usr/bin/dash"))
    return with_damaged_files(facts, missing_libc())


def with_lost_database(facts: Facts, state: Literal["missing", "empty", "damaged"] = "empty") -> Facts:
    """dpkg's status file is gone, and with it all that could be verified."""
    return with_database(
        facts,
        state=state,
        detail="/var/lib/dpkg/status is empty",
        packages=(),
        verification=Verification(level="none"),
    )


def cached(package: str, *, origin: Literal["cache", "folder"] = "cache", folder: str = "") -> Archive:
    """The archive of an installed package, as apt keeps it (the epoch's colon is written %3a)."""
    version = version_of(package)
    where = "/var/cache/apt/archives" if origin == "cache" else folder or "/media/packages"
    return Archive(
        path=f"{where}/{package}_{version.replace(':', '%3a')}_amd64.deb",
        package=package,
        version=version,
        architecture="amd64",
        origin=origin,
    )


def with_second_system(facts: Facts) -> Facts:
    """Another system is installed on the partition that was /home."""
    other = msgspec.structs.replace(
        facts.systems[0],
        id=HOME_UUID,
        device=HOME,
        name="Debian GNU/Linux 11 (bullseye)",
        os_version="11",
        mounts=(),
        fstab=(),
    )
    facts = with_system(facts, mounts=tuple(m for m in facts.systems[0].mounts if m.mount_point != "/home"))
    return msgspec.structs.replace(facts, systems=(*facts.systems, other))


def with_locked_luks(facts: Facts) -> Facts:
    """The root partition is an encrypted container that nobody opened."""
    facts = with_device(facts, ROOT, content=Content(type="crypto_LUKS", usage="crypto", uuid=ROOT_UUID))
    return msgspec.structs.replace(
        facts,
        containers=(Container(device=ROOT, kind="luks", state="locked"),),
        filesystems=tuple(f for f in facts.filesystems if f.device != ROOT),
        systems=(),
    )


def with_hibernation(facts: Facts) -> Facts:
    facts = with_device(facts, SWAP, content=Content(type="swsuspend", usage="other", uuid=SWAP_UUID))
    return with_system(facts, hibernated=True)


def mounted_elsewhere(facts: Facts, device: str = ROOT) -> Facts:
    return with_device(
        facts,
        device,
        mounts=(Mount(source=device, target="/mnt", type="ext4", options="rw"),),
        held_by=(Holder(pid=4242, command="bash", path="/mnt"),),
    )


def without_systems(facts: Facts) -> Facts:
    return msgspec.structs.replace(facts, systems=())


# --- the RPM family ---------------------------------------------------------------------------


def rpm_packages() -> tuple[InstalledPackage, ...]:
    names = ("bash", "coreutils", "dnf", "glibc", "less", "rpm", "systemd", "tar")
    found = [
        InstalledPackage(name=n, version="4.18-1.el9", architecture="x86_64", installed_bytes=1 << 20)
        for n in names
    ]
    bind = InstalledPackage(name="bind-libs", version="32:9.16-1.el9", architecture="x86_64")
    return (*found, bind)


def enterprise(**database: Any) -> Facts:
    """Return a healthy Rocky Linux with dnf, on the same machine; ``database`` changes its rpm database."""
    packages = rpm_packages()
    whole: dict[str, Any] = {
        "manager": "rpm",
        "state": "ok",
        "format": "sqlite",
        "folder": "/var/lib/rpm",
        "files": ("rpmdb.sqlite", "rpmdb.sqlite-shm", "rpmdb.sqlite-wal"),
        "keys": ("/etc/pki/rpm-gpg/RPM-GPG-KEY-rocky",),
        "listed": len(packages),
        "packages": packages,
        "verification": Verification(level="full", files=4000, packages=len(packages)),
        "sources": ("baseos https://mirrors.example.org/rocky",),
    }
    facts = with_system(
        healthy(),
        family="rhel",
        package_manager="dnf",
        os_id="rocky",
        os_version="9.3",
        name="Rocky Linux 9.3",
        architecture="amd64",
        tools=tuple(Program(name=f"/usr/bin/{n}", path=f"/usr/bin/{n}") for n in ("sh", "rpm", "dnf")),
    )
    return with_system(facts, database=PackageDatabase(**(whole | database)))


def rpm_label(name: str) -> str:
    """Return what rpm calls one of the packages of ``enterprise``."""
    return next(p.labels[-1] for p in rpm_packages() if p.name == name)


def rpm_damage(name: str, path: str, kind: Any = "missing", *, conffile: bool = False) -> DamagedFile:
    """Return a damaged file of one of the packages of ``enterprise``."""
    return DamagedFile(path=path, package=rpm_label(name), kind=kind, conffile=conffile)


def rpm_archive(name: str, **changes: Any) -> Archive:
    """Return the package file of one of the packages of ``enterprise``, in a folder."""
    package = next(p for p in rpm_packages() if p.name == name)
    found = Archive(
        path=f"/media/rpms/{package.labels[-1]}.rpm",
        package=package.name,
        version=package.version,
        architecture=package.architecture,
        origin="folder",
    )
    return msgspec.structs.replace(found, **changes)
