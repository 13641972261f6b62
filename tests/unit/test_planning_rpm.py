# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for the RPM family, from facts alone."""

from __future__ import annotations

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import ElfFault, Facts, Offer, Program, Tool
from rescue_agent.model.operation import Bind, RemoveFile, Run, SetMetadata, Unpack, WriteFile
from rescue_agent.model.plan import Plan, Policy, Step
from rescue_agent.planning import make_plan

WORK = "/var/lib/rescue-agent/runs/test"
POLICY = Policy(work_dir=WORK, packages_dir="/media/rpms")
OFFLINE = msgspec.structs.replace(POLICY, network=False)
LESS = ("less", "/usr/bin/less")


def plan(facts: Facts, policy: Policy = POLICY) -> Plan:
    return make_plan(facts, diagnose(facts), policy)


def ids(made: Plan) -> list[str]:
    return [step.id for step in made.steps]


def step(made: Plan, name: str) -> Step:
    return next(s for s in made.steps if s.id == name)


def runs(made: Plan, *, inside: bool) -> list[tuple[str, ...]]:
    return [o.argv for s in made.steps for o in s.operations if isinstance(o, Run) and o.inside == inside]


def test_a_healthy_machine_gets_an_empty_plan() -> None:
    assert plan(lab.enterprise()).steps == ()
    assert not diagnose(lab.enterprise()).faults


def test_what_is_missing_is_downloaded_proved_and_reinstalled_by_the_systems_own_dnf() -> None:
    made = plan(lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS)))
    assert ids(made) == ["workspace", "fetch-packages", "reinstall-packages"]
    fetch = step(made, "fetch-packages").operations[-1]
    assert isinstance(fetch, Run)
    assert fetch.argv[0] == "dnf" and fetch.argv[-4:-1] == ("download", "--destdir", f"{WORK}/archives")
    assert fetch.argv[-1] == "less-4.18-1.el9.x86_64"
    assert "--releasever=9" in fetch.argv and f"--installroot={WORK}/dnf" in fetch.argv
    assert not any("gpgcheck" in word for argv in runs(made, inside=True) for word in argv)
    checks = [argv for argv in runs(made, inside=False) if "--checksig" in argv]
    assert checks and all("_pkgverify_level signature" in argv for argv in checks)
    assert runs(made, inside=True)[-1] == (
        *("dnf", "-y", "--disablerepo=*", "reinstall"),
        "/run/rescue-agent/archives/less-4.18-1.el9.x86_64.rpm",
    )


def test_the_epoch_is_no_part_of_a_file_name() -> None:
    made = plan(lab.with_damaged_files(lab.enterprise(), lab.rpm_damage("bind-libs", "/usr/lib64/libdns.so")))
    assert runs(made, inside=True)[-1][-1].endswith("/bind-libs-9.16-1.el9.x86_64.rpm")


def test_the_archives_are_proved_before_anything_is_laid_out() -> None:
    facts = lab.with_damaged_files(lab.enterprise(), lab.rpm_damage("glibc", "/usr/lib64/libc.so.6"))
    made = plan(lab.with_archives(facts, lab.rpm_archive("glibc")), OFFLINE)
    operations = step(made, "unpack-packages").operations
    proved = next(n for n, o in enumerate(operations) if isinstance(o, Run) and "--checksig" in o.argv)
    laid = next(n for n, o in enumerate(operations) if isinstance(o, Unpack))
    assert proved < laid
    unpack = operations[laid]
    assert isinstance(unpack, Unpack)
    assert (unpack.format, unpack.members) == ("rpm", ("/usr/lib64/libc.so.6",))


