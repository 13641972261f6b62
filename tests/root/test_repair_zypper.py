# SPDX-License-Identifier: GPL-3.0-or-later
"""zypper's family mended: real zypper 1.14 and rpm 4.18, on a root like openSUSE Leap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, rpmfaults, rpmroots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk
from lab.mirror import served

pytestmark = pytest.mark.root

LIBC = f"{faults.LIB}/libc.so.6"


@pytest.fixture
def leap(golden_rpm_disks: Callable[[rpmroots.Flavour], Disk], work: Path) -> Disk:
    return golden_rpm_disks("leap").copy(work / "disk.img")


def test_libc_and_twenty_packages_are_put_in_order(agent: Agent, leap: Disk) -> None:
    with disks.mounted(leap) as root:
        profile = root / "etc/profile"
        profile.write_text(profile.read_text() + "# changed by the owner\n")
        before = trees.snapshot(root)
        rpmfaults.damage_packages(root, 20)
        (root / LIBC).unlink()
        assert disks.status("chroot", root, "zypper", "--version") == 127
    (system,) = agent.scan(leap.path)["systems"]
    assert (system["family"], system["package_manager"]) == ("suse", "zypper")
    assert system["database"]["listed"] == len(system["database"]["packages"])
    assert "init-missing-library" in agents.root_causes(agent.diagnose(leap.path))
    commands = agents.commands(agent.plan(leap.path, *rpmroots.packages()))
    assert any(
        argv[:5] == ["zypper", "--non-interactive", "--no-refresh", "install", "--force"] for argv in commands
    )
    agent.mend(leap.path, *rpmroots.packages())
    with disks.mounted(leap) as root:
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_a_lost_database_and_an_upgrade_that_was_cut_off(agent: Agent, leap: Disk, work: Path) -> None:
    with disks.mounted(leap) as root:
        known = rpmroots.installed(root)
        rpmfaults.cut_off_upgrade(root, work, "rpm")
    (fault,) = agents.faults(agent.diagnose(leap.path))
    assert "lab-tool 1.0-1.lab: superseded" in str(fault["evidence"])
    agent.mend(leap.path, *OFFLINE)
    with disks.mounted(leap) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        disks.run("chroot", root, "rpm", "-e", "lab-tool")
        before = trees.snapshot(root)
        rpmfaults.zero_first_page(root)
    agent.mend(leap.path, *rpmroots.packages())
    with disks.mounted(leap) as root:
        assert {p for p in known if not p.startswith("gpg-pubkey")} <= rpmroots.installed(root)
        assert not rpmroots.verify(root)
        assert not rpmroots.changes(before, root)


def test_packages_come_from_the_repositories_and_are_upgraded(agent: Agent, leap: Disk, work: Path) -> None:
    mirror = work / "mirror"
    disks.run("cp", "-a", rpmroots.repository(), mirror)
    rpmfaults.make_tool(work, mirror, "2.0")
    rpmroots.maker(work).index(mirror, rpmroots.signing_home())
    with served(mirror) as address:
        with disks.mounted(leap) as root:
            old = rpmfaults.make_tool(work, root / "var/tmp/old", "1.0")
            disks.run("chroot", root, "rpm", "-i", f"/var/tmp/old/{old.name}")
            place = root / "etc/zypp/repos.d/lab.repo"
            place.write_text(place.read_text().replace("file:///srv/repo", address))
            homes = trees.snapshot(root, "/home")
            (root / "usr/bin/less").unlink()
        plan = agent.plan(leap.path, "--no-surface-scan")
        assert "fetch-packages" in [s["id"] for s in plan["steps"]]
        agent.mend(leap.path, "--upgrade", "--no-surface-scan")
    with disks.mounted(leap) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        assert trees.snapshot(root, "/home") == homes
        assert not rpmroots.verify(root)
