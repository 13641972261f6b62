# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient that means harm: nothing outside it is touched, nothing hangs, nothing is printed raw."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

OWNED = Path("/tmp/lab-owned")
HANG_S = 120.0
RAW = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
WATCHED = ("/etc", "/usr/local", "/root/.ssh", "/boot")


@pytest.fixture
def host() -> dict[str, str]:
    """What the files of the rescue system are that a hostile patient would like to change."""
    return rescue_files()


def rescue_files() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in WATCHED:
        if os.path.isdir(folder):
            found |= {folder + path: how for path, how in trees.snapshot(Path(folder)).items()}
    return found


def assert_host_untouched(before: dict[str, str]) -> None:
    assert not trees.changes(before, rescue_files())
    assert not OWNED.exists(), "a word from the disk reached a shell"


def assert_nothing_raw(done: agents.Done) -> None:
    for stream in (done.stdout, done.stderr):
        found = RAW.search(stream.replace(b"\r", b""))
        assert not found, f"raw control character {found!r} in the output\n{done}"


@pytest.mark.parametrize("inject", faults.HOSTILE, ids=lambda inject: inject.__name__)
def test_looking_at_a_hostile_patient(
    inject: Callable[[Path], list[str]], agent: Agent, disk: Disk, host: dict[str, str]
) -> None:
    with disks.mounted(disk) as root:
        inject(root)
    before = trees.sha256(disk.path)
    for arguments in (("scan", "--json"), ("diagnose",), ("plan", "--shell")):
        done = agent.run(arguments[0], disk.path, *arguments[1:], timeout_s=HANG_S).expect(0, 1, 3)
        assert "Traceback" not in done.err, str(done)
        assert_nothing_raw(done)
    assert trees.sha256(disk.path) == before
    assert_host_untouched(host)


@pytest.mark.parametrize("inject", faults.HOSTILE, ids=lambda inject: inject.__name__)
def test_repairing_a_hostile_patient(
    inject: Callable[[Path], list[str]], agent: Agent, disk: Disk, debs: Path, host: dict[str, str]
) -> None:
    with disks.mounted(disk) as root:
        inject(root)
        faults.real(root, f"{faults.LIB}/libc.so.6").unlink()
        (root / "usr/sbin/cron").unlink()
    arguments = (disk.path, "--yes", "--json", "--packages", debs, *OFFLINE)
    done = agent.run("repair", *arguments, timeout_s=2 * HANG_S).expect(0, 1, 3)
    assert "Traceback" not in done.err, str(done)
    assert_nothing_raw(done)
    assert_host_untouched(host)
    agents.assert_nothing_left(disk.path)


def test_labels_with_escape_sequences_are_made_visible(agent: Agent, disk: Disk) -> None:
    with disks.loop(disk.path, disk.slot().start_bytes, disk.slot().size_bytes) as device:
        disks.run("e2label", device, "\x1b[31m$(id);'")
    done = agent.run("scan", disk.path).expect(0)
    assert_nothing_raw(done)
    assert "\\x1b" in done.out


def test_a_file_name_with_a_newline_in_a_package_list(agent: Agent, disk: Disk, host: dict[str, str]) -> None:
    with disks.mounted(disk) as root:
        (root / "var/lib/dpkg/info/cron.md5sums").write_text(
            "0" * 32 + "  usr/share/\x1b[31mred\n" + "0" * 32 + "  ../../../../etc/passwd\n"
            "f" * 32 + "  etc/../../../../../../tmp/lab-owned\nnonsense\n" + "\x00" * 50 + "\n"
        )
    done = agent.run("diagnose", disk.path).expect(0, 1)
    assert_nothing_raw(done)
    agent.run("repair", disk.path, "--yes", *OFFLINE).expect(0, 1, 3)
    assert_host_untouched(host)


def test_a_filesystem_that_is_only_noise(agent: Agent, work: Path) -> None:
    import random

    image = work / "noise.img"
    image.write_bytes(random.Random(11).randbytes(8 << 20))
    before = trees.sha256(image)
    done = agent.run("diagnose", image, timeout_s=HANG_S).expect(0, 1)
    assert "Traceback" not in done.err
    agent.run("repair", image, "--yes", timeout_s=HANG_S).expect(0, 1, 3)
    assert trees.sha256(image) == before


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_with_noise_in_its_metadata(seed: int, agent: Agent, disk: Disk, host: dict[str, str]) -> None:
    """Whatever the damage: a verdict, no traceback, no hang, nothing left."""
    import random

    chance = random.Random(seed)
    with open(disk.path, "r+b") as image:
        for _ in range(40):
            image.seek(disk.slot().start_bytes + chance.randrange(0, 8 << 20))
            image.write(chance.randbytes(chance.choice((1, 16, 512, 4096))))
    done = agent.run("diagnose", disk.path, timeout_s=HANG_S).expect(1)
    assert_nothing_raw(done)
    done = agent.run("repair", disk.path, "--yes", "--json", *OFFLINE, timeout_s=2 * HANG_S).expect(0, 1)
    assert "Traceback" not in done.err, str(done)
    assert disks.checker_exit_code(disk) == 0 or done.exit_code == 1
    assert_host_untouched(host)
