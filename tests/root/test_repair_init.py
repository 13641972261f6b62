# SPDX-License-Identifier: GPL-3.0-or-later
"""PID 1 can't start: what the project began with, from fault to proof, on a real Debian."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, roots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk
from lab.faults import TreeFault

pytestmark = pytest.mark.root


@pytest.mark.parametrize("fault", faults.TREE_FAULTS, ids=lambda fault: fault.name)
def test_init_starts_again_and_nothing_else_changed(
    fault: TreeFault, agent: Agent, disk: Disk, debs: Path, golden_files: dict[str, str]
) -> None:
    with disks.mounted(disk) as root:
        fault.inject(root)
        assert disks.status("chroot", root, "/bin/true") == fault.chroot_exit
        assert disks.status("chroot", root, "/usr/lib/systemd/systemd", "--version") != 0
    before = trees.sha256(disk.path)

    diagnosis = agent.diagnose(disk.path)
    assert agents.root_causes(diagnosis) == {fault.code}
    plan = agent.plan(disk.path, "--packages", debs, *OFFLINE)
    assert fault.package in str(plan["steps"]), "the plan does not name the package to put in order"
    assert trees.sha256(disk.path) == before, "looking wrote to the disk"

    agent.mend(disk.path, "--packages", debs, *OFFLINE)

    with disks.mounted(disk, read_only=True) as root:
        assert disks.run("chroot", root, "/usr/lib/systemd/systemd", "--version").startswith("systemd")
        changed = trees.changes(golden_files, trees.snapshot(root, skip=trees.TRACES))
    changed = {path: how for path, how in changed.items() if not path.startswith(trees.TRACES)}
    assert not changed
    assert disks.checker_exit_code(disk) == 0


def test_a_dead_chroot_is_mended_from_outside_then_from_inside(agent: Agent, disk: Disk, debs: Path) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        assert disks.status("chroot", root, "/bin/sh", "-c", "true") == 127
    result = agent.mend(disk.path, "--packages", debs, *OFFLINE)
    journal = Path(result["journal"]).read_text()
    assert '"op":"unpack"' in journal.replace(" ", ""), "nothing was laid out from outside"
    inside = [line for line in journal.splitlines() if '"inside":true' in line.replace(" ", "")]
    assert any("apt-get" in line or "dpkg" in line for line in inside), (
        "the patient's own manager did not run"
    )


def test_a_damaged_file_system_is_the_cause_of_a_missing_library(
    agent: Agent, disk: Disk, debs: Path
) -> None:
    faults.remove_with_damage(disk)
    diagnosis = agent.diagnose(disk.path)
    assert agents.root_causes(diagnosis) >= {"ext-fs-corrupt"}
    for finding in agents.faults(diagnosis):
        if finding["code"] == "init-missing-library":
            assert finding["consequence_of"].startswith("ext-fs-corrupt")
    agent.mend(disk.path, "--packages", debs, *OFFLINE)


def test_the_library_comes_from_the_network(agent: Agent, disk: Disk, network: None) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
    agent.mend(disk.path, "--no-surface-scan")
    with disks.mounted(disk, read_only=True) as root:
        assert disks.status("chroot", root, "/usr/lib/systemd/systemd", "--version") == 0
        assert roots.installed_versions(root) == roots.installed_versions(roots.golden_tree())


def test_the_library_comes_from_the_patients_own_cache(agent: Agent, disk: Disk) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        roots.debs_for(root / "var/cache/apt/archives", "libc6")
    agent.mend(disk.path, *OFFLINE)


def test_without_any_source_the_plan_says_so_and_nothing_is_written(agent: Agent, disk: Disk) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
    before = trees.sha256(disk.path)
    plan = agent.plan(disk.path, *OFFLINE)
    words = str(plan["refusals"]) + str(plan["deferred"])
    assert "libc6" in words
    done = agent.run("repair", disk.path, "--yes", "--json", *OFFLINE).expect(1, 3)
    assert not [s for s in done.document["steps"] if s["status"] == "done"], str(done)
    assert trees.sha256(disk.path) == before
