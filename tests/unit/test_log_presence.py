# SPDX-License-Identifier: GPL-3.0-or-later
"""What a log names among the patient's devices, and when its fault may be called gone."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import LogScanner, diagnose, make_matcher
from rescue_agent.diagnose.logs.presence import find_named
from rescue_agent.model.facts import Facts
from rescue_agent.model.finding import Finding
from rescue_agent.model.logs import Log, LogKind

DAMAGED = "EXT4-fs ({}): group descriptors corrupted!\n"
PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"


def log(text: str, kind: LogKind = "file", system: str = "") -> Log:
    scanner = LogScanner(make_matcher())
    scanner.feed(text.encode())
    return scanner.finish(source=f"{kind}.log", kind=kind, system=system)


def with_logs(facts: Facts, *logs: Log) -> Facts:
    return msgspec.structs.replace(facts, logs=logs)


def named(facts: Facts, text: str) -> frozenset[str] | None:
    only = msgspec.structs.replace(facts, disks=(), logs=(log(text),))
    return find_named(facts, diagnose(only).findings[0])


def codes(facts: Facts) -> dict[str, str]:
    return {f.code: f.severity for f in diagnose(facts).findings}


def test_a_number_a_uuid_and_nothing_name_a_device() -> None:
    facts = lab.healthy()
    root = facts.filesystem(lab.ROOT)
    assert root is not None
    assert named(facts, DAMAGED.format("nvme0n1p2")) == {lab.ROOT}
    assert named(facts, DAMAGED.format("sdq3")) == {lab.HOME}
    assert named(facts, DAMAGED.format("dm-0")) is None
    assert named(facts, DAMAGED.format("vda77")) is None, "a partition that is not here can be any"
    finding = msgspec.structs.replace(_finding(facts), device=f"/dev/disk/by-uuid/{root.uuid}")
    assert find_named(facts, finding) == {lab.ROOT}


def test_a_system_s_own_log_means_its_own_disk() -> None:
    facts = lab.healthy()
    disk, root = facts.device("/dev/vda"), facts.device(lab.ROOT)
    assert disk is not None and root is not None
    other = (
        msgspec.structs.replace(disk, path="/dev/vdz", disk="/dev/vdz"),
        msgspec.structs.replace(root, path="/dev/vdz2", disk="/dev/vdz", parents=("/dev/vdz",)),
    )
    facts = msgspec.structs.replace(facts, devices=(*facts.devices, *other), disks=("/dev/vda", "/dev/vdz"))
    finding = diagnose(with_logs(facts, log(DAMAGED.format("vda2")))).findings[0]
    assert find_named(facts, finding) == {lab.ROOT, "/dev/vdz2"}
    own = msgspec.structs.replace(finding, system=facts.systems[0].id)
    assert find_named(facts, own) == {lab.ROOT}


def _finding(facts: Facts) -> Finding:
    return diagnose(with_logs(facts, log(DAMAGED.format("vda3")))).findings[0]


def test_another_partition_s_damage_is_not_the_log_s() -> None:
    """Root is damaged now; the log tells of /home, which is sound."""
    facts = with_logs(lab.with_check(lab.healthy(), lab.ROOT, "damaged"), log(DAMAGED.format("vda3")))
    found = {f.device: f for f in diagnose(facts).findings if f.code == "ext-fs-corrupt"}
    assert {device: f.severity in ("fatal", "error") for device, f in found.items()} == {
        lab.ROOT: True,
        "vda3": False,
    }
    assert not any("file.log" in e.source for e in found[lab.ROOT].evidence)


@pytest.mark.parametrize("verdict", ["unknown", None])
def test_what_was_not_checked_is_not_gone(verdict: Literal["unknown"] | None) -> None:
    facts = lab.healthy()
    if verdict is None:
        facts = lab.with_filesystem(facts, lab.ROOT, check=None)
    else:
        facts = lab.with_check(facts, lab.ROOT, verdict)
    given = with_logs(facts, log(DAMAGED.format("vda2")))
    assert codes(given)["ext-fs-corrupt"] in ("error", "fatal")
    other = with_logs(facts, log(DAMAGED.format("vda3")))
    assert codes(other)["ext-fs-corrupt"] == "info", "/home was checked, and is sound"


def test_a_system_that_could_not_be_looked_into_proves_nothing() -> None:
    facts = lab.with_system(lab.healthy(), init=None)
    assert codes(with_logs(facts, log(PANIC)))["init-missing-library"] == "fatal"
    assert codes(with_logs(lab.healthy(), log(PANIC)))["init-missing-library"] == "info"


def test_history_neither_hides_nor_explains_what_the_person_gave() -> None:
    hardware = "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 4: b200000000070f0f\n"
    given = log(PANIC + "rcu: INFO: rcu_sched self-detected stall on CPU\n")
    facts = lab.with_system(lab.healthy(), init=None)
    alone = diagnose(with_logs(facts, given))
    both = diagnose(with_logs(facts, given, log(hardware + PANIC, "pstore")))
    assert [(f.id, f.severity, f.consequence_of) for f in both.faults] == [
        (f.id, f.severity, f.consequence_of) for f in alone.faults
    ]
    told = next(f for f in both.faults if f.code == "init-missing-library")
    assert {e.source.split()[0] for e in told.evidence} == {"file.log", "pstore.log"}
