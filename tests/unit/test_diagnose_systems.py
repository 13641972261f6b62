# SPDX-License-Identifier: GPL-3.0-or-later
"""Systems: init, packages, room, mount table; and which finding explains which."""

from __future__ import annotations

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.diagnose.causes import RULES
from rescue_agent.diagnose.owners import find_owners
from rescue_agent.model.facts import (
    DamagedFile,
    DatabaseBackup,
    ElfFault,
    Facts,
    FstabEntry,
    Space,
    Verification,
)
from rescue_agent.model.families import every_family
from rescue_agent.model.finding import Finding


def findings(facts: Facts) -> dict[str, Finding]:
    found = diagnose(facts).findings
    assert len({f.id for f in found}) == len(found)
    return {f.code: f for f in found}


# --- init ---------------------------------------------------------------------------------------


def test_the_original_fault() -> None:
    found = findings(lab.with_missing_libc(lab.healthy()))
    init = found["init-missing-library"]
    assert (init.severity, init.repair) == ("fatal", "automatic")
    assert init.packages == ("libc6:amd64",)
    assert any(e.excerpt == f"{lab.LIBC_LISTED} is missing" for e in init.evidence)
    assert found["package-tools-broken"].consequence_of == init.id
    assert "package-files-damaged" not in found, "the missing file is told once, where it matters"


@pytest.mark.parametrize(
    ("kind", "path", "needed_by", "code"),
    [
        ("missing", "/sbin/init", "", "init-missing"),
        ("link-loop", "/sbin/init", "", "init-missing"),
        ("missing", "/usr/lib/systemd/systemd", "", "init-missing"),
        ("not-executable", "/usr/lib/systemd/systemd", "", "init-not-executable"),
        ("wrong-architecture", "/usr/lib/systemd/systemd", "", "init-not-executable"),
        ("truncated", "/usr/lib/systemd/systemd", "", "init-not-executable"),
        ("truncated", lab.LIBC, "/usr/lib/systemd/systemd", "init-missing-library"),
        (
            "missing-interpreter",
            "/lib64/ld-linux-x86-64.so.2",
            "/usr/lib/systemd/systemd",
            "init-missing-library",
        ),
        ("missing-library", "libacl.so.1", "/usr/lib/systemd/systemd", "init-missing-library"),
    ],
)
def test_labels_of_init(kind: str, path: str, needed_by: str, code: str) -> None:
    fault = ElfFault(kind=kind, path=path, needed_by=needed_by)  # type: ignore[arg-type]
    found = findings(lab.with_init_fault(lab.healthy(), fault))
    assert list(found) == [code]
    assert found[code].severity == "fatal"
    assert found[code].packages, "a healthy database knows the owner of all of these"


def test_the_owner_is_taken_from_the_damaged_file_behind_a_soname_link() -> None:
    facts = lab.with_init_fault(
        lab.healthy(), ElfFault(kind="missing-library", path="libfoo.so.1", needed_by="/sbin/init")
    )
    assert findings(facts)["init-missing-library"].repair == "advice"
    facts = lab.with_damaged_files(
        facts, DamagedFile(path="/usr/lib/x86_64-linux-gnu/libfoo.so.1.2.3", package="foo", kind="missing")
    )
    assert findings(facts)["init-missing-library"].packages == ("foo",)


def test_known_owners_serve_when_the_database_is_lost() -> None:
    fault = ElfFault(kind="missing-library", path="libsystemd-shared-252.so", needed_by="/sbin/init")
    lost = lab.with_lost_database(lab.healthy())
    assert find_owners(lost.systems[0], fault) == ("libsystemd-shared",)
    assert find_owners(msgspec.structs.replace(lost.systems[0], database=None), fault) == ()
    renamed = msgspec.structs.replace(fault, path="libcrypto.so.3")
    assert find_owners(lab.healthy().systems[0], renamed) == (), "libssl3 is not installed here"
    assert all(owners for family in every_family() for owners in family.owners.values())


def test_init_that_was_not_looked_at_is_a_warning() -> None:
    assert findings(lab.with_system(lab.healthy(), init=None))["init-not-checked"].severity == "warning"


def test_no_system_is_a_warning_and_several_are_only_told() -> None:
    assert findings(lab.without_systems(lab.healthy()))["no-system-found"].severity == "warning"
    assert findings(lab.with_second_system(lab.healthy()))["several-systems"].severity == "info"


# --- packages -----------------------------------------------------------------------------------


def test_damaged_files_are_mapped_to_their_packages() -> None:
    facts = lab.with_damaged_files(
        lab.healthy(),
        DamagedFile(path="/usr/bin/cat", package="coreutils", kind="changed"),
        DamagedFile(path="/usr/bin/ls", package="coreutils", kind="missing"),
        DamagedFile(path="/usr/sbin/sshd", package="openssh-server", kind="empty"),
    )
    found = findings(facts)["package-files-damaged"]
    assert found.packages == ("coreutils", "openssh-server")
    assert found.paths == ("/usr/bin/cat", "/usr/bin/ls", "/usr/sbin/sshd")
    assert found.severity == "error"


