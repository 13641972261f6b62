# SPDX-License-Identifier: GPL-3.0-or-later
"""The pacman family mended: real pacman 6.0, outside and inside, on a root like Arch Linux."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from lab import agent as agents
from lab import archroots, disks, faults, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk
from lab.mirror import served

pytestmark = pytest.mark.root

LIBC = f"{faults.LIB}/libc.so.6"


@pytest.fixture
def arch(golden_arch_disk: Disk, work: Path) -> Disk:
    return golden_arch_disk.copy(work / "disk.img")


def test_libc_and_damaged_packages_are_put_in_order(agent: Agent, arch: Disk) -> None:
    with disks.mounted(arch) as root:
        assert not archroots.verify(root)
        config = root / "etc/bash.bashrc"
        config.write_text(config.read_text() + "# changed by the owner\n")
        (root / "etc/security/limits.conf").chmod(0o600)
        (root / "etc/skel/.bash_logout").unlink()
        before = trees.snapshot(root)
        (root / LIBC).unlink()
        (root / "usr/bin/less").write_bytes(b"\0" * 4096)
        (root / "usr/bin/bashbug").write_bytes(b"\0" * 4096)
        for name in ("usr/bin/free", "usr/bin/find", "usr/bin/gawk", "usr/lib/systemd/systemd-journald"):
            (root / name).unlink()
        (root / "usr/bin/ps").chmod(0o600)
        os.chown(root / "usr/bin/su", 1000, 1000)
        assert disks.status("chroot", root, "pacman", "--version") == 127
    (system,) = agent.scan(arch.path)["systems"]
    assert (system["family"], system["package_manager"]) == ("arch", "pacman")
    assert system["database"]["listed"] == len(system["database"]["packages"])
    assert "init-missing-library" in agents.root_causes(agent.diagnose(arch.path))
    commands = agents.commands(agent.plan(arch.path, *archroots.packages()))
    (proof, *_) = [argv for argv in commands if "--print" in argv]
    assert proof[0] == "pacman" and any("/glibc-" in word for word in proof)
    (reinstall,) = [argv for argv in commands if argv[:3] == ["pacman", "-U", "--noconfirm"]]
    assert any(word.startswith("/run/rescue-agent/packages/less-") for word in reinstall)
    agent.mend(arch.path, *archroots.packages())
    with disks.mounted(arch) as root:
        assert not archroots.changes(before, root)
        assert not [line for line in archroots.verify(root) if not re.search("limits.conf|bash_logout", line)]


def test_what_a_pacman_that_died_has_left_is_put_right(agent: Agent, arch: Disk) -> None:
    with disks.mounted(arch) as root:
        before, known = trees.snapshot(root), archroots.installed(root)
        (root / "var/lib/pacman/db.lck").touch()
        (archroots.entry(root, "less") / "desc").unlink()
        (archroots.entry(root, "grep") / "files").write_bytes(b"\0" * 300)
        (archroots.entry(root, "tar") / "mtree").write_bytes(b"\x1f\x8b\x08")
        old = archroots.entry(root, "sed")
        shutil.copytree(old, old.with_name("sed-1.0-1"))
        text = (old / "desc").read_text().replace(old.name[4:], "1.0-1")
        (old.with_name("sed-1.0-1") / "desc").write_text(text.replace("%INSTALLDATE%\n1", "%INSTALLDATE%\n"))
    (fault,) = agents.faults(agent.diagnose(arch.path))
    assert fault["code"] == "package-state-broken"
    assert "db.lck" in str(fault["evidence"]) and "sed 1.0-1: superseded" in str(fault["evidence"])
    agent.mend(arch.path, *archroots.packages())
    with disks.mounted(arch) as root:
        assert archroots.installed(root) == known
        assert not archroots.changes(before, root)
        assert not archroots.verify(root)


def test_a_lock_alone_is_taken_away(agent: Agent, arch: Disk) -> None:
    with disks.mounted(arch) as root:
        before = trees.snapshot(root)
        (root / "var/lib/pacman/db.lck").touch()
    agent.mend(arch.path, *OFFLINE)
    with disks.mounted(arch) as root:
        assert not [
            path
            for path in trees.changes(before, trees.snapshot(root))
            if not path.startswith("/var/log/rescue-agent")
        ]


def test_packages_come_from_the_repositories_and_are_upgraded(agent: Agent, arch: Disk, work: Path) -> None:
    mirror = work / "mirror"
    disks.run("cp", "-a", archroots.repository(), mirror)
    tree = work / "tool"
    (tree / "usr/share/lab-tool").mkdir(parents=True)
    (tree / "usr/share/lab-tool/version").write_text("1\n")
    old = archroots.make_package(work, work, "lab-tool", "1.0-1", tree)
    (tree / "usr/share/lab-tool").mkdir(parents=True)
    (tree / "usr/share/lab-tool/version").write_text("2\n")
    new = archroots.make_package(work, mirror, "lab-tool", "2.0-1", tree)
    with archroots.key_home() as home:
        archroots.sign(home, new)
    archroots.index(mirror)
    with served(mirror) as address:
        with disks.mounted(arch) as root:
            (root / "etc/pacman.d/mirrorlist").write_text(f"Server = {address}\n")
            archroots.install(root, old)
            homes = trees.snapshot(root, "/home")
            (root / "usr/bin/less").unlink()
        plan = agent.plan(arch.path, "--no-surface-scan")
        assert [s["id"] for s in plan["steps"]] == ["workspace", "fetch-packages", "reinstall-packages"]
        assert any("less=590-2.1" in argv and "-Syw" in argv for argv in agents.commands(plan))
        agent.mend(arch.path, "--upgrade", "--no-surface-scan")
    with disks.mounted(arch) as root:
        assert archroots.installed(root)["lab-tool"] == "2.0-1"
        assert trees.snapshot(root, "/home") == homes
        assert not archroots.verify(root)


def test_a_package_with_a_wrong_signature_is_not_laid_out(agent: Agent, arch: Disk, work: Path) -> None:
    folder = work / "packages"
    folder.mkdir()
    (glibc,) = archroots.repository().glob("glibc-*.zst")
    (other,) = archroots.repository().glob("bash-*.sig")
    shutil.copy(glibc, folder)
    shutil.copy(other, folder / f"{glibc.name}.sig")
    with disks.mounted(arch) as root:
        (root / LIBC).unlink()
        before = trees.snapshot(root)
    done = agent.run("repair", arch.path, "--packages", folder, *OFFLINE, "--yes", "--json").expect(1)
    assert "signature" in done.out + done.err
    with disks.mounted(arch, read_only=True) as root:
        assert not archroots.changes(before, root)
