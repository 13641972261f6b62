# SPDX-License-Identifier: GPL-3.0-or-later
"""pacman's files read: local database, mtree, configuration, log. Hostile input is refused or passed over."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import DamagedFile, Facts, InstalledPackage, Offer, Program
from rescue_agent.model.families.arch import LOCAL, LOCK, config_command
from rescue_agent.model.operation import RemoveFile, Run, SetMetadata, Unpack, WriteFile
from rescue_agent.model.plan import Plan, Policy
from rescue_agent.model.rendering import unpack_lines
from rescue_agent.planning import make_plan
from rescue_agent.probe.families.arch import sources, verification
from rescue_agent.probe.families.arch.database import parse_log, parse_sections, probe_database
from rescue_agent.probe.families.arch.verification import Item, parse_mtree, unpack_mtree
from rescue_agent.system.guard import CancelToken
from rescue_agent.system.root import TargetRoot

MTREE = rb"""#mtree
/set type=file uid=0 gid=0 mode=644
./.PKGINFO time=1.0 size=1 sha256digest=aa
./usr time=1.0 mode=755 type=dir
./usr/a\040b time=1.0 size=3 md5digest=00 sha256digest=bb
./usr/l time=1.0 mode=777 type=link link=a\134b
/unset mode
./usr/c time=1.0 size=0
"""


def test_an_mtree_says_what_each_file_must_be() -> None:
    assert list(parse_mtree(MTREE)) == [
        Item("/usr", "dir", 0o755, 0, 0),
        Item("/usr/a b", "file", 0o644, 0, 0, 3, "bb"),
        Item("/usr/l", "link", 0o777, 0, 0, link="a\\b"),
        Item("/usr/c", "file", -1, 0, 0, 0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 100,
        b"#mtree\n/etc/passwd type=file",
        b"#mtree\n./../etc/passwd type=file",
        b"#mtree\n./a/\\056\\056/b type=file",
        b"#mtree\n./a size=-1",
        b"#mtree\n./a mode=9",
        b"#mtree\n./a uid=" + b"9" * 5000,
        b"#mtree\n./" + b"a" * 70_000,
    ],
)
def test_what_is_no_mtree_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        list(parse_mtree(text))


def test_a_packed_mtree_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(MTREE)
    assert unpack_mtree(packed) == MTREE
    for bad in (packed[:-9], b"", b"#mtree", packed[:5] + b"\xff" * 40):
        with pytest.raises(ValueError):
            unpack_mtree(bad)
    monkeypatch.setattr(verification, "TEXT_LIMIT", 1 << 16)
    with pytest.raises(ValueError, match="too large"):
        unpack_mtree(gzip.compress(bytes(1 << 20)))


def test_sections() -> None:
    text = "%NAME%\nless\n\n%FILES%\nusr/\nusr/bin/less\n\n%BACKUP%\netc/x\t00\n"
    assert parse_sections(text) == {
        "NAME": ["less"],
        "FILES": ["usr/", "usr/bin/less"],
        "BACKUP": ["etc/x\t00"],
    }
    assert parse_sections("\0\0\0") == {}


def test_the_log_is_replayed() -> None:
    lines = [
        "[2026-11-24T10:00:00+0000] [ALPM] installed a (1.0-1)",
        "[2026-11-24T10:00:00+0000] [ALPM] installed b (1:2.0-1)",
        "[2026-11-24 10:00] [ALPM] upgraded a (1.0-1 -> 1.1-1)",
        "[2026-11-24T10:00:00+0000] [ALPM] removed b (1:2.0-1)",
        "[2026-11-24T10:00:00+0000] [ALPM] installed ../x (1-1)",
        "[2026-11-24T10:00:00+0000] [ALPM] installed " + "a" * 9000 + " (1-1)",
    ]
    assert parse_log("\n".join(lines)) == (InstalledPackage(name="a", version="1.1-1"),)


def entry(root: Path, name: str, version: str = "1.0-1", *, installed: int = 5, arch: str = "x86_64") -> Path:
    folder = root / LOCAL[1:] / f"{name}-{version}"
    folder.mkdir(parents=True)
    (folder / "desc").write_text(
        f"%NAME%\n{name}\n\n%VERSION%\n{version}\n\n%ARCH%\n{arch}\n\n%INSTALLDATE%\n{installed}\n\n%SIZE%\n7\n\n"
    )
    (folder / "files").write_text(f"%FILES%\nusr/\nusr/{name}\n\n%BACKUP%\netc/{name}.conf\t00\n\n")
    (folder / "mtree").write_bytes(gzip.compress(f"#mtree\n./usr/{name} type=file size=3\n".encode()))
    return folder


def test_the_local_database(tmp_path: Path) -> None:
    entry(tmp_path, "good")
    (entry(tmp_path, "lost") / "desc").unlink()
    (entry(tmp_path, "zeroed") / "files").write_bytes(b"\0" * 40)
    (entry(tmp_path, "other") / "desc").write_text("%NAME%\nevil\n\n%VERSION%\n1.0-1\n")
    entry(tmp_path, "twice", "2.0-1", installed=9)
    entry(tmp_path, "twice", "10.0-1", installed=3)
    (tmp_path / LOCAL[1:] / "ALPM_DB_VERSION").write_text("9\n")
    (tmp_path / LOCAL[1:] / "noise").mkdir()
    (tmp_path / LOCK[1:]).touch()
    with TargetRoot(str(tmp_path)) as root:
        found = probe_database(root)
    states = {(e.package.name, e.package.version): e.package.state for e in found.entries}
    assert states == {
        ("good", "1.0-1"): "installed",
        ("lost", "1.0-1"): "half-installed",
        ("other", "1.0-1"): "half-installed",
        ("twice", "2.0-1"): "installed",
        ("twice", "10.0-1"): "superseded",
        ("zeroed", "1.0-1"): "half-installed",
    }
    assert {e.package.architecture for e in found.entries} == {"x86_64"}
    assert found.interrupted[0].startswith(f"{LOCK}: ") and len(found.interrupted) == 4
    assert next(e for e in found.entries if e.package.name == "good").backup == {"/etc/good.conf"}


def test_files_are_compared_and_links_lead_nowhere(tmp_path: Path) -> None:
    for name in ("same", "longer", "gone", "fifo"):
        entry(tmp_path, name)
        (tmp_path / "usr").mkdir(exist_ok=True)
        (tmp_path / "usr" / name).write_text("abc")
    (tmp_path / "usr/longer").write_text("abcd")
    (tmp_path / "usr/gone").unlink()
    (tmp_path / "usr/fifo").unlink()
    (tmp_path / "usr/fifo").symlink_to("/etc/passwd")
    with TargetRoot(str(tmp_path)) as root:
        database = probe_database(root)
        config = sources.parse_config(())
        found, signs = verification.verify(
            root, database.entries, config.exclusions, level="full", cancel=CancelToken()
        )
    assert {(d.path, d.kind) for d in found.damaged} == {
        ("/usr/longer", "changed"),
        ("/usr/gone", "missing"),
        ("/usr/fifo", "wrong-type"),
    }
    assert not signs and found.packages == 4


def test_the_configuration_keeps_its_signatures() -> None:
    text = """[options]