def test_damage_in_what_init_loads_is_fatal() -> None:
    file = DamagedFile(path=lab.LIBC_LISTED, package="libc6:amd64", kind="changed")
    assert findings(lab.with_damaged_files(lab.healthy(), file))["package-files-damaged"].severity == "fatal"


@pytest.mark.parametrize("kind", ["changed", "missing", "empty"])
def test_configuration_is_its_owners(kind: str) -> None:
    file = DamagedFile(path="/etc/ssh/sshd_config", package="openssh-server", kind=kind, conffile=True)  # type: ignore[arg-type]
    found = findings(lab.with_damaged_files(lab.healthy(), file))
    assert list(found) == ["configuration-changed"]
    assert found["configuration-changed"].severity == "info"


@pytest.mark.parametrize("state", ["missing", "empty", "damaged"])
def test_a_lost_database_with_a_backup(state: str) -> None:
    facts = lab.with_lost_database(lab.healthy(), state)  # type: ignore[arg-type]
    found = findings(facts)["package-state-broken"]
    assert (found.severity, found.repair) == ("error", "automatic")
    assert any(e.source == "/var/lib/dpkg/status-old" for e in found.evidence)


def test_a_lost_database_without_a_usable_backup_is_advice() -> None:
    stale = DatabaseBackup(path="/var/backups/dpkg.status.0", packages=3, listed=3, age_s=10)
    packed = DatabaseBackup(path="/var/backups/dpkg.status.1.gz", packages=23, listed=23, age_s=10)
    for backups in ((), (stale,), (packed,)):
        facts = lab.with_database(lab.with_lost_database(lab.healthy()), backups=backups)
        found = findings(facts)["package-state-broken"]
        assert found.repair == "advice"
        assert "/var/lib/dpkg/info" in found.advice


def test_a_readable_database_that_lost_packages_is_not_believed() -> None:
    facts = lab.with_database(lab.healthy(), packages=lab.packages()[:10])
    assert "it knows 10 packages" in findings(facts)["package-state-broken"].title


def test_files_are_judged_even_when_the_database_is_lost() -> None:
    facts = lab.with_database(
        lab.with_lost_database(lab.healthy()),
        verification=Verification(
            level="full", damaged=(DamagedFile(path="/usr/bin/ls", package="coreutils", kind="missing"),)
        ),
    )
    assert set(findings(facts)) == {"package-state-broken", "package-files-damaged"}


@pytest.mark.parametrize("state", ["unpacked", "half-configured", "triggers-pending", "half-installed"])
def test_an_interrupted_run(state: str) -> None:
    found = findings(lab.with_package(lab.healthy(), "dash", state=state))["package-state-broken"]
    assert found.repair == "automatic"
    assert "dash" in found.title
    assert found.packages == (("dash:amd64",) if state == "half-installed" else ())


def test_a_package_that_must_be_reinstalled_is_named() -> None:
    facts = lab.with_package(lab.healthy(), "dash", reinstall_required=True)
    assert findings(facts)["package-state-broken"].packages == ("dash:amd64",)


def test_an_unread_update_is_a_fault_and_litter_is_not() -> None:
    facts = lab.with_database(lab.healthy(), interrupted=("/var/lib/dpkg/updates/0001 was not merged",))
    assert findings(facts)["package-state-broken"].severity == "error"
    facts = lab.with_database(lab.healthy(), interrupted=("/usr/bin/x.dpkg-new was left by an unpacking",))
    assert findings(facts)["package-state-broken"].severity == "warning"


def test_unverified_packages_are_told() -> None:
    facts = lab.with_database(lab.healthy(), verification=Verification(level="none"))
    assert findings(facts)["packages-not-verified"].severity == "info"


# --- room and mount table ---------------------------------------------------------------------------


def test_a_full_root_is_a_fault_and_a_full_home_is_not() -> None:
    full = Space(total_bytes=12 * lab.GIB, free_bytes=1 << 20, inodes_total=1000, inodes_free=500)
    found = findings(lab.with_filesystem(lab.healthy(), lab.ROOT, space=full))["disk-full"]
    assert (found.severity, found.repair) == ("error", "advice")
    assert (
        findings(lab.with_filesystem(lab.healthy(), lab.HOME, space=full))["disk-full"].severity == "warning"
    )
    facts = lab.with_archives(lab.with_filesystem(lab.healthy(), lab.ROOT, space=full), lab.cached("bash"))
    assert findings(facts)["disk-full"].repair == "automatic"


def test_what_ext4_keeps_for_itself_is_no_room() -> None:
    kept = Space(total_bytes=800 << 20, free_bytes=16 << 20)
    assert "disk-full" in findings(lab.with_filesystem(lab.healthy(), lab.ROOT, space=kept))
    assert "disk-full" not in findings(lab.with_filesystem(lab.healthy("xfs"), lab.ROOT, space=kept))


