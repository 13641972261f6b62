# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems in every state that a disk can be found in, and that looking never changes them."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import disks, trees
from lab.disks import Disk, Part
from lab.observing import look

from rescue_agent.model.facts import BackupSuperblock, Filesystem, Image
from rescue_agent.system import images
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

MIB = 1 << 20


def whole(work: Path, kind: str, size_mib: int, *options: str, tree: Path | None = None) -> Disk:
    part = Part(kind, options=options, tree=tree)
    return disks.build_disk(work / f"{kind or 'nothing'}.img", [part], size_mib=size_mib, table="")


def filesystem_on(disk: Disk) -> Filesystem | None:
    """Return what one look finds on a disk without a table; its bytes must be the same afterwards."""
    # Hashing the holes of an image of several terabytes would take hours.
    too_large = disk.path.stat().st_size > 1 << 40
    before = "" if too_large else trees.sha256(disk.path)
    with disks.loop(disk.path, read_only=too_large) as device:
        facts = look(device)
        found = facts.filesystem(device)
    assert too_large or trees.sha256(disk.path) == before
    return found


def the_filesystem_on(disk: Disk) -> Filesystem:
    found = filesystem_on(disk)
    assert found is not None
    return found


def overwrite(disk: Disk, offset: int, data: bytes) -> None:
    with open(disk.path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@contextmanager
def after_power_cut(work: Path, kind: str, size_mib: int) -> Iterator[Disk]:
    """Give a disk as a power cut leaves it: changes that only its log knows of."""
    disk = whole(work, kind, size_mib)
    copy = work / "crashed.img"
    with disks.loop(disk.path) as device, disks.mounted_device(device, kind) as place:
        for number in range(100):
            with open(place / f"note-{number}", "w") as file:
                file.write("x" * 500)
                os.fsync(file.fileno())
        os.sync()
        shutil.copyfile(disk.path, copy)
    yield Disk(copy, disk.slots)


# --- looking never writes -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size_mib"), [("ext4", 40), ("ext3", 40), ("xfs", 320), ("btrfs", 120)])
def test_looking_at_a_disk_after_a_power_cut_changes_nothing(work: Path, kind: str, size_mib: int) -> None:
    with after_power_cut(work, kind, size_mib) as disk:
        before = trees.sha256(disk.path)
        with disks.loop(disk.path) as device:
            facts = look(device)
            found = facts.filesystem(device)
            assert found is not None
            assert found.readable
        assert trees.sha256(disk.path) == before
        if kind != "btrfs":  # its superblock shows a log only between two commits
            assert found.state == "needs-recovery"
        # The proof that there was something to spoil: a plain read-only mount does change it.
        with disks.loop(disk.path) as device, disks.mounted_device(device, kind, "ro"):
            pass
        if kind != "btrfs":
            assert trees.sha256(disk.path) != before


def test_looking_at_a_qcow2_changes_nothing(work: Path) -> None:
    if disks.missing_tools("qemu-img", "qemu-storage-daemon"):
        pytest.skip("QEMU's tools are not installed")
    with after_power_cut(work, "ext4", 40) as disk:
        path = work / "crashed.qcow2"
        disks.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk.path, path)
        before = trees.sha256(path)
        resources = Resources()
        try:
            device, image = images.attach(Runner(), resources, str(path), writable=True)
            facts = look(device, image=image)
            assert facts.disks == (device,)
            assert facts.filesystems[0].state == "needs-recovery"
            seen = facts.device(device)
            assert seen is not None
            assert seen.id == f"image:{path}"
            assert seen.image == Image(path=str(path), format="qcow2")
            assert seen.held_by == ()
        finally:
            assert resources.release_to(0) == ()
        assert trees.sha256(path) == before


