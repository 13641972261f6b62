# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for packages: roads, sources, room, configuration files, the workspace."""

from __future__ import annotations

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import Archive, DamagedFile, Facts, Offer, Space, Tool
from rescue_agent.model.operation import Bind, Mount, Operation, RemoveFile, Run, Symlink, Unpack, WriteFile
from rescue_agent.model.plan import Plan, Policy, Step
from rescue_agent.planning import make_plan

WORK = "/var/lib/rescue-agent/runs/test"
POLICY = Policy(work_dir=WORK)
LIBC = "libc6_2.36-9+deb12u14_amd64.deb"


def plan(facts: Facts, policy: Policy = POLICY) -> Plan:
    return make_plan(facts, diagnose(facts), policy)


def ids(made: Plan) -> list[str]:
    return [s.id for s in made.steps]


def step(made: Plan, step_id: str) -> Step:
    return next(s for s in made.steps if s.id == step_id)


def operations(made: Plan) -> list[Operation]:
    return [o for s in made.steps for o in s.operations]


def runs(made: Plan, *, inside: bool) -> list[tuple[str, ...]]:
    return [o.argv for o in operations(made) if isinstance(o, Run) and o.inside == inside]


def ssh(kind: str = "missing", path: str = "/usr/sbin/sshd", *, conffile: bool = False) -> DamagedFile:
    return DamagedFile(path=path, package="openssh-server", kind=kind, conffile=conffile)  # type: ignore[arg-type]


# --- the two roads ----------------------------------------------------------------------------------


def test_the_original_fault_is_mended_from_outside_first() -> None:
    made = plan(lab.with_missing_libc(lab.healthy()))
    assert ids(made) == ["workspace", "fetch-packages", "unpack-packages", "reinstall-packages"]
    unpack = step(made, "unpack-packages")
    assert unpack.operations[0] == Unpack(archive=f"{WORK}/archives/{LIBC}", members=(lab.LIBC_LISTED,))
    assert [o.argv[0] for o in unpack.operations[1:] if isinstance(o, Run) and o.inside] == [
        "/bin/true",
        "dpkg",
    ]
    assert set(step(made, "reinstall-packages").needs) >= {"workspace", "fetch-packages", "unpack-packages"}
    install = runs(made, inside=True)[-1]
    assert install[-2:] == ("-i", f"/run/rescue-agent/archives/{LIBC}")
    covered = {i for s in made.steps for i in s.findings}
    assert covered == {f.id for f in diagnose(lab.with_missing_libc(lab.healthy())).findings}


def test_nothing_runs_inside_before_the_files_are_back() -> None:
    made = plan(lab.with_missing_libc(lab.healthy()))
    kinds = [
        "unpack" if isinstance(o, Unpack) else "inside"
        for o in operations(made)
        if isinstance(o, Unpack) or (isinstance(o, Run) and o.inside)
    ]
    assert kinds[0] == "unpack"


def test_the_download_asks_for_exactly_the_installed_version_with_the_patients_sources() -> None:
    made = plan(lab.with_missing_libc(lab.healthy()))
    update, fetch = runs(made, inside=False)[1:3]
    assert fetch[-1] == "libc6:amd64=2.36-9+deb12u14"
    assert "--download-only" in fetch
    for argv in (update, fetch):
        assert "Dir=/run/rescue-agent/target" in argv
        assert f"Dir::State::lists={WORK}/apt/lists" in argv
        assert f"Dir::Cache::archives={WORK}/archives" in argv
        assert "Dir::Etc::TrustedParts=/run/rescue-agent/target/etc/apt/trusted.gpg.d" in argv
        assert not any("unauthenticated" in word.lower() for word in argv)
    assert step(made, "fetch-packages").risk == "read-only"


def test_a_missing_file_that_nothing_stands_on_is_left_to_the_packages_own_manager() -> None:
    made = plan(lab.with_damaged_files(lab.healthy(), ssh()))
    assert ids(made) == ["workspace", "fetch-packages", "reinstall-packages"]
    name = "openssh-server_1%3a9.2p1-2+deb12u10_amd64.deb"
    assert runs(made, inside=True)[-1][-1] == f"/run/rescue-agent/archives/{name}"
    assert runs(made, inside=False)[-1][-1] == "openssh-server:amd64=1:9.2p1-2+deb12u10"


