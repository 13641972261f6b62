# SPDX-License-Identifier: GPL-3.0-or-later
"""The RPM family mended: a root like EL 8 with dnf, and one like EL 7 with yum alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks, faults, rpmfaults, rpmroots, rpms, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk

pytestmark = pytest.mark.root

GoldenDisks = Callable[[rpmroots.Flavour], Disk]
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


def test_twenty_damaged_packages_are_put_in_order_and_configuration_is_kept(
    agent: Agent, rpm_disk: Disk
) -> None:
    with disks.mounted(rpm_disk) as root:
        profile = root / "etc/profile"
        profile.write_text(profile.read_text() + "# changed by the owner\n")
        before = trees.snapshot(root)
        broken = rpmfaults.damage_packages(root, 20)
    diagnosis = agent.diagnose(rpm_disk.path)
    (fault,) = agents.faults(diagnosis)
    assert fault["code"] == "package-files-damaged"
    assert set(fault["paths"]) == set(broken)
    assert len(fault["packages"]) == 20
    kept = next(f for f in diagnosis["findings"] if f["code"] == "configuration-changed")
    assert "/etc/profile" in kept["paths"]
    agent.mend(rpm_disk.path, *packages())
    with disks.mounted(rpm_disk) as root:
        assert not changes(before, root)
        assert not rpmroots.verify(root)


def test_modes_and_owners_alone_need_no_package(agent: Agent, rpm_disk: Disk) -> None:
    with disks.mounted(rpm_disk) as root:
        before = trees.snapshot(root)
        changed = rpmfaults.change_attributes(root)
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert set(fault["paths"]) == set(changed)
    plan = agent.plan(rpm_disk.path, *OFFLINE)
    assert [s["id"] for s in plan["steps"]] == ["workspace", "restore-attributes"]
    agent.mend(rpm_disk.path, *OFFLINE)
    with disks.mounted(rpm_disk) as root:
        assert not changes(before, root)


def test_an_upgrade_that_was_cut_off_is_ended(agent: Agent, rpm_disk: Disk, work: Path) -> None:
    with disks.mounted(rpm_disk) as root:
        manager = "dnf" if (root / "usr/bin/dnf").exists() else "yum"
        rpmfaults.cut_off_upgrade(root, work, manager)
        assert len(disks.run("chroot", root, "rpm", "-q", "lab-tool").split()) == 2
        homes = trees.snapshot(root, "/home")
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert fault["code"] == "package-state-broken"
    assert "has no end" in str(fault["evidence"])
    assert ["rpm", "-e", "--nodeps", "lab-tool-1.0-1.lab.x86_64"] in agents.commands(
        agent.plan(rpm_disk.path, *OFFLINE)
    )
    agent.mend(rpm_disk.path, *OFFLINE)
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        assert (root / "usr/share/lab-tool/version").read_text() == "2.0\n"
        assert not (root / "usr/share/lab-tool/only-1.0").exists()
        assert not rpmroots.verify(root)
        assert trees.snapshot(root, "/home") == homes


# --- the database -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", rpmfaults.DATABASE_FAULTS, ids=lambda lose: lose.__name__)
def test_a_lost_database_is_made_anew_with_every_package(
    lose: Callable[[Path], None], agent: Agent, rpm_disk: Disk
) -> None:
    with disks.mounted(rpm_disk) as root:
        before, known = trees.snapshot(root), rpmroots.installed(root)
        lose(root)
    (fault,) = agents.faults(agent.diagnose(rpm_disk.path))
    assert fault["code"] == "package-state-broken"
    plan = agent.plan(rpm_disk.path, *packages())
    assert [s["id"] for s in plan["steps"]] == ["workspace", "rebuild-database"]
    agent.mend(rpm_disk.path, *packages())
    with disks.mounted(rpm_disk) as root:
        found = rpmroots.installed(root)
        assert {p for p in known if not p.startswith("gpg-pubkey")} <= found
        assert not rpmroots.verify(root)
        assert not changes(before, root)


def test_a_damaged_berkeley_db_is_dumped_and_loaded(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    if disks.missing_tools("db5.3_dump", "db5.3_load"):
        pytest.skip("db5.3-util is not installed")
    disk = golden_rpm_disks("el7").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        before, known = trees.snapshot(root), rpmroots.installed(root)
        rpmfaults.as_berkeley_db(root)
    digest = trees.sha256(disk.path)
    (system,) = agent.scan(disk.path)["systems"]
    assert (system["database"]["format"], system["database"]["state"]) == ("bdb", "ok")
    assert len(system["database"]["packages"]) == system["database"]["listed"]
    assert not agents.faults(agent.diagnose(disk.path))
    assert trees.sha256(disk.path) == digest, "the older rpm's database was written to"

    with disks.mounted(disk) as root:
        rpmfaults.zero_berkeley_pages(root)
    (fault,) = agents.faults(agent.diagnose(disk.path))
    assert fault["code"] == "package-state-broken"
    commands = str(agents.commands(agent.plan(disk.path, *packages())))
    assert "db5.3_dump -r" in commands and "--rebuilddb" in commands
    agent.mend(disk.path, *packages())
    with disks.mounted(disk) as root:
        assert {p for p in known if not p.startswith("gpg-pubkey")} <= rpmroots.installed(root)
        assert not rpmroots.verify(root)
        assert not changes(before, root)


def test_a_dead_root_without_a_database_is_mended_all_the_same(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        before = trees.snapshot(root)
        rpmfaults.zero_first_page(root)
        (root / LIBC).unlink()
    agent.mend(disk.path, *packages())
    with disks.mounted(disk) as root:
        assert not rpmroots.verify(root)
        assert not changes(before, root)


# --- what is not done ------------------------------------------------------------------------------------


def test_a_package_that_nobody_signed_is_refused(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        good = rpmfaults.make_tool(work, root / "var/tmp/good", "1.0")
        disks.run("chroot", root, "rpm", "-i", f"/var/tmp/good/{good.name}")
        (root / "usr/share/lab-tool/version").unlink()
    before = trees.sha256(disk.path)
    unsigned = rpmfaults.make_tool(work, work / "unsigned", "1.0", signed=False)
    changed = rpmfaults.make_tool(work, work / "changed", "1.0")
    data = bytearray(changed.read_bytes())
    data[-200] ^= 1
    changed.write_bytes(data)
    for folder in (unsigned.parent, changed.parent):
        plan = agent.plan(disk.path, "--packages", folder, *OFFLINE)
        assert not plan["steps"]
        assert "is not signed by a key that the system trusts" in str(plan["refusals"])
        done = agent.run("repair", disk.path, "--yes", "--json", "--packages", folder, *OFFLINE).expect(1)
        assert not done.document["steps"]
        assert trees.sha256(disk.path) == before
    signed = rpmfaults.make_tool(work, work / "signed", "1.0")
    agent.mend(disk.path, "--packages", signed.parent, *OFFLINE)


def test_without_packages_and_network_nothing_is_written(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el7").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        (root / LIBC).unlink()
    before = trees.sha256(disk.path)
    plan = agent.plan(disk.path, *OFFLINE)
    assert "glibc" in str(plan["refusals"]) and ".rpm files" in str(plan["refusals"])
    done = agent.run("repair", disk.path, "--yes", "--json", *OFFLINE).expect(1, 3)
    assert not [s for s in done.document["steps"] if s["status"] == "done"], str(done)
    assert trees.sha256(disk.path) == before


def test_a_repair_on_a_full_root_is_not_begun_half_way(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.damage_packages(root, 5)
        faults.fill(root)
        before = trees.snapshot(root, skip=trees.TRACES)
    assert "disk-full" in agents.codes(agent.diagnose(disk.path))
    done = agent.run("repair", disk.path, "--yes", "--json", *packages()).expect(1, 3)
    assert not [s for s in done.document["steps"] if s["status"] == "failed"], str(done)
    with disks.mounted(disk, read_only=True) as root:
        assert not trees.changes(before, trees.snapshot(root, skip=trees.TRACES))


# --- the network, upgrades, labels ----------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as a mirror does, on this machine alone; gives its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def point_at(root: Path, address: str) -> None:
    """Let the root's own repository be at this address, as a person would write it."""
    place = root / "etc/yum.repos.d/lab.repo"
    place.write_text(place.read_text().replace("file:///srv/repo", address))


