# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images for the tests: built in seconds, mostly without a mount, and always released.

A ``Disk`` is a raw image file with what lies where. ext filesystems are written straight into the image
by ``mke2fs -d``; xfs and btrfs go through a loop device. The kernel may lack partition parsers, so a
partition is reached by its byte offset, or as a node that ``partx`` makes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lab import roots

MIB = 1 << 20
ROOT_UUID = "5e5c0a6e-0000-4000-8000-000000000001"
DEBIAN_MIB = 800
CORPUS = Path(
    os.environ.get("RESCUE_AGENT_FS_IMAGES", Path(__file__).resolve().parents[3] / "shared/fs-images")
)
"""Broken filesystems from elsewhere; they lie beside the repository."""
LINUX_GPT = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

QUIET = {
    "ext3": "ro,noload",
    "ext4": "ro,noload",
    "xfs": "ro,norecovery,nouuid",
    "btrfs": "ro,rescue=nologreplay",
}
"""Mount options that look without replaying a log."""

Table = Literal["dos", "gpt", ""]


@dataclass(frozen=True)
class Part:
    """What to make: one partition, or the whole disk when there is no table."""

    type: str = "ext4"
    """``ext2`` … ``ext4``, ``xfs``, ``btrfs``, ``swap``, or ``""`` for nothing at all."""
    size_mib: int = 0
    """0: all that is left."""
    tree: Path | None = None
    uuid: str = ""
    label: str = ""
    options: tuple[str, ...] = ()
    """More arguments for mkfs."""
    logical: bool = False
    """Inside a DOS table's extended partition."""


@dataclass(frozen=True)
class Slot:
    """Where a partition lies in the image."""

    number: int
    start_bytes: int
    size_bytes: int
    type: str


@dataclass(frozen=True)
class Disk:
    """A disk image and its partitions; ``slots`` has one entry (number 0) when there is no table."""

    path: Path
    slots: tuple[Slot, ...]
    root: int = 0
    """Index in ``slots`` of the filesystem that tests mean when they name none."""

    def slot(self, index: int | None = None) -> Slot:
        return self.slots[self.root if index is None else index]

    def io_name(self, index: int | None = None) -> str:
        """Return the name by which debugfs opens the filesystem in the image (``FILE?offset=N``).

        Not for e2fsck: it forgets the offset when it looks for backups or replays a journal.
        """
        slot = self.slot(index)
        return f"{self.path}?offset={slot.start_bytes}" if slot.start_bytes else str(self.path)

    def copy(self, target: Path) -> Disk:
        """Return a copy of the image at ``target``, holes kept."""
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "--sparse=always", "--reflink=auto", self.path, target)
        return replace(self, path=target)


