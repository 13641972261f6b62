# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images of every format are attached with their partitions, and given back."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import disks, trees
from lab.disks import Disk, Part

from rescue_agent.errors import Refused, RescueError, UsageError
from rescue_agent.model.run import Acquired
from rescue_agent.system import images
from rescue_agent.system.mounts import mounts_below
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

FORMATS = ("qcow2", "vmdk", "vdi", "vhdx", "vpc")


class Holding:
    """What a test attaches, with the journal of it."""

    def __init__(self) -> None:
        self.records: list[Acquired] = []
        self.resources = Resources(self.records.append)

    def attach(self, path: Path | str, *, writable: bool = False, overlay: str = "") -> images.Attachment:
        return images.attach(Runner(), self.resources, str(path), writable=writable, overlay=overlay)


@pytest.fixture
def holding() -> Iterator[Holding]:
    held = Holding()
    try:
        yield held
    finally:
        leaks = held.resources.release_to(0)
    assert leaks == ()
    assert mounts_below(str(images.EXPORT_DIR)) == ()
    for record in held.records:
        assert record.state != "leaked"
    taken = {r.key for r in held.records if r.state == "intent"}
    assert taken == {r.key for r in held.records if r.state == "released"}
    for path in {r.source for r in held.records if r.kind == "loop" and r.state == "intent"}:
        assert path
        assert images.loops_of(path) == ()


@pytest.fixture
def disk(work: Path) -> Disk:
    return disks.build_disk(
        work / "disk.img",
        [Part("ext4", 20, label="one"), Part("ext4", 20, logical=True), Part("swap", 10, logical=True)],
        size_mib=80,
    )


def partitions_of(device: str) -> list[str]:
    return sorted(p.name.removeprefix(Path(device).name) for p in Path("/dev").glob(f"{Path(device).name}p*"))


def converted(disk: Disk, kind: str) -> Path:
    if disks.missing_tools("qemu-img", "qemu-storage-daemon"):
        pytest.skip("QEMU's tools are not installed")
    target = disk.path.with_suffix(f".{kind}")
    disks.run("qemu-img", "convert", "-f", "raw", "-O", kind, disk.path, target)
    return target


def test_a_raw_image(disk: Disk, holding: Holding) -> None:
    before = trees.sha256(disk.path)
    device, image = holding.attach(disk.path)
    assert (image.path, image.format) == (str(disk.path), "raw")
    assert partitions_of(device) == ["p1", "p2", "p5", "p6"]
    assert Path(f"/sys/block/{Path(device).name}/ro").read_text() == "1\n"
    assert trees.sha256(disk.path) == before


@pytest.mark.parametrize("kind", FORMATS)
def test_the_other_formats_read_only(disk: Disk, holding: Holding, kind: str) -> None:
    path = converted(disk, kind)
    before = trees.sha256(path)
    device, image = holding.attach(path)
    assert image.format == kind
    assert partitions_of(device) == ["p1", "p2", "p5", "p6"]
    with disks.mounted_device(f"{device}p1", "ext4", "ro,noload") as place:
        assert (place / "lost+found").is_dir()
    holding.resources.release_to(0)
    assert trees.sha256(path) == before


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_is_written_reaches_the_image(disk: Disk, holding: Holding, kind: str) -> None:
    path = disk.path if kind == "raw" else converted(disk, kind)
    device, _ = holding.attach(path, writable=True)
    with disks.mounted_device(f"{device}p1", "ext4") as place:
        (place / "note").write_text("kept")
    holding.resources.release_to(0)
    device, _ = holding.attach(path)
    with disks.mounted_device(f"{device}p1", "ext4", "ro,noload") as place:
        assert (place / "note").read_text() == "kept"