def test_looking_into_a_damaged_system_changes_nothing(work: Path) -> None:
    """The ext4 driver notes damage in the superblock, even on a read-only mount, when the device lets it."""
    tree = work / "tree"
    for folder in ("etc/apt", "usr/lib", "usr/bin", "var/lib/dpkg/info", "sbin"):
        (tree / folder).mkdir(parents=True)
    (tree / "etc/os-release").write_text('ID=debian\nNAME="Debian GNU/Linux"\n')
    (tree / "etc/fstab").write_text("")
    (tree / "var/lib/dpkg/status").write_text("")
    disk = whole(work, "ext4", 40, tree=tree)
    inode = disks.debugfs(disk, "stat /etc/apt", write=False).split("Inode: ")[1].split()[0]
    # An entry that leads to an inode which is not there: every lookup meets it.
    disks.debugfs(disk, f"clri <{inode}>", "clri /usr/bin", "clri /sbin")
    found = the_filesystem_on(disk)
    assert (found.state, found.readable) == ("damaged", True)


def test_the_protection_of_a_killed_run_is_lifted(work: Path) -> None:
    disk = whole(work, "ext4", 20)
    with disks.loop(disk.path) as device:
        script = (
            "import os, signal, sys\n"
            "from rescue_agent.system.protection import write_protected\n"
            "with write_protected(sys.argv[1]):\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert (
            subprocess.run([sys.executable, "-c", script, device], check=False).returncode == -signal.SIGKILL
        )
        assert disks.run("blockdev", "--getro", device) == "1\n"
        assert not look(device).health[0].read_only
        assert disks.run("blockdev", "--getro", device) == "0\n"


# --- ext -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1024, 2048, 4096])
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_a_lost_superblock_is_a_damaged_filesystem(work: Path, kind: str, block_size: int) -> None:
    size_mib = {1024: 40, 2048: 120, 4096: 500}[block_size]
    disk = whole(work, kind, size_mib, "-b", str(block_size))
    sound = the_filesystem_on(disk)
    assert (sound.type, sound.state, sound.primary_superblock) == (kind, "clean", "ok")
    assert sound.block_size == block_size
    assert sound.size_bytes == size_mib * MIB
    text = disks.run("dumpe2fs", disk.path)
    places = [
        int(line.split("at ")[1].split(",")[0]) for line in text.splitlines() if "Backup superb" in line
    ]
    overwrite(disk, 1024, bytes(1024))
    found = the_filesystem_on(disk)
    assert (found.type, found.state, found.primary_superblock) == (kind, "damaged", "bad")
    assert found.uuid == sound.uuid
    assert found.backups == tuple(BackupSuperblock(block=p, block_size=block_size) for p in places)
    assert found.check is not None
    assert found.check.argv[1:6] == ("-fn", "-b", str(places[0]), "-B", str(block_size))
    assert found.check.verdict in ("clean", "damaged")
    assert not found.readable
    assert found.read_error
    # What is said of the copy is true: e2fsck repairs it from there.
    copy = found.backups[0]
    assert disks.status("e2fsck", "-fy", "-b", str(copy.block), "-B", str(block_size), disk.path) in (0, 1)
    assert the_filesystem_on(disk).state == "clean"


def test_a_superblock_with_a_wrong_checksum_or_a_wrong_size(work: Path) -> None:
    disk = whole(work, "ext4", 40, "-b", "1024")
    overwrite(disk, 1024 + 0x78, b"changed")
    assert the_filesystem_on(disk).primary_superblock == "bad"
    plain = whole(work, "ext2", 40, "-b", "1024")
    overwrite(plain, 1024 + 4, struct.pack("<I", 1 << 30))
    found = the_filesystem_on(plain)
    assert (found.primary_superblock, found.size_bytes) == ("bad", 40 * MIB)


def test_nothing_is_found_in_noise(work: Path) -> None:
    disk = whole(work, "", 40)
    with open(disk.path, "r+b") as file:
        for _ in range(40):
            file.write(os.urandom(MIB))
    assert filesystem_on(disk) is None


def test_states_of_the_superblock(work: Path) -> None:
    disk = whole(work, "ext2", 20)
    overwrite(disk, 1024 + 0x3A, struct.pack("<H", 0))
    assert the_filesystem_on(disk).state == "dirty"
    marked = whole(work, "ext4", 20)
    disks.debugfs(marked, "ssv state 3", "ssv error_count 7", "ssv first_error_func ext4_lookup")
    found = the_filesystem_on(marked)
    assert found.state == "error"
    assert found.recorded[0] == "the kernel noted 7 errors in it"
    assert any("ext4_lookup" in line for line in found.recorded)