def build_disk(
    path: Path, parts: Sequence[Part], *, size_mib: int, table: Table = "dos", root: int = 0
) -> Disk:
    """Make a disk image with these partitions; ``table=""`` puts the only part on the whole disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(path, "wb") as image:
        image.truncate(size_mib * MIB)
    slots = _partition(path, parts, table) if table else (Slot(0, 0, size_mib * MIB, parts[0].type),)
    disk = Disk(path, slots, root)
    for index, part in enumerate(parts):
        _make_filesystem(disk, index, part)
    return disk


def _partition(path: Path, parts: Sequence[Part], table: str) -> tuple[Slot, ...]:
    lines = [f"label: {table}"]
    if table == "dos":
        # Of its own for each disk: two disks with one identity are refused.
        lines.append(f"label-id: 0x{secrets.randbits(32) | 1:08x}")
    extended = False
    for part in parts:
        if part.logical and not extended:
            lines.append("type=5")
            extended = True
        size = f"size={part.size_mib}MiB, " if part.size_mib else ""
        kind = {"swap": "S"}.get(part.type, LINUX_GPT if table == "gpt" else "83")
        lines.append(f"{size}type={kind}")
    run("sfdisk", "--quiet", path, stdin="\n".join(lines) + "\n")
    entries = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    sector = entries.get("sectorsize", 512)
    usable = [e for e in entries["partitions"] if e["type"] not in ("5", "f")]
    return tuple(
        Slot(
            int(str(e["node"]).removeprefix(str(path)).lstrip("p")),
            e["start"] * sector,
            e["size"] * sector,
            p.type,
        )
        for e, p in zip(usable, parts, strict=True)
    )


def _make_filesystem(disk: Disk, index: int, part: Part) -> None:
    slot = disk.slots[index]
    if part.type.startswith("ext"):
        options = [
            f"offset={slot.start_bytes}",
            "root_owner=0:0",
            "lazy_itable_init=0",
            "lazy_journal_init=0",
        ]
        identity = ("-U", part.uuid) if part.uuid else ()
        label = ("-L", part.label) if part.label else ()
        tree = ("-d", part.tree) if part.tree else ()
        where = (disk.path, f"{slot.size_bytes // 1024}k")
        run(
            "mke2fs",
            "-q",
            "-F",
            "-t",
            part.type,
            *identity,
            *label,
            *tree,
            *part.options,
            "-E",
            ",".join(options),
            *where,
        )
        return
    if not part.type:
        return
    with loop(disk.path, slot.start_bytes, slot.size_bytes) as device:
        label = ("-L", part.label) if part.label else ()
        if part.type == "xfs":
            identity = ("-m", f"uuid={part.uuid}") if part.uuid else ()
            run("mkfs.xfs", "-q", "-f", *identity, *label, *part.options, device)
        elif part.type == "btrfs":
            identity = ("-U", part.uuid) if part.uuid else ()
            run("mkfs.btrfs", "-q", "-f", *identity, *label, *part.options, device)
        elif part.type == "swap":
            run("mkswap", "-q", *label, device)
        else:
            raise ValueError(f"no recipe for a {part.type} filesystem")
        if part.tree is not None:
            with mounted_device(device, part.type) as place:
                run("cp", "-a", f"{part.tree}/.", place)


def build_debian_disk(
    work: Path,
    path: Path,
    *,
    fstype: str = "ext4",
    table: Table = "dos",
    size_mib: int = DEBIAN_MIB,
    recipe: roots.Recipe = roots.STANDARD,
) -> Disk:
    """Make the disk of a healthy Debian at ``path``: one partition, or the whole disk (``table=""``).

    Its root has ``ROOT_UUID``; but for btrfs a new one, since mkfs.btrfs refuses one that any disk has.
    ``work`` is a folder for the overlay; needs a private mount namespace.
    """
    with roots.fresh_tree(work, recipe) as tree:
        options = "errors=remount-ro" if fstype.startswith("ext") else "defaults"
        identity = str(uuid.uuid4()) if fstype == "btrfs" else ROOT_UUID
        write_fstab(tree, [(f"UUID={identity}", "/", fstype, options)])
        part = Part(type=fstype, tree=tree, uuid=identity, label="root")
        return build_disk(path, [part], size_mib=size_mib, table=table)


def build_split_machine(work: Path, folder: Path) -> tuple[Disk, Disk]:
    """Make a Debian on two disks: root (GPT, with swap before it), /var and /srv on the other one.

    /srv lies in a DOS table's extended partition and is ext3 without a line for fsck to skip it;
    /var is found by its label.
    """
    with roots.fresh_tree(work) as tree:
        write_fstab(
            tree,
            [
                (f"UUID={ROOT_UUID}", "/", "ext4", "errors=remount-ro"),
                ("LABEL=var", "/var", "ext4", "defaults"),
                ("UUID=5e5c0a6e-0000-4000-8000-000000000003", "/srv", "ext3", "defaults,nofail"),
            ],
        )
        var = work / "var-only"
        run("cp", "-a", tree / "var", var)
        shutil.rmtree(tree / "var")
        (tree / "var").mkdir()
        srv = work / "srv-only"
        srv.mkdir()
        (srv / "data").write_text("what the machine is there for\n" * 1000)
        first = build_disk(
            folder / "first.img",
            [Part("swap", 64), Part(tree=tree, uuid=ROOT_UUID, label="root")],
            size_mib=600,
            table="gpt",
            root=1,
        )
        second = build_disk(
            folder / "second.img",
            [
                Part(size_mib=300, tree=var, label="var", uuid="5e5c0a6e-0000-4000-8000-000000000002"),
                Part("ext3", 100, tree=srv, uuid="5e5c0a6e-0000-4000-8000-000000000003", logical=True),
            ],
            size_mib=512,
        )
        shutil.rmtree(var)
        shutil.rmtree(srv)
    return first, second


def write_fstab(tree: Path, entries: Sequence[tuple[str, str, str, str]]) -> None:
    """Write the root's fstab: (what, where, type, options) for each line."""
    lines = ["# /etc/fstab: static file system information."]
    for what, where, kind, options in entries:
        passno = 1 if where == "/" else 2 if kind.startswith("ext") else 0
        lines.append(f"{what} {where} {kind} {options} 0 {passno}")
    (tree / "etc/fstab").write_text("\n".join(lines) + "\n")