def test_a_changed_file_is_saved_before_it_is_replaced() -> None:
    made = plan(lab.with_damaged_files(lab.healthy(), ssh("changed"), ssh("missing", "/usr/bin/x")))
    unpacks = [o for o in operations(made) if isinstance(o, Unpack)]
    assert [u.members for u in unpacks] == [("/usr/sbin/sshd",)]


def test_damage_below_the_tools_goes_the_outside_road_even_if_they_still_start() -> None:
    for path, package in ((lab.LIBC_LISTED, "libc6:amd64"), ("/usr/share/perl5/Debconf/Db.pm", "perl-base")):
        file = DamagedFile(path=path, package=package, kind="missing")
        made = plan(lab.with_damaged_files(lab.healthy(), file, ssh()))
        assert [o.members for o in operations(made) if isinstance(o, Unpack)] == [(path,)]


def test_a_library_without_a_verified_file_brings_its_whole_package() -> None:
    facts = lab.with_missing_libc(lab.healthy())
    database = facts.systems[0].database
    assert database is not None
    facts = lab.with_database(facts, verification=msgspec.structs.replace(database.verification, damaged=()))
    unpack = next(o for o in operations(plan(facts)) if isinstance(o, Unpack))
    assert unpack.members == ()


# --- sources --------------------------------------------------------------------------------------


def test_the_packages_cache_comes_before_the_network() -> None:
    made = plan(lab.with_archives(lab.with_missing_libc(lab.healthy()), lab.cached("libc6")))
    assert "fetch-packages" not in ids(made)
    unpack = next(o for o in operations(made) if isinstance(o, Unpack))
    assert unpack.archive == f"/run/rescue-agent/target/var/cache/apt/archives/{LIBC}"
    assert runs(made, inside=True)[-1][-1] == f"/var/cache/apt/archives/{LIBC}"


def test_a_folder_of_packages_is_shown_inside() -> None:
    folder = lab.cached("libc6", origin="folder", folder="/media/packages/sub")
    facts = lab.with_archives(lab.with_missing_libc(lab.healthy()), folder)
    policy = msgspec.structs.replace(POLICY, packages_dir="/media/packages", network=False)
    made = plan(facts, policy)
    assert "fetch-packages" not in ids(made)
    assert Bind(
        source="/media/packages", path="/run/rescue-agent/packages", folder=True, read_only=True
    ) in operations(made)
    assert runs(made, inside=True)[-1][-1] == f"/run/rescue-agent/packages/sub/{LIBC}"


def test_another_version_in_the_cache_does_not_serve() -> None:
    other = msgspec.structs.replace(lab.cached("libc6"), version="2.36-9+deb12u9")
    assert "fetch-packages" in ids(plan(lab.with_archives(lab.with_missing_libc(lab.healthy()), other)))


@pytest.mark.parametrize(
    ("facts", "policy", "words"),
    [
        (lab.healthy(), msgspec.structs.replace(POLICY, network=False), "ruled out"),
        (lab.with_rescue(lab.healthy(), network=False), POLICY, "no network"),
        (lab.with_database(lab.healthy(), sources=()), POLICY, "no download source"),
        (lab.with_database(lab.healthy(), sources=("deb cdrom:[x]/ y main",)), POLICY, "no download source"),
        (lab.with_rescue(lab.healthy(), tools=(Tool(name="apt-get"),)), POLICY, "apt-get is not installed"),
        (lab.with_rescue(lab.healthy(), work_free_bytes=1 << 20), POLICY, "no room for the download"),
        (lab.with_database(lab.healthy(), offers=()), POLICY, "none of the configured sources"),
    ],
)
def test_what_cannot_be_had_is_said_in_the_plan(facts: Facts, policy: Policy, words: str) -> None:
    made = plan(lab.with_missing_libc(facts), policy)
    assert made.steps == ()
    refusal = next(r for r in made.refusals if words in r.reason)
    assert "libc6 2.36-9+deb12u14" in refusal.reason
    assert "--packages" in refusal.advice
    assert not made.refused, "the rest of the machine may still be mended"


