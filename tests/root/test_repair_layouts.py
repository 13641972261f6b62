# SPDX-License-Identifier: GPL-3.0-or-later
"""The same faults on machines that are laid out in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import agent as agents
from lab import disks, faults, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root


def lose_libc(disk: Disk) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()


@pytest.mark.parametrize(("fstype", "table"), [("ext4", ""), ("xfs", "gpt"), ("btrfs", "dos")])
def test_whole_disks_and_other_file_systems(
    fstype: str, table: Any, agent: Agent, work: Path, debs: Path
) -> None:
    disk = disks.build_debian_disk(work / "o", work / "disk.img", fstype=fstype, table=table)
    assert not agents.faults(agent.diagnose(disk.path))
    lose_libc(disk)
    agent.mend(disk.path, "--packages", debs, *OFFLINE)


def test_two_disks_with_var_and_srv_apart(agent: Agent, work: Path, debs: Path) -> None:
    first, second = disks.build_split_machine(work / "o", work)
    assert not agents.faults(agent.diagnose(first.path, second.path))
    with disks.mounted(first) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
    disks.debugfs(second, "clri /data", index=1)  # a file system that is not the root's
    found = agents.codes(agent.diagnose(first.path, second.path))
    assert {"ext-fs-corrupt", "init-missing-library"} <= found
    agent.mend(first.path, second.path, "--packages", debs, *OFFLINE)
    assert [disks.checker_exit_code(d, i) for d, i in ((first, 1), (second, 0), (second, 1))] == [0, 0, 0]
    with disks.mounted(second, 0, read_only=True) as var:
        assert "libc6" in (var / "lib/dpkg/status").read_text()


def test_a_qcow2_image_is_mended_and_its_backing_file_is_not_touched(
    agent: Agent, golden_disk: Disk, work: Path, debs: Path
) -> None:
    broken = golden_disk.copy(work / "base.img")
    lose_libc(broken)
    before = trees.sha256(broken.path)
    overlay = disks.overlay(broken, work / "disk.qcow2")
    agent.mend(overlay, "--packages", debs, *OFFLINE)
    assert trees.sha256(broken.path) == before


def test_a_block_device_is_mended_like_an_image(agent: Agent, disk: Disk, debs: Path) -> None:
    lose_libc(disk)
    with disks.attached(disk) as (device, _):
        assert "init-missing-library" in agents.codes(agent.diagnose(device))
        agent.run("repair", device, "--yes", "--packages", debs, *OFFLINE).expect(0)
        assert not agents.faults(agent.diagnose(device))


def test_a_disk_in_use_is_refused(agent: Agent, disk: Disk) -> None:
    lose_libc(disk)
    slot = disk.slot()
    with (
        disks.attached(disk) as (device, (partition,)),
        disks.mounted_device(partition, slot.type) as place,
    ):
        before = trees.snapshot(place)
        done = agent.run("repair", device, "--yes", "--json", *OFFLINE).expect(3)
        assert "use" in (done.err + done.out).lower()
        assert trees.snapshot(place) == before


def test_two_systems_need_a_name(agent: Agent, disk: Disk, work: Path, debs: Path) -> None:
    lose_libc(disk)
    other = disk.copy(work / "other.img")
    with disks.loop(other.path, other.slot().start_bytes, other.slot().size_bytes) as device:
        disks.run("e2fsck", "-fy", device)
        disks.run("tune2fs", "-U", "5e5c0a6e-0000-4000-8000-0000000000ff", device)
    refused = agent.run("repair", disk.path, other.path, "--yes", "--json", *OFFLINE).expect(3)
    assert disks.ROOT_UUID in refused.err + refused.out
    arguments = (disk.path, other.path, "--system", disks.ROOT_UUID, "--packages", debs, *OFFLINE)
    agent.run("repair", *arguments, "--yes", "--json").expect(0, 1)
    with disks.mounted(disk, read_only=True) as root:
        assert disks.status("chroot", root, "/bin/true") == 0
    with disks.mounted(other, read_only=True) as root:
        assert disks.status("chroot", root, "/bin/true") == 127, "the system that was not named was changed"


def test_a_stale_plan_is_refused(agent: Agent, disk: Disk, work: Path, debs: Path) -> None:
    lose_libc(disk)
    plan = work / "plan.json"
    agent.run("plan", disk.path, "-o", plan, "--packages", debs, *OFFLINE).expect(1)
    faults.crosslink_blocks(disk)
    with disks.mounted(disk):
        pass  # the superblock of a disk that was used says so
    before = trees.sha256(disk.path)
    agent.run("repair", "--plan", plan, "--yes").expect(3)
    assert trees.sha256(disk.path) == before


def test_a_saved_plan_is_carried_out_as_it_is(agent: Agent, disk: Disk, work: Path, debs: Path) -> None:
    lose_libc(disk)
    plan = work / "plan.json"
    agent.run("plan", disk.path, "-o", plan, "--packages", debs, *OFFLINE).expect(1)
    agent.run("repair", "--plan", plan, "--yes").expect(0)
    assert not agents.faults(agent.diagnose(disk.path))
