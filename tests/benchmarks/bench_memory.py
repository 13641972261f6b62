# SPDX-License-Identifier: GPL-3.0-or-later
"""Peak memory of a whole ``repair``, since the machine that is to be rescued may have 1 GB.

Named beside it, in the same run: e2fsck and apt-get alone on the same disk. Never fails by size.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from lab import disks, faults, roots
from lab.agent import Agent
from lab.timing import peak_memory

from rescue_agent.system import guard

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

MIB = 1 << 20


@pytest.mark.timeout(1800)
def test_memory_of_a_repair() -> None:
    if not guard.in_private_namespace():
        guard.enter_private_namespace()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        work = Path(folder)
        disk = disks.build_debian_disk(work / "o", work / "disk.img", size_mib=1024)
        with disks.mounted(disk) as root:
            faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        faults.trash_group_descriptors(disk)
        agent = Agent(work)
        options = ("--yes", "--json", "--packages", str(roots.golden_debs()), "--no-network")
        argv = (sys.executable, "-m", "rescue_agent", "repair", str(disk.path), *options)
        ours = peak_memory(argv, agent.environment())
        assert ours.exit_code == 0
        with disks.loop(disk.path, disk.slot().start_bytes, disk.slot().size_bytes) as device:
            fsck = peak_memory(("e2fsck", "-fy", device))
        with disks.mounted(disk) as root:
            apt = peak_memory(
                ("chroot", str(root), "apt-get", "-s", "-o", "APT::Sandbox::User=root", "upgrade")
            )
        lines = (
            ("the agent's own process (aim: at most 120 MiB)", ours.agent_process),
            (f"its largest process: {ours.largest_name}", ours.largest_process),
            ("all its processes at one moment", ours.whole_tree),
            ("peer: e2fsck -fy alone", fsck.whole_tree),
            ("peer: apt-get -s upgrade alone", apt.whole_tree),
        )
        print("\npeak memory of a repair (resident set, sampled)")
        for name, size in lines:
            print(f"  {name:<50} {size / MIB:6.0f} MiB")
