# SPDX-License-Identifier: GPL-3.0-or-later
"""Ended at every place of a plan with every kind of operation: what is left, and who finishes it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab import disks
from lab.executing import IDENTITY, Bench, everything, make_deb, small_image, start_killable

from rescue_agent.execute.cleanup import cleanup
from rescue_agent.execute.journal import JOURNAL_NAME, has_ended, read_journal, unreleased
from rescue_agent.execute.undo import Place, undo
from rescue_agent.model.run import Acquired
from rescue_agent.system import images
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

FILES = {"usr/bin/tool": "#!/bin/sh\n", "usr/lib/tool/one": "1\n", "usr/lib/tool/two": "2\n"}


@pytest.fixture(scope="module")
def prepared(lab_dir: Path) -> Path:
    folder = lab_dir / "small-killed"
    folder.mkdir()
    make_deb(folder, "tool", FILES)
    return small_image(folder)


@pytest.fixture
def image(prepared: Path, work: Path) -> Iterator[Path]:
    copy = work / "patient.img"
    disks.run("cp", "--sparse=always", prepared, copy)
    yield copy
    assert not images.loops_of(str(copy))


def assert_detached(image: Path, where: str = "") -> None:
    """No loop device shows the image, once whoever looks at all devices of the host has let go of it."""
    deadline = time.monotonic() + 10
    while images.loops_of(str(image)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not images.loops_of(str(image)), where


def is_sleep(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["sleep"]
    except psutil.Error:  # it has ended meanwhile
        return False


def wait(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=120)
    return process.returncode, out.decode()


def places(device: str) -> dict[str, Place]:
    """Return where the patient is now."""
    return {IDENTITY: Place(path=device, type="ext4")}


def test_at_every_place(image: Path, prepared: Path, work: Path) -> None:
    deb = str(prepared.parent / "tool.deb")
    for number in range(1, 200):
        code, said = wait(start_killable(image, work, deb, f"any#{number}:kill"))
        if code == 0:
            break
        where = f"place {number}: {said}"
        assert code == -signal.SIGKILL, where
        assert not [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(image) in line
        ]
        with disks.loop(image) as device:
            runs = cleanup(Runner(), (work / "state",), places(device), but=work)
        assert not runs.leaks, f"{where}{runs}"
        assert_detached(image, where)
        with disks.mounted(disks.Disk(image, (disks.Slot(0, 0, 0, "ext4"),)), read_only=True) as root:
            assert not (root / "usr/sbin/policy-rc.d").exists(), f"{where}a held file is left"
            keep = (root / "etc/keep.conf").read_text()
            assert keep in ("as it was\n", "changed\n"), f"{where}half-written"
            for name, content in FILES.items():
                if (root / name).exists():
                    assert (root / name).read_text() == content, f"{where}{name} is half-written"
        for journal in (work / "state").glob(f"runs/*/{JOURNAL_NAME}"):
            records = read_journal(journal)
            assert has_ended(records) and not unreleased(records), where
    assert number > 25, "the places were not passed"
    with disks.mounted(disks.Disk(image, (disks.Slot(0, 0, 0, "ext4"),)), read_only=True) as root:
        assert (root / "etc/keep.conf").read_text() == "changed\n"
        assert (root / "usr/lib/tool/two").read_text() == "2\n"
        assert not list(root.rglob(".*.rescue")), "a temporary file is left"
        assert len(list(root.glob("var/log/rescue-agent/*"))) >= 1


@pytest.mark.parametrize("number", [1, 5, 9, 14, 20, 26])
def test_interrupted_it_releases_everything_itself(
    image: Path, prepared: Path, work: Path, number: int
) -> None:
    deb = str(prepared.parent / "tool.deb")
    code, said = wait(start_killable(image, work, deb, f"any#{number}:int"))
    assert code == 130, said
    assert_detached(image)
    for journal in (work / "state").glob(f"runs/*/{JOURNAL_NAME}"):
        assert not unreleased(read_journal(journal))


def test_undo_of_a_killed_run(image: Path, prepared: Path, work: Path) -> None:
    """Killed right after a former state was saved: nothing to put back there is no refusal."""
    deb = str(prepared.parent / "tool.deb")
    for number in (1, 2, 3, 4):
        code, said = wait(start_killable(image, work, deb, f"saved#{number}:kill"))
        assert code == -signal.SIGKILL, said
        with disks.loop(image) as device:
            here = places(device)
            cleanup(Runner(), (work / "state",), here, but=work)
            for run in sorted((work / "state/runs").iterdir(), reverse=True):
                undone = undo(Runner(), Resources(), run, here)
                assert not undone.refused, f"{number}: {undone}"
        with disks.mounted(disks.Disk(image, (disks.Slot(0, 0, 0, "ext4"),)), read_only=True) as root:
            assert (root / "etc/keep.conf").read_text() == "as it was\n"
            assert (root / "etc/link").is_symlink()


def test_a_held_file_is_put_back_through_the_killed_runs_own_loop(
    image: Path, prepared: Path, work: Path
) -> None:
    """It may be the only way to the disk that there is when the cleanup begins."""
    deb = str(prepared.parent / "tool.deb")
    code, said = wait(start_killable(image, work, deb, "operation-done#6:kill"))
    assert code == -signal.SIGKILL, said
    (device,) = images.loops_of(str(image))
    cleaned = cleanup(Runner(), (work / "state",), places(device), but=work)
    assert not cleaned.leaks, cleaned
    assert any("policy-rc.d" in line for line in cleaned.released), cleaned
    assert_detached(image)
    with disks.mounted(disks.Disk(image, (disks.Slot(0, 0, 0, "ext4"),)), read_only=True) as root:
        assert not (root / "usr/sbin/policy-rc.d").exists()


def test_a_held_file_waits_for_its_disk(image: Path, prepared: Path, work: Path) -> None:
    deb = str(prepared.parent / "tool.deb")
    code, said = wait(start_killable(image, work, deb, "operation-done#6:kill"))
    assert code == -signal.SIGKILL, said
    assert not cleanup(Runner(), (work / "state",), {}, but=work).leaks
    with disks.loop(image) as device:
        cleaned = cleanup(Runner(), (work / "state",), places(device), but=work)
        assert any("policy-rc.d" in line for line in cleaned.released), cleaned
        assert cleanup(Runner(), (work / "state",), places(device), but=work) == ((), ())


def test_a_command_that_outlived_the_agent_is_ended(image: Path, work: Path) -> None:
    """Its mount namespace, and with it the patient's mount, would live as long as it does."""
    code = (
        "import sys\n"
        "from lab.executing import *\n"
        "guard.enter_private_namespace()\n"
        "bench = Bench(Path(sys.argv[2]))\n"
        "bench.device = images.attach(bench.runner, bench.resources, sys.argv[1], writable=True).device\n"
        "orphan = Run(argv=('sh', '-c', 'sleep 600 & wait'), inside=True)\n"
        "bench.run(step('a', bench.root(), Bind(source='/dev', path='/dev'), orphan))\n"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", code, str(image), str(work)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    deadline = time.monotonic() + 30
    orphan: list[psutil.Process] = []
    while not orphan and time.monotonic() < deadline:
        time.sleep(0.1)
        below = psutil.Process(agent.pid).children(recursive=True)
        orphan = [p for p in below if is_sleep(p)]
    assert orphan, "the command inside never began"
    agent.kill()
    agent.wait()
    time.sleep(0.5)
    assert orphan[0].is_running()
    with disks.loop(work / "patient.img", read_only=True):
        pass
    cleaned = cleanup(Runner(), (work / "state",), {}, but=work)
    assert any("sleep" in line for line in cleaned.released), cleaned
    assert not cleaned.leaks
    assert not orphan[0].is_running() or orphan[0].status() == psutil.STATUS_ZOMBIE


def test_cleanup_takes_nothing_that_is_not_the_runs(image: Path, work: Path) -> None:
    """The loop device and the process of the recorded numbers belong to others by now."""
    bench = Bench(work, run="old")
    other = subprocess.Popen(("sleep", "600"))
    with disks.loop(image) as device:
        for key, kind, what, pid, source in (
            ("loop-1", "loop", device, 0, "/nowhere/else.img"),
            ("export-2", "export", str(work / "export"), other.pid, ""),
        ):
            bench.journal.append(
                Acquired(
                    time="",
                    key=key,
                    kind=kind,  # type: ignore[arg-type]
                    state="held",
                    what=what,
                    release=("losetup", "--detach", device) if kind == "loop" else (),
                    pid=pid,
                    source=source,
                )
            )
        cleaned = cleanup(Runner(), (work / "state",), {}, but=work)
        assert device in images.loops_of(str(image))
    assert other.poll() is None
    other.kill()
    other.wait()
    assert cleaned == ((), ())


def test_everything_once_without_a_kill(image: Path, prepared: Path, work: Path) -> None:
    with disks.loop(image) as device:
        bench = Bench(work, device=device)
        outcome = bench.run(*everything(bench, str(prepared.parent / "tool.deb")))
        assert set(outcome.values()) == {"done"}, outcome
        undone = undo(bench.runner, bench.resources, bench.directory, bench.places())
    assert not undone.refused, undone