def test_one_package_without_a_source_does_not_stop_the_others() -> None:
    offers = (
        Offer(package="openssh-server", version=lab.version_of("openssh-server"), architecture="amd64"),
    )
    facts = lab.with_damaged_files(
        lab.with_database(lab.healthy(), offers=offers),
        ssh(),
        DamagedFile(path="/usr/bin/udevadm", package="udev", kind="missing"),
    )
    made = plan(facts)
    assert "reinstall-packages" in ids(made)
    assert any("udev" in r.reason for r in made.refusals)


def test_nothing_is_started_inside_when_the_tools_foundation_cannot_be_had() -> None:
    facts = lab.with_archives(
        lab.with_damaged_files(lab.with_missing_libc(lab.healthy()), ssh()), lab.cached("openssh-server")
    )
    made = plan(facts, msgspec.structs.replace(POLICY, network=False))
    assert runs(made, inside=True) == []


def test_a_version_that_is_not_offered_any_more_is_replaced_by_what_is() -> None:
    offers = (Offer(package="openssh-server", version="1:9.2p1-2+deb12u11", architecture="amd64"),)
    facts = lab.with_damaged_files(lab.with_database(lab.healthy(), offers=offers), ssh())
    made = plan(facts)
    assert "1:9.2p1-2+deb12u11 replaces it" in step(made, "fetch-packages").why
    last = runs(made, inside=True)[-1]
    assert last[0] == "apt-get"
    assert last[-1] == "openssh-server:amd64=1:9.2p1-2+deb12u11"


def test_a_newer_version_is_laid_out_whole() -> None:
    offers = (Offer(package="libc6", version="2.36-9+deb12u15", architecture="amd64"),)
    made = plan(lab.with_missing_libc(lab.with_database(lab.healthy(), offers=offers)))
    unpack = next(o for o in operations(made) if isinstance(o, Unpack))
    assert unpack == Unpack(archive=f"{WORK}/archives/libc6_2.36-9+deb12u15_amd64.deb", members=())


# --- configuration and holds -------------------------------------------------------------------------


def test_configuration_files_are_kept_and_lost_ones_come_back_only_with_other_losses() -> None:
    gone = ssh("missing", "/etc/ssh/sshd_config", conffile=True)
    with_losses = plan(lab.with_damaged_files(lab.healthy(), ssh(), gone))
    install = runs(with_losses, inside=True)[-1]
    assert {"--force-confold", "--force-confmiss"} <= set(install)
    assert "come back" in step(with_losses, "reinstall-packages").why
    only_changed = plan(lab.with_damaged_files(lab.healthy(), ssh("changed"), gone))
    assert "--force-confmiss" not in runs(only_changed, inside=True)[-1]
    assert plan(lab.with_damaged_files(lab.healthy(), gone)).steps == ()
    for made in (with_losses, only_changed):
        members = [m for o in operations(made) if isinstance(o, Unpack) for m in o.members]
        assert "/etc/ssh/sshd_config" not in members


def test_a_hold_is_set_again() -> None:
    facts = lab.with_package(lab.with_damaged_files(lab.healthy(), ssh()), "openssh-server", held=True)
    assert runs(plan(facts), inside=True)[-1] == ("apt-mark", "hold", "openssh-server:amd64")


def test_a_lost_link_of_the_merged_usr_is_put_back_before_anything_is_laid_out() -> None:
    gone = [
        DamagedFile(path=p, package="libc6:amd64", kind="missing")
        for p in ("/lib64", "/lib64/ld-linux-x86-64.so.2")
    ]
    facts = lab.with_damaged_files(lab.healthy(), *gone)
    made = plan(facts)
    assert ids(made) == ["workspace", "restore-links"]
    assert step(made, "restore-links").operations == (Symlink(path="/lib64", target="usr/lib64"),)
    assert any("really missing" in d.reason for d in made.deferred)
    shell = msgspec.structs.replace(facts.systems[0].tools[0], path="/bin/dash")
    others = tuple(msgspec.structs.replace(t, name="/x") for t in facts.systems[0].tools[1:])
    assert "restore-links" not in ids(plan(lab.with_system(facts, tools=(shell, *others))))


# --- database, interruption, room ----------------------------------------------------------------------


