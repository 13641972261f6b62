# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults to put into a healthy patient, each with the finding code that it must bring.

``TREE_FAULTS`` change files of a mounted root; ``BLOCK_FAULTS`` change the blocks of an ext filesystem
in an image. Each is one function; what it broke comes back as the list of paths, for the messages of a
failed test.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import disks
from lab.disks import Disk

LIB = "usr/lib/x86_64-linux-gnu"
INIT = "usr/lib/systemd/systemd"


@dataclass(frozen=True)
class TreeFault:
    """A fault of files. ``code`` is the finding that names it, ``package`` the one to reinstall."""

    name: str
    code: str
    inject: Callable[[Path], list[str]]
    package: str = ""
    chroot_exit: int | None = 0
    """What ``chroot T /bin/true`` ends with, so that a test knows which road is due."""


@dataclass(frozen=True)
class BlockFault:
    """A fault of an ext filesystem's structures. ``loses`` says that files in the damage may go."""

    name: str
    code: str
    inject: Callable[[Disk], None]
    loses: tuple[str, ...] = ()
    """Folders whose contents the fault itself destroys or moves to lost+found."""


# --- files ------------------------------------------------------------------------------------


def remove(*paths: str) -> Callable[[Path], list[str]]:
    """Return an injector that removes files, following links inside the root to the real one."""

    def inject(root: Path) -> list[str]:
        for path in paths:
            real(root, path).unlink()
        return [f"/{p}" for p in paths]

    return inject


def real(root: Path, path: str) -> Path:
    """Return the file that ``path`` leads to inside the root, links resolved inside it."""
    place = root
    todo = path.strip("/").split("/")
    for _ in range(400):
        if not todo:
            return place
        step = place / todo.pop(0)
        if step.is_symlink():
            target = os.readlink(step)
            place = root if target.startswith("/") else place
            todo = [part for part in target.split("/") if part not in ("", ".")] + todo
        elif step.name == "..":
            place = place.parent if place != root else root
        else:
            place = step
    raise AssertionError(f"{path} is a link loop")


def truncate(path: str, size: int) -> Callable[[Path], list[str]]:
    """Return an injector that cuts a file off after ``size`` bytes."""

    def inject(root: Path) -> list[str]:
        os.truncate(real(root, path), size)
        return [f"/{path}"]

    return inject


def not_executable(path: str) -> Callable[[Path], list[str]]:
    """Return an injector that takes the execute permission away."""

    def inject(root: Path) -> list[str]:
        real(root, path).chmod(0o644)
        return [f"/{path}"]

    return inject


def wrong_architecture(path: str) -> Callable[[Path], list[str]]:
    """Return an injector that makes an ELF file one for another machine (e_machine, elf(5))."""

    def inject(root: Path) -> list[str]:
        with open(real(root, path), "r+b") as file:
            file.seek(18)
            file.write(struct.pack("<H", 183))  # EM_AARCH64
        return [f"/{path}"]

    return inject


def empty_status(root: Path) -> list[str]:
    """Empty dpkg's status file, as a full disk or a power cut leaves it."""
    os.truncate(root / "var/lib/dpkg/status", 0)
    return ["/var/lib/dpkg/status"]


