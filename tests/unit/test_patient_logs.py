# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that lie on the patient: which are read, in which order, and how much of them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from lab import facts as lab
from lab import logs

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.model.logs import Log
from rescue_agent.probe import patient_logs
from rescue_agent.probe.patient_logs import Found, JournalBoot, parse_boots, probe_patient_logs
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

A, B = "1" * 32, "2" * 32


def read(tree: Path) -> Found:
    matcher = make_matcher()
    with TargetRoot(tree) as root:
        return probe_patient_logs(
            Runner(),
            root,
            lambda: LogScanner(matcher),
            system="s",
            device=lab.ROOT,
            machine_id=logs.MACHINE_ID,
        )


def signatures(log: Log) -> list[str]:
    return [hit.signature for boot in log.boots for hit in boot.hits]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "var/log").mkdir(parents=True)
    return tmp_path


def test_boots_are_read_from_json_and_from_the_table_of_older_versions() -> None:
    text = f'[{{"index":-1,"boot_id":"{A}","first_entry":1700000000000000}},{{"index":0,"boot_id":"{B}"}}]'
    assert parse_boots(text) == (JournalBoot(A, "2023-11-14T22:13:20Z"), JournalBoot(B))
    table = (
        f"-1 {A} Tue 2023-11-14 22:13:20 UTC—Tue 2023-11-14 22:13:25 UTC\n"
        f" 0 {B} Tue 2023-11-14 22:15:00 UTC—Tue 2023-11-14 22:15:00 UTC\n"
    )
    assert parse_boots(table) == (JournalBoot(A), JournalBoot(B))
    for odd in ("", "[]", "{}", "[1]", '[{"boot_id":"../x"}]', f'[{{"boot_id":5,"first_entry":"{A}"}}]'):
        assert parse_boots(odd) == ()


def test_of_a_long_log_the_end_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_logs, "FILE_BYTES", 4096)
    logs.write_syslog(tree, (logs.PANIC, *("fine" for _ in range(58)), logs.DAMAGED), "messages")
    file = tree / "var/log/messages"
    file.write_text(file.read_text().replace("fine", "fine " * 50))
    (log,) = read(tree).logs
    assert log.size_bytes <= 4096
    assert "panic" not in signatures(log)
    assert any(s.startswith("ext") for s in signatures(log))
    assert log.source == f"the last 4.0 KiB of /var/log/messages on {lab.ROOT}"
    assert (log.kind, log.system, log.problem) == ("syslog", "s", "")


def test_older_logs_are_read_until_one_shows_a_start(tree: Path) -> None:
    for age, (name, lines) in enumerate(
        {"syslog": ("fine",), "syslog.1": (logs.BANNER, logs.DAMAGED), "syslog.2": (logs.PANIC,)}.items()
    ):
        file = logs.write_syslog(tree, lines, name)
        os.utime(file, (1700000000 - age, 1700000000 - age))
    packed = tree / "var/log/syslog.1.gz"
    packed.write_bytes(gzip.compress((tree / "var/log/syslog.1").read_bytes()))
    os.utime(packed, (1699999999, 1699999999))
    (tree / "var/log/syslog.1").unlink()
    found = [log.source.split()[0] for log in read(tree).logs]
    assert found == ["/var/log/syslog", "/var/log/syslog.1.gz"]


def test_a_log_of_zeros_says_nothing(tree: Path) -> None:
    """What a crash leaves of a file whose blocks were never written."""
    (tree / "var/log/syslog").write_bytes(bytes(100_000))
    logs.write_syslog(tree, (logs.BANNER,), "syslog.1")
    assert [log.source.split()[0] for log in read(tree).logs] == ["/var/log/syslog.1"]


def test_nothing_is_read_once_the_room_is_used_up(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_logs, "TOTAL_BYTES", 400)
    logs.write_syslog(tree, ("fine",) * 10, "syslog")
    logs.write_syslog(tree, (logs.PANIC,), "kern.log")
    assert sum(log.size_bytes for log in read(tree).logs) <= 400


def test_what_is_no_file_is_left_alone(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("rescue") / "secret"
    outside.write_text(logs.PANIC)
    os.mkfifo(tree / "var/log/messages")
    (tree / "var/log/syslog").symlink_to(outside)
    (tree / "var/log/kern.log").symlink_to("/dev/null")
    (tree / "var/log/dmesg").symlink_to("dmesg")
    (tree / "var/log/boot.log").mkdir()
    (tree / "var/log/journal").symlink_to(outside.parent)
    (tree / "var/crash").mkdir()
    os.mkfifo(tree / "var/crash/vmcore-dmesg.txt")
    (tree / "var/lib/systemd").mkdir(parents=True)
    (tree / "var/lib/systemd/pstore").symlink_to(outside.parent)
    assert read(tree).logs == ()


def test_the_parts_of_a_crash_record_are_joined_from_the_highest(tree: Path) -> None:
    folder = logs.write_pstore(tree, (logs.BANNER, "a", "b", "c", "d", logs.PANIC))
    (folder / "dmesg.txt").write_text("what systemd-pstore joined\n")
    (log,) = read(tree).logs
    assert log.kind == "pstore"
    assert [log.boots[0].kernel, len(log.boots)] == ["6.1.0-18-amd64", 1], "part 1 is the end, not the start"
    assert "panic" in signatures(log)
    for part in folder.glob("dmesg-*"):
        part.unlink()
    (folder / "dmesg.txt").write_text(f"Panic#1 Part1\n{logs.PANIC}\n")
    (log,) = read(tree).logs
    assert log.source.startswith(f"/var/lib/systemd/pstore/{folder.name}/dmesg.txt")


def test_what_kdump_left_is_read_and_dumps_are_named(tree: Path) -> None:
    folder = tree / "var/crash/127.0.0.1-2026-11-20-10:00:00"
    folder.mkdir(parents=True)
    (folder / "vmcore-dmesg.txt").write_text(f"{logs.BANNER}\n{logs.PANIC}\n")
    (folder / "vmcore").write_bytes(b"KDUMP   ")
    (tree / "var/crash/_usr_bin_x.0.crash").write_text("ProblemType: Crash\n")
    found = read(tree)
    assert [log.kind for log in found.logs] == ["crash"]
    assert {d.rpartition("/")[2] for d in found.dumps} == {"vmcore", "_usr_bin_x.0.crash"}


def test_without_journalctl_the_journal_is_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree / "var/log/journal" / logs.MACHINE_ID
    folder.mkdir(parents=True)
    (folder / "system.journal").write_bytes(b"LPKSHHRH")
    monkeypatch.setattr(Runner, "which", lambda _self, _name: "")
    assert read(tree) == Found()
