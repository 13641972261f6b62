# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages: order, needs, disks side by side, cancelling, and a release that is never skipped."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from lab import disks
from lab.executing import Bench, looking, step

from rescue_agent.model.operation import TARGET_ROOT, Activate, Bind, Mount, Run, WriteFile
from rescue_agent.model.run import Acquired, CommandRecord, Notice, OperationRecord, Output, Progressed
from rescue_agent.system import mounts
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

HOLEDIR = disks.CORPUS / "ext/f_holedir4.img.xz"


def sleep(seconds: float) -> Run:
    return Run(argv=("sleep", str(seconds)))


# --- order ----------------------------------------------------------------------------------------


def test_the_first_failure_ends_a_step_and_those_that_need_it(bench: Bench, work: Path) -> None:
    outcome = bench.run(
        step("a", Run(argv=("false",)), Run(argv=("touch", str(work / "no")))),
        step("b", Run(argv=("touch", str(work / "no"))), needs=("a",)),
        step("c", Run(argv=("touch", str(work / "no"))), needs=("b",)),
        step("d", Run(argv=("touch", str(work / "yes")))),
        step("other", Run(argv=("touch", str(work / "no"))), stage="fstab"),
    )
    assert outcome["a"].startswith("failed: false ended with 1")
    assert outcome["b"].startswith("skipped: ") and "step a" in outcome["b"]
    assert outcome["c"].startswith("skipped: ")
    assert outcome["d"] == "done" and set(outcome) == {"a", "b", "c", "d"}
    assert (work / "yes").exists() and not (work / "no").exists()


def test_a_need_of_an_earlier_stage_counts(bench: Bench) -> None:
    steps = (
        step("fsck", Run(argv=("false",)), stage="filesystem"),
        step("work", Run(argv=("true",)), needs=("fsck",)),
    )
    bench.run(*steps, stage="filesystem")
    assert bench.run(*steps)["work"].startswith("skipped: ")


def test_other_exit_codes_can_be_good_ones(bench: Bench) -> None:
    fsck = Run(argv=("sh", "-c", "exit 1"), ok=(0, 1))
    assert bench.run(step("a", fsck)) == {"a": "done"}
    assert [r.exit_code for r in bench.records() if isinstance(r, OperationRecord)] == [None, 1]


def test_a_program_that_is_not_there_is_a_failure_with_its_name(bench: Bench) -> None:
    assert "no-such-tool is not installed" in bench.run(step("a", Run(argv=("no-such-tool",))))["a"]
    outcome = bench.on_root(Run(argv=("no-such-tool",), inside=True))
    assert outcome.startswith("failed:") and "no-such-tool" in outcome


def test_a_timeout_ends_the_command(bench: Bench) -> None:
    start = time.monotonic()
    outcome = bench.run(step("a", Run(argv=("sleep", "60"), timeout_s=0.5)))
    assert "did not end within 0.5 s" in outcome["a"]
    assert time.monotonic() - start < 10


def test_the_environment_inside_is_clean(bench: Bench) -> None:
    os.environ["LEAKED_FROM_OUTSIDE"] = "1"
    try:
        run = Run(argv=("env",), inside=True, environment=(("DEBIAN_FRONTEND", "noninteractive"),))
        assert bench.on_root(run) == "done"
    finally:
        del os.environ["LEAKED_FROM_OUTSIDE"]
    said = {e.line for e in bench.events if isinstance(e, Output)}
    assert "DEBIAN_FRONTEND=noninteractive" in said
    names = {line.partition("=")[0] for line in said}
    assert names <= {"PATH", "HOME", "LC_ALL", "LANGUAGE", "DEBIAN_FRONTEND", "PWD", "OLDPWD", "_", "SHLVL"}


def test_what_a_command_says_is_made_safe_to_show(bench: Bench) -> None:
    bench.run(step("a", Run(argv=("printf", r"\033[31mred\n"))))
    assert [e.line for e in bench.events if isinstance(e, Output)] == ["\\x1b[31mred"]


# --- disks side by side ----------------------------------------------------------------------------


def test_two_disks_at_once_one_disk_in_order(bench: Bench, work: Path) -> None:
    def marked(name: str) -> Run:
        return Run(
            argv=("sh", "-c", f"date +%s.%N > {work}/{name}.start; sleep 1; date +%s.%N > {work}/{name}.end")
        )

    steps = (
        step("a1", marked("a1"), stage="filesystem", on=("/dev/a",)),
        step("b1", marked("b1"), stage="filesystem", on=("/dev/b",)),
        step("a2", marked("a2"), stage="filesystem", on=("/dev/a",)),
    )
    assert set(bench.run(*steps, stage="filesystem").values()) == {"done"}
    at = {
        path.name: float(path.read_text()) for path in work.glob("*.*") if path.suffix in (".start", ".end")
    }
    assert at["b1.start"] < at["a1.end"] and at["a1.start"] < at["b1.end"], "not side by side"
    assert at["a2.start"] >= at["a1.end"], "two at once on one disk"