SigLevel = Required DatabaseOptional
LocalFileSigLevel = Optional
XferCommand = /bin/evil %u
NoExtract = usr/share/help/* !usr/share/help/C/*
[core]
Server = https://user:secret@mirror.example/$repo/os/$arch
[own; x]
Server = https://x.example
[custom]
SigLevel = Optional TrustAll $(reboot)
Server = file:///srv/repo
"""
    found = sources.parse_config(text.splitlines())
    assert found.servers == (
        ("core", "https://mirror.example/$repo/os/$arch", "Required DatabaseOptional"),
        ("custom", "file:///srv/repo", "Required DatabaseOptional Optional TrustAll"),
    )
    assert not found.local_signed
    assert found.exclusions.by_rule("/usr/share/help/de/x") and not found.exclusions.by_rule(
        "/usr/share/help/C/x"
    )
    assert sources.parse_config(["[options]"]).local_signed, "no word about signatures: they are demanded"
    line = config_command("/w", [" ".join(s) for s in found.servers], "x86_64")
    assert "SigLevel = Required DatabaseOptional" in line
    assert not any("file://" in word or "evil" in word for word in line)


def test_the_offers() -> None:
    text = "core glibc 2.40-1\ncore less 1:590-1 [installed: 1:589-1]\nnoise\n"
    assert sources.parse_offers(text, "x86_64")[1] == Offer(
        package="less", version="1:590-1", architecture="x86_64"
    )


# --- plans ----------------------------------------------------------------------------------------------

POLICY = Policy(work_dir="/w", packages_dir="/media/p")


def patient(*damaged: DamagedFile, interrupted: tuple[str, ...] = (), less: str = "installed") -> Facts:
    """Return facts of an Arch Linux with these faults."""
    packages = tuple(
        InstalledPackage(name=n, version="1:2.0-1", architecture="x86_64")
        for n in ("bash", "glibc", "pacman")
    )
    packages += (
        InstalledPackage(
            name="less",
            version="590-1",
            architecture="x86_64",
            state=less,
            reinstall_required=less != "installed",
        ),
    )
    facts = lab.enterprise(
        manager="pacman",
        folder="/var/lib/pacman",
        packages=packages,
        recorded=(),
        listed=len(packages),
        interrupted=interrupted,
        signed=False,
        sources=("core https://mirror.example/$repo/os/$arch Required DatabaseOptional",),
    )
    tools = tuple(Program(name=f"/usr/bin/{n}", path=f"/usr/bin/{n}") for n in ("sh", "pacman"))
    facts = lab.with_system(facts, family="arch", package_manager="pacman", os_id="arch", tools=tools)
    return lab.with_damaged_files(facts, *damaged) if damaged else facts


def plan(facts: Facts, policy: Policy = POLICY) -> Plan:
    return make_plan(facts, diagnose(facts), policy)


def runs(made: Plan, *, inside: bool) -> list[tuple[str, ...]]:
    return [o.argv for s in made.steps for o in s.operations if isinstance(o, Run) and o.inside == inside]


def test_what_is_missing_is_downloaded_proved_and_reinstalled() -> None:
    made = plan(patient(DamagedFile(path="/usr/bin/less", package="less", kind="missing")))
    assert [s.id for s in made.steps] == ["workspace", "fetch-packages", "reinstall-packages"]
    fetch = next(argv for argv in runs(made, inside=False) if "-Syw" in argv)
    assert fetch[0] == "pacman" and fetch[-1] == "less=590-1"
    assert any("SigLevel = Required DatabaseOptional" in argv for argv in runs(made, inside=False))
    assert any("--print" in argv for argv in runs(made, inside=False))
    assert runs(made, inside=True)[-1] == (
        *("pacman", "-U", "--noconfirm", "--noprogressbar"),
        "/run/rescue-agent/archives/less-590-1-x86_64.pkg.tar",
    )


def test_a_newer_version_is_never_taken_alone() -> None:
    facts = lab.with_database(
        patient(DamagedFile(path="/usr/bin/less", package="less", kind="missing")), offers=()
    )
    made = plan(facts)
    assert made.steps == ()
    assert "archive.archlinux.org" in made.refusals[0].advice


def test_modes_are_set_without_any_package() -> None:
    wrong = DamagedFile(path="/usr/bin/less", package="less", kind="attributes", mode=0o755, uid=0, gid=0)
    made = plan(patient(wrong), msgspec.structs.replace(POLICY, network=False))
    assert made.steps[-1].operations[-1] == SetMetadata(path="/usr/bin/less", mode=0o755, uid=0, gid=0)


def test_a_broken_entry_is_emptied_and_its_package_laid_over() -> None:
    facts = patient(
        interrupted=(f"{LOCK}: x", f"{LOCAL}/less-590-1/desc: it is missing"), less="half-installed"
    )
    made = plan(facts)
    operations = made.steps[-2].operations
    assert RemoveFile(path=LOCK) in operations
    emptied = operations.index(WriteFile(path=f"{LOCAL}/less-590-1/desc", content=""))
    last = operations[-1]
    assert isinstance(last, Run) and last.argv[4:6] == ("--overwrite", "*")
    assert emptied < len(operations) - 1


def test_an_upgrade_is_a_whole_one() -> None:
    made = plan(patient(), msgspec.structs.replace(POLICY, upgrade=True))
    assert runs(made, inside=True)[-1][:3] == ("pacman", "-Syu", "--noconfirm")


def test_the_shell_lines_of_a_package() -> None:
    ready, lay = unpack_lines(
        Unpack(archive="/p/a b.pkg.tar.zst", format="pacman", members=("/usr/x",)), "/mnt"
    )
    assert "'@/p/a b.pkg.tar.zst'" in ready[0] and "^.MTREE" in ready[0]
    assert lay[0].endswith(" -- usr/x")
