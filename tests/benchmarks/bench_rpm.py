# SPDX-License-Identifier: GPL-3.0-or-later
"""The RPM family: verification against ``rpm -Va``, and a repair against the same commands typed raw.

Prints ratios within one run; never fails by time. Run as root by pytest.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import disks, rpmfaults, rpmroots
from lab.agent import Agent
from lab.disks import missing_tools
from lab.timing import Timed, table, timed

from rescue_agent.probe.families.rpm import database, verification
from rescue_agent.system import guard
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(missing_tools(*rpmroots.NEEDED)), reason="needs rpm, dnf and createrepo_c"),
]

ROUNDS = 7
RUNS = 3
MAX_SCRIPTS = 6


def ours(tree: Path) -> int:
    """What the agent does: copy and read the database, then compare. Returns how many files there are."""
    with tempfile.TemporaryDirectory() as work, TargetRoot(tree) as root:
        found = database.probe_database(Runner(), root, Path(work))
        return verification.verify(Runner(), root, found, level="full").files


def measured(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timed]:
    """Take turns, so that whatever else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            (seconds,) = timed(name, action, runs=1, warm_up=0).runs
            if number:
                times[name].append(seconds)
    return {name: Timed(name, tuple(runs)) for name, runs in times.items()}


def test_verification_against_rpm() -> None:
    if not guard.in_private_namespace():
        guard.enter_private_namespace()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, rpmroots.fresh_tree(Path(folder)) as tree:
        rpm = ("rpm", "--root", tree, "--dbpath", "/var/lib/rpm", "-Va")
        times = measured(
            {
                "ours": lambda: ours(tree),
                "rpm -Va": lambda: disks.status(*rpm),
                "rpm -Va --nodeps --noscripts": lambda: disks.status(*rpm, "--nodeps", "--noscripts"),
            },
            ROUNDS,
        )
        print(f"\n{ours(tree)} files; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
        peers = [timed for name, timed in times.items() if name != "ours"]
        print(table("all digests, warm cache, database read as well", times["ours"], peers, "at most 1.0"))


def typed_raw(agent: Agent, disk: disks.Disk, work: Path) -> float:
    """Return the seconds that the printed scripts take; making the plans is not counted."""
    total = 0.0
    for number in range(MAX_SCRIPTS):
        planned = agent.run("plan", disk.path, "--shell", *rpmroots.packages()).expect(0, 1)
        if planned.exit_code == 0:
            return total
        script = work / f"plan-{number}.sh"
        script.write_bytes(planned.stdout)
        start = time.perf_counter()
        disks.run("/bin/sh", script)
        total += time.perf_counter() - start
    raise AssertionError("the plans never end")


@pytest.mark.timeout(1800)
def test_repair_against_typed_commands() -> None:
    if not guard.in_private_namespace():
        guard.enter_private_namespace()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        work = Path(folder)
        golden = rpmroots.build_rpm_disk(work / "golden.img")
        with disks.mounted(golden) as root:
            rpmfaults.damage_packages(root, 20)
            (root / "usr/lib/x86_64-linux-gnu/libc.so.6").unlink()
        agent = Agent(work)
        ours_s, raw_s, careful_s = [], [], []
        for _ in range(RUNS):
            disk = golden.copy(work / "disk.img")
            start = time.perf_counter()
            agent.run("repair", disk.path, "--yes", "--json", *rpmroots.packages()).expect(0)
            ours_s.append(time.perf_counter() - start)
            twin = golden.copy(work / "twin.img")
            raw_s.append(typed_raw(agent, twin, work))
            start = time.perf_counter()
            for _ in range(2):  # before the repair, and after it
                by_hand(twin)
            careful_s.append(raw_s[-1] + time.perf_counter() - start)
        print()
        print(
            table(
                "repair of 20 packages without libc",
                Timed("rescue-agent repair --yes", tuple(ours_s)),
                [
                    Timed("the same commands typed raw (plan --shell)", tuple(raw_s)),
                    Timed("the same, and looking by hand before and after", tuple(careful_s)),
                ],
                "at most 1.1 times",
            )
        )


def by_hand(disk: disks.Disk) -> None:
    """What a person needs to know what to type and whether it helped."""
    with disks.attached(disk, read_only=True) as (device, (partition,)):
        disks.run("lsblk", "--json", "--output-all", device)
        disks.run("e2fsck", "-fn", partition)
        with disks.mounted_device(partition, "ext4", "ro,noload") as root:
            (root / "etc/os-release").read_text()
            disks.status("rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-Va", "--nodeps", "--noscripts")