@contextmanager
def loop(path: Path, offset: int = 0, size: int = 0, *, read_only: bool = False) -> Iterator[str]:
    """Attach a file (or a part of it) to a loop device and give its path; detached afterwards."""
    limits = (f"--sizelimit={size}",) if size else ()
    flags = ("--read-only",) if read_only else ()
    device = run("losetup", "--find", "--show", f"--offset={offset}", *limits, *flags, path).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def attached(disk: Disk, *, read_only: bool = False) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Attach a whole disk and give its device and its partitions' devices, as the kernel names them."""
    with ExitStack() as stack:
        device = stack.enter_context(loop(disk.path, read_only=read_only))
        numbers = [s.number for s in disk.slots if s.number]
        if numbers:
            run("partx", "--add", device)
            stack.callback(_remove_partitions, device)
        yield device, tuple(f"{device}p{n}" for n in numbers)


def _remove_partitions(device: str) -> None:
    """Take the partition nodes away; whoever looks at all disks of the machine may be busy with one."""
    for _ in range(20):
        if status("partx", "--delete", device) == 0:
            return
        time.sleep(0.25)
    run("partx", "--delete", device)


@contextmanager
def mounted_device(device: str, fstype: str, options: str = "") -> Iterator[Path]:
    """Mount a device on a temporary folder; unmounted afterwards, never lazily."""
    place = Path(tempfile.mkdtemp(prefix="lab-mount-"))
    try:
        run("mount", "-t", fstype, *(("-o", options) if options else ()), device, place)
        try:
            yield place
        finally:
            run("umount", "--", place)
    finally:
        place.rmdir()


@contextmanager
def mounted(disk: Disk, index: int | None = None, *, read_only: bool = False) -> Iterator[Path]:
    """Mount one filesystem of a disk image: writable to put a fault in, read-only to look at it.

    Read-only means without log replay as well: looking changes no byte.
    """
    slot = disk.slot(index)
    quiet = QUIET.get(slot.type, "ro")
    with (
        loop(disk.path, slot.start_bytes, slot.size_bytes, read_only=read_only) as device,
        mounted_device(device, slot.type, quiet if read_only else "") as place,
    ):
        yield place


def debugfs(disk: Disk, *commands: str, index: int | None = None, write: bool = True) -> str:
    """Run debugfs commands on an ext filesystem inside the image; return what it printed."""
    script = "\n".join(commands) + "\n"
    mode = ("-w",) if write else ()
    return run("debugfs", *mode, "-f", "-", disk.io_name(index), stdin=script)


def ext_layout(disk: Disk, index: int | None = None) -> dict[str, int]:
    """Return geometry of a sound ext filesystem: ``block_size``, ``blocks_per_group``, ``first_block``…"""
    text = run("dumpe2fs", "-h", disk.io_name(index))
    wanted = {
        "Block size": "block_size",
        "Blocks per group": "blocks_per_group",
        "First block": "first_block",
        "Block count": "blocks",
        "Inode size": "inode_size",
        "Inodes per group": "inodes_per_group",
    }
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in wanted:
            found[wanted[name]] = int(value)
    return found


def checker_exit_code(disk: Disk, index: int | None = None) -> int:
    """Return what the filesystem's own checker says when it may change nothing; 0: clean."""
    slot = disk.slot(index)
    argv = {"xfs": ("xfs_repair", "-n"), "btrfs": ("btrfs", "check", "--readonly")}.get(
        slot.type, ("e2fsck", "-fn")
    )
    with loop(disk.path, slot.start_bytes, slot.size_bytes, read_only=True) as device:
        return status(*argv, device)


def overlay(disk: Disk, target: Path) -> Path:
    """Make a qcow2 image whose changes lie apart from the golden image; milliseconds, no copy."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.path, "-F", "raw", target)
    return target


def run(*argv: str | Path, stdin: str = "") -> str:
    """Run a tool; return its output, raise AssertionError with its words when it fails."""
    done = subprocess.run(
        [str(a) for a in argv],
        input=stdin,
        text=True,
        errors="replace",
        capture_output=True,
        check=False,
        env=_env(),
    )
    if done.returncode:
        line = " ".join(str(a) for a in argv)
        raise AssertionError(
            f"{line}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def status(*argv: str | Path) -> int:
    """Run a tool; return its exit code whatever it is."""
    return subprocess.run(
        [str(a) for a in argv], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_env()
    ).returncode


def _env() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


def missing_tools(*names: str) -> tuple[str, ...]:
    """Return those of ``names`` that are not installed."""
    return tuple(n for n in names if shutil.which(n, path=_env()["PATH"]) is None)
