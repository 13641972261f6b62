# SPDX-License-Identifier: GPL-3.0-or-later
"""The last changes of a patient, by the logs of each package manager, and when it last came up."""

from __future__ import annotations

import os
import struct
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import PackageChange
from rescue_agent.probe.history import LINE_LIMIT, PACKAGES_KEPT, parse_wtmp, probe_changes
from rescue_agent.system.root import TargetRoot

CHANGED = datetime(2026, 1, 10, tzinfo=UTC).timestamp()

APT = """
Start-Date: 2026-01-08  10:00:00
Commandline: apt-get install less
Install: less:amd64 (590-2), libfoo:amd64 (1.0, automatic)
End-Date: 2026-01-08  10:00:05

Start-Date: 2026-01-09  06:12:33
Commandline: /usr/bin/unattended-upgrade
Upgrade: zsh:amd64 (5.8, 5.9), libc6:amd64 (2.36-8, 2.36-9), linux-image-6.1:amd64 (1, 2)
Remove: old:amd64 (1)
"""
DPKG = """2026-01-09 10:00:00 startup archives unpack
2026-01-09 10:00:01 upgrade libc6:amd64 2.36-8 2.36-9
2026-01-09 10:00:02 status unpacked libc6:amd64 2.36-9
2026-01-09 12:00:00 install linux-image-6.1:amd64 <none> 2
"""
YUM = """Dec 31 23:59:00 Updated: 1:openssl-libs-1.0.2k-26.el7.x86_64
Jan 09 10:00:00 Updated: glibc-2.17-326.el7.x86_64
Jan 09 10:00:05 Erased: kernel-3.10.0-1160.el7
"""
DNF = """2026-01-09T10:00:00+0200 INFO --- logging initialized ---
2026-01-09T10:00:01+0200 SUBDEBUG Upgrade: glibc-common-2.28-236.el8.x86_64
2026-01-09T10:00:01+0200 SUBDEBUG Upgraded: glibc-common-2.28-225.el8.x86_64
2026-01-09T10:00:02+0200 SUBDEBUG Installed: kernel-core-4.18.0-513.el8.x86_64
"""
ZYPP = """# 2026-01-09 10:00:00 glibc installed ok
2026-01-09 10:00:00|command|root@host|'zypper' 'up'|
2026-01-09 10:00:01|install|glibc|2.31-1|x86_64||repo|abc|
2026-01-09 10:00:02|remove |old|1-1|x86_64|root@host|
"""
PACMAN = """[2026-01-09T10:00:00+0100] [PACMAN] Running 'pacman -Syu'
[2026-01-09T10:00:01+0100] [ALPM] upgraded linux (6.6-1 -> 6.7-1)
[2026-01-09T10:00:02+0100] [ALPM] warning: something
"""


def changes(tmp_path: Path, name: str, text: str) -> tuple[PackageChange, ...]:
    file = tmp_path / "var/log" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (CHANGED, CHANGED))
    with TargetRoot(tmp_path) as root:
        return probe_changes(root)


def test_apt_tells_what_was_typed_and_whether_it_ended(tmp_path: Path) -> None:
    first, last = changes(tmp_path, "apt/history.log", APT)
    assert (first.action, first.count, first.finished) == ("install", 2, True)
    assert (last.action, last.count, last.finished) == ("upgrade", 4, False)
    assert last.packages[:2] == ("libc6", "linux-image-6.1"), "what a boot needs comes first"
    assert (last.time, last.command) == ("2026-01-09T06:12:33Z", "/usr/bin/unattended-upgrade")


@pytest.mark.parametrize(
    ("name", "text", "times", "packages"),
    [
        ("dpkg.log", DPKG, ["2026-01-09T10:00:01Z", "2026-01-09T12:00:00Z"], {"libc6", "linux-image-6.1"}),
        (
            "yum.log",
            YUM,
            ["2025-12-31T23:59:00Z", "2026-01-09T10:00:00Z"],
            {"openssl-libs", "glibc", "kernel"},
        ),
        ("dnf.rpm.log", DNF, ["2026-01-09T08:00:01Z"], {"glibc-common", "kernel-core"}),
        ("zypp/history", ZYPP, ["2026-01-09T10:00:01Z"], {"glibc", "old"}),
        ("pacman.log", PACMAN, ["2026-01-09T09:00:01Z"], {"linux"}),
    ],
)
def test_logs_with_a_line_for_each_package(
    tmp_path: Path, name: str, text: str, times: list[str], packages: set[str]
) -> None:
    found = changes(tmp_path, name, text)
    assert [change.time for change in found] == times
    assert {package for change in found for package in change.packages} == packages