def test_a_lost_database_is_restored_and_the_rest_waits() -> None:
    made = plan(lab.with_lost_database(lab.with_missing_libc(lab.healthy())))
    assert ids(made) == ["workspace", "restore-database"]
    assert step(made, "restore-database").operations == (
        WriteFile(path="/var/lib/dpkg/status", copy_of="/var/lib/dpkg/status-old"),
    )
    assert runs(made, inside=True) == []
    assert any("restore-database" in d.reason for d in made.deferred)


def test_the_backup_that_names_the_most_is_taken() -> None:
    facts = lab.with_lost_database(lab.healthy())
    database = facts.systems[0].database
    assert database is not None
    old, daily = database.backups
    facts = lab.with_database(facts, backups=(msgspec.structs.replace(old, listed=20), daily))
    assert step(plan(facts), "restore-database").operations == (
        WriteFile(path="/var/lib/dpkg/status", copy_of="/var/backups/dpkg.status.0"),
    )


def test_without_a_database_only_an_archive_at_hand_helps() -> None:
    facts = lab.with_database(lab.with_lost_database(lab.with_missing_libc(lab.healthy())), backups=())
    made = plan(facts)
    assert made.steps == ()
    assert any("version" in r.reason for r in made.refusals)
    assert any("Packages files" in r.advice for r in made.refusals), "how to rebuild it"
    at_hand = plan(lab.with_archives(facts, lab.cached("libc6")))
    assert ids(at_hand) == ["workspace", "unpack-packages"]
    two = Archive(
        path="/x/libc6_1_amd64.deb", package="libc6", version="1", architecture="amd64", origin="folder"
    )
    assert plan(lab.with_archives(facts, lab.cached("libc6"), two)).steps == ()


def test_an_interrupted_run_is_finished() -> None:
    made = plan(lab.with_package(lab.healthy(), "dash", state="unpacked"))
    assert ids(made) == ["workspace", "configure-packages", "fix-dependencies"]
    assert ("dpkg", "--force-confdef", "--force-confold", "--configure", "-a") in runs(made, inside=True)
    assert runs(made, inside=True)[-1][-2:] == ("-f", "install")


def test_a_half_installed_package_is_reinstalled_before_the_rest_is_set_up() -> None:
    made = plan(lab.with_package(lab.healthy(), "udev", state="half-installed", reinstall_required=True))
    assert ids(made) == [
        "workspace",
        "fetch-packages",
        "reinstall-packages",
        "configure-packages",
        "fix-dependencies",
    ]


FULL = Space(total_bytes=12 * lab.GIB, free_bytes=0, inodes_total=1000, inodes_free=500)


def test_room_is_made_in_the_cache_alone_and_the_rest_waits() -> None:
    facts = lab.with_missing_libc(lab.with_filesystem(lab.healthy(), lab.ROOT, space=FULL))
    facts = lab.with_archives(facts, lab.cached("bash"), lab.cached("libc6"))
    made = plan(facts)
    assert ids(made) == ["workspace", "free-room"]
    assert step(made, "free-room").operations == (RemoveFile(path=lab.cached("bash").path),)
    assert not any(isinstance(o, WriteFile) for o in operations(made)), "not even a small file fits"
    assert any("free-room" in d.reason for d in made.deferred)


def test_a_full_root_with_nothing_to_remove_is_refused() -> None:
    made = plan(lab.with_missing_libc(lab.with_filesystem(lab.healthy(), lab.ROOT, space=FULL)))
    assert made.steps == ()
    assert any("free" in r.reason for r in made.refusals)


def test_the_database_is_restored_after_room_was_made() -> None:
    facts = lab.with_lost_database(lab.with_filesystem(lab.healthy(), lab.ROOT, space=FULL))
    made = plan(lab.with_archives(facts, lab.cached("bash")))
    assert ids(made) == ["workspace", "free-room", "restore-database"]


# --- workspace ------------------------------------------------------------------------------------


