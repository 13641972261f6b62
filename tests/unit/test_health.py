# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel messages about media, SMART answers, and what is known of the rescue system."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.probe.health import find_errors, parse_record, parse_smart
from rescue_agent.probe.rescue import has_route

MEDIUM_ERRORS = [
    ("sda", "blk_update_request: I/O error, dev sda, sector 407473610 op 0x0:(READ) flags 0x0 phys_seg 1"),
    ("sda", "end_request: I/O error, dev sda, sector 407473610"),
    (
        "vdb",
        "critical medium error, dev vdb, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0",
    ),
    ("loop1", "I/O error, dev loop1, sector 328 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2"),
    ("sdb1", "Buffer I/O error on dev sdb1, logical block 41, async page read"),
    ("sdc", "sd 1:0:0:0: [sdc] Sense Key : Medium Error [current] [descriptor]"),
    ("nvme0n1", "nvme0n1: Read(0x2) @ LBA 7814, 8 blocks, Unrecovered Read Error (sct 0x2 / sc 0x81)"),
    ("mmcblk0", "mmcblk0: error -110 transferring data, sector 1024, nr 8"),
]
NOTHING = [
    "EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm init: deleted inode referenced: 12",
    "sd 1:0:0:0: [sda] Attached SCSI disk",
    "attempt to access beyond end of device",
    "loop1: detected capacity change from 0 to 2048",
    "systemd[1]: sda: I/O",
]


@pytest.mark.parametrize(("name", "line"), MEDIUM_ERRORS)
def test_medium_errors_are_found_and_given_to_their_device(name: str, line: str) -> None:
    log = [*NOTHING, line]
    assert find_errors(log, (name,)).lines == (line,)
    for other in ("sdaa", "sd", "vda", name + "0"):
        assert find_errors(log, (other,)).number == 0


@pytest.mark.parametrize(
    "mark", ["loop1: detected capacity change from 0 to 634880", "sd 2:0:0:0: [sda] Attached SCSI disk"]
)
def test_what_was_said_of_an_earlier_medium_does_not_count(mark: str) -> None:
    name = "loop1" if mark.startswith("loop1") else "sda"
    old, new = (f"I/O error, dev {name}, sector {n}" for n in (1, 2))
    assert find_errors([old, mark, new], (name,)).lines == (new,)
    assert find_errors([old, mark], (name,)).number == 0


def test_only_the_last_lines_are_kept() -> None:
    found = find_errors([f"I/O error, dev sda, sector {n}" for n in range(40)], ("sda",))
    assert found.number == 40
    assert len(found.lines) == 10
    assert found.lines[-1] == "I/O error, dev sda, sector 39"


@given(st.lists(st.text()))
def test_any_log_is_read(log: list[str]) -> None:
    assert all(line.isprintable() for line in find_errors(log, ("sda",)).lines)


def test_a_record_of_the_kernel_log() -> None:
    record = b"3,1250,2932940351,-;I/O error, dev loop1, sector 328\n SUBSYSTEM=block\n DEVICE=b7:1\n"
    assert parse_record(record) == "I/O error, dev loop1, sector 328"
    assert parse_record(b"garbage") == ""


@pytest.mark.parametrize(
    ("text", "code", "state"),
    [
        ('{"smart_status": {"passed": true}}', 0, "passed"),
        ('{"smart_status": {"passed": true}}', 0x40, "passed"),
        ('{"smart_status": {"passed": false}}', 8, "failing"),
        ("{}", 8, "failing"),
        ('{"smartctl": {"messages": [{"string": "Unable to detect device type"}]}}', 1, "unknown"),
        ("{}", 2, "unknown"),
        ("", 127, "unknown"),
        ("[1]", 0, "unknown"),
        ('{"smart_status": 3, "smartctl": []}', 0, "unknown"),
    ],
)
def test_smart(text: str, code: int, state: str) -> None:
    assert parse_smart(text, code)[0] == state


def test_routes() -> None:
    head = "Iface\tDestination\tGateway\tFlags\n"
    assert has_route(head + "eth0\t00000000\t0102A8C0\t0003\t0\n", "")
    assert not has_route(head + "lo\t0000007F\t00000000\t0001\n", "")
    assert not has_route(
        head, "fe80" + "0" * 28 + " 40 " + "0" * 32 + " 00 " + "0" * 32 + " 0 0 0 00000001 eth0"
    )
    assert has_route(head, "0" * 32 + " 00 " + "0" * 32 + " 00 " + "f" * 32 + " 0 0 0 00000003 eth0\n")