def test_hostile_logs_cost_little(tmp_path: Path) -> None:
    begun = time.monotonic()
    long = "2026-01-09T10:00:01+0200 SUBDEBUG Upgrade: " + "a-" * (1 << 18) + "\n"
    short = ("2026-01-09T10:00:01+0200 SUBDEBUG Upgrade: " + "a-" * 1000)[: LINE_LIMIT - 1] + " b\n"
    assert changes(tmp_path, "dnf.rpm.log", long + short * 500) == ()
    many = ", ".join(f"p{n}:amd64 (1, 2)" for n in range(20_000))
    (last,) = changes(tmp_path, "apt/history.log", f"Start-Date: 2026-01-09  10:00:00\nUpgrade: {many}\n")
    assert (last.count, len(last.packages)) == (20_000, PACKAGES_KEPT)
    assert time.monotonic() - begun < 5.0


def test_times_are_in_the_zone_of_the_patient(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    # Two hours east of Greenwich, in version 1 of the format (tzfile(5)).
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    (tmp_path / "etc/localtime").write_bytes(header + struct.pack(">lbb", 7200, 0, 0) + b"EET\0")
    assert changes(tmp_path, "dpkg.log", DPKG)[0].time == "2026-01-09T08:00:01Z"
    (tmp_path / "etc/localtime").write_bytes(header[:30])
    assert changes(tmp_path, "dpkg.log", DPKG)[0].time == "2026-01-09T10:00:01Z"


def record(kind: int, user: bytes, seconds: int, *, wide: bool = False) -> bytes:
    start = struct.pack("<hxxi32s4s32s256shh", kind, 1, b"~", b"~~", user, b"6.1", 0, 0)
    if wide:
        return start + struct.pack("<qqq16s20s4x", 0, seconds, 0, b"", b"")
    return start + struct.pack("<iii16s20s", 0, seconds, 0, b"", b"")


@pytest.mark.parametrize("wide", [False, True])
def test_a_start_counts_as_come_up_when_somebody_could_log_in(wide: bool) -> None:
    good = [record(2, b"reboot", 1700000000, wide=wide), record(1, b"runlevel", 1700000009, wide=wide)]
    bad = [record(1, b"shutdown", 1700000100, wide=wide), record(2, b"reboot", 1700000200, wide=wide)]
    assert parse_wtmp(b"".join(good + bad)) == ("2023-11-14T22:16:40Z", "2023-11-14T22:13:20Z")


def test_what_is_no_wtmp_says_nothing() -> None:
    for data in (b"", b"x", b"\xff" * 384, b"\0" * 384, b"\x02" * 400):
        assert parse_wtmp(data) == ("", "")


def test_the_last_change_is_evidence_of_a_root_cause_alone() -> None:
    change = PackageChange(
        time="2026-01-09T06:12:33Z",
        log="/var/log/apt/history.log",
        action="upgrade",
        count=7,
        packages=("libc6", "less", "sed", "tar", "zsh"),
        finished=False,
    )
    broken = lab.with_missing_libc(lab.healthy())
    facts = lab.with_system(broken, changes=(change,), came_up="2026-01-08T10:00:00Z")
    for finding in diagnose(facts).findings:
        last = finding.evidence[-1]
        told = last.source.startswith("/var/log/apt/history.log on ")
        assert told == (not finding.consequence_of)
        if told:
            assert "7 packages upgraded (libc6, less, sed, tar and 3 more)" in last.excerpt
            assert "does not say that it ended well" in last.excerpt
            assert "after the last start that came up" in last.excerpt
    healthy = lab.with_system(lab.healthy(), changes=(change,))
    assert diagnose(healthy).findings == ()
    assert diagnose(msgspec.structs.replace(facts, disks=("/dev/other",))).faults == ()
