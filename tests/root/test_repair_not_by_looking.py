# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking never writes: the whole disk has the same hash before and after scan, diagnose and plan."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, trees
from lab.agent import Agent
from lab.disks import Disk, Part

pytestmark = pytest.mark.root


def small_tree(work: Path) -> Path:
    """Make a few files that look like a system's, for disks where the contents don't matter."""
    tree = work / "small"
    for folder in ("etc", "usr/lib", "home/alice/letters"):
        (tree / folder).mkdir(parents=True)
    (tree / "usr/lib/os-release").write_text(
        'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n'
    )
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "etc/fstab").write_text(f"UUID={disks.ROOT_UUID} / auto defaults 0 1\n")
    for number in range(50):
        (tree / f"home/alice/letters/letter-{number}").write_text("x" * 5000)
    return tree


def dirty_by_shutdown(disk: Disk) -> None:
    """Write and sync files, then copy the image while it is mounted: what a power cut leaves."""
    slot = disk.slot()
    copy = disk.path.with_suffix(".crash")
    with (
        disks.loop(disk.path, slot.start_bytes, slot.size_bytes) as device,
        disks.mounted_device(device, slot.type) as place,
    ):
        for number in range(300):
            with open(place / f"home/alice/new-{number}", "w") as file:
                file.write("written just before the power went\n" * 10)
                file.flush()
                if number % 10 == 0:
                    os.fsync(file.fileno())
        with open(place / "home/alice/last", "w") as file:
            os.fsync(file.fileno())
        disks.run("cp", "--sparse=always", disk.path, copy)
    os.replace(copy, disk.path)


@pytest.mark.parametrize("fstype", ["ext3", "ext4", "xfs", "btrfs"])
def test_a_dirty_log_is_not_replayed_by_looking(fstype: str, agent: Agent, work: Path) -> None:
    part = Part(fstype, tree=small_tree(work), uuid=str(uuid.uuid4()))
    disk = disks.build_disk(work / "dirty.img", [part], size_mib=400, table="gpt")
    dirty_by_shutdown(disk)
    before = trees.sha256(disk.path)
    for command in ("scan", "diagnose", "plan"):
        done = agent.run(command, disk.path, "--json").expect(0, 1, 3)
        assert trees.sha256(disk.path) == before, f"{command} wrote to the disk\n{done}"
        agents.assert_nothing_left(disk.path)
    with disks.mounted(disk) as root:  # proof that there was something to replay
        assert (root / "home/alice/last").exists()
    assert trees.sha256(disk.path) != before


@pytest.mark.parametrize(
    "fault", [faults.zero_superblock, faults.trash_group_descriptors, faults.orphan_tree]
)
def test_a_broken_disk_is_only_read(fault: Callable[[Disk], None], agent: Agent, disk: Disk) -> None:
    fault(disk)
    before = trees.sha256(disk.path)
    for command in ("scan", "diagnose", "plan"):
        agent.run(command, disk.path, "--json").expect(0, 1)
        assert trees.sha256(disk.path) == before, f"{command} wrote to the disk"


def test_the_script_of_a_plan_and_a_rehearsal_only_read(agent: Agent, disk: Disk, debs: Path) -> None:
    faults.trash_group_descriptors(disk)
    before = trees.sha256(disk.path)
    agent.run("plan", disk.path, "--shell").expect(1)
    assert trees.sha256(disk.path) == before
    done = agent.run("repair", disk.path, "--rehearse", "--yes", "--json", "--no-surface-scan").expect(0)
    assert done.document["rehearsal"] is True
    assert trees.sha256(disk.path) == before, "a rehearsal wrote to the disk"
    assert "ext-fs-corrupt" in agents.codes(agent.diagnose(disk.path))


def test_a_read_only_block_device_is_enough_to_look(agent: Agent, disk: Disk) -> None:
    with disks.attached(disk, read_only=True) as (device, _):
        agent.run("diagnose", device, "--json").expect(0)
        agent.run("plan", device, "--json").expect(0, 3)


def test_a_saved_scan_gives_the_same_diagnosis_and_plan_without_the_disk(
    agent: Agent, disk: Disk, work: Path
) -> None:
    faults.trash_group_descriptors(disk)
    facts = work / "facts.json"
    facts.write_bytes(agent.run("scan", disk.path, "--json").expect(0).stdout)
    live = agent.diagnose(disk.path)
    disk.path.unlink()
    replayed = agent.run("diagnose", "--facts", facts, "--json").expect(1).document
    assert [f["id"] for f in replayed["findings"]] == [f["id"] for f in live["findings"]]
    assert agent.run("plan", "--facts", facts, "--json").expect(1).document["steps"]