def test_yum_and_rpm_alone_do_the_same() -> None:
    facts = lab.with_archives(
        lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS)), lab.rpm_archive("less")
    )
    tools = facts.systems[0].tools
    yum = lab.with_system(
        facts,
        package_manager="yum",
        tools=(*tools[:2], msgspec.structs.replace(tools[2], name="/usr/bin/yum", path="/usr/bin/yum")),
    )
    assert runs(plan(yum, OFFLINE), inside=True)[-1][:4] == ("yum", "-y", "--disablerepo=*", "reinstall")
    alone = lab.with_system(facts, tools=tools[:2])
    assert runs(plan(alone, OFFLINE), inside=True)[-1][:3] == ("rpm", "-U", "--replacepkgs")


def test_an_archive_that_is_not_trusted_is_told_and_not_used() -> None:
    facts = lab.with_archives(
        lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS)),
        lab.rpm_archive("less", refused="is not signed by a key that the system trusts"),
    )
    made = plan(facts, OFFLINE)
    assert made.steps == ()
    assert "less-4.18-1.el9.x86_64.rpm is not signed" in made.refusals[0].reason
    assert "fetch-packages" in ids(plan(facts)), "the network still serves"


def test_no_signature_is_demanded_where_the_patient_demands_none() -> None:
    facts = lab.with_archives(
        lab.with_damaged_files(lab.enterprise(signed=False), lab.rpm_damage(*LESS)), lab.rpm_archive("less")
    )
    checks = [argv for argv in runs(plan(facts, OFFLINE), inside=False) if "--checksig" in argv]
    assert checks and all("--nosignature" in argv for argv in checks)


def test_modes_alone_are_put_back_without_any_package() -> None:
    facts = lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS, "attributes"))
    made = plan(facts, OFFLINE)
    assert ids(made) == ["workspace", "restore-attributes"]
    assert runs(made, inside=True)[-1] == ("rpm", "--restore", "less-4.18-1.el9.x86_64")
    old = tuple(
        msgspec.structs.replace(p, version="4.11.3-45.el7") if p.name == "rpm" else p
        for p in lab.rpm_packages()
    )
    made = plan(lab.with_database(facts, packages=old), OFFLINE)
    assert [argv[1] for argv in runs(made, inside=True)[-2:]] == ["--setugids", "--setperms"]


def test_the_modes_that_an_owner_chose_are_set_again() -> None:
    own = msgspec.structs.replace(
        lab.rpm_damage("less", "/etc/less.conf", "attributes", conffile=True), mode=0o600, uid=0, gid=5
    )
    again = SetMetadata(path="/etc/less.conf", mode=0o600, uid=0, gid=5)
    facts = lab.with_archives(lab.enterprise(), lab.rpm_archive("less"))
    for kind in ("missing", "attributes"):
        damaged = lab.with_damaged_files(facts, lab.rpm_damage(*LESS, kind), own)
        assert plan(damaged, OFFLINE).steps[-1].operations[-1] == again
    assert not diagnose(lab.with_damaged_files(facts, own)).faults


def test_labels_are_set_or_a_relabelling_is_scheduled() -> None:
    facts = lab.with_archives(
        lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS)), lab.rpm_archive("less")
    )
    facts = lab.with_system(facts, file_contexts="/etc/selinux/targeted/contexts/files/file_contexts")
    made = plan(facts, OFFLINE)
    assert ids(made)[-1] == "label-files"
    assert "setfiles" in str(step(made, "label-files").operations)
    without = plan(lab.with_rescue(facts, tools=(Tool(name="setfiles"),)), OFFLINE)
    assert step(without, "label-files").operations == (WriteFile(path="/.autorelabel", content="-F\n"),)
    assert "next start" in step(without, "label-files").why


def test_the_old_half_of_an_upgrade_goes() -> None:
    old = msgspec.structs.replace(lab.rpm_packages()[4], version="4.17-1.el9", state="superseded")
    facts = lab.enterprise(
        packages=(*lab.rpm_packages(), old),
        interrupted=(
            "/var/lib/yum/transaction-all.2026-11-24.10:00.01: yum did not come to the end of a transaction",
        ),
    )
    made = plan(facts, OFFLINE)
    assert ids(made) == ["workspace", "complete-transaction"]
    assert ("rpm", "-e", "--nodeps", "less-4.17-1.el9.x86_64") in runs(made, inside=True)
    removed = [o.path for o in made.steps[-1].operations if isinstance(o, RemoveFile)]
    assert removed == [f"/var/lib/yum/transaction-{n}.2026-11-24.10:00.01" for n in ("all", "done")]


