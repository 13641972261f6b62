# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices and filesystems: what the facts say, and what is concluded from it."""

from __future__ import annotations

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import BlockDevice, Container, Content, Facts, ProbeError
from rescue_agent.model.finding import Finding


def codes(facts: Facts) -> list[str]:
    return [f.code for f in diagnose(facts).findings]


def find(facts: Facts, code: str) -> Finding:
    found = [f for f in diagnose(facts).findings if f.code == code]
    assert len(found) == 1, [f.id for f in diagnose(facts).findings]
    return found[0]


@pytest.mark.parametrize("root_type", ["ext2", "ext3", "ext4", "xfs", "btrfs"])
def test_a_healthy_machine_has_no_findings(root_type: str) -> None:
    diagnosis = diagnose(lab.healthy(root_type))
    assert diagnosis.findings == ()
    assert diagnosis.systems == ("Debian GNU/Linux 12 (bookworm) on /dev/vda2",)
    assert diagnosis.disks == (lab.DISK,)


@pytest.mark.parametrize(
    ("root_type", "code", "repair"),
    [
        ("ext4", "ext-fs-corrupt", "automatic"),
        ("ext2", "ext-fs-corrupt", "automatic"),
        ("xfs", "xfs-fs-corrupt", "automatic"),
        ("btrfs", "btrfs-fs-corrupt", "advice"),
        ("vfat", "vfat-fs-corrupt", "automatic"),
        ("f2fs", "fs-corrupt", "advice"),
    ],
)
def test_damage_has_the_code_of_its_filesystem(root_type: str, code: str, repair: str) -> None:
    found = find(lab.with_check(lab.healthy(root_type), lab.ROOT, "damaged"), code)
    assert (found.severity, found.repair, found.device) == ("fatal", repair, lab.ROOT)
    assert bool(found.advice) == (repair == "advice")


def test_evidence_is_what_the_checker_printed() -> None:
    found = find(lab.with_check(lab.healthy(), lab.ROOT, "damaged"), "ext-fs-corrupt")
    assert found.evidence[0].source == f"e2fsck -f -n {lab.ROOT}"
    assert "invalid extent node" in found.evidence[0].excerpt
    assert found.evidence[-1].excerpt == "exit code 4"


def test_damage_that_nothing_waits_for_at_boot_is_an_error_only() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "damaged")
    assert find(facts, "ext-fs-corrupt").severity == "fatal", "fstab checks /home with passno 2"
    entries = tuple(
        msgspec.structs.replace(e, options=("nofail",)) if e.mount_point == "/home" else e
        for e in facts.systems[0].fstab
    )
    assert find(lab.with_system(facts, fstab=entries), "ext-fs-corrupt").severity == "error"


@pytest.mark.parametrize("state", ["dirty", "needs-recovery"])
def test_an_unclean_filesystem_is_a_fault(state: str) -> None:
    facts = lab.with_filesystem(lab.healthy(), lab.HOME, state=state)
    found = find(facts, "fs-needs-recovery")
    assert (found.severity, found.repair) == ("error", "automatic")


def test_a_damaged_journal_is_damage_and_not_a_replay_that_is_due() -> None:
    facts = lab.with_check(
        lab.healthy(), lab.HOME, "needs-recovery", messages=("Journal superblock is corrupt.",)
    )
    assert codes(facts) == ["ext-fs-corrupt"]


def test_errors_that_the_kernel_recorded_are_damage_even_when_the_check_is_clean() -> None:
    found = find(lab.with_filesystem(lab.healthy(), lab.ROOT, state="error"), "ext-fs-corrupt")
    assert "kernel recorded" in found.title
    assert found.repair == "automatic"


def test_a_lost_superblock_with_a_backup_is_damaged_not_hopeless() -> None:
    found = find(lab.with_bad_superblock(lab.healthy(), lab.ROOT), "ext-fs-corrupt")
    assert found.repair == "automatic"
    assert "block 32768" in found.evidence[0].excerpt


def test_what_the_checker_cannot_work_on_is_left_alone() -> None:
    found = find(lab.with_check(lab.healthy(), lab.ROOT, "unrepairable"), "ext-fs-corrupt")
    assert found.repair == "advice"
    assert "copy of the device" in found.advice


def test_read_errors_mean_a_failing_disk_and_not_a_damaged_filesystem() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "unreadable")
    found = find(facts, "disk-failing")
    assert (found.device, found.severity, found.repair) == (lab.DISK, "fatal", "advice")
    assert "ddrescue" in found.advice
    assert "Error reading block 1057" in found.evidence[0].excerpt
    assert "ext-fs-corrupt" not in codes(facts)


def test_one_finding_for_a_failing_disk_however_it_shows() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "unreadable")
    facts = lab.with_health(
        facts,
        lab.DISK,
        smart="failing",
        smart_detail="pending sectors: 8",
        io_errors=1,
        io_error_lines=("critical medium error, dev vda, sector 123",),
    )
    words = [e.excerpt for e in find(facts, "disk-failing").evidence]
    assert "pending sectors: 8" in words
    assert "critical medium error, dev vda, sector 123" in words
    assert any("Input/output error" in w for w in words)


