# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices, tables, users and the live medium, as one look finds them."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from lab import disks
from lab.disks import Part
from lab.observing import look

from rescue_agent.errors import UsageError
from rescue_agent.model.document import decode, encode
from rescue_agent.model.facts import Facts
from rescue_agent.probe.observe import Request, observe
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

HOSTILE = "a\x1b[2J\n$(x) b"


def test_a_gpt_disk(work: Path) -> None:
    parts = [Part("ext4", 20, label="root"), Part("xfs", 320), Part("swap", 20), Part("btrfs", 120), Part("")]
    disk = disks.build_disk(work / "d.img", parts, size_mib=520, table="gpt")
    with disks.attached(disk) as (device, nodes):
        facts = look(device)
        assert facts.disks == (device,)
        whole = facts.device(device)
        assert whole is not None
        assert (whole.table, whole.kind, whole.disk, whole.size_bytes) == ("gpt", "loop", device, 520 << 20)
        assert len(whole.head_sha256) == 64
        assert not whole.live_medium
        for slot, node in zip(disk.slots, nodes, strict=True):
            part = facts.device(node)
            assert part is not None
            assert part.partition is not None
            assert (part.partition.number, part.partition.start_bytes) == (slot.number, slot.start_bytes)
            assert part.partition.size_bytes == slot.size_bytes == part.size_bytes
            assert part.id == f"partuuid:{part.partition.uuid}"
            assert part.parents == (device,)
        kinds = [d.content.type if (d := facts.device(n)) and d.content else "" for n in nodes]
        assert kinds == ["ext4", "xfs", "swap", "btrfs", ""]
        found = {f.device: (f.type, f.state, f.readable) for f in facts.filesystems}
        assert found == {
            nodes[0]: ("ext4", "clean", True),
            nodes[1]: ("xfs", "clean", True),
            nodes[3]: ("btrfs", "clean", True),
        }
        assert [e for e in facts.errors if e.subject.startswith(device)] == []
        assert decode(encode(facts), Facts) == facts


def test_a_dos_disk_with_logical_partitions(work: Path) -> None:
    parts = [Part("ext4", 20), Part("ext3", 20, logical=True), Part("ext2", 20, logical=True)]
    disk = disks.build_disk(work / "d.img", parts, size_mib=80)
    with disks.attached(disk) as (device, nodes):
        facts = look(device)
        whole = facts.device(device)
        assert whole is not None
        assert whole.table == "dos"
        assert [f.type for f in facts.filesystems] == ["ext4", "ext3", "ext2"]
        assert [Path(n).name[-2:] for n in nodes] == ["p1", "p5", "p6"]
        ids = [d.id for n in nodes if (d := facts.device(n))]
        table = ids[0].removesuffix("-01")
        assert re.fullmatch("partuuid:[0-9a-f]{8}", table)
        assert ids == [f"{table}-01", f"{table}-05", f"{table}-06"]
        extended = facts.device(f"{device}p2")
        assert extended is not None
        assert extended.content is None
        assert extended.head_sha256 == ""


def test_several_disks_side_by_side(work: Path) -> None:
    one = disks.build_disk(work / "1.img", [Part("ext4", label=HOSTILE[:4])], size_mib=20, table="")
    two = disks.build_disk(work / "2.img", [Part("ext2")], size_mib=20, table="")
    with disks.loop(one.path) as first, disks.loop(two.path) as second:
        facts = look(first, second)
        assert facts.disks == (first, second)
        assert [(f.device, f.type) for f in facts.filesystems] == [(first, "ext4"), (second, "ext2")]
        assert [h.device for h in facts.health] == [first, second]
        assert look(second).disks == (second,)