def test_packages_come_from_the_systems_own_repository(agent: Agent, rpm_disk: Disk) -> None:
    with served(rpmroots.repository()) as address:
        with disks.mounted(rpm_disk) as root:
            point_at(root, address)
            before = trees.snapshot(root)
            (root / LIBC).unlink()
        plan = agent.plan(rpm_disk.path, "--no-surface-scan")
        assert "fetch-packages" in [s["id"] for s in plan["steps"]]
        agent.mend(rpm_disk.path, "--no-surface-scan")
    with disks.mounted(rpm_disk) as root:
        assert not rpmroots.verify(root)
        assert not changes(before, root)


def test_an_upgrade_is_done_when_asked_for(agent: Agent, rpm_disk: Disk, work: Path) -> None:
    mirror = work / "mirror"
    rpmfaults.make_tool(work, mirror, "2.0")
    rpms.index(mirror)
    with served(mirror) as address:
        with disks.mounted(rpm_disk) as root:
            old = rpmfaults.make_tool(work, root / "var/tmp/old", "1.0")
            disks.run("chroot", root, "rpm", "-i", f"/var/tmp/old/{old.name}")
            point_at(root, address)
            homes = trees.snapshot(root, "/home")
        agent.repair(rpm_disk.path, "--upgrade", "--no-surface-scan")
    with disks.mounted(rpm_disk) as root:
        assert disks.run("chroot", root, "rpm", "-q", "lab-tool").strip() == "lab-tool-2.0-1.lab.x86_64"
        assert trees.snapshot(root, "/home") == homes
        assert not rpmroots.verify(root)


def test_files_are_labelled_by_the_systems_own_policy(
    agent: Agent, golden_rpm_disks: GoldenDisks, work: Path
) -> None:
    disk = golden_rpm_disks("el8").copy(work / "disk.img")
    with disks.mounted(disk) as root:
        rpmfaults.enforce_labels(root)
        (root / LIBC).unlink()
    agent.mend(disk.path, *packages())
    with disks.mounted(disk, read_only=True) as root:
        if disks.missing_tools("setfiles"):
            assert (root / ".autorelabel").exists()
            return
        label = os.getxattr(root / LIBC, "security.selinux").rstrip(b"\0")
        assert label == b"system_u:object_r:lib_t:s0"
        assert not (root / ".autorelabel").exists()
