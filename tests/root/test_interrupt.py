# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed or interrupted anywhere: no mount left, ``cleanup`` releases the rest, the next repair finishes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

FAILPOINT = "RESCUE_AGENT_FAILPOINT"


@pytest.fixture(scope="module")
def broken_disk(golden_disk: Disk, lab_dir: Path) -> Disk:
    """A disk with one file-system fault and one package fault: every stage has something to do."""
    disk = golden_disk.copy(lab_dir / "broken.img")
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        (root / "usr/sbin/cron").unlink()
    faults.crosslink_blocks(disk)
    return disk


def options(debs: Path) -> tuple[str | Path, ...]:
    return ("--packages", debs, *OFFLINE)


@pytest.mark.parametrize("action", ["kill", "int"])
@pytest.mark.timeout(1500)
def test_at_every_boundary(action: str, agent: Agent, broken_disk: Disk, work: Path, debs: Path) -> None:
    """Walk over the places: end the agent there, clean up, and let the next repair finish."""
    number, last_done = 1, False
    while not last_done:
        disk = broken_disk.copy(work / "disk.img")
        done = agent.run(
            "repair",
            disk.path,
            "--yes",
            "--json",
            *options(debs),
            environment={FAILPOINT: f"any#{number}:{action}"},
        )
        where = f"place {number}, {action}: "
        last_done = done.exit_code == 0
        if action == "kill":
            assert done.exit_code in (0, -signal.SIGKILL), where + str(done)
        else:
            assert done.exit_code in (0, 130), where + str(done)
            assert not agents.leftovers(work), where + "an interrupted run releases all by itself"
        mounts = [line for line in agents.leftovers(work) if line.startswith("mount")]
        assert not mounts, where + str(mounts)
        agent.run("cleanup").expect(0)
        assert not agents.leftovers(work), where + str(agents.leftovers(work))
        good_before = restored(disk)
        agent.run("repair", disk.path, "--yes", *options(debs)).expect(0)
        assert restored(disk) >= good_before, where + "a file that was restored is broken again"
        assert not agents.faults(agent.diagnose(disk.path)), where
        number += step_after(number)
    assert number > 5, "the failpoints never fired"


def step_after(number: int) -> int:
    """Return how far to go on: every place at first, then fewer, to keep the ring short."""
    return 1 if number < 4 else 3


def restored(disk: Disk) -> set[str]:
    """Return which of the two lost files are whole."""
    with disks.mounted(disk, read_only=True) as root:
        names = (f"{faults.LIB}/libc.so.6", "usr/sbin/cron")
        return {n for n in names if (root / n).is_file() and (root / n).stat().st_size > 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_from_outside_ends_it_cleanly(
    number: int, agent: Agent, broken_disk: Disk, work: Path, debs: Path
) -> None:
    disk = broken_disk.copy(work / "disk.img")
    process = agent.start("repair", disk.path, "--yes", "--json", *options(debs))
    deadline = time.monotonic() + 60
    while not journals(agent) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err.decode()
    if out:
        assert json.loads(out)["exit_code"] == 130
    assert not agents.leftovers(work)
    agent.run("repair", disk.path, "--yes", *options(debs)).expect(0)


def test_undo_puts_back_what_a_repair_changed(agent: Agent, disk: Disk, debs: Path) -> None:
    with disks.mounted(disk) as root:
        faults.keep_status_backup(root)
        faults.empty_status(root)
        before = trees.snapshot(root, "/etc") | trees.snapshot(root, "/var/lib/dpkg", (trees.TRACES))
    result = agent.mend(disk.path, "--packages", debs, *OFFLINE)
    agent.run("undo", result["run"], disk.path).expect(0)
    with disks.mounted(disk, read_only=True) as root:
        assert (root / "var/lib/dpkg/status").stat().st_size == 0
    assert before


def test_two_runs_at_once_are_refused(agent: Agent, broken_disk: Disk, work: Path, debs: Path) -> None:
    disk = broken_disk.copy(work / "disk.img")
    first = agent.start("repair", disk.path, "--yes", *options(debs))
    deadline = time.monotonic() + 60
    while not journals(agent) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = agent.run("repair", disk.path, "--yes", *options(debs)).expect(3)
    assert str(first.pid) in second.err
    first.communicate(timeout=300)
    assert first.returncode == 0


def journals(agent: Agent) -> list[Path]:
    return list(agent.state.glob("runs/*/journal.jsonl"))
