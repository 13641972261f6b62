# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checkers' codes and words mean. The words are what the real tools printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.model.facts import Check
from rescue_agent.probe.checkers import MAX_MESSAGES, Told, check_of
from rescue_agent.probe.filesystem import State, state_of
from rescue_agent.system.runner import Completed

NO_SUPERBLOCK = (
    "ext2fs_open2: The ext2 superblock is corrupt\n"
    "The superblock could not be read or does not describe a valid ext2/ext3/ext4\nfilesystem.\n"
)
ALERT = "ALERT: The filesystem has valuable metadata changes in a log which is being\nignored because\n"
FAT_END = "/dev/x: 0 files, 0/32695 clusters\n"
DIRTY_BIT = (
    "Dirty bit is set. Fs was not properly unmounted and some data may be corrupt.\n"
    " Automatically removing dirty bit.\n\nLeaving filesystem unchanged.\n"
)
SHORT = "Attempt to read block from filesystem resulted in short read"


NOTHING_TOLD = Told()


def check(fstype: str, code: int, text: str = "", told: Told = NOTHING_TOLD) -> Check:
    return check_of(Completed(("checker", "/dev/x"), code, text, "", 0.1), fstype, told)


@pytest.mark.parametrize(
    ("code", "text", "told", "verdict"),
    [
        (0, "", Told(), "clean"),
        (0, "", Told(log_waits=True), "needs-recovery"),
        (4, "Free blocks count wrong (1, counted=2).\nFix? no\n", Told(), "damaged"),
        (4, "Free blocks count wrong (1, counted=2).\nFix? no\n", Told(log_waits=True), "needs-recovery"),
        (12, "e2fsck: aborted\n", Told(), "damaged"),
        (12, "Root inode is not a directory.  Clear? no\n", Told(log_waits=True), "needs-recovery"),
        (8, NO_SUPERBLOCK, Told(), "unrepairable"),
        (8, NO_SUPERBLOCK, Told(log_waits=True), "unrepairable"),
        (8, "Inode table for group 0 is not in group.  (block 40000)\n", Told(), "damaged"),
        (8, "/dev/x is in use.\n", Told(), "unknown"),
        (8, "Device or resource busy while trying to open /dev/x\n", Told(), "unknown"),
        (8, "/dev/x has unsupported feature(s): FEATURE_C17\nGet a newer version\n", Told(), "unknown"),
        (8, "Operation not permitted while trying to open /dev/x\n", Told(), "unknown"),
        (8, "Signal (8) SIGFPE si_code=1 (null)\n", Told(), "unknown"),
        (-11, "", Told(), "unknown"),
        (32, "", Told(), "unknown"),
        (12, "Error reading block 41 (Input/output error).  Ignore error? no\n", Told(), "unreadable"),
        (12, f"Error reading block 41 ({SHORT}).\n", Told(blocks=100), "unreadable"),
        (12, f"{SHORT} while reading bad blocks inode\n", Told(blocks=100), "unreadable"),
        (12, f"Directory Error reading block 385893 ({SHORT}).\n", Told(blocks=100), "damaged"),
    ],
)
def test_e2fsck(code: int, text: str, told: Told, verdict: str) -> None:
    assert check("ext4", code, text, told).verdict == verdict


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, "Phase 1 - find and verify superblock...\n", "clean"),
        (1, "bad CRC for inode 131\n", "damaged"),
        (1, ALERT + "would have junked entry\n", "needs-recovery"),
        (1, "xfs_repair: read failed: Input/output error\n", "unreadable"),
        (1, "xfs_repair: /dev/x contains a mounted filesystem\n", "unknown"),
        (1, "Sorry, could not find valid secondary superblock\nExiting now.\n", "unrepairable"),
        (1, "Only one AG detected - cannot validate filesystem geometry.\n", "unknown"),
        (-6, "", "unknown"),
    ],
)
def test_xfs_repair(code: int, text: str, verdict: str) -> None:
    assert check("xfs", code, text).verdict == verdict


