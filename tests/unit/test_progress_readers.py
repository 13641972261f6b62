# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress from what the real tools printed (``data/progress``; Debian 12, captured as bytes came)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.execute.progress import ProgressReader, Reading, without_progress
from rescue_agent.model.operation import Progress

DATA = Path(__file__).parent / "data" / "progress"

CAPTURED: tuple[tuple[Progress, str], ...] = (
    ("e2fsck", "e2fsck-holedir4.txt"),
    ("e2fsck", "e2fsck-c-stderr.txt"),
    ("apt", "apt-status-fd.txt"),
    ("apt", "apt-plain.txt"),
    ("xfs_repair", "xfs_repair-stderr.txt"),
    ("btrfs", "btrfs-check.txt"),
)


def captured(name: str) -> str:
    return (DATA / name).read_bytes().decode()


def read(kind: Progress, text: str, pieces: int = 7) -> tuple[list[Reading], list[str]]:
    readings: list[Reading] = []
    lines: list[str] = []
    reader = ProgressReader(kind, on_line=lines.append, on_reading=readings.append)
    for start in range(0, len(text), pieces):
        reader.feed(text[start : start + pieces])
    reader.end()
    return readings, lines


@pytest.mark.parametrize(("kind", "name"), CAPTURED)
def test_a_fraction_never_falls_and_stays_in_bounds(kind: Progress, name: str) -> None:
    readings, _ = read(kind, captured(name))
    for part in {r.part for r in readings}:
        fractions = [r.fraction for r in readings if r.part == part and r.fraction is not None]
        assert fractions
        assert fractions == sorted(fractions)
        assert fractions[0] >= 0.0 and fractions[-1] <= 1.0


@pytest.mark.parametrize(("kind", "name"), CAPTURED)
def test_the_size_of_the_pieces_does_not_matter(kind: Progress, name: str) -> None:
    text = captured(name)
    assert read(kind, text, 1) == read(kind, text, 4096)


def test_e2fsck_passes_have_their_weights() -> None:
    readings, lines = read("e2fsck", captured("e2fsck-holedir4.txt"))
    last = {r.detail[:6]: r.fraction for r in readings}
    assert last == {
        "pass 1": pytest.approx(0.70),
        "pass 2": pytest.approx(0.90),
        "pass 3": pytest.approx(0.92),
        "pass 4": pytest.approx(0.95),
        "pass 5": pytest.approx(1.0),
    }
    assert "Pass 1: Checking inodes, blocks, and sizes" in lines
    assert not [line for line in lines if re.match(r"\d \d+ \d+ ", line)]


def test_the_surface_scan_is_a_part_of_its_own() -> None:
    readings, _ = read("e2fsck", captured("e2fsck-c-stderr.txt"))
    assert {r.part for r in readings} == {"surface scan"}
    line = "4.39% done, 0:01 elapsed. (0/0/3 errors)" + "\b" * 40
    readings, _ = read("badblocks", "Checking for bad blocks (read-only test): " + line)
    assert readings == [Reading(pytest.approx(0.0439), "3 bad blocks found", "surface scan")]


def test_apt_downloads_then_installs() -> None:
    readings, lines = read("apt", captured("apt-status-fd.txt"))
    details = [r.detail for r in readings]
    assert details.index("Retrieving file 1 of 3") < details.index("Unpacking bash (amd64)")
    assert readings[-1].fraction == pytest.approx(0.4 + 0.6 * 0.923077)
    assert not [line for line in lines if "status:" in line]


def test_apt_without_its_status_lines_is_counted() -> None:
    readings, _ = read("apt", captured("apt-plain.txt"))
    assert len(readings) == 6
    assert readings[0].fraction == pytest.approx(0.4 + 0.6 / 6)
    assert readings[-1] == Reading(1.0, "Setting up sed (4.9-1+deb12u1) ...")


def test_xfs_repair_counts_its_phases() -> None:
    readings, lines = read("xfs_repair", captured("xfs_repair-stderr.txt"))
    assert [r.detail[:12] for r in readings] == [f"phase {n} of 7"[:12] for n in range(1, 8)]
    assert readings[2].detail == "phase 3 of 7: for each AG"
    assert "done" in lines


def test_btrfs_check_counts_its_steps() -> None:
    readings, lines = read("btrfs", captured("btrfs-check.txt"))
    assert readings[0] == Reading(0.0, "step 1 of 7: checking root items")
    assert "step 5 of 7: checking csums (without verifying data)" in {r.detail for r in readings}
    assert "UUID: f2028416-e003-4f82-b056-dad382a20920" in lines


def test_only_progress_is_left_out_of_the_journal() -> None:
    text = captured("e2fsck-holedir4.txt")
    short = without_progress(text)
    assert len(short) < len(text)
    assert [line for line in text.splitlines() if not re.match(r"\d \d+ \d+ ", line)] == short.splitlines()
    assert "status:" not in without_progress(captured("apt-status-fd.txt"))
    assert without_progress("12 34 56\nplain\n") == "12 34 56\nplain\n"
    assert "\b" not in without_progress("0.10% done, 0:00 elapsed. (0/0/0 errors)" + "\b" * 9 + "done\n")


@given(kind=st.sampled_from(get_args(Progress)), pieces=st.lists(st.text(max_size=40), max_size=20))
def test_nothing_that_a_tool_prints_breaks_it(kind: Progress, pieces: list[str]) -> None:
    readings: list[Reading] = []
    reader = ProgressReader(kind, on_line=lambda _: None, on_reading=readings.append)
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    assert all(r.fraction is None or 0.0 <= r.fraction <= 1.0 for r in readings)


@given(
    lines=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 99999), st.integers(0, 99999)), min_size=1, max_size=50
    )
)
def test_no_order_of_e2fsck_lines_makes_it_fall(lines: list[tuple[int, int, int]]) -> None:
    readings, _ = read("e2fsck", "".join(f"{n} {current} {last} /dev/x\n" for n, current, last in lines))
    fractions = [r.fraction or 0.0 for r in readings]
    assert fractions == sorted(fractions)