def test_an_ext_that_blkid_calls_by_another_name(work: Path) -> None:
    marked = whole(work, "ext4", 16)
    disks.run("tune2fs", "-E", "test_fs", marked.path)
    assert the_filesystem_on(marked).type == "ext4"


def test_damage_that_the_superblock_does_not_know(work: Path) -> None:
    disk = whole(work, "ext4", 20)
    disks.debugfs(disk, "clri <2>")
    found = the_filesystem_on(disk)
    assert (found.state, found.primary_superblock) == ("damaged", "ok")
    assert found.check is not None
    assert found.check.exit_code is not None
    assert found.check.exit_code & 4
    assert any("Root inode is not a directory" in line for line in found.check.messages)


@pytest.mark.parametrize(("kind", "size_mib"), [("ext4", 40), ("xfs", 400), ("btrfs", 200)])
def test_a_filesystem_larger_than_its_device_is_not_checked(work: Path, kind: str, size_mib: int) -> None:
    disk = whole(work, kind, size_mib)
    os.truncate(disk.path, size_mib // 2 * MIB)
    found = the_filesystem_on(disk)
    assert found.size_bytes == size_mib * MIB
    assert found.state == "unknown"
    assert found.check is not None
    assert found.check.exit_code is None
    assert f"it believes that it has {size_mib * MIB} bytes" in found.check.reason


@contextmanager
def with_bad_blocks(work: Path, disk: Disk, sectors: list[int]) -> Iterator[str]:
    """Show a disk whose medium cannot read some sectors (QEMU's blkdebug over FUSE); give its device."""
    if disks.missing_tools("qemu-storage-daemon"):
        pytest.skip("QEMU's tools are not installed")
    place = work / "export"
    place.touch()
    rules = [{"event": "none", "iotype": "read", "errno": 5, "sector": s, "once": False} for s in sectors]
    fault = {"driver": "blkdebug", "node-name": "d", "image": "f", "inject-error": rules}
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=file,node-name=f,filename={disk.path}",
            "--blockdev",
            json.dumps(fault),
            "--export",
            f"type=fuse,id=e,node-name=d,mountpoint={place},writable=on",
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while place.stat().st_size == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        with disks.loop(place) as device:
            yield device
    finally:
        daemon.terminate()
        daemon.wait(10)
    shutil.copyfile(disk.path, work / "after")


def test_unreadable_blocks_are_the_mediums_fault(work: Path) -> None:
    disk = whole(work, "ext4", 64, "-b", "4096")
    text = disks.run("dumpe2fs", disk.path)
    table = int(text.split("Inode table at ")[1].split("-")[0])
    before = trees.sha256(disk.path)
    with with_bad_blocks(work, disk, [table * 8]) as device:
        facts = look(device)
        found = facts.filesystem(device)
        assert found is not None
        assert found.check is not None
        assert found.check.verdict == "unreadable"
        assert any(f"Error reading block {table}" in line for line in found.check.messages)
        health = facts.health[0]
        assert health.io_errors > 0
        assert any(f"dev {Path(device).name}, sector {table * 8} " in line for line in health.io_error_lines)
    assert trees.sha256(disk.path) == before


def test_an_unreadable_superblock_is_no_traceback(work: Path) -> None:
    disk = whole(work, "ext4", 64, "-b", "4096")
    with with_bad_blocks(work, disk, [0, 2]) as device:
        facts = look(device)
        assert facts.health[0].io_errors > 0
        assert any(e.subject == device for e in facts.errors)


# --- the others ------------------------------------------------------------------------------------


def test_vfat_clean_dirty_and_damaged(work: Path) -> None:
    if disks.missing_tools("mkfs.vfat", "fsck.fat"):
        pytest.skip("dosfstools are not installed")
    disk = whole(work, "", 64)
    disks.run("mkfs.vfat", "-n", "EFI", disk.path)
    found = the_filesystem_on(disk)
    assert (found.type, found.state, found.label, found.size_bytes) == ("vfat", "clean", "EFI", 64 * MIB)
    overwrite(disk, 0x25, b"\x01")
    assert the_filesystem_on(disk).state == "dirty"


def test_xfs_with_damage(work: Path) -> None:
    disk = whole(work, "xfs", 320)
    overwrite(disk, 4096 * 3, os.urandom(4096))  # free-space and inode trees of the first group
    found = the_filesystem_on(disk)
    assert found.check is not None
    assert (found.state, found.check.verdict, found.check.exit_code) == ("damaged", "damaged", 1)
    assert found.check.messages


def test_two_copies_of_one_btrfs_are_never_mounted(work: Path) -> None:
    disk = whole(work, "btrfs", 120)
    copy = disk.copy(work / "copy.img")
    with disks.loop(disk.path) as first, disks.loop(copy.path) as second:
        facts = look(first, second)
        for device in (first, second):
            found = facts.filesystem(device)
            assert found is not None
            assert not found.readable
            assert "same UUID" in found.read_error
            assert found.state == "clean"


def test_without_checks_the_superblock_alone_speaks(work: Path) -> None:
    disk = whole(work, "ext4", 20)
    disks.debugfs(disk, "clri <2>")
    with disks.loop(disk.path) as device:
        found = look(device, check=False).filesystem(device)
    assert found is not None
    assert (found.state, found.check) == ("clean", None)


def test_a_read_only_disk_is_told(work: Path) -> None:
    disk = whole(work, "ext4", 20)
    for read_only in (True, False):
        with disks.loop(disk.path, read_only=read_only) as device:
            assert look(device).health[0].read_only is read_only


# --- filesystems that somebody else broke --------------------------------------------------------------

EXPECTED = {
    "ext:f_dup": ("ext2", "damaged", "damaged"),
    "ext:f_zero_super": ("ext2", "damaged", "damaged"),
    "ext:f_illitable": ("ext2", "damaged", "damaged"),
    "ext:f_holedir4": ("ext4", "damaged", "damaged"),
    "ext:f_extent_int_bad_csum": ("ext4", "damaged", "damaged"),
    "ext:f_salvage_dir": ("ext2", "damaged", "damaged"),
    "ext:f_journal": ("ext3", "needs-recovery", "needs-recovery"),
    # Two KiB with the ext magic and the boot sector of a floppy; nobody can repair it.
    "ext:f_crashdisk": ("ext2", "damaged", "unrepairable"),
    "btrfs:fsck-004-no-dir-index--default_case": ("btrfs", "damaged", "damaged"),
    "btrfs:fsck-070-missing-inode-ref--default": ("btrfs", "damaged", "damaged"),
    "vfat:check-circular_chain": ("vfat", "damaged", "damaged"),
    "xfs:dirty": ("xfs", "needs-recovery", "needs-recovery"),
}


def corpus() -> list[dict[str, object]]:
    if not (disks.CORPUS / "manifest.json").exists():
        return []
    entries: list[dict[str, object]] = json.loads((disks.CORPUS / "manifest.json").read_text())["images"]
    return entries


def unpacked(entry: dict[str, object], work: Path) -> Disk:
    source = disks.CORPUS / str(entry["file"])
    target = work / "image"
    data = lzma.decompress(source.read_bytes()) if source.suffix == ".xz" else source.read_bytes()
    if entry["fs"] == "btrfs":
        if disks.missing_tools("btrfs-image"):
            pytest.skip("btrfs-image is not installed")
        (work / "dump").write_bytes(data)
        disks.run("btrfs-image", "-r", work / "dump", target)
    else:
        target.write_bytes(data)
    return Disk(target, ())


@pytest.mark.skipif(not corpus(), reason=f"the broken filesystems of {disks.CORPUS} are not here")
@pytest.mark.parametrize("entry", corpus(), ids=lambda e: e["id"])
def test_broken_filesystems_from_elsewhere(entry: dict[str, object], work: Path) -> None:
    found = the_filesystem_on(unpacked(entry, work))
    assert found.check is not None
    verdict = (found.type, found.state, found.check.verdict)
    assert verdict == EXPECTED[str(entry["id"])], found.check
    measured = entry["measured"]
    assert isinstance(measured, dict)
    told = measured.get("fn", measured.get("check"))
    if found.check.exit_code is not None and isinstance(told, int) and found.primary_superblock != "bad":
        assert found.check.exit_code == told
