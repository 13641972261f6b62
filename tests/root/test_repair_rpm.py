# SPDX-License-Identifier: GPL-3.0-or-later
"""The RPM family mended: a root like EL 8 with dnf, and one like EL 7 with yum alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, rpmroots, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

LIBC = f"{faults.LIB}/libc.so.6"
OWN = (
    *trees.TRACES,
    "/var/lib/rpm",
    "/var/lib/dnf",
    "/var/lib/yum",
    "/var/cache/dnf",
    "/var/log/dnf",
    "/var/log/hawkey",
)
"""What a package manager writes for itself, beside what the agent leaves."""


def packages() -> tuple[str | Path, ...]:
    return ("--packages", rpmroots.repository(), *OFFLINE)


def changes(before: dict[str, str], root: Path) -> dict[str, str]:
    found = trees.changes(before, trees.snapshot(root))
    return {path: how for path, how in found.items() if not path.startswith(OWN)}


def test_a_healthy_root_needs_nothing(agent: Agent, rpm_disk: Disk) -> None:
    before = trees.sha256(rpm_disk.path)
    facts = agent.scan(rpm_disk.path)
    (system,) = facts["systems"]
    assert system["family"] == "rhel"
    assert system["package_manager"] == ("dnf" if system["os_version"] == "8" else "yum")
    database = system["database"]
    assert database["listed"] == len(database["packages"]) > 100
    assert database["verification"]["files"] > 3000
    assert not agents.faults(agent.diagnose(rpm_disk.path))
    assert not agent.run("plan", rpm_disk.path, "--json").expect(0).document["steps"]
    assert trees.sha256(rpm_disk.path) == before, "looking wrote to the disk"


def test_libc_gone_is_mended_from_outside_then_from_inside(agent: Agent, rpm_disk: Disk) -> None:
    with disks.mounted(rpm_disk) as root:
        before = trees.snapshot(root)
        (root / LIBC).unlink()
        assert disks.status("chroot", root, "/bin/true") == 127
        assert disks.status("chroot", root, "rpm", "--version") == 127
    digest = trees.sha256(rpm_disk.path)
    assert agents.root_causes(agent.diagnose(rpm_disk.path)) == {"init-missing-library"}
    plan = agent.plan(rpm_disk.path, *packages())
    assert [s["id"] for s in plan["steps"]] == ["workspace", "unpack-packages", "reinstall-packages"]
    assert trees.sha256(rpm_disk.path) == digest, "looking wrote to the disk"
    result = agent.mend(rpm_disk.path, *packages())
    assert '"inside":true' in Path(result["journal"]).read_text().replace(" ", "")
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "/usr/lib/systemd/systemd", "--version").startswith("systemd")
        assert not rpmroots.verify(root)
        assert not changes(before, root)
