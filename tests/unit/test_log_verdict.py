# SPDX-License-Identifier: GPL-3.0-or-later
"""From a log to its one cause: context, ranking, boots, modules from outside, and no false alarm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.diagnose.logs.verdict import Judgement, judge

SAMPLES = Path(__file__).parents[3] / "shared/panic-logs"
CASES = Path(__file__).parent / "data/log-cases.txt"
SIGNATURES = {s.id: s for s in make_matcher().signatures}
VERSION = "[    0.000000] Linux version 6.1.0-18-amd64 (build@host)\n"
PANIC_127 = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"


def judged(text: str) -> Judgement | None:
    scanner = LogScanner(make_matcher())
    scanner.feed(text.encode())
    return judge(scanner.finish(source="log").boots, SIGNATURES)


def codes(text: str) -> list[str]:
    """Return the codes in the order in which they are told; empty when nothing is wrong."""
    verdict = judged(text)
    return [v.code for v in verdict.verdicts] if verdict else []


def test_a_chain_from_the_metal_up() -> None:
    """A failing disk explains ext4 errors explain a missing library explains exit 127."""
    verdict = judged(
        "sd 0:0:0:0: [sda] Sense Key : Medium Error [current]\n"
        "blk_update_request: critical medium error, dev sda, sector 2048\n"
        "EXT4-fs (sda1): error loading journal\n"
        "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #12: reading directory lblock 0\n"
        "/sbin/init: error while loading shared libraries: libc.so.6: cannot open shared object file\n"
        + PANIC_127
    )
    assert verdict is not None
    assert verdict.verdicts[0].code == "disk-failing"
    assert verdict.verdicts[0].device == "sda"
    assert all(v.explained_by for v in verdict.verdicts[1:])
    assert {v.code for v in verdict.verdicts} >= {"init-missing-library"}


def cases() -> list[tuple[str, str]]:
    """Return (code, lines) of every case; the code of a healthy one is ``healthy``."""
    sections = CASES.read_text(encoding="utf-8").split("\n== ")[1:]
    return [(head.partition(":")[0], lines) for head, _, lines in (s.partition("\n") for s in sections)]


@pytest.mark.parametrize(("code", "lines"), [case for case in cases() if case[0] != "healthy"])
def test_the_cause_comes_first(code: str, lines: str) -> None:
    assert codes(VERSION + lines)[:1] == [code]


@pytest.mark.parametrize("lines", [lines for code, lines in cases() if code == "healthy"])
def test_no_false_alarm(lines: str) -> None:
    assert codes(VERSION + lines) == []
    assert codes(lines) == []


def test_the_last_boot_that_failed_counts() -> None:
    damaged = VERSION + "EXT4-fs (sda1): group descriptors corrupted!\n"
    fine = VERSION + "[  OK  ] Reached target Multi-User System.\n"
    hung = VERSION + "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]\n"
    assert codes(damaged + hung)[0] == "kernel-hang"
    assert codes(hung + damaged + fine)[0] == "ext-fs-corrupt"
    assert judged(damaged + fine).boot.first_line == 1  # type: ignore[union-attr]


def test_an_earlier_boot_explains_one_that_only_stopped() -> None:
    first = VERSION + "EXT4-fs (sda1): group descriptors corrupted!\n"
    then = VERSION + "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n"
    assert codes(first + then)[0] == "ext-fs-corrupt"


OOPS = "BUG: unable to handle kernel NULL pointer dereference at 0000000000000008\n"
PLACE = "RIP: 0010:agent_open+0x15/0x90 [{}]\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PLACE.format("sensor") + "Modules linked in: sensor(OE) ext4 jbd2\n", "third-party-module-crash"),
        (PLACE.format("ext4") + "Modules linked in: sensor(OE) ext4 jbd2\n", "kernel-fault"),
        (PLACE.format("sensor") + "PID: 1 Comm: x Tainted: G   OE  5.4\n", "third-party-module-crash"),
        (PLACE.format("ext4") + "CPU: 0 PID: 1 Comm: x Not tainted 5.4\n", "kernel-fault"),
        ("Modules linked in: sensor(PO)\n", "third-party-module-crash"),
    ],
)  # fmt: skip
def test_a_module_from_outside_is_blamed_when_it_crashed(text: str, code: str) -> None:
    assert codes(OOPS + text)[0] == code


def test_a_module_without_a_crash_is_not_blamed() -> None:
    assert codes("Modules linked in: sensor(PO)\n" + PLACE.format("sensor")) == []


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample logs are not beside this checkout")
def test_the_sample_logs() -> None:
    for entry in json.loads((SAMPLES / "labels.json").read_text()):
        found = codes((SAMPLES / entry["file"]).read_text())
        assert (found or ["healthy"])[0] == entry["cause"], entry["file"]


def test_a_lockup_inside_a_module_from_outside() -> None:
    stuck = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [agentd:71]\n"
    assert codes(stuck + PLACE.format("sensor") + "Modules linked in: sensor(OE) ext4\n")[0] == (
        "third-party-module-crash"
    )
    assert codes(stuck + PLACE.format("ext4") + "Modules linked in: sensor(OE) ext4\n") == ["kernel-hang"]