@pytest.mark.parametrize(
    ("code", "text", "told", "verdict"),
    [
        (0, "found 147456 bytes used, no error found\n", Told(), "clean"),
        (0, "found 147456 bytes used, no error found\n", Told(log_waits=True), "needs-recovery"),
        (1, "ERROR: errors found in fs roots\n", Told(), "damaged"),
        (1, "ERROR: cannot open file system\n", Told(), "unrepairable"),
        (1, "ERROR: /dev/x is currently mounted, use --force\n", Told(), "unknown"),
        (1, "warning, device 2 is missing\nERROR: cannot open file system\n", Told(), "unknown"),
        # btrfs says EIO for a wrong checksum: no word about the medium.
        (1, "ERROR: could not read tree: Input/output error\n", Told(), "damaged"),
    ],
)
def test_btrfs(code: int, text: str, told: Told, verdict: str) -> None:
    assert check("btrfs", code, text, told).verdict == verdict


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, FAT_END, "clean"),
        (1, DIRTY_BIT + FAT_END, "clean"),
        (1, DIRTY_BIT + "/A.TXT\n  Circular cluster chain. Truncating to 3 clusters.\n" + FAT_END, "damaged"),
        (1, "Failed to read sector 2879.\n", "unrepairable"),
        (2, "usage\n", "unknown"),
    ],
)
def test_fat(code: int, text: str, verdict: str) -> None:
    assert check("vfat", code, text).verdict == verdict


def test_only_what_was_found_is_kept() -> None:
    text = (
        "e2fsck 1.47.0 (5-Feb-2023)\nPass 1: Checking inodes, blocks, and sizes\n\n"
        "Inode 12, i_size is 4096, should be 872448.  Fix? no\n\n"
        "/dev/x: ********** WARNING: Filesystem still has errors **********\n"
        "/dev/x: 12/128 files (16.7% non-contiguous), 1446/2048 blocks\n"
    )
    assert check("ext4", 4, text).messages == ("Inode 12, i_size is 4096, should be 872448.",)


def test_messages_are_bounded_and_safe_to_print() -> None:
    text = "".join(f"Entry '\x1b[2J{n}' in / is wrong " + "x" * 1000 + "\n" for n in range(50))
    found = check("ext4", 4, text)
    assert len(found.messages) == MAX_MESSAGES
    assert found.truncated == 30
    assert all(line.isprintable() and len(line) <= 300 for line in found.messages)


@given(st.sampled_from(("ext4", "xfs", "btrfs", "vfat")), st.integers(-64, 255), st.text(max_size=300))
def test_any_answer_has_a_meaning(fstype: str, code: int, text: str) -> None:
    found = check(fstype, code, text)
    assert found.verdict != "clean" or code in (0, 1)
    assert all(line.isprintable() for line in found.messages)


@pytest.mark.parametrize(
    ("superblock", "verdict", "state"),
    [
        ("clean", "clean", "clean"),
        ("clean", "damaged", "damaged"),
        ("clean", "unknown", "unknown"),
        ("clean", "unreadable", "unknown"),
        ("dirty", "clean", "dirty"),
        ("dirty", "damaged", "damaged"),
        ("error", "clean", "error"),
        ("error", "unknown", "error"),
        ("needs-recovery", "damaged", "needs-recovery"),
        ("damaged", "clean", "damaged"),
        ("unknown", "clean", "clean"),
        ("unknown", "needs-recovery", "needs-recovery"),
        ("unknown", "unrepairable", "damaged"),
    ],
)
def test_the_state_follows_from_superblock_and_check(superblock: State, verdict: str, state: State) -> None:
    told = Check(tool="t", argv=("t",), verdict=verdict)  # type: ignore[arg-type]
    assert state_of(superblock, told) == state
    assert state_of(superblock, None) == superblock
