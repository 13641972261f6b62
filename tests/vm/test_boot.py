# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole point: the broken machine panics, and after the repair the same machine boots."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, machine, roots
from lab.agent import OFFLINE, Agent

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]


def test_a_machine_that_panics_boots_after_the_repair(work: Path) -> None:
    bootable = machine.build_bootable(work / "o", work)
    broken = bootable.disk.copy(work / "broken.img")
    faults.crosslink_blocks(broken)
    with disks.mounted(broken) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        assert disks.status("chroot", root, "/usr/lib/systemd/systemd", "--version") == 127

    # On an overlay: the initramfs mounts the disk, and the agent must get it as it was.
    panic = machine.boot(bootable, disks.overlay(broken, work / "panic.qcow2"), image_format="qcow2")
    assert machine.INIT_127 in panic.console, panic.console[-4000:]
    assert "libc.so.6" in panic.console
    assert machine.MARKER not in panic.console

    # What makes it harder for the agent: without its group descriptors nothing can be read at first.
    faults.trash_group_descriptors(broken)
    agent = Agent(work)
    debs = roots.golden_debs(roots.BOOTABLE)
    assert agents.codes(agent.diagnose(broken.path)) >= {"ext-fs-corrupt"}
    agent.mend(broken.path, "--packages", debs, *OFFLINE)

    up = machine.boot(bootable, broken.path)
    assert machine.MARKER in up.console, up.console[-4000:]
    assert "panic" not in up.console.lower().replace("panic=-1", "")
    assert up.ended, "the machine did not power itself off"
    assert disks.checker_exit_code(broken) == 0