def test_yums_own_finisher_is_used_where_it_is_there() -> None:
    sign = "/var/lib/yum/transaction-all.2026-11-24.10:00.01: yum did not come to the end of a transaction"
    facts = lab.enterprise(interrupted=(sign,))
    tool = Program(name="/usr/sbin/yum-complete-transaction", path="/usr/sbin/yum-complete-transaction")
    facts = lab.with_system(facts, package_manager="yum", tools=(*facts.systems[0].tools, tool))
    assert runs(plan(facts), inside=True)[-1] == ("yum-complete-transaction", "-y")
    assert not [argv for argv in runs(plan(facts, OFFLINE), inside=True) if "yum-" in argv[0]]


def test_a_database_that_knows_a_little_less_than_the_history_is_told_and_left_alone() -> None:
    packages = lab.rpm_packages()
    facts = lab.enterprise(packages=packages[:6], recorded=packages)
    (found,) = [f for f in diagnose(facts).findings if f.code == "package-database-incomplete"]
    assert "tar-4.18-1.el9.x86_64" in str(found.evidence)
    assert not diagnose(facts).faults
    assert plan(facts).steps == ()


# --- the database -------------------------------------------------------------------------------------


def lost(count: int, **database: object) -> Facts:
    """Return facts in which ``count`` packages can still be read, and archives of all are at hand."""
    packages = lab.rpm_packages()
    facts = lab.enterprise(
        state="damaged", detail="it is damaged", packages=packages[:count], recorded=packages, **database
    )
    return lab.with_archives(facts, *(lab.rpm_archive(p.name) for p in packages))


def test_a_damaged_database_is_built_beside_and_counted_before_it_takes_its_place() -> None:
    made = plan(lost(6), OFFLINE)
    assert ids(made) == ["workspace", "rebuild-database"]
    operations = made.steps[-1].operations
    inside = [o.argv for o in operations if isinstance(o, Run) and o.inside]
    assert any("--importdb" in word for argv in inside for word in argv)
    record = next(argv for argv in inside if "--justdb" in argv)
    assert record[1:3] == ("--dbpath", "/run/rescue-agent/rpmdb") and len(record) == 10 + 3
    assert inside[-1][-2:] == ("/run/rescue-agent/rpmdb", "9"), "it is not counted last"
    placed = operations.index(
        WriteFile(path="/var/lib/rpm/rpmdb.sqlite", copy_of="/run/rescue-agent/rpmdb/rpmdb.sqlite")
    )
    assert placed > max(n for n, o in enumerate(operations) if isinstance(o, Run))
    assert any(isinstance(o, Bind) for o in operations)
    assert "--rebuilddb" not in str(operations)


def test_nothing_of_a_berkeley_db_is_written_by_the_rescue_systems_rpm() -> None:
    made = plan(lost(6, format="bdb", files=("Packages", "Name", "__db.001", ".rpm.lock")), OFFLINE)
    outside = [o for o in made.steps[-1].operations if isinstance(o, Run) and not o.inside]
    assert not [o for o in outside if o.argv[0] in ("rpm", "rpmdb")]
    removed = [o.path for o in made.steps[-1].operations if isinstance(o, RemoveFile)]
    assert removed == ["/var/lib/rpm/Name", "/var/lib/rpm/__db.001"]
    operations = made.steps[-1].operations
    counted = next(
        n
        for n, o in enumerate(operations)
        if isinstance(o, Run) and o.argv[-2:] == ("/run/rescue-agent/rpmdb", "6")
    )
    written = next(n for n, o in enumerate(operations) if isinstance(o, WriteFile))
    assert counted < written, "it is put in place before it was counted"