def test_the_workspace_is_complete_and_in_order() -> None:
    workspace = step(plan(lab.with_missing_libc(lab.healthy())), "workspace")
    paths = [o.path for o in workspace.operations if isinstance(o, Mount | Bind | WriteFile)]
    assert paths == [
        "/",
        "/boot/efi",
        "/home",
        "/proc",
        "/proc/cmdline",
        "/sys",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/run",
        "/run/lock",
        "/run/udev",
        "/etc/resolv.conf",
        "/usr/sbin/policy-rc.d",
    ]
    cmdline = next(o for o in workspace.operations if isinstance(o, Bind) and o.path == "/proc/cmdline")
    assert cmdline.content == f"root=UUID={lab.ROOT_UUID} ro\n"
    udev = next(o for o in workspace.operations if isinstance(o, Bind) and o.path == "/run/udev")
    assert udev.read_only
    no_services = workspace.operations[-1]
    assert isinstance(no_services, WriteFile)
    assert (no_services.mode, no_services.held) == (0o755, True)
    assert "exit 101" in no_services.content


def test_name_resolution_lies_where_the_link_leads() -> None:
    facts = lab.with_system(
        lab.with_missing_libc(lab.healthy()), resolv_conf="/run/systemd/resolve/stub-resolv.conf"
    )
    sources = {o.path: o.source for o in operations(plan(facts)) if isinstance(o, Bind)}
    assert sources["/run/systemd/resolve/stub-resolv.conf"] == "/etc/resolv.conf"
    assert "/etc/resolv.conf" not in sources
    for nowhere in ("", "/etc/passwd", "/usr/bin/sh"):
        made = plan(lab.with_system(facts, resolv_conf=nowhere))
        assert not any(isinstance(o, Bind) and o.source == "/etc/resolv.conf" for o in operations(made))


def test_options_of_the_patients_fstab_are_not_trusted() -> None:
    facts = lab.with_missing_libc(lab.healthy())
    mounts = tuple(
        msgspec.structs.replace(m, options=("suid", "dev", "x-mount.mkdir", "umask=0077", "X-x=$(reboot)"))
        for m in facts.systems[0].mounts
    )
    made = plan(lab.with_system(facts, mounts=mounts))
    efi = next(o for o in operations(made) if isinstance(o, Mount) and o.path == "/boot/efi")
    assert efi.options == "rw,nosuid,nodev,umask=0077"


def test_what_this_kernel_cannot_mount_is_left_out() -> None:
    facts = lab.with_filesystem(lab.with_missing_libc(lab.healthy()), lab.ESP, readable=False)
    assert not any(getattr(o, "source", "") == lab.ESP for o in operations(plan(facts)))


@pytest.mark.parametrize(
    "facts",
    [
        lab.with_system(lab.with_missing_libc(lab.healthy()), unusual=("/dev is a link to /etc",)),
        lab.with_system(lab.with_missing_libc(lab.healthy()), architecture="arm64"),
    ],
)
def test_nothing_of_an_unsafe_or_foreign_patient_is_started(facts: Facts) -> None:
    made = plan(facts)
    assert runs(made, inside=True) == []
    assert all(
        o.path == "/" or o.path in ("/boot/efi", "/home") for o in operations(made) if isinstance(o, Mount)
    )
    assert not any(isinstance(o, Bind) for o in operations(made))
    assert any("is not started" in r.reason for r in made.refusals)


# --- upgrade ---------------------------------------------------------------------------------------


def test_an_upgrade_is_only_done_on_request_and_only_on_whole_packages() -> None:
    policy = msgspec.structs.replace(POLICY, upgrade=True)
    made = plan(lab.healthy(), policy)
    assert ids(made) == ["workspace", "upgrade"]
    assert [argv[-1] for argv in runs(made, inside=True)] == ["update", "upgrade"]
    waits = plan(lab.with_missing_libc(lab.healthy()), policy)
    assert "upgrade" not in ids(waits)
    assert any("upgraded once" in d.reason for d in waits.deferred)
    offline = plan(lab.healthy(), msgspec.structs.replace(policy, network=False))
    assert offline.steps == ()
    assert "not upgraded" in offline.refusals[0].reason


def test_another_package_manager_is_left_to_itself() -> None:
    facts = lab.with_system(lab.with_missing_libc(lab.healthy()), family="gentoo", package_manager="emerge")
    made = plan(facts)
    assert made.steps == ()
    assert any("emerge" in r.reason for r in made.refusals)