def test_inodes_run_out_too_but_a_small_filesystem_is_not_full() -> None:
    no_inodes = Space(total_bytes=12 * lab.GIB, free_bytes=6 * lab.GIB, inodes_total=1000, inodes_free=3)
    assert "disk-full" in findings(lab.with_filesystem(lab.healthy(), lab.ROOT, space=no_inodes))
    small = Space(total_bytes=32 << 20, free_bytes=10 << 20)
    assert findings(lab.with_filesystem(lab.healthy(), lab.ROOT, space=small)) == {}


def entry(**changes: object) -> FstabEntry:
    base = FstabEntry(line=9, spec="UUID=gone", mount_point="/data", type="ext4", options=("defaults",))
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({}, "fatal"),
        ({"options": ("nofail",)}, "warning"),
        ({"options": ("noauto",)}, "warning"),
        ({"type": "swap", "mount_point": "none"}, "error"),
        ({"spec": "/dev/disk/by-uuid/gone"}, "fatal"),
        ({"device": lab.HOME, "type": "xfs"}, "fatal"),
        ({"device": lab.HOME, "type": "ext3"}, None),
        ({"device": lab.HOME, "type": "auto"}, None),
        ({"spec": "tmpfs", "type": "tmpfs"}, None),
        ({"spec": "server:/export", "type": "nfs"}, None),
        ({"spec": "/dev/sr0", "type": "iso9660"}, None),
        ({"spec": "//server/share", "type": "cifs"}, None),
    ],
)
def test_entries_of_fstab(changes: dict[str, object], severity: str | None) -> None:
    healthy = lab.healthy()
    facts = lab.with_system(healthy, fstab=(*healthy.systems[0].fstab, entry(**changes)))
    found = findings(facts).get("fstab-bad-entry")
    assert (found.severity if found else None) == severity
    if found:
        assert found.evidence[0].source == "/etc/fstab, line 9"
        assert found.repair == "advice"


def test_an_unreadable_fstab() -> None:
    assert (
        findings(lab.with_system(lab.healthy(), fstab_state="unreadable"))["fstab-bad-entry"].severity
        == "error"
    )
    assert findings(lab.with_system(lab.healthy(), fstab_state="empty")) == {}


# --- causes ---------------------------------------------------------------------------------------


def test_a_damaged_root_explains_what_is_missing_on_it() -> None:
    found = diagnose(lab.with_check(lab.with_missing_libc(lab.healthy()), lab.ROOT, "damaged")).findings
    assert found[0].code == "ext-fs-corrupt"
    assert found[0].consequence_of == ""
    assert {f.consequence_of for f in found[1:]} == {found[0].id}


def test_a_damaged_home_explains_nothing_about_the_system() -> None:
    found = findings(lab.with_check(lab.with_missing_libc(lab.healthy()), lab.HOME, "damaged"))
    assert found["init-missing-library"].consequence_of == ""


def test_a_chain_is_told_link_by_link() -> None:
    facts = lab.with_check(lab.with_missing_libc(lab.healthy()), lab.ROOT, "damaged")
    facts = lab.with_health(facts, lab.DISK, smart="failing")
    found = findings(facts)
    assert found["ext-fs-corrupt"].consequence_of == found["disk-failing"].id
    assert found["init-missing-library"].consequence_of == found["ext-fs-corrupt"].id
    assert next(iter(found)) == "disk-failing"


def test_a_full_disk_explains_an_interrupted_run() -> None:
    full = Space(total_bytes=12 * lab.GIB, free_bytes=0)
    facts = lab.with_filesystem(
        lab.with_package(lab.healthy(), "dash", state="unpacked"), lab.ROOT, space=full
    )
    found = findings(facts)
    assert found["package-state-broken"].consequence_of == found["disk-full"].id


def test_an_interrupted_package_explains_what_it_left_missing() -> None:
    facts = lab.with_package(lab.with_missing_libc(lab.healthy()), "libc6", state="half-installed")
    found = findings(facts)
    assert found["init-missing-library"].consequence_of == found["package-state-broken"].id


def test_roots_come_first_and_of_these_the_worst() -> None:
    facts = lab.with_check(lab.with_missing_libc(lab.healthy()), lab.HOME, "unknown")
    order = [(bool(f.consequence_of), f.severity) for f in diagnose(facts).findings]
    assert order == [(False, "fatal"), (False, "warning"), (True, "error")]


def test_no_rule_can_lead_in_a_circle() -> None:
    """A cause must never be, through other rules, an effect of its own effect."""
    reaches = {(c, e) for rule in RULES for c in rule.causes for e in rule.effects}
    while True:
        more = {(a, d) for a, b in reaches for c, d in reaches if b == c} - reaches
        if not more:
            break
        reaches |= more
    assert not [code for code, other in reaches if code == other]
