# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that lie on the patient's own disk, read during the scan and joined with what the disk shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import disks, faults, logs, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.model.logs import Log
from rescue_agent.probe import patient_logs
from rescue_agent.probe.patient_logs import Found, probe_patient_logs
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

GOOD = logs.JournalBoot(1, 1700000000, (logs.BANNER, "EXT4-fs (vda1): mounted filesystem", logs.UP))
BAD = logs.JournalBoot(2, 1700090000, (logs.BANNER, logs.DAMAGED))

HISTORY = """
Start-Date: 2023-11-15  10:00:00
Commandline: apt-get upgrade
Upgrade: libc6:amd64 (2.36-8, 2.36-9), less:amd64 (1, 2)
End-Date: 2023-11-15  10:01:00
"""


def sources(finding: dict[str, Any]) -> str:
    return "\n".join(f"{e['source']}: {e['excerpt']}" for e in finding["evidence"])


def test_old_faults_on_a_healthy_disk_and_one_that_is_there(agent: Agent, disk: Disk) -> None:
    with disks.mounted(disk) as root:
        logs.write_journal(root, (GOOD, BAD))
        logs.write_syslog(root, (logs.BANNER, logs.DAMAGED))
    before = trees.sha256(disk.path)
    healthy = agent.diagnose(disk.path)
    assert not [f for f in healthy["findings"] if f["severity"] != "info"], "a fault that is no more"
    assert any("/var/log/journal/" in source for source in healthy["logs"])
    facts = agent.scan(disk.path)
    assert facts["systems"][0]["last_start"] == "2023-11-15T23:13:20Z"
    assert facts["systems"][0]["came_up"] == "2023-11-14T22:13:22Z"
    assert trees.sha256(disk.path) == before, "looking wrote to the disk"

    faults.orphan_tree(disk)
    before = trees.sha256(disk.path)
    found = [f for f in agent.diagnose(disk.path)["findings"] if f["code"] == "ext-fs-corrupt"]
    assert len(found) == 1
    told = sources(found[0])
    assert "e2fsck" in told and "/var/log/journal/" in told and "/var/log/syslog on /dev/loop" in told
    assert trees.sha256(disk.path) == before, "looking wrote to the disk"
    agent.mend(disk.path, *OFFLINE)


def test_a_panic_that_pstore_kept_and_the_last_change_speak_for_a_missing_library(
    agent: Agent, disk: Disk
) -> None:
    with disks.mounted(disk) as root:
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        logs.write_journal(root, (GOOD,))
        logs.write_pstore(root, (logs.BANNER, *(f"line {n}" for n in range(9)), logs.PANIC))
        (root / "var/log/apt").mkdir(exist_ok=True)
        (root / "var/log/apt/history.log").write_text(HISTORY)
    found = agent.diagnose(disk.path)
    same = [f for f in found["findings"] if f["code"] == "init-missing-library"]
    assert [f["severity"] for f in same] == ["fatal"]
    told = sources(same[0])
    assert "/var/lib/systemd/pstore/1700000900 on /dev/loop" in told and "exitcode=0x00007f00" in told
    assert "2 packages upgraded (libc6, less) by 'apt-get upgrade'" in told
    assert "after the last start that came up (2023-11-14T22:13:22Z)" in told


def read(tree: Path) -> Found:
    matcher = make_matcher()
    with TargetRoot(tree) as root:
        return probe_patient_logs(
            Runner(),
            root,
            lambda: LogScanner(matcher),
            system="s",
            device="/dev/vda1",
            machine_id=logs.MACHINE_ID,
        )


def journal_of(found: Found) -> Log:
    return next(log for log in found.logs if log.kind == "journal")


def test_boots_of_a_journal_are_told_apart(work: Path) -> None:
    logs.write_journal(work, [logs.JournalBoot(n, 1700000000 + n * 1000, GOOD.lines) for n in range(1, 6)])
    found = read(work)
    assert [len(boot.hits) >= 2 for boot in journal_of(found).boots[-3:]] == [True] * 3
    assert journal_of(found).boots_seen == 3
    assert found.starts.last_start == "2023-11-14T23:36:40Z"
    assert not found.errors


def test_of_a_boot_that_went_on_for_long_the_kernel_s_lines_are_read(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient_logs, "BOOT_LINES", 40)
    lines = (logs.BANNER, logs.DAMAGED, *(f"app: request {n}" for n in range(60)))
    logs.write_journal(work, [logs.JournalBoot(n, 1700000000 + n * 1000, lines) for n in (1, 2)])
    boots = journal_of(read(work)).boots
    assert [boot.kernel for boot in boots] == ["6.1.0-18-amd64"] * 2
    assert all(any(hit.signature.startswith("ext") for hit in boot.hits) for boot in boots)


def test_a_journal_that_cannot_be_read_is_said(work: Path) -> None:
    file = logs.write_journal(work, (GOOD,))
    with open(file, "r+b") as journal:
        journal.seek(12)
        journal.write(b"\xff\xff\xff\xff")  # incompatible_flags of a format that is not known yet
    found = read(work)
    assert not found.logs
    assert "newer rescue system" in found.errors[0].hint
    file.write_bytes(b"\0" * 4096)
    assert not read(work).logs


def test_a_journal_that_leads_out_of_the_patient_is_not_opened(work: Path) -> None:
    outside = work / "outside"
    file = logs.write_journal(outside, (GOOD,))
    inside = work / "patient/var/log/journal" / logs.MACHINE_ID
    inside.mkdir(parents=True)
    (inside / "system.journal").symlink_to(file)
    found = read(work / "patient")
    assert not found.logs
    assert "no regular file" in found.errors[0].message