def test_other_stages_are_never_side_by_side(bench: Bench, work: Path) -> None:
    log = work / "log"
    steps = [
        step(
            n, Run(argv=("sh", "-c", f"echo {n}1 >> {log}; sleep 0.2; echo {n}2 >> {log}")), on=(f"/dev/{n}",)
        )
        for n in "abc"
    ]
    bench.run(*steps)
    assert log.read_text().split() == ["a1", "a2", "b1", "b2", "c1", "c2"]


# --- until ----------------------------------------------------------------------------------------


@pytest.fixture
def damaged(work: Path) -> str:
    if not HOLEDIR.exists():
        pytest.skip(f"{HOLEDIR} is not here")
    path = work / "f_holedir4.img"
    with lzma.open(HOLEDIR) as packed, open(path, "wb") as image:
        shutil.copyfileobj(packed, image)
    return str(path)


def fsck(image: str, max_runs: int) -> Run:
    return Run(
        argv=("e2fsck", "-fy", "-C1", image),
        ok=(0, 1, 2, 3),
        progress="e2fsck",
        until=("e2fsck", "-fn", image),
        max_runs=max_runs,
    )


def test_a_checker_runs_until_it_finds_nothing_more(bench: Bench, damaged: str) -> None:
    assert bench.run(step("fsck", fsck(damaged, 4), stage="filesystem"), stage="filesystem") == {
        "fsck": "done"
    }
    assert subprocess.run(("e2fsck", "-fn", damaged), capture_output=True, check=False).returncode == 0
    progress = [e for e in bench.events if isinstance(e, Progressed)]
    assert {e.task for e in progress} == {"step fsck", "step fsck, run 2"}
    for task in ("step fsck", "step fsck, run 2"):
        fractions = [e.fraction for e in progress if e.task == task]
        assert fractions == sorted(fractions, key=lambda f: f or 0.0) and fractions[-1] == 1.0
    assert not any(e.line.startswith("1 0 1") for e in bench.events if isinstance(e, Output))


def test_it_gives_up_after_the_last_allowed_run(bench: Bench, damaged: str) -> None:
    outcome = bench.run(step("fsck", fsck(damaged, 1), stage="filesystem"), stage="filesystem")
    assert outcome["fsck"].startswith("failed:") and "after 1" in outcome["fsck"]


def test_nothing_runs_when_the_check_is_satisfied(bench: Bench, work: Path) -> None:
    run = Run(argv=("touch", str(work / "no")), until=("true",), max_runs=3)
    assert bench.run(step("a", run)) == {"a": "done"}
    assert not (work / "no").exists()


# --- cancelling -----------------------------------------------------------------------------------


def test_after_the_first_word_the_command_may_end_and_nothing_more_begins(bench: Bench, work: Path) -> None:
    threading.Timer(0.5, bench.cancel.cancel).start()
    outcome = bench.run(
        step("root", bench.root()),
        step("a", Run(argv=("sh", "-c", f"sleep 2; touch {work}/ended")), sleep(60)),
        step("b", sleep(60)),
    )
    assert (work / "ended").exists()
    assert outcome["a"].startswith("interrupted") and outcome["b"].startswith("skipped")
    assert not mounts.mounts_below(TARGET_ROOT) and not bench.leaks


def test_the_second_word_ends_a_long_command(bench: Bench) -> None:
    for delay in (0.5, 1.0):
        threading.Timer(delay, bench.cancel.cancel).start()
    start = time.monotonic()
    outcome = bench.run(step("root", bench.root()), step("a", Run(argv=("sleep", "60"), inside=True)))
    assert outcome["a"].startswith("interrupted")
    assert time.monotonic() - start < 20
    assert not mounts.mounts_below(TARGET_ROOT) and not bench.leaks


# --- release --------------------------------------------------------------------------------------


def test_what_was_left_running_in_the_patient_is_named_and_ended(bench: Bench) -> None:
    stray = Run(argv=("sh", "-c", "sleep 600 > /dev/null 2>&1 &"), inside=True)
    assert bench.on_root(Bind(source="/dev", path="/dev"), stray) == "done"
    notices = [e.message for e in bench.events if isinstance(e, Notice)]
    # The shell's child may be seen before it has become sleep.
    assert any(re.search(r"\((sleep|sh)\) was left in the patient", said) for said in notices), notices
    assert not bench.leaks
    assert not mounts.processes_rooted_in(TARGET_ROOT)


def test_one_that_does_not_listen_to_sigterm_is_ended_too(bench: Bench) -> None:
    stubborn = "(trap '' TERM; while :; do sleep 1; done) > /dev/null 2>&1 &"
    run = Run(argv=("sh", "-c", stubborn), inside=True)
    assert bench.on_root(Bind(source="/dev", path="/dev"), run) == "done"
    assert any("was ended" in e.message for e in bench.events if isinstance(e, Notice))
    assert not bench.leaks


