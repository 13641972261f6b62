# SPDX-License-Identifier: GPL-3.0-or-later
"""Package work that was interrupted, lost or damaged, on a real Debian."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, roots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

STATE = "package-state-broken"


def dpkg_state(root: Path) -> str:
    """Return what dpkg itself says is wrong; nothing when all is well."""
    return disks.run("chroot", root, "dpkg", "--audit")


def test_interrupted_transaction_is_finished(agent: Agent, disk: Disk, debs: Path) -> None:
    with disks.mounted(disk) as root:
        faults.interrupted_dpkg(debs, "cron", "procps", "libc6")(root)
        assert dpkg_state(root)
    assert STATE in agents.codes(agent.diagnose(disk.path))
    assert "--configure" in str(agents.commands(agent.plan(disk.path, *OFFLINE)))
    agent.mend(disk.path, *OFFLINE)
    with disks.mounted(disk) as root:
        assert not dpkg_state(root)
        assert roots.installed_versions(root) == roots.installed_versions(roots.golden_tree())


@pytest.mark.parametrize("lose", [faults.empty_status, faults.truncate_status, faults.zero_status])
def test_lost_status_comes_back_from_its_backup(lose: object, agent: Agent, disk: Disk, debs: Path) -> None:
    assert callable(lose)
    with disks.mounted(disk) as root:
        faults.keep_status_backup(root)
        lose(root)
    assert STATE in agents.codes(agent.diagnose(disk.path))
    agent.mend(disk.path, "--packages", debs, *OFFLINE)
    with disks.mounted(disk) as root:
        assert roots.installed_versions(root) == roots.installed_versions(roots.golden_tree())
        assert not dpkg_state(root)


def test_twenty_damaged_packages_are_put_in_order_and_no_others(
    agent: Agent, disk: Disk, debs: Path, golden_files: dict[str, str]
) -> None:
    with disks.mounted(disk) as root:
        broken = faults.damage_packages(20)(root)
    found = agent.diagnose(disk.path)
    named = {path for f in agents.faults(found) for path in f["paths"]}
    packages = {name for f in agents.faults(found) for name in f["packages"]}
    assert {p.removeprefix("/usr") for p in broken} <= {p.removeprefix("/usr") for p in named}
    assert len(packages) == 20
    agent.mend(disk.path, "--packages", debs, *OFFLINE)
    with disks.mounted(disk, read_only=True) as root:
        after = trees.snapshot(root)
    for path in broken:
        key = path if path in golden_files else path.removeprefix("/usr")
        assert after.get(key) == golden_files[key], f"{path} is not as it was"
    changed = trees.changes(golden_files, after)
    assert not {p: how for p, how in changed.items() if not p.startswith(trees.TRACES)}


def test_a_conffile_that_its_owner_changed_is_kept(agent: Agent, disk: Disk, debs: Path) -> None:
    with disks.mounted(disk) as root:
        faults.edit_conffile(root)
        conffile = root / "etc/ssh/sshd_config"
        before = hashlib.sha256(conffile.read_bytes()).hexdigest()
    assert not agents.faults(agent.diagnose(disk.path)), "an owner's change was taken for damage"
    with disks.mounted(disk) as root:
        # Damage in the same package: it is reinstalled, the conffile stays.
        (root / "usr/sbin/sshd").unlink()
    agent.mend(disk.path, "--packages", debs, *OFFLINE)
    with disks.mounted(disk, read_only=True) as root:
        assert hashlib.sha256((root / "etc/ssh/sshd_config").read_bytes()).hexdigest() == before
        assert (root / "usr/sbin/sshd").exists()


def test_a_full_root_is_said_and_no_file_of_a_user_is_removed(agent: Agent, disk: Disk) -> None:
    with disks.mounted(disk) as root:
        faults.fill(root)
        homes = trees.snapshot(root, "/home")
    diagnosis = agent.diagnose(disk.path)
    assert "disk-full" in agents.codes(diagnosis)
    agent.run("repair", disk.path, "--yes", "--json", *OFFLINE).expect(0, 1)
    with disks.mounted(disk, read_only=True) as root:
        assert trees.snapshot(root, "/home") == homes


def test_a_package_repair_on_a_full_root_is_not_begun_half_way(agent: Agent, disk: Disk, debs: Path) -> None:
    with disks.mounted(disk) as root:
        faults.damage_packages(20)(root)
        faults.fill(root)
        before = trees.snapshot(root, skip=trees.TRACES)
    done = agent.run("repair", disk.path, "--yes", "--json", "--packages", debs, *OFFLINE).expect(0, 1, 3)
    with disks.mounted(disk, read_only=True) as root:
        after = trees.snapshot(root, skip=trees.TRACES)
        assert not dpkg_state(root)
    if done.exit_code:
        lost = [p for p, how in before.items() if p.startswith("/home/") and after.get(p) != how]
        assert not lost
        assert not [p for p in before if p not in after], "files were removed to make room"


def test_a_mended_machine_needs_nothing(agent: Agent, disk: Disk) -> None:
    assert not agents.faults(agent.diagnose(disk.path))
    plan = agent.run("plan", disk.path, "--json").expect(0).document
    assert not plan["steps"]
    before = trees.sha256(disk.path)
    agent.run("repair", disk.path, "--yes").expect(0)
    assert trees.sha256(disk.path) == before, "a repair with nothing to do wrote to the disk"
