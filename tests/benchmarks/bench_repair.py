# SPDX-License-Identifier: GPL-3.0-or-later
"""``repair`` against the same commands typed raw: the scripts that ``plan --shell`` prints.

The commands are the same in both; what the agent adds is looking before, between and after. A second
peer adds that looking by hand: what a person needs to know what to type and whether it helped. Prints
ratios within one run; never fails by time.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from lab import disks, faults, roots
from lab.agent import Agent
from lab.peers import raw_tools
from lab.timing import Timed, table

from rescue_agent.system import guard

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

RUNS = 3
MAX_SCRIPTS = 6
LOOKS = 3
"""Before the repair, after the file system's stage, after the packages' stage."""


def typed_raw(agent: Agent, disk: disks.Disk, work: Path, options: tuple[str | Path, ...]) -> float:
    """Return the seconds that the printed scripts take; making the plans is not counted."""
    total = 0.0
    for number in range(MAX_SCRIPTS):
        planned = agent.run("plan", disk.path, "--shell", *options).expect(0, 1)
        if planned.exit_code == 0:
            return total
        script = work / f"plan-{number}.sh"
        script.write_bytes(planned.stdout)
        start = time.perf_counter()
        disks.run("/bin/sh", script)
        total += time.perf_counter() - start
    raise AssertionError("the plans never end")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("surface_scan", [True, False], ids=["surface-scan", "no-surface-scan"])
def test_repair_against_typed_commands(surface_scan: bool) -> None:
    if not guard.in_private_namespace():
        guard.enter_private_namespace()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        work = Path(folder)
        golden = disks.build_debian_disk(work / "o", work / "golden.img")
        with disks.mounted(golden) as root:
            faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        faults.trash_group_descriptors(golden)
        agent = Agent(work)
        options: tuple[str | Path, ...] = ("--packages", roots.golden_debs(), "--no-network")
        options += () if surface_scan else ("--no-surface-scan",)
        ours, raw, careful = [], [], []
        for _ in range(RUNS):
            disk = golden.copy(work / "disk.img")
            start = time.perf_counter()
            agent.run("repair", disk.path, "--yes", "--json", *options).expect(0)
            ours.append(time.perf_counter() - start)
            twin = golden.copy(work / "twin.img")
            raw.append(typed_raw(agent, twin, work, options))
            start = time.perf_counter()
            for _ in range(LOOKS):
                raw_tools(twin)
            careful.append(raw[-1] + time.perf_counter() - start)
        print()
        print(
            table(
                f"repair of a Debian without libc and with trashed group descriptors ({surface_scan=})",
                Timed("rescue-agent repair --yes", tuple(ours)),
                [
                    Timed("the same commands typed raw (plan --shell)", tuple(raw)),
                    Timed("the same, and looking by hand before, between, after", tuple(careful)),
                ],
                "at most 1.1 times",
            )
        )
