# SPDX-License-Identifier: GPL-3.0-or-later
"""``plan --shell`` and ``repair`` do the same work: twin copies of one broken disk end equal."""

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

MAX_SCRIPTS = 6


def libc(disk: Disk) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()


def damaged_and_interrupted(disk: Disk) -> None:
    from lab import roots

    with disks.mounted(disk) as root:
        faults.interrupted_dpkg(roots.golden_debs(), "cron", "procps")(root)
        faults.damage_packages(5)(root)


def both(disk: Disk) -> None:
    libc(disk)
    faults.trash_group_descriptors(disk)


@pytest.mark.parametrize("inject", [libc, damaged_and_interrupted, faults.orphan_tree, both])
def test_the_script_and_the_agent_end_alike(
    inject: Callable[[Disk], None], agent: Agent, disk: Disk, work: Path, debs: Path
) -> None:
    inject(disk)
    twin = disk.copy(work / "twin.img")
    options = ("--packages", debs, *OFFLINE)
    agent.mend(disk.path, *options)
    scripts = run_scripts(agent, twin, work, options)
    assert scripts
    assert disks.checker_exit_code(twin) == disks.checker_exit_code(disk) == 0
    with disks.mounted(disk, read_only=True) as by_agent, disks.mounted(twin, read_only=True) as by_script:
        changed = trees.changes(trees.snapshot(by_agent), trees.snapshot(by_script))
    assert not {p: how for p, how in changed.items() if not p.startswith(trees.LOGS)}
    agents.assert_nothing_left(twin.path)


def dead_and_damaged(root: Path, work: Path) -> None:
    rpmfaults.damage_packages(root, 5)
    faults.real(root, f"{faults.LIB}/libc.so.6").unlink()


def upgrade_and_modes(root: Path, work: Path) -> None:
    rpmfaults.cut_off_upgrade(root, work, "yum")
    rpmfaults.change_attributes(root)


def database_and_labels(root: Path, work: Path) -> None:
    rpmfaults.enforce_labels(root)
    (root / "usr/bin/less").unlink()
    rpmfaults.zero_middle(root)


@pytest.mark.parametrize(
    ("flavour", "inject"),
    [("el8", dead_and_damaged), ("el7", upgrade_and_modes), ("el8", database_and_labels)],
)
def test_the_script_and_the_agent_end_alike_on_the_rpm_family(
    flavour: rpmroots.Flavour,
    inject: Callable[[Path, Path], None],
    agent: Agent,
    golden_rpm_disks: Callable[[rpmroots.Flavour], Disk],
    work: Path,
) -> None:
    disk = golden_rpm_disks(flavour).copy(work / "disk.img")
    with disks.mounted(disk) as root:
        inject(root, work)
    twin = disk.copy(work / "twin.img")
    agent.mend(disk.path, *rpmroots.packages())
    scripts = run_scripts(agent, twin, work, rpmroots.packages())
    if not disks.missing_tools("shellcheck"):
        disks.run("shellcheck", "--shell=sh", work / "plan-0.sh")
    assert scripts
    with disks.mounted(disk) as by_agent, disks.mounted(twin) as by_script:
        assert not rpmroots.changes(trees.snapshot(by_agent), by_script)
        assert rpmroots.installed(by_agent) == rpmroots.installed(by_script)
        assert not rpmroots.verify(by_script)
        labels = [_label(root / "usr/bin/less") for root in (by_agent, by_script)]
        assert labels[0] == labels[1]
    agents.assert_nothing_left(twin.path)


def _label(path: Path) -> bytes:
    return os.getxattr(path, "security.selinux") if "security.selinux" in os.listxattr(path) else b""


def run_scripts(agent: Agent, disk: Disk, work: Path, options: tuple[str | Path, ...]) -> list[str]:
    """Do what a person does with the printed plans: run each as it is, until none is left."""
    done = []
    for number in range(MAX_SCRIPTS):
        planned = agent.run("plan", disk.path, "--shell", *options).expect(0, 1)
        if planned.exit_code == 0:
            return done
        script = work / f"plan-{number}.sh"
        script.write_bytes(planned.stdout)
        environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
        disks.run("env", "-i", *(f"{k}={v}" for k, v in environment.items()), "/bin/sh", script)
        done.append(planned.out)
    raise AssertionError("the plans never end")


def test_shellcheck_accepts_a_real_script(agent: Agent, disk: Disk, work: Path, debs: Path) -> None:
    if disks.missing_tools("shellcheck"):
        pytest.skip("shellcheck is not installed")
    both(disk)
    script = work / "plan.sh"
    script.write_bytes(agent.run("plan", disk.path, "--shell", "--packages", debs).expect(1).stdout)
    disks.run("shellcheck", "--shell=sh", script)


def test_a_script_refuses_a_disk_that_was_changed(agent: Agent, disk: Disk, work: Path, debs: Path) -> None:
    libc(disk)
    script = work / "plan.sh"
    script.write_bytes(agent.run("plan", disk.path, "--shell", "--packages", debs, *OFFLINE).expect(1).stdout)
    with disks.mounted(disk):
        pass  # the superblock counts its mounts
    before = trees.sha256(disk.path)
    assert disks.status("/bin/sh", script) == 3
    assert trees.sha256(disk.path) == before
    agents.assert_nothing_left(disk.path)