def test_a_busy_mount_is_a_leak_that_names_its_holder(bench: Bench) -> None:
    executor = bench.executor(step("workspace", bench.root()))
    executor.open_workspace()
    holder = subprocess.Popen(("sleep", "600"), cwd=f"{TARGET_ROOT}/etc")
    try:
        executor.release()
        assert len(executor.leaks) == 1, executor.leaks
        assert f"sleep ({holder.pid})" in executor.leaks[0]
        assert [r.state for r in bench.records() if isinstance(r, Acquired)] == ["intent", "held", "leaked"]
    finally:
        holder.kill()
        holder.wait()
        mounts.release_tree(Runner(), TARGET_ROOT)


def test_what_was_mounted_by_hand_below_the_patient_is_released(bench: Bench) -> None:
    executor = bench.executor(
        step("workspace", bench.root(), Bind(source="/dev", path="/dev", recursive=True))
    )
    executor.open_workspace()
    disks.run("mount", "-t", "tmpfs", "tmpfs", f"{TARGET_ROOT}/tmp")
    disks.run("mount", "--bind", f"{TARGET_ROOT}/etc", f"{TARGET_ROOT}/home")
    executor.release()
    assert executor.leaks == []


def test_a_mount_that_a_command_left_is_released(bench: Bench, work: Path) -> None:
    place = work / "replay"
    place.mkdir()
    outcome = bench.run(step("replay", Run(argv=("mount", bench.device, str(place))), Run(argv=("false",))))
    assert outcome["replay"].startswith("failed")
    assert not bench.leaks
    assert not mounts.mounts_below(str(place))


def test_binds_never_reach_back_to_the_rescue_system(bench: Bench) -> None:
    before = [(m.target, m.type) for m in mounts.mounts()]
    inside = Run(argv=("sh", "-c", "mount -t tmpfs tmpfs /dev/shm"), inside=True)
    bench.on_root(Bind(source="/dev", path="/dev", recursive=True), inside)
    assert [(m.target, m.type) for m in mounts.mounts()] == before


def test_a_shown_file_and_its_mount_point_are_gone_afterwards(bench: Bench) -> None:
    bind = Bind(source="", path="/etc/resolv.conf", content="nameserver 192.0.2.7\n", read_only=True)
    seen = Run(argv=("sh", "-c", "cat /etc/resolv.conf; echo x > /etc/resolv.conf"), inside=True)
    outcome = bench.on_root(bind, seen)
    assert outcome.startswith("failed")  # it is read-only
    assert "nameserver 192.0.2.7" in [e.line for e in bench.events if isinstance(e, Output)]
    with looking(bench.device) as root:
        assert not (root / "etc/resolv.conf").exists()


def test_storage_layers_are_taken_down_even_when_a_stop_was_asked_for(bench: Bench, work: Path) -> None:
    flag = work / "active"
    layer = Activate(argv=("touch", str(flag)), release=("rm", "--", str(flag)), device=str(flag))
    threading.Timer(0.3, bench.cancel.cancel).start()
    outcome = bench.run(step("layer", layer, sleep(1), sleep(60)))
    assert outcome["layer"].startswith("interrupted")
    assert not flag.exists() and not bench.leaks


def test_nothing_is_mounted_over_what_is_mounted_already(bench: Bench) -> None:
    Path(TARGET_ROOT).mkdir(parents=True, exist_ok=True)
    disks.run("mount", "-t", "tmpfs", "tmpfs", TARGET_ROOT)
    try:
        outcome = bench.on_root(WriteFile(path="/x", content="x"))
        assert outcome.startswith("skipped")
        assert len(mounts.mounts_below(TARGET_ROOT)) == 1, "a mount of somebody else was released"
    finally:
        disks.run("umount", TARGET_ROOT)


def test_a_root_that_cannot_be_mounted_is_said_with_the_kernels_words(bench: Bench, work: Path) -> None:
    bad = Mount(source=bench.device, path="/", type="xfs")
    outcome = bench.run(step("root", bad), step("work", WriteFile(path="/x", content="x"), needs=("root",)))
    assert "cannot be mounted as xfs" in outcome["root"]
    assert outcome["work"].startswith("skipped")


def test_commands_and_their_output_are_in_the_journal_when_logged(bench: Bench) -> None:
    record = CommandRecord(time="", argv=("a",), exit_code=0, duration_s=0.0, stdout="out")
    bench.journal.append(record)
    assert record in bench.records()


def test_rounds_leave_no_descriptor_and_no_process(bench: Bench) -> None:
    me = psutil.Process()
    bench.on_root(WriteFile(path="/etc/keep.conf", content="0"))
    before = me.num_fds(), len(me.children()), threading.active_count()
    for number in range(5):
        assert bench.on_root(WriteFile(path="/etc/keep.conf", content=str(number + 1))) == "done"
    assert (me.num_fds(), len(me.children()), threading.active_count()) == before


def test_resources_go_on_after_a_failure(work: Path) -> None:
    seen: list[str] = []
    resources = Resources()
    for name in ("first", "second", "third"):
        with resources.taking("file", name) as taken:

            def release(name: str = name) -> None:
                seen.append(name)
                if name == "second":
                    raise OSError(16, "busy")

            taken.release = release
    leaks = resources.release_to(0)
    assert seen == ["third", "second", "first"]
    assert len(leaks) == 1 and leaks[0].startswith("second: ")
