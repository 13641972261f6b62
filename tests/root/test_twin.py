# SPDX-License-Identifier: GPL-3.0-or-later
"""``plan --shell`` and ``repair`` do the same work: twin copies of one broken disk end equal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, trees
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