def test_what_the_database_will_not_know_is_said() -> None:
    facts = lost(6)
    database = facts.systems[0].database
    assert database is not None
    facts = lab.with_archives(
        lab.with_database(facts, archives=()), *(a for a in database.archives if a.package != "tar")
    )
    made = plan(facts, OFFLINE)
    assert ids(made) == ["workspace", "rebuild-database"]
    assert any("tar-4.18-1.el9.x86_64" in r.reason for r in made.refusals)


@pytest.mark.parametrize("count", [0, 2])
def test_a_database_that_would_know_too_little_is_not_made(count: int) -> None:
    made = plan(lab.with_database(lost(count), archives=()), OFFLINE)
    assert made.steps == ()
    assert made.refusals


def test_a_dead_root_is_laid_out_before_its_database_is_made() -> None:
    fault = ElfFault(kind="missing-library", path="libc.so.6", needed_by="/usr/bin/bash")
    facts = lab.with_tool_faults(lost(0), fault)
    made = plan(facts, OFFLINE)
    assert ids(made) == ["workspace", "unpack-packages"]
    assert [o.archive for s in made.steps for o in s.operations if isinstance(o, Unpack)] == [
        "/media/rpms/glibc-4.18-1.el9.x86_64.rpm"
    ]


def test_the_library_of_the_systems_own_architecture_is_meant() -> None:
    glibc = next(p for p in lab.rpm_packages() if p.name == "glibc")
    other = msgspec.structs.replace(glibc, architecture="i686")
    fault = ElfFault(kind="missing-library", path="libc.so.6", needed_by="/usr/lib/systemd/systemd")
    facts = lab.with_init_fault(lab.enterprise(packages=(other, *lab.rpm_packages())), fault)
    finding = next(f for f in diagnose(facts).findings if f.code == "init-missing-library")
    assert finding.packages == ("glibc:x86_64",)


def test_without_any_history_a_person_is_told_what_to_do() -> None:
    facts = lab.enterprise(state="missing", packages=(), recorded=(), listed=0)
    (fault,) = diagnose(facts).faults
    assert fault.repair == "advice" and "backup" in fault.advice
    assert plan(facts).steps == ()


# --- sources ------------------------------------------------------------------------------------------


def test_an_old_release_is_told_where_its_packages_went() -> None:
    facts = lab.with_damaged_files(
        lab.enterprise(sources_error="the configured repositories do not answer: 404"),
        lab.rpm_damage(*LESS),
    )
    facts = lab.with_system(facts, os_id="centos", os_version="7")
    made = plan(facts)
    assert made.steps == ()
    assert "vault.centos.org" in made.refusals[0].advice


def test_what_is_offered_no_more_is_replaced_by_what_is() -> None:
    facts = lab.with_damaged_files(
        lab.enterprise(offers=(Offer(package="less", version="4.19-1.el9", architecture="x86_64"),)),
        lab.rpm_damage(*LESS),
    )
    made = plan(facts)
    assert "4.19-1.el9 replaces it" in step(made, "fetch-packages").why
    assert runs(made, inside=True)[-1] == (
        *("dnf", "-y", "upgrade"),
        "/run/rescue-agent/archives/less-4.19-1.el9.x86_64.rpm",
    )


def test_an_upgrade_by_each_manager() -> None:
    policy = msgspec.structs.replace(POLICY, upgrade=True)
    assert runs(plan(lab.enterprise(), policy), inside=True)[-1] == ("dnf", "-y", "upgrade")
    yum = lab.with_system(lab.enterprise(), package_manager="yum")
    assert runs(plan(yum, policy), inside=True)[-1] == ("yum", "-y", "update")


def test_nothing_of_debian_is_put_into_the_patient() -> None:
    facts = lab.with_damaged_files(lab.enterprise(), lab.rpm_damage(*LESS))
    assert "policy-rc.d" not in str(plan(facts).steps)