def test_a_check_without_an_answer_is_never_healthy() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "unknown")
    found = find(facts, "fs-not-checked")
    assert (found.severity, found.repair) == ("warning", "advice")
    assert "150 s" in found.title
    assert "fs-not-checked" in codes(lab.with_filesystem(lab.healthy(), lab.HOME, check=None))


def test_a_probe_that_failed_is_told() -> None:
    facts = msgspec.structs.replace(
        lab.healthy(), errors=(ProbeError(probe="health", subject=lab.DISK, message="smartctl is missing"),)
    )
    found = find(facts, "probe-failed")
    assert found.severity == "warning"
    assert found.evidence[0].excerpt == "smartctl is missing"


def test_a_probe_that_failed_on_another_device_is_not() -> None:
    errors = (ProbeError(probe="block", subject="/dev/loop7p1", message="it has gone"),)
    assert codes(msgspec.structs.replace(lab.healthy(), errors=errors)) == []


def test_a_filesystem_larger_than_its_device() -> None:
    facts = lab.with_filesystem(lab.healthy(), lab.ROOT, size_bytes=13 * lab.GIB)
    found = find(facts, "fs-size-mismatch")
    assert (found.severity, found.repair) == ("fatal", "advice")
    facts = lab.with_filesystem(lab.healthy("btrfs"), lab.ROOT, size_bytes=13 * lab.GIB)
    assert codes(facts) == [], "btrfs counts all of its devices"


def test_hibernation_is_found_by_the_swap_and_by_the_system() -> None:
    assert find(lab.with_hibernation(lab.healthy()), "system-hibernated").device == lab.SWAP
    facts = lab.with_system(lab.healthy(), hibernated=True)
    assert find(facts, "system-hibernated").device == lab.ROOT


def test_a_device_in_use_names_who_and_where() -> None:
    words = [e.excerpt for e in find(lab.mounted_elsewhere(lab.healthy()), "disk-in-use").evidence]
    assert any("/mnt" in w for w in words)
    assert any("4242" in w for w in words)


def test_a_medium_that_refuses_writes_is_told() -> None:
    facts = lab.with_device(lab.healthy(), lab.DISK, read_only=True)
    assert find(facts, "disk-read-only").severity == "warning"
    assert codes(lab.with_health(lab.healthy(), lab.DISK, read_only=True)) == ["disk-read-only"]


def test_a_locked_container_hides_the_system() -> None:
    facts = lab.with_locked_luks(lab.healthy())
    findings = {f.code: f for f in diagnose(facts).findings}
    assert findings["luks-not-unlocked"].severity == "error"
    assert findings["no-system-found"].consequence_of == findings["luks-not-unlocked"].id


def test_a_locked_container_beside_a_system_is_only_a_warning() -> None:
    facts = msgspec.structs.replace(
        lab.healthy(), containers=(Container(device=lab.HOME, kind="luks", state="locked"),)
    )
    assert find(facts, "luks-not-unlocked").severity == "warning"


def test_clones_are_told_but_layers_of_one_device_are_not() -> None:
    facts = lab.healthy()
    clone = BlockDevice(
        path="/dev/vdc",
        id="serial:C",
        kind="disk",
        disk="/dev/vdc",
        size_bytes=12 * lab.GIB,
        content=Content(type="ext4", usage="filesystem", uuid=lab.ROOT_UUID),
    )
    beside = msgspec.structs.replace(facts, devices=(*facts.devices, clone))
    assert codes(beside) == [], "another disk of the rescue system"
    found = find(msgspec.structs.replace(beside, disks=(lab.DISK, "/dev/vdc")), "duplicate-uuid")
    assert lab.ROOT in found.title
    assert "/dev/vdc" in found.title
    above = msgspec.structs.replace(clone, kind="dm", disk=lab.DISK, parents=(lab.ROOT,))
    assert codes(msgspec.structs.replace(facts, devices=(*facts.devices, above))) == []


def test_only_the_disks_that_were_asked_for_are_judged() -> None:
    facts = lab.with_check(lab.mounted_elsewhere(lab.healthy()), lab.HOME, "damaged")
    assert codes(msgspec.structs.replace(facts, disks=())) == []


def test_the_live_medium_is_never_judged() -> None:
    facts = lab.healthy()
    live = lab.filesystem(lab.LIVE, "ext4", "11111111-2222-3333-4444-555555555555", lab.GIB)
    facts = msgspec.structs.replace(
        facts, filesystems=(*facts.filesystems, live), disks=(lab.DISK, lab.LIVE_DISK)
    )
    facts = lab.mounted_elsewhere(lab.with_check(facts, lab.LIVE, "damaged"), lab.LIVE)
    assert codes(facts) == []
