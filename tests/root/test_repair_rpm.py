# SPDX-License-Identifier: GPL-3.0-or-later
"""The RPM family mended: a root like EL 8 with dnf, and one like EL 7 with yum alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, rpmfaults, rpmroots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

GoldenDisks = Callable[[rpmroots.Flavour], Disk]
LIBC = f"{faults.LIB}/libc.so.6"


def test_a_healthy_root_needs_nothing(agent: Agent, rpm_disk: Disk) -> None:
    before = trees.sha256(rpm_disk.path)
    facts = agent.scan(rpm_disk.path)
    (system,) = facts["systems"]
    assert system["family"] == "rhel"
    assert system["package_manager"] == ("dnf" if system["os_version"] == "8" else "yum")
    database = system["database"]
    assert database["listed"] == len(database["packages"]) > 100
    assert database["verification"]["files"] > 3000
    assert not agents.faults(agent.diagnose(rpm_disk.path))
    assert not agent.run("plan", rpm_disk.path, "--json").expect(0).document["steps"]
    assert trees.sha256(rpm_disk.path) == before, "looking wrote to the disk"


def test_libc_gone_is_mended_from_outside_then_from_inside(agent: Agent, rpm_disk: Disk) -> None:
    with disks.mounted(rpm_disk) as root:
        before = trees.snapshot(root)
        (root / LIBC).unlink()
        assert disks.status("chroot", root, "/bin/true") == 127
        assert disks.status("chroot", root, "rpm", "--version") == 127
    digest = trees.sha256(rpm_disk.path)
    assert agents.root_causes(agent.diagnose(rpm_disk.path)) == {"init-missing-library"}
    plan = agent.plan(rpm_disk.path, *rpmroots.packages())
    assert [s["id"] for s in plan["steps"]] == ["workspace", "unpack-packages", "reinstall-packages"]
    assert trees.sha256(rpm_disk.path) == digest, "looking wrote to the disk"
    result = agent.mend(rpm_disk.path, *rpmroots.packages())
    assert '"inside":true' in Path(result["journal"]).read_text().replace(" ", "")
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "/usr/lib/systemd/systemd", "--version").startswith("systemd")
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_twenty_damaged_packages_are_put_in_order_and_configuration_is_kept(
    agent: Agent, rpm_disk: Disk
) -> None:
    with disks.mounted(rpm_disk) as root:
        profile = root / "etc/profile"
        profile.write_text(profile.read_text() + "# changed by the owner\n")
        before = trees.snapshot(root)
        broken = rpmfaults.damage_packages(root, 20)
    diagnosis = agent.diagnose(rpm_disk.path)
    (fault,) = agents.faults(diagnosis)
    assert fault["code"] == "package-files-damaged"
    assert set(fault["paths"]) == set(broken)
    assert len(fault["packages"]) == 20
    kept = next(f for f in diagnosis["findings"] if f["code"] == "configuration-changed")
    assert "/etc/profile" in kept["paths"]
    agent.mend(rpm_disk.path, *rpmroots.packages())
    with disks.mounted(rpm_disk) as root:
        assert not rpmroots.changes(before, root)
        assert not rpmroots.verify(root)


def test_modes_and_owners_alone_need_no_package(agent: Agent, rpm_disk: Disk) -> None:
    with disks.mounted(rpm_disk) as root:
        os.chown(root / "etc/profile", 0, 5)
        before = trees.snapshot(root)
        changed = rpmfaults.change_attributes(root)
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert set(fault["paths"]) == set(changed)
    plan = agent.plan(rpm_disk.path, *OFFLINE)
    assert [s["id"] for s in plan["steps"]] == ["workspace", "restore-attributes"]
    agent.mend(rpm_disk.path, *OFFLINE)
    with disks.mounted(rpm_disk) as root:
        assert not rpmroots.changes(before, root)


def test_a_mode_that_its_owner_chose_survives_the_reinstallation(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        (root / "etc/sysctl.conf").chmod(0o600)
        before = trees.snapshot(root)
        (root / "usr/bin/ps").unlink()
    agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk) as root:
        assert not rpmroots.changes(before, root)


def test_programs_that_may_not_be_executed_are_mended(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        before = trees.snapshot(root)
        (root / faults.INIT).chmod(0o644)
    assert agents.root_causes(agent.diagnose(disk.path)) == {"init-not-executable"}
    agent.mend(disk.path, *OFFLINE)
    with disks.mounted(disk) as root:
        (root / "usr/bin/rpm").chmod(0o644)
    agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk) as root:
        assert not rpmroots.changes(before, root)


def test_an_upgrade_that_was_cut_off_is_ended(agent: Agent, rpm_disk: Disk, work: Path) -> None:
    with disks.mounted(rpm_disk) as root:
        manager = "dnf" if (root / "usr/bin/dnf").exists() else "yum"
        rpmfaults.cut_off_upgrade(root, work, manager)
        assert len(disks.run("chroot", root, "rpm", "-q", "lab-tool").split()) == 2
        homes = trees.snapshot(root, "/home")
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert fault["code"] == "package-state-broken"
    assert "has no end" in str(fault["evidence"])
    assert ["rpm", "-e", "--nodeps", "lab-tool-1.0-1.lab.x86_64"] in agents.commands(
        agent.plan(rpm_disk.path, *OFFLINE)
    )
    agent.mend(rpm_disk.path, *OFFLINE)
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        assert (root / "usr/share/lab-tool/version").read_text() == "2.0\n"
        assert not (root / "usr/share/lab-tool/only-1.0").exists()
        assert not rpmroots.verify(root)
        assert trees.snapshot(root, "/home") == homes


# --- the database -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", rpmfaults.DATABASE_FAULTS, ids=lambda lose: lose.__name__)
def test_a_lost_database_is_made_anew_with_every_package(
    lose: Callable[[Path], None], agent: Agent, rpm_disk: Disk
) -> None:
    with disks.mounted(rpm_disk) as root:
        before, known = trees.snapshot(root), rpmroots.installed(root)
        lose(root)
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert fault["code"] == "package-state-broken"
    plan = agent.plan(rpm_disk.path, *rpmroots.packages())
    assert [s["id"] for s in plan["steps"]] == ["workspace", "rebuild-database"]
    agent.mend(rpm_disk.path, *rpmroots.packages())
    with disks.mounted(rpm_disk) as root:
        found = rpmroots.installed(root)
        assert {p for p in known if not p.startswith("gpg-pubkey")} <= found
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_a_damaged_berkeley_db_is_dumped_and_loaded(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    if disks.missing_tools("db5.3_dump", "db5.3_load"):
        pytest.skip("db5.3-util is not installed")
    disk = golden_rpm_disks("el7").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        before, known = trees.snapshot(root), rpmroots.installed(root)
        rpmfaults.as_berkeley_db(root)
    digest = trees.sha256(disk.path)
    (system,) = agent.scan(disk.path)["systems"]
    assert (system["database"]["format"], system["database"]["state"]) == ("bdb", "ok")
    assert len(system["database"]["packages"]) == system["database"]["listed"]
    assert not agents.faults(agent.diagnose(disk.path))
    assert trees.sha256(disk.path) == digest, "the older rpm's database was written to"

    with disks.mounted(disk) as root:
        rpmfaults.zero_index_pages(root)
    assert "its index Name is damaged" in str(agents.faults(agent.diagnose(disk.path)))
    with disks.mounted(disk) as root:
        rpmfaults.zero_berkeley_pages(root)
    (fault,) = agents.faults(agent.diagnose(disk.path))
    assert fault["code"] == "package-state-broken"
    commands = str(agents.commands(agent.plan(disk.path, *rpmroots.packages())))
    assert "db5.3_dump -r" in commands and "--rebuilddb" in commands
    agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk) as root:
        assert {p for p in known if not p.startswith("gpg-pubkey")} <= rpmroots.installed(root)
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_a_dead_root_without_a_database_is_mended_all_the_same(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        before = trees.snapshot(root)
        rpmfaults.zero_first_page(root)
        (root / LIBC).unlink()
    agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk) as root:
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_the_broken_database_can_be_had_again(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.zero_middle(root)
        broken = (root / rpmfaults.MAIN).read_bytes()
    result = agent.mend(disk.path, *rpmroots.packages())
    with disks.mounted(disk, read_only=True) as root:
        assert (root / rpmfaults.MAIN).read_bytes() != broken
    agent.run("undo", result["run"], disk.path, "--json").expect(0)
    with disks.mounted(disk, read_only=True) as root:
        assert (root / rpmfaults.MAIN).read_bytes() == broken
