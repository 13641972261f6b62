# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed or interrupted anywhere: no mount left, ``cleanup`` releases the rest, the next repair finishes."""

from __future__ import annotations

import json
import os
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


@pytest.mark.parametrize(("action", "first", "stride"), [("kill", 1, 8), ("int", 4, 16)])
@pytest.mark.timeout(3600)
def test_at_every_boundary(
    action: str, first: int, stride: int, agent: Agent, broken_disk: Disk, work: Path, debs: Path
) -> None:
    """Walk over the places: end the agent there, clean up, and let the next repair finish.

    A repair passes about a hundred places; ``RESCUE_AGENT_TEST_STRIDE=1`` tries each of them.
    """
    stride = int(os.environ.get("RESCUE_AGENT_TEST_STRIDE", stride))
    number, tried = first, 0
    while end_at(f"any#{number}:{action}", agent, broken_disk.copy(work / "disk.img"), debs):
        number, tried = number + stride, tried + 1
    assert tried * stride > 40, "the failpoints did not fire"


def end_at(failpoint: str, agent: Agent, disk: Disk, debs: Path) -> bool:
    """Let a repair end at a failpoint and the next one finish; False when it was never reached."""
    arguments = ("repair", disk.path, "--yes", *options(debs))
    ended = agent.run(*arguments, environment={FAILPOINT: failpoint})
    if ended.exit_code == 0:
        return False
    where = f"{failpoint}\n{ended}"
    left = agents.leftovers(disk.path)
    if failpoint.endswith(":int"):
        assert ended.exit_code == 130, where
        assert not left, f"an interrupted run releases all by itself, but: {left}; {where}"
    else:
        assert ended.exit_code == -signal.SIGKILL, where
        assert not [line for line in left if line.startswith("mount")], where
    agent.run("cleanup").expect(0)
    assert not agents.leftovers(disk.path), where
    whole = restored(disk)
    agent.run(*arguments).expect(0)
    assert restored(disk) >= whole, f"a file that was restored is broken again; {where}"
    assert len(restored(disk)) == 2, where
    assert not agents.faults(agent.diagnose(disk.path)), where
    return True


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
