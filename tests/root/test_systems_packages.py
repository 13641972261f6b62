# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification and the dpkg database of a real root, held against dpkg itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import roots

from rescue_agent.errors import Interrupted
from rescue_agent.model.facts import DamagedFile
from rescue_agent.probe.families.debian import archives, dpkg
from rescue_agent.probe.families.debian.exclusion import probe_exclusions
from rescue_agent.probe.families.debian.verification import Level, Verified, verify
from rescue_agent.system.guard import CancelToken
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

STATUS = "var/lib/dpkg/status"


@pytest.fixture
def tree(work: Path) -> Iterator[Path]:
    with roots.fresh_tree(work) as tree:
        yield tree


def check(tree: Path, level: Level = "full", cancel: CancelToken | None = None) -> Verified:
    with TargetRoot(tree) as root:
        found = dpkg.probe_database(root)
        return verify(
            root,
            found.to_verify,
            level=level,
            conffiles=found.conffiles,
            diversions=dpkg.probe_diversions(root),
            exclusions=probe_exclusions(root),
            cancel=cancel,
        )


def damage(tree: Path, level: Level = "full") -> dict[str, DamagedFile]:
    return {d.path: d for d in check(tree, level).fact.damaged}


def dpkg_verify(tree: Path) -> dict[str, str]:
    """What dpkg says of each path: ``missing`` or its column of letters.

    dpkg knows nothing of the patient's path filters here, so what the golden root leaves out is left out.
    """
    done = subprocess.run(
        ["dpkg", f"--root={tree}", "--verify"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    lines = re.findall(r"^(\S+)\s+(?:c )?(/.*?)(?: \(.*\))?$", done.stdout, re.MULTILINE)
    trees = ("/usr/share/man", "/usr/share/locale", "/usr/share/doc")
    return {path: what for what, path in lines if not path.startswith(trees)}


ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def database(tree: Path) -> dpkg.Database:
    with TargetRoot(tree) as root:
        return dpkg.probe_database(root)


def test_a_healthy_root_has_no_damage(tree: Path) -> None:
    found = check(tree)
    assert found.fact.damaged == () and found.leftovers == ()
    assert found.fact.level == "full"
    assert found.fact.packages == len(roots.installed_versions(tree)) > 100
    assert found.fact.files > 5000
    assert dpkg_verify(tree) == {}


def test_twenty_damaged_packages_are_told_as_dpkg_tells_them(tree: Path) -> None:
    """Twenty packages, two files each: one removed, one changed in its last byte."""
    expected: dict[str, tuple[str, str]] = {}
    info = tree / "var/lib/dpkg/info"
    for sums in sorted(info.glob("*.md5sums")):
        listed = set((info / f"{sums.stem}.list").read_text().splitlines())
        paths = ["/" + line[34:] for line in sums.read_text().splitlines() if "share/doc/" not in line]
        usable = [
            p for p in paths if p in listed and (tree / p[1:]).is_file() and (tree / p[1:]).stat().st_size
        ]
        if len(usable) < 2 or len(expected) >= 40:
            continue
        (tree / usable[0][1:]).unlink()
        expected[usable[0]] = (sums.stem, "missing")
        with open(tree / usable[1][1:], "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        expected[usable[1]] = (sums.stem, "changed")
    found = damage(tree)
    assert {p: (d.package, d.kind) for p, d in found.items()} == expected
    assert len({package for package, _ in expected.values()}) == 20
    said = dpkg_verify(tree)
    assert {p: "missing" if w == "missing" else "changed" for p, w in said.items()} == {
        p: kind for p, (_, kind) in expected.items()
    }


def test_every_kind_of_damage(tree: Path) -> None:
    library = tree / "usr/lib/x86_64-linux-gnu"
    (library / "libacl.so.1").unlink()  # a link: no digest, only a list
    (tree / "usr/bin/tar").write_bytes(b"")
    (tree / "usr/bin/sort").unlink()
    (tree / "usr/bin/sort").symlink_to("/bin/true")
    (tree / "usr/bin/find").unlink()
    os.mkfifo(tree / "usr/bin/find")
    (tree / "usr/bin/diff").unlink()
    (tree / "usr/bin/diff").mkdir()
    kinds = {path: (d.kind, d.package) for path, d in damage(tree).items()}
    assert kinds == {
        "/usr/lib/x86_64-linux-gnu/libacl.so.1": ("missing", "libacl1:amd64"),
        "/bin/tar": ("empty", "tar"),
        "/usr/bin/sort": ("wrong-type", "coreutils"),
        "/usr/bin/find": ("wrong-type", "findutils"),
        "/usr/bin/diff": ("wrong-type", "diffutils"),
    }
    # dpkg itself looks neither into a folder nor into a FIFO that stands where a file was.
    assert set(dpkg_verify(tree)) == set(kinds) - {"/usr/bin/find", "/usr/bin/diff"}


def test_existence_alone_finds_what_is_gone_and_reads_no_file(tree: Path) -> None:
    (tree / "usr/bin/sort").unlink()
    (tree / "usr/bin/tar").write_bytes(b"")
    found = check(tree, "existence")
    assert [(d.path, d.kind) for d in found.fact.damaged] == [("/usr/bin/sort", "missing")]
    assert found.fact.level == "existence"


def test_conffiles_are_told_apart(tree: Path) -> None:
    with open(tree / "etc/login.defs", "a") as file:
        file.write("# mine\n")
    (tree / "etc/deluser.conf").unlink()
    found = damage(tree)
    assert found["/etc/login.defs"].conffile and found["/etc/login.defs"].kind == "changed"
    assert found["/etc/deluser.conf"].conffile and found["/etc/deluser.conf"].kind == "missing"
    assert set(found) == {"/etc/login.defs", "/etc/deluser.conf"} == set(dpkg_verify(tree))


def test_a_diverted_file_is_looked_for_where_it_went(tree: Path) -> None:
    command = ["chroot", str(tree), "dpkg-divert", "--local", "--rename", "--divert", "/usr/bin/sort.real"]
    subprocess.run([*command, "/usr/bin/sort"], check=True, capture_output=True)
    (tree / "usr/bin/sort").write_text("#!/bin/sh\nexec sort.real\n")
    assert damage(tree) == {} and dpkg_verify(tree) == {}
    (tree / "usr/bin/sort.real").unlink()
    assert {p: d.kind for p, d in damage(tree).items()} == {"/usr/bin/sort": "missing"}


def test_documentation_that_was_never_unpacked_is_no_damage(tree: Path) -> None:
    """The golden root was built with path-exclude for it; the copyright files are there by path-include."""
    documents = [
        line
        for path in (tree / "var/lib/dpkg/info").glob("*.list")
        for line in path.read_text().splitlines()
        if line.startswith(("/usr/share/man/", "/usr/share/doc/")) and not os.path.lexists(tree / line[1:])
    ]
    assert len(documents) > 100
    assert damage(tree) == {}
    (tree / "usr/share/doc/tar/copyright").unlink()
    assert set(damage(tree)) == {"/usr/share/doc/tar/copyright"}


def test_documentation_deleted_wholesale_is_no_damage(tree: Path) -> None:
    subprocess.run(["find", tree / "usr/share/doc", "-mindepth", "1", "-delete"], check=True)
    for path in (tree / "etc/dpkg/dpkg.cfg.d").iterdir():
        path.unlink()
    assert damage(tree) == {}


def test_leftovers_of_an_unpacking_are_noticed(tree: Path) -> None:
    (tree / "usr/bin/sort.dpkg-new").write_bytes(b"half")
    assert check(tree, "existence").leftovers == ("/usr/bin/sort.dpkg-new",)


def test_links_out_of_the_root_are_not_followed(tree: Path) -> None:
    """A whole folder replaced by a link to the rescue system's: inside the root nothing lies there."""
    shutil.rmtree(tree / "usr/share/perl5")
    (tree / "usr/share/perl5").symlink_to("../../../../../../../../usr/share/perl5")
    found = damage(tree)
    assert found and all(p.startswith("/usr/share/perl5/") and d.kind == "missing" for p, d in found.items())


def test_a_stop_is_heeded(tree: Path) -> None:
    token = CancelToken()
    token.cancel()
    before = threading.active_count()
    with pytest.raises(Interrupted):
        check(tree, cancel=token)
    assert threading.active_count() == before


# --- the database ---------------------------------------------------------------------------------


def test_a_sound_database(tree: Path) -> None:
    found = database(tree)
    versions = roots.installed_versions(tree)
    assert found.fact.state == "ok" and found.fact.detail == "" and found.fact.interrupted == ()
    assert {p.name: p.version for p in found.fact.packages} == versions
    assert found.fact.listed == len(versions)
    assert found.native == "amd64"
    assert next(p for p in found.fact.packages if p.name == "dpkg").essential
    assert set(found.conffiles) >= {"/etc/login.defs", "/etc/deluser.conf"}


def _zeros(data: bytes) -> bytes:
    return bytes(len(data))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_between_stanzas(data: bytes) -> bytes:
    return data[: data.index(b"\n\n", len(data) // 2) + 1]


def _hole(data: bytes) -> bytes:
    return data[:40960] + bytes(4096) + data[45056:]


@pytest.mark.parametrize("spoil", [_zeros, _cut, _cut_between_stanzas, _hole])
def test_a_damaged_status_is_told(tree: Path, spoil: object) -> None:
    good = (tree / STATUS).read_bytes()
    (tree / STATUS).write_bytes(spoil(good))  # type: ignore[operator]
    (tree / "var/backups").mkdir(exist_ok=True)
    (tree / "var/backups/dpkg.status.0").write_bytes(good)
    subprocess.run(["gzip", "-k", tree / "var/backups/dpkg.status.0"], check=True)
    (tree / "var/backups/dpkg.status.0.gz").rename(tree / "var/backups/dpkg.status.1.gz")
    found = database(tree)
    assert found.fact.state == "damaged" and found.fact.detail
    assert len(found.fact.packages) < found.fact.listed
    backups = {b.path: b for b in found.fact.backups}
    for name in ("/var/backups/dpkg.status.0", "/var/backups/dpkg.status.1.gz"):
        assert backups[name].listed == found.fact.listed and backups[name].packages == found.fact.listed
    # Without a status file the lists still tell what is gone.
    (tree / "usr/bin/sort").unlink()
    assert set(damage(tree)) == {"/usr/bin/sort"}


@pytest.mark.parametrize(("content", "state"), [(None, "missing"), (b"", "empty"), (b"\n", "empty")])
def test_a_lost_status_is_told(tree: Path, content: bytes | None, state: str) -> None:
    (tree / STATUS).unlink()
    if content is not None:
        (tree / STATUS).write_bytes(content)
    found = database(tree)
    assert found.fact.state == state
    assert found.fact.packages == () and found.fact.listed > 100
    assert [b.path for b in found.fact.backups] == ["/var/lib/dpkg/status-old"]


def test_a_fifo_for_a_status_does_not_hang(tree: Path) -> None:
    (tree / STATUS).unlink()
    os.mkfifo(tree / STATUS)
    assert database(tree).fact.state == "damaged"


def test_an_interrupted_run_is_told(tree: Path) -> None:
    deb = next(iter(roots.golden_debs().glob("less_*.deb")))
    command = ["dpkg", f"--root={tree}", "--force-script-chrootless", "--unpack", str(deb)]
    for name in ("passwd", "group"):  # dpkg maps the statoverride's names by the rescue system's files
        subprocess.run(["mount", "--bind", tree / "etc" / name, f"/etc/{name}"], check=True)
    try:
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    finally:
        for name in ("passwd", "group"):
            subprocess.run(["umount", f"/etc/{name}"], check=True)
    (tree / "var/lib/dpkg/updates/0001").write_text("Package: less\nStatus: install ok unpacked\n")
    found = database(tree)
    assert next(p for p in found.fact.packages if p.name == "less").state == "unpacked"
    assert any("updates/0001" in sign for sign in found.fact.interrupted)


def test_archives_at_hand(tree: Path, work: Path) -> None:
    cache = tree / "var/cache/apt/archives"
    cache.mkdir(parents=True, exist_ok=True)
    folder = roots.debs_for(work / "debs", "libc6", "tar")
    for deb in folder.iterdir():
        (cache / deb.name).write_bytes(deb.read_bytes())
    cut = next(cache.glob("tar_*.deb"))
    cut.write_bytes(cut.read_bytes()[:-100])
    os.rename(next(folder.glob("libc6_*.deb")), folder / "the-c-library.deb")
    versions = roots.installed_versions(tree)
    with TargetRoot(tree) as root:
        packages = dpkg.probe_database(root).fact.packages
        in_cache = archives.probe_cache(root)
        sources = archives.probe_sources(root)
    assert [(a.package, a.version, a.architecture, a.origin) for a in in_cache] == [
        ("libc6", versions["libc6"], "amd64", "cache")
    ]
    in_folder = archives.probe_folder(Runner(), str(folder), packages)
    assert {(a.package, a.version, a.path) for a in in_folder} == {
        ("libc6", versions["libc6"], str(folder / "the-c-library.deb")),
        ("tar", versions["tar"], str(next(folder.glob("tar_*.deb")))),
    }
    assert sources and all(line.startswith("deb ") for line in sources)
