# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the RPM family's packages come from, and what is refused; upgrades; SELinux labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, rpmfaults, rpmroots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk
from lab.mirror import served

pytestmark = pytest.mark.root

GoldenDisks = Callable[[rpmroots.Flavour], Disk]
LIBC = f"{faults.LIB}/libc.so.6"

# --- what is not done ------------------------------------------------------------------------------------


def test_a_package_that_nobody_signed_is_refused(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        good = rpmfaults.make_tool(work, root / "var/tmp/good", "1.0")
        disks.run("chroot", root, "rpm", "-i", f"/var/tmp/good/{good.name}")
        (root / "usr/share/lab-tool/version").unlink()
    before = trees.sha256(disk.path)
    unsigned = rpmfaults.make_tool(work, work / "unsigned", "1.0", signed=False)
    changed = rpmfaults.make_tool(work, work / "changed", "1.0")
    data = bytearray(changed.read_bytes())
    data[-200] ^= 1
    changed.write_bytes(data)
    for folder in (unsigned.parent, changed.parent):
        plan = agent.plan(disk.path, "--packages", folder, *OFFLINE)
        assert not plan["steps"]
        assert "is not signed by a key that the system trusts" in str(plan["refusals"])
        done = agent.run("repair", disk.path, "--yes", "--json", "--packages", folder, *OFFLINE).expect(1)
        assert not done.document["steps"]
        assert trees.sha256(disk.path) == before
    signed = rpmfaults.make_tool(work, work / "signed", "1.0")
    agent.mend(disk.path, "--packages", signed.parent, *OFFLINE)


def test_without_packages_and_network_nothing_is_written(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el7").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        (root / LIBC).unlink()
    before = trees.sha256(disk.path)
    plan = agent.plan(disk.path, *OFFLINE)
    assert "glibc" in str(plan["refusals"]) and ".rpm files" in str(plan["refusals"])
    done = agent.run("repair", disk.path, "--yes", "--json", *OFFLINE).expect(1, 3)
    assert not [s for s in done.document["steps"] if s["status"] == "done"], str(done)
    assert trees.sha256(disk.path) == before


def test_a_repair_on_a_full_root_is_not_begun_half_way(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.damage_packages(root, 5)
        faults.fill(root)
        before = trees.snapshot(root, skip=trees.TRACES)
    assert "disk-full" in agents.codes(agent.diagnose(disk.path))
    done = agent.run("repair", disk.path, "--yes", "--json", *rpmroots.packages()).expect(1, 3)
    assert not [s for s in done.document["steps"] if s["status"] == "failed"], str(done)
    with disks.mounted(disk, read_only=True) as root:
        assert not trees.changes(before, trees.snapshot(root, skip=trees.TRACES))


# --- the network, upgrades, labels ----------------------------------------------------------------------


def point_at(root: Path, address: str) -> None:
    """Let the root's own repository be at this address, as a person would write it."""
    place = root / "etc/yum.repos.d/lab.repo"
    place.write_text(place.read_text().replace("file:///srv/repo", address))


def test_packages_come_from_the_systems_own_repository(agent: Agent, rpm_disk: Disk) -> None:
    with served(rpmroots.repository()) as address:
        with disks.mounted(rpm_disk) as root:
            point_at(root, address)
            before = trees.snapshot(root)
            (root / LIBC).unlink()
        plan = agent.plan(rpm_disk.path, "--no-surface-scan")
        assert "fetch-packages" in [s["id"] for s in plan["steps"]]
        agent.mend(rpm_disk.path, "--no-surface-scan")
    with disks.mounted(rpm_disk) as root:
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_an_upgrade_is_done_when_asked_for(agent: Agent, rpm_disk: Disk, work: Path) -> None:
    mirror = work / "mirror"
    rpmfaults.make_tool(work, mirror, "2.0")
    rpmroots.maker(work).index(mirror)
    with served(mirror) as address:
        with disks.mounted(rpm_disk) as root:
            old = rpmfaults.make_tool(work, root / "var/tmp/old", "1.0")
            disks.run("chroot", root, "rpm", "-i", f"/var/tmp/old/{old.name}")
            point_at(root, address)
            homes = trees.snapshot(root, "/home")
        agent.repair(rpm_disk.path, "--upgrade", "--no-surface-scan")
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        assert trees.snapshot(root, "/home") == homes
        assert not rpmroots.verify(root)


def test_files_are_labelled_by_the_systems_own_policy(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.enforce_labels(root)
        (root / LIBC).unlink()
    agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk, read_only=True) as root:
        if disks.missing_tools("setfiles"):
            assert (root / ".autorelabel").exists()
            return
        label = os.getxattr(root / LIBC, "security.selinux").rstrip(b"\0")
        assert label == b"system_u:object_r:lib_t:s0"
        assert not (root / ".autorelabel").exists()


# --- what cannot be looked at, and what means harm -----------------------------------------------------


def test_without_rpm_the_packages_are_said_not_to_be_verified(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    # Only in the private mount namespace of the tests: what is no program is not found.
    disks.run("mount", "--bind", "/dev/null", "/usr/bin/rpm")
    try:
        diagnosis = agent.diagnose(disk.path)
    finally:
        disks.run("umount", "/usr/bin/rpm")
    found = {f["code"]: f for f in diagnosis["findings"]}
    assert found["packages-not-verified"]["severity"] == "warning"
    assert "rpm" in str(found["probe-failed"]["evidence"])
    assert "install the package rpm" in found["probe-failed"]["advice"]


def test_a_hostile_root_is_looked_at_without_harm(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.hostile(root)
    before = trees.sha256(disk.path)
    done = agent.run("diagnose", disk.path, "--json", timeout_s=120).expect(0, 1)
    assert "\\u001b" not in done.out and "\x1b" not in done.out
    paths = {p: f for f in done.document["findings"] for p in f["paths"]}
    assert "/usr/bin/df" in paths and "/usr/bin/du" in paths
    agent.run("plan", disk.path, "--json", *rpmroots.packages(), timeout_s=120).expect(0, 1, 3)
    assert trees.sha256(disk.path) == before
    assert not Path("/tmp/lab-owned").exists()