def truncate_status(root: Path) -> list[str]:
    """Cut dpkg's status file in the middle of a stanza."""
    status = root / "var/lib/dpkg/status"
    os.truncate(status, status.stat().st_size // 2)
    return ["/var/lib/dpkg/status"]


def zero_status(root: Path) -> list[str]:
    """Fill dpkg's status file with zeroes: the size is right, the blocks were never written."""
    status = root / "var/lib/dpkg/status"
    status.write_bytes(bytes(status.stat().st_size))
    return ["/var/lib/dpkg/status"]


def keep_status_backup(root: Path) -> None:
    """Give the root what a machine that was used has: dpkg's own backup of its status."""
    shutil.copy2(root / "var/lib/dpkg/status", root / "var/lib/dpkg/status-old")


def interrupted_dpkg(packages: Path, *names: str) -> Callable[[Path], list[str]]:
    """Return an injector that unpacks packages and leaves them unconfigured, as a power cut does.

    The files come from the folder ``packages``.
    """

    def inject(root: Path) -> list[str]:
        place = root / "var/tmp/interrupted"
        place.mkdir(parents=True)
        for name in names:
            (archive,) = packages.glob(f"{name}_*.deb")
            shutil.copyfile(archive, place / archive.name)
        inside = [f"/var/tmp/interrupted/{p.name}" for p in sorted(place.iterdir())]
        disks.run("chroot", root, "dpkg", "--unpack", *inside)
        shutil.rmtree(place)
        return [f"package {name}" for name in names]

    return inject


def damage_packages(count: int = 20, seed: int = 7) -> Callable[[Path], list[str]]:
    """Return an injector that damages one file and removes another in each of ``count`` packages.

    Never a conffile, and never what a package manager in a chroot stands on: this fault leaves a
    root that can mend itself.
    """

    def inject(root: Path) -> list[str]:
        chance = random.Random(seed)
        candidates = []
        for listing in sorted((root / "var/lib/dpkg/info").glob("*.md5sums")):
            name = listing.name.removesuffix(".md5sums").partition(":")[0]
            files = [line[34:] for line in listing.read_text().splitlines()]
            files = [f for f in files if _harmless(root, f)]
            if len(files) >= 2:
                candidates.append((name, files))
        broken = []
        for _, files in chance.sample(candidates, count):
            lost, bad = chance.sample(files, 2)
            (root / lost).unlink()
            with open(root / bad, "r+b") as file:
                file.write(b"\0" * min(512, (root / bad).stat().st_size))
            broken += [f"/{lost}", f"/{bad}"]
        return broken

    return inject


def _harmless(root: Path, path: str) -> bool:
    """Whether the file is one that neither the loader nor dpkg and apt need."""
    place = root / path
    if place.is_symlink() or not place.is_file() or place.stat().st_size == 0:
        return False
    return path.startswith(("usr/share/", "usr/lib/udev/", "usr/lib/modules-load.d/", "lib/udev/")) and not (
        re.search(r"usr/share/(perl|dpkg|debconf|keyrings|base-files|base-passwd)", path)
    )


def fill(root: Path) -> list[str]:
    """Fill the filesystem with a user's file until nothing more fits."""
    big = root / "home/alice/big"
    with open(big, "wb", buffering=0) as file:
        for size in (1 << 22, 1 << 16, 1 << 12):
            block = b"\xa5" * size
            try:
                while True:
                    file.write(block)
            except OSError:
                continue
    os.sync()
    return ["/home/alice/big"]


def edit_conffile(root: Path) -> list[str]:
    """Change a configuration file as its owner would: no damage, to be kept as it is."""
    path = root / "etc/ssh/sshd_config"
    path.write_text(path.read_text() + "\n# changed by the owner\nPermitRootLogin no\n")
    return ["/etc/ssh/sshd_config"]


TREE_FAULTS = (
    TreeFault("libc-gone", "init-missing-library", remove(f"{LIB}/libc.so.6"), "libc6", 127),
    TreeFault("loader-gone", "init-missing-library", remove(f"{LIB}/ld-linux-x86-64.so.2"), "libc6", 127),
    TreeFault(
        "libsystemd-shared-gone",
        "init-missing-library",
        remove(f"{LIB}/systemd/libsystemd-shared-252.so"),
        "libsystemd-shared",
    ),
    TreeFault("libselinux-gone", "init-missing-library", remove(f"{LIB}/libselinux.so.1"), "libselinux1"),
    TreeFault("libpam-truncated", "init-missing-library", truncate(f"{LIB}/libpam.so.0", 5000), "libpam0g"),
    TreeFault("init-not-executable", "init-not-executable", not_executable(INIT), "systemd"),
    TreeFault("init-wrong-architecture", "init-not-executable", wrong_architecture(INIT), "systemd"),
    TreeFault("init-gone", "init-missing", remove(INIT), "systemd"),
)
"""The faults of PID 1. In the root that they are made for, ``lab.roots.STANDARD``."""


# --- blocks -----------------------------------------------------------------------------------


def zero_superblock(disk: Disk) -> None:
    """Overwrite the primary superblock with zeroes; the backups stay."""
    _write(disk, 1024, bytes(1024))


def trash_group_descriptors(disk: Disk) -> None:
    """Overwrite the first block of the primary group descriptors with noise."""
    layout = disks.ext_layout(disk)
    size = layout["block_size"]
    first = layout["first_block"] + 1
    _write(disk, first * size, random.Random(3).randbytes(size))


def clear_inode_table_block(disk: Disk) -> None:
    """Zero one block of the inode table, one that describes nothing but time zone files.

    Which inodes share a block depends on the order in which the image was filled, so it is looked up.
    """
    layout = disks.ext_layout(disk)
    per_block = layout["block_size"] // layout["inode_size"]
    by_block: dict[int, list[str]] = {}
    with disks.mounted(disk, read_only=True) as root:
        for folder, folders, names in os.walk(root):
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                inode = os.lstat(path).st_ino
                plain = os.path.isfile(path) and f"{root}/usr/share/zoneinfo/" in path
                by_block.setdefault((inode - 1) // per_block, []).append(str(inode) if plain else "")
    full = sorted(n for n, inodes in by_block.items() if len(inodes) == per_block and all(inodes))
    assert full, "no block of the inode table holds time zone files alone"
    chosen = by_block[full[len(full) // 2]][0]
    text = disks.debugfs(disk, f"imap <{chosen}>", write=False)
    match = re.search(r"located at block (\d+)", text)
    assert match, text
    _write(disk, int(match[1]) * layout["block_size"], bytes(layout["block_size"]))


def corrupt_journal(disk: Disk) -> None:
    """Overwrite the journal's own superblock, and say that it is needed."""
    size = disks.ext_layout(disk)["block_size"]
    match = re.search(r"^(\d+)", disks.debugfs(disk, "blocks <8>", write=False).strip().splitlines()[-1])
    assert match
    disks.debugfs(disk, "feature needs_recovery")
    _write(disk, int(match[1]) * size, random.Random(5).randbytes(size))


def orphan_tree(disk: Disk) -> None:
    """Take a folder's entry out of its parent: the folder and its files still exist, unreachable."""
    disks.debugfs(disk, "unlink /home/alice/letters")


def crosslink_blocks(disk: Disk) -> None:
    """Mark the blocks of a file as free, so that bitmaps and files contradict each other."""
    text = disks.debugfs(disk, "blocks /home/alice/letters/letter-9", write=False)
    numbers = text.strip().splitlines()[-1].split()
    disks.debugfs(disk, *(f"freeb {n}" for n in numbers[:4]))


def remove_with_damage(disk: Disk) -> None:
    """Clear the inode of libc: the checker takes its entry away, so that the loader can't find it."""
    disks.debugfs(disk, f"clri /{LIB}/libc.so.6")


def dirty_journal(disk: Disk) -> None:
    """Leave the filesystem as a power cut does: files that only the journal knows of yet."""
    work = disk.path.with_suffix(".crash")
    slot = disk.slot()
    with (
        disks.loop(disk.path, slot.start_bytes, slot.size_bytes) as device,
        disks.mounted_device(device, slot.type) as place,
    ):
        folder = place / "home/alice/unsaved"
        folder.mkdir(parents=True)
        for number in range(200):
            with open(folder / f"note-{number}", "w") as file:
                file.write(f"note {number}\n" * 20)
                file.flush()
                os.fsync(file.fileno())
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        # What a power cut would find on the medium at this moment.
        disks.run("cp", "--sparse=always", disk.path, work)
    os.replace(work, disk.path)


def _write(disk: Disk, offset: int, data: bytes) -> None:
    with open(disk.path, "r+b") as image:
        image.seek(disk.slot().start_bytes + offset)
        image.write(data)
        image.flush()
        os.fsync(image.fileno())


BLOCK_FAULTS = (
    BlockFault("superblock-zeroed", "ext-fs-corrupt", zero_superblock),
    BlockFault("group-descriptors-trashed", "ext-fs-corrupt", trash_group_descriptors),
    BlockFault("inode-table-block-cleared", "ext-fs-corrupt", clear_inode_table_block),
    BlockFault("journal-corrupt", "ext-fs-corrupt", corrupt_journal),
    BlockFault("tree-orphaned", "ext-fs-corrupt", orphan_tree, ("/home/alice/letters",)),
    BlockFault("bitmap-wrong", "ext-fs-corrupt", crosslink_blocks),
    BlockFault("journal-dirty", "fs-needs-recovery", dirty_journal),
)


# --- a patient that means harm ----------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
SHELL = "$(touch /tmp/lab-owned)`touch /tmp/lab-owned`;touch /tmp/lab-owned;'\""


def hostile_links(root: Path) -> list[str]:
    """Point what a repair would write to at files outside the patient."""
    _replace_by_link(root / "etc/resolv.conf", "../../../../etc/passwd")
    _replace_by_link(root / "dev", "/etc")
    _replace_by_link(root / "proc", "/etc")
    _replace_by_link(root / "etc/hostname", "/etc/shadow")
    _replace_by_link(root / "usr/sbin/policy-rc.d", "../../../../../tmp/lab-owned")
    return ["/etc/resolv.conf", "/dev", "/proc", "/etc/hostname", "/usr/sbin/policy-rc.d"]


def hostile_release(root: Path) -> list[str]:
    """Fill os-release and the host name with escape sequences and shell metacharacters."""
    release = root / "usr/lib/os-release"
    name = f"Debian {ESCAPE}{SHELL}".replace('"', "")
    release.write_text(f'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="{name}"\nNAME="a\\nb"\n')
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/hostname").write_text(f"{ESCAPE}{SHELL}\n")
    return ["/usr/lib/os-release", "/etc/hostname"]


def hostile_fifo(root: Path) -> list[str]:
    """Put FIFOs and devices where files are read: whoever opens one waits for ever."""
    names = ("etc/os-release", "usr/lib/os-release", "etc/fstab", "etc/machine-id", "var/lib/dpkg/arch")
    for name in names:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
    os.mknod(root / "etc/ld.so.conf.d/zz.conf", 0o20600, os.makedev(5, 1))
    os.mknod(root / "boot/initrd.img", 0o60600, os.makedev(7, 0))
    return [f"/{n}" for n in names]


def hostile_sizes(root: Path) -> list[str]:
    """Give fstab lines of 10 MB, and the package database a stanza without end."""
    line = "UUID=" + "A" * 10_000_000
    (root / "etc/fstab").write_text(f"{line} / ext4 defaults 0 1\n{line} {line} {line}\n")
    info = root / "var/lib/dpkg/info/zz-hostile.list"
    info.write_text("/" + "b/" * 2_000_000 + "\n")
    return ["/etc/fstab", "/var/lib/dpkg/info/zz-hostile.list"]


def hostile_cycles(root: Path) -> list[str]:
    """Make links that never end, and a mount point that leads out of the patient."""
    (root / "etc/ld.so.conf.d/loop.conf").symlink_to("loop.conf")
    (root / "usr/lib/a").symlink_to("b")
    (root / "usr/lib/b").symlink_to("a")
    (root / "opt/up").symlink_to("../../../../../../..")
    (root / "etc/ld.so.conf.d/zz.conf").write_text(
        "/usr/lib/a\n/opt/up/root\ninclude /etc/ld.so.conf.d/*.conf\n"
    )
    (root / "etc/fstab").write_text(
        f"UUID={disks.ROOT_UUID} / ext4 defaults 0 1\n/dev/sdz1 /opt/up ext4 defaults 0 2\n"
    )
    return ["/etc/ld.so.conf.d/loop.conf", "/usr/lib/a", "/opt/up"]


def hostile_modes(root: Path) -> list[str]:
    """Put setuid programs and device nodes where the package database says there are plain files."""
    shutil.copy2("/bin/true", root / "usr/share/common-licenses/GPL-3.new")
    (root / "usr/share/common-licenses/GPL-3.new").chmod(0o6777)
    os.replace(root / "usr/share/common-licenses/GPL-3.new", root / "usr/share/common-licenses/GPL-3")
    (root / "usr/share/common-licenses/GPL-2").unlink()
    os.mknod(root / "usr/share/common-licenses/GPL-2", 0o60666, os.makedev(7, 1))
    return ["/usr/share/common-licenses/GPL-3", "/usr/share/common-licenses/GPL-2"]


HOSTILE = (hostile_links, hostile_release, hostile_fifo, hostile_sizes, hostile_cycles, hostile_modes)


def _replace_by_link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)