@pytest.mark.parametrize("kind", ["raw", "qcow2", "block device"])
def test_an_overlay_takes_all_writes(disk: Disk, work: Path, holding: Holding, kind: str) -> None:
    path = converted(disk, "qcow2") if kind == "qcow2" else disk.path
    before = trees.sha256(path)
    layer = work / "layer.qcow2"
    with disks.loop(disk.path, read_only=True) as loop:
        device, image = holding.attach(
            loop if kind == "block device" else path, writable=False, overlay=str(layer)
        )
        assert image.path == (loop if kind == "block device" else str(path))
        with disks.mounted_device(f"{device}p1", "ext4") as place:
            (place / "note").write_text("only here")
            assert (place / "note").read_text() == "only here"
        holding.resources.release_to(0)
    assert layer.stat().st_size > 0
    assert trees.sha256(path) == before
    with pytest.raises(UsageError, match="exists already"):
        holding.attach(path, writable=False, overlay=str(layer))


def test_a_backing_file_in_the_same_folder_is_followed(disk: Disk, holding: Holding) -> None:
    converted(disk, "qcow2")
    top = disk.path.with_suffix(".top")
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk.path.name, top)
    assert partitions_of(holding.attach(top).device) == ["p1", "p2", "p5", "p6"]


def test_a_disk_without_a_table_and_one_with_large_sectors(work: Path, holding: Holding) -> None:
    whole = disks.build_disk(work / "whole.img", [Part("ext4")], size_mib=20, table="")
    assert partitions_of(holding.attach(whole.path).device) == []
    native = work / "4k.img"
    with open(native, "wb") as file:
        file.truncate(64 << 20)
    loop = disks.run("losetup", "--find", "--show", "--sector-size", "4096", native).strip()
    try:
        disks.run("sfdisk", "--quiet", "--no-tell-kernel", loop, stdin="label: gpt\nsize=20MiB\n")
    finally:
        disks.run("losetup", "--detach", loop)
    assert partitions_of(holding.attach(native).device) == ["p1"]


def test_a_damaged_qcow2_is_explained(disk: Disk, holding: Holding) -> None:
    path = converted(disk, "qcow2")
    with open(path, "r+b") as file:
        file.seek(40)  # l1_table_offset
        file.write(b"\xff" * 8)
    with pytest.raises(RescueError, match=r"QEMU cannot open .*disk\.qcow2: .*L1 table"):
        holding.attach(path)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_of_a_running_machine_is_refused(
    disk: Disk, work: Path, holding: Holding, kind: str
) -> None:
    path = converted(disk, "qcow2") if kind == "qcow2" else disk.path
    converted(disk, "qcow2")
    # What a virtual machine does with its disk: QEMU opens it for writing and locks it.
    machine = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=file,node-name=f,filename={path}",
            "--blockdev",
            f"driver={kind},node-name=d,file=f",
            "--nbd-server",
            f"addr.type=unix,addr.path={work}/socket",
            "--export",
            "type=nbd,id=e,node-name=d,writable=on",
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not (work / "socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        for writable in (False, True):
            with pytest.raises(Refused, match="in use"):
                holding.attach(path, writable=writable)
    finally:
        machine.send_signal(signal.SIGTERM)
        machine.wait(10)
    holding.attach(path)


def test_qemu_keeps_off_an_image_that_the_agent_works_on(disk: Disk, holding: Holding) -> None:
    converted(disk, "qcow2")
    holding.attach(disk.path, writable=True)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk.path], capture_output=True, text=True, check=False
    )
    assert "lock" in done.stderr


def test_an_image_that_is_attached_already_is_refused(disk: Disk, holding: Holding) -> None:
    with disks.loop(disk.path) as device:
        with pytest.raises(Refused, match=f"already attached as {device}"):
            holding.attach(disk.path, writable=True)
        # To look at it is harmless while nobody has it mounted.
        holding.attach(disk.path)


def test_a_release_that_does_not_work_is_a_leak(disk: Disk, holding: Holding) -> None:
    other = Holding()
    device, _ = other.attach(disk.path)
    images_timeout, images.DETACH_TIMEOUT_S = images.DETACH_TIMEOUT_S, 0.3
    try:
        with open(device, "rb"):
            leaks = other.resources.release_to(0)
    finally:
        images.DETACH_TIMEOUT_S = images_timeout
    assert len(leaks) == 1
    assert device in leaks[0]
    assert [r.state for r in other.records if r.kind == "loop"][-1] == "leaked"
