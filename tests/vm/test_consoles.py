# SPDX-License-Identifier: GPL-3.0-or-later
"""Real consoles of machines that do not come up: the cause is read from what the kernel itself said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import disks, faults, machine
from lab.agent import Agent
from lab.machine import Bootable

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

INIT = "/usr/lib/systemd/systemd"
ROOT = "root=/dev/vda1"
GAVE_UP = "(initramfs)"


@pytest.fixture(scope="module")
def bootable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bootable]:
    folder = tmp_path_factory.mktemp("consoles")
    made = machine.build_bootable(folder / "o", folder)
    yield made
    made.disk.path.unlink()


def exits_with_127(root: Path) -> None:
    faults.real(root, INIT).write_text("#!/bin/sh\nexit 127\n")


def is_killed_by_a_signal(root: Path) -> None:
    """The C library is there, but its code is gone: the first call runs into zeros."""
    with open(faults.real(root, f"{faults.LIB}/libc.so.6"), "r+b") as file:
        size = file.seek(0, 2)
        file.seek(0x30000)
        file.write(bytes(min(0x140000, size - 0x40000)))


def is_missing(root: Path) -> None:
    for path in (INIT, "/usr/bin/bash", "/usr/bin/dash"):
        faults.real(root, path).unlink()


def lacks_a_library(root: Path) -> None:
    (found,) = faults.real(root, "/usr/lib/x86_64-linux-gnu/systemd").glob("libsystemd-core-*.so")
    found.unlink()


def nothing(_: Path) -> None:
    """The disk is sound."""


def trash_superblock(disk: disks.Disk) -> None:
    faults.zero_superblock(disk)


CASES: dict[str, tuple[Callable[[Path], None], str, bool, str, tuple[str, ...]]] = {
    # what is done to the root, root=, with an initramfs?, what ends the wait, the codes that are right
    "init exits with 127": (exits_with_127, ROOT, True, "", ("init-missing-library",)),
    "init is killed by a signal": (is_killed_by_a_signal, ROOT, True, "", ("init-failed",)),
    "init is missing": (is_missing, ROOT, True, GAVE_UP, ("init-missing",)),
    "a library of init is missing": (lacks_a_library, ROOT, True, "", ("init-missing-library",)),
    "no root argument": (nothing, "quiet", True, GAVE_UP, ("root-device-not-found",)),
    "no initramfs": (nothing, f"root=UUID={disks.ROOT_UUID}", False, "", ("initramfs-missing-or-corrupt",)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_console_names_the_cause(name: str, bootable: Bootable, work: Path) -> None:
    break_root, root, initramfs, until, right = CASES[name]
    broken = bootable.disk
    if break_root is not nothing:
        broken = bootable.disk.copy(work / "broken.img")
        with disks.mounted(broken) as place:
            break_root(place)
    image = disks.overlay(broken, work / "boot.qcow2")
    seen = machine.boot(bootable, image, image_format="qcow2", root=root, initramfs=initramfs, until=until)
    found = diagnosed(work, seen.raw)
    assert found["code"] in right, (found, seen.console[-3000:])
    assert found["severity"] == "fatal"
    assert found["evidence"][0]["excerpt"] in seen.console


def test_console_and_disk_tell_of_one_fault(bootable: Bootable, work: Path) -> None:
    """A trashed superblock: what the console shows and what the disk shows are one finding."""
    broken = bootable.disk.copy(work / "broken.img")
    faults.zero_superblock(broken)
    image = disks.overlay(broken, work / "boot.qcow2")
    seen = machine.boot(bootable, image, image_format="qcow2", root=ROOT, until=GAVE_UP)
    assert diagnosed(work, seen.raw)["code"] in ("ext-fs-corrupt",), seen.console[-3000:]
    both = diagnosed(work, seen.raw, broken.path)
    assert both["code"] == "ext-fs-corrupt"
    sources = " ".join(e["source"] for e in both["evidence"])
    assert "console.txt" in sources and "superblock of" in sources


def test_a_sound_machine_shows_nothing(bootable: Bootable, work: Path) -> None:
    image = disks.overlay(bootable.disk, work / "boot.qcow2")
    seen = machine.boot(bootable, image, image_format="qcow2")
    assert machine.MARKER in seen.console
    (work / "console.txt").write_bytes(seen.raw)
    done = Agent(work).run("diagnose", "--log", work / "console.txt", "--json").expect(0)
    assert json.loads(done.out)["findings"] == []


def diagnosed(work: Path, console: bytes, *disk: Path) -> dict[str, object]:
    """Return the first finding for a console as a terminal saved it."""
    (work / "console.txt").write_bytes(console)
    done = Agent(work).run("diagnose", *disk, "--log", work / "console.txt", "--json").expect(1)
    first: dict[str, object] = json.loads(done.out)["findings"][0]
    return first