def test_a_partition_stands_for_its_disk(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4", 10), Part("ext4", 10)], size_mib=30)
    with disks.attached(disk) as (device, nodes):
        assert look(nodes[1]).disks == (device,)


def test_names_that_are_no_disks() -> None:
    for name in ("/dev/null", "/nothing", "/etc"):
        with pytest.raises(UsageError):
            look(name)


def test_hostile_labels_are_made_visible(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4", 20)], size_mib=30, table="gpt")
    with disks.attached(disk) as (device, nodes):
        disks.run("tune2fs", "-L", HOSTILE[:16], nodes[0])
        disks.run("sfdisk", "--quiet", "--no-tell-kernel", "--part-label", device, "1", HOSTILE)
        facts = look(device)
        part = facts.device(nodes[0])
        assert part is not None
        assert part.content is not None
        assert part.partition is not None
        assert part.content.label == "a\\x1b[2J\\x0a$(x) b"
        assert part.partition.name == "a\\x1b[2J\\x0a$(x) b"
        assert facts.filesystems[0].label == "a\\x1b[2J\\x0a$(x) b"
        assert b"\x1b" not in encode(facts)
        assert b"\\u001b" not in encode(facts)


def test_contradicting_signatures_are_left_alone(work: Path) -> None:
    xfs = disks.build_disk(work / "x.img", [Part("xfs")], size_mib=320, table="")
    ext = disks.build_disk(work / "e.img", [Part("ext4")], size_mib=20, table="")
    with open(ext.path, "rb") as source, open(xfs.path, "r+b") as target:
        source.seek(1024)
        target.seek(1024)
        target.write(source.read(1024))
    with disks.loop(xfs.path) as device:
        facts = look(device)
        assert facts.filesystems == ()
        assert any("contradict each other" in e.message for e in facts.errors if e.subject == device)
        found = facts.device(device)
        assert found is not None
        assert found.content is not None
        assert (found.content.type, found.content.usage) == ("", "ambivalent")


def test_a_mounted_disk_is_in_use_and_not_checked(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4", 20), Part("btrfs", 120)], size_mib=150)
    with disks.attached(disk) as (device, nodes):
        for node, kind in zip(nodes, ("ext4", "btrfs"), strict=True):
            with disks.mounted_device(node, kind) as place:
                facts = look(device)
                used = facts.device(node)
                assert used is not None
                assert [(m.source, m.target, m.type) for m in used.mounts] == [(node, str(place), kind)]
                found = facts.filesystem(node)
                assert found is not None
                assert found.state == "unknown"
                assert f"mounted at {place}" in found.read_error
                assert found.check is not None
                assert found.check.exit_code is None


def test_a_mount_in_another_namespace_is_seen(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4")], size_mib=20, table="")
    place = work / "place"
    place.mkdir()
    with disks.loop(disk.path) as device:
        other = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"mount {device} {place} && echo up && read line; umount {place}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "up\n"
            assert not os.path.ismount(place)
            facts = look(device)
            used = facts.device(device)
            assert used is not None
            assert [m.target for m in used.mounts] == [str(place)]
        finally:
            other.communicate("\n", timeout=20)
        assert look(device).filesystems[0].readable


@pytest.mark.parametrize("writes", [True, False])
def test_a_process_that_writes_to_the_device_is_named(work: Path, writes: bool) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4")], size_mib=20, table="")
    with disks.loop(disk.path) as device:
        # setsid: no child of this process, as the agent's own helpers are.
        other = subprocess.Popen(
            [
                "sh",
                "-c",
                f"(exec setsid sleep 60 {'<>' if writes else '<'}{device} >/dev/null 2>&1) & echo $!",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        pid = int(other.communicate()[0])
        try:
            facts = look(device)
            used, found = facts.device(device), facts.filesystem(device)
            assert used is not None
            assert found is not None
            assert [(h.pid, h.path) for h in used.held_by] == ([(pid, device)] if writes else [])
            assert found.readable is not writes
        finally:
            os.kill(pid, 15)


def test_a_swap_area_in_use(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("swap")], size_mib=20, table="")
    with disks.loop(disk.path) as device:
        if disks.status("swapon", device):
            pytest.skip("this machine does not let us use swap")
        try:
            used = look(device).device(device)
        finally:
            disks.run("swapoff", device)
        assert used is not None
        assert [(m.target, m.type) for m in used.mounts] == [("[SWAP]", "swap")]


def test_a_hibernation_image_is_known(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("swap")], size_mib=20, table="")
    with open(disk.path, "r+b") as file:
        file.seek(4096 - 10)
        file.write(b"S1SUSPEND\0")  # kernel/power/swap.c HIBERNATE_SIG
    with disks.loop(disk.path) as device:
        found = look(device).device(device)
        assert found is not None
        assert found.content is not None
        assert found.content.type == "swsuspend"


def test_locked_containers_are_told(work: Path) -> None:
    if disks.missing_tools("cryptsetup"):
        pytest.skip("cryptsetup is not installed")
    disk = disks.build_disk(work / "d.img", [Part("", 32), Part("")], size_mib=64, table="gpt")
    with disks.attached(disk) as (device, nodes):
        options = ("--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-")
        disks.run("cryptsetup", "luksFormat", *options, nodes[0], stdin="secret")
        facts = look(device)
        assert [(c.device, c.kind, c.state) for c in facts.containers if c.device in nodes] == [
            (nodes[0], "luks", "locked")
        ]
        assert facts.filesystems == ()


def test_the_rescue_system_is_no_patient() -> None:
    facts = observe(Runner(), Request(work_dir="/nowhere/yet", check_filesystems=False))
    live = [d for d in facts.devices if d.live_medium]
    root = os.stat("/").st_dev
    if os.major(root):
        assert any(os.stat(d.path).st_rdev == root for d in live)
    assert not {d.path for d in live} & set(facts.disks)
    assert all(d.kind == "disk" for p in facts.disks if (d := facts.device(p)))
    assert facts.rescue.memory_bytes > 0
    assert facts.rescue.work_free_bytes > 0
    assert facts.tool("e2fsck")


def test_a_live_medium_is_recognised_through_its_layers(work: Path) -> None:
    """The root's image is a file on the medium: its loop device leads to the disk with that file."""
    tree = work / "tree"
    (tree / "live").mkdir(parents=True)
    disks.build_disk(tree / "live/root.img", [Part("ext2")], size_mib=4, table="")
    disk = disks.build_disk(work / "d.img", [Part("ext4", 20, tree=tree), Part("ext4", 10)], size_mib=40)
    place = Path("/run/live/rescue-agent-test")
    made = not place.parent.exists()
    place.mkdir(parents=True)
    try:
        with (
            disks.attached(disk) as (device, nodes),
            disks.mounted_device(nodes[0], "ext4", "ro") as medium,
            disks.loop(medium / "live/root.img", read_only=True) as layer,
        ):
            assert not [d for d in look(device).devices if d.live_medium and d.path in (device, layer)]
            disks.run("mount", "-o", "ro", layer, place)
            try:
                marked = {d.path for d in look(device).devices if d.live_medium}
            finally:
                disks.run("umount", place)
            assert {device, *nodes, layer} <= marked
    finally:
        place.rmdir()
        if made:
            place.parent.rmdir()


def test_the_beginning_of_a_disk_identifies_it(work: Path) -> None:
    disk = disks.build_disk(work / "d.img", [Part("ext4", 20)], size_mib=30)
    with disks.attached(disk) as (device, nodes):
        before = look(device)
        with open(nodes[0], "r+b") as file:
            file.seek(1024 + 0x78)
            file.write(struct.pack("16s", b"changed"))
        after = look(device)
        for path, same in ((device, True), (nodes[0], False)):
            old, new = before.device(path), after.device(path)
            assert old is not None
            assert new is not None
            assert (old.head_sha256 == new.head_sha256) is same
