# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs as machines leave them on their disks: a real journal, text logs, what a crashing kernel kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.disks import run

MACHINE_ID = "5e5c00e000000000000000000000a6e7"
STARTUP_FINISHED = "b07a249cd024414a82dd00cd181378ff"
JOURNAL_REMOTE = "/lib/systemd/systemd-journal-remote"

BANNER = "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-12)"
DAMAGED = "EXT4-fs error (device vda1): ext4_lookup:1855: inode #2: comm init: deleted inode referenced: 12"
PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"
UP = "Startup finished in 2.100s (kernel) + 5.200s (userspace) = 7.300s."


@dataclass(frozen=True)
class JournalBoot:
    """One boot: when it began (seconds since 1970), and its lines, one for each second."""

    number: int
    began: int
    lines: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.number:032x}"


def write_journal(tree: Path, boots: Sequence[JournalBoot]) -> Path:
    """Make ``/var/log/journal`` of a root with these boots, by systemd's own writer; return the file."""
    folder = tree / "var/log/journal" / MACHINE_ID
    folder.mkdir(parents=True)
    entries = []
    for boot in boots:
        for second, line in enumerate(boot.lines):
            kernel, program = not line.startswith(("Startup finished", "app:")), line.startswith("app:")
            fields = {
                "__REALTIME_TIMESTAMP": f"{boot.began + second}000000",
                "__MONOTONIC_TIMESTAMP": f"{second + 1}000000",
                "_BOOT_ID": boot.id,
                "_MACHINE_ID": MACHINE_ID,
                "_HOSTNAME": "patient",
                "_TRANSPORT": "kernel" if kernel else "journal",
                "SYSLOG_IDENTIFIER": "kernel" if kernel else "app" if program else "systemd",
                "PRIORITY": "6",
                **({} if kernel or program else {"_PID": "1", "MESSAGE_ID": STARTUP_FINISHED}),
                "MESSAGE": line,
            }
            entries.append("".join(f"{key}={value}\n" for key, value in fields.items()))
    export = folder / "export"
    export.write_text("\n".join(entries) + "\n")
    file = folder / "system.journal"
    run(JOURNAL_REMOTE, "--output", file, export)
    export.unlink()
    return file


def write_pstore(tree: Path, lines: Sequence[str], parts: int = 3) -> Path:
    """Put a panic's records where systemd-pstore(8) does: part 1 holds the end of the log."""
    folder = tree / "var/lib/systemd/pstore/1700000900"
    folder.mkdir(parents=True)
    size = -(-len(lines) // parts)
    for part in range(parts):
        own = lines[part * size : (part + 1) * size]
        number = parts - part
        text = f"Panic#1 Part{number}\n" + "".join(
            f"<6>[{part * size + n:5}.0] {x}\n" for n, x in enumerate(own)
        )
        (folder / f"dmesg-efi_pstore-17000009000{number}001").write_text(text)
    return folder


def write_syslog(tree: Path, lines: Sequence[str], name: str = "syslog") -> Path:
    """Write a text log as rsyslog does."""
    file = tree / "var/log" / name
    file.write_text(
        "".join(f"Nov 14 22:15:{n:02} patient kernel: [{n:5}.0] {x}\n" for n, x in enumerate(lines))
    )
    return file
