# SPDX-License-Identifier: GPL-3.0-or-later
"""Laying packages over a patient: links to folders kept, nothing outside touched, nothing needless done."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from lab import disks, trees
from lab.executing import Bench, looking, make_deb

from rescue_agent.execute.undo import undo
from rescue_agent.model.operation import Bind, Mount, Unpack
from rescue_agent.model.run import Saved
from rescue_agent.system import mounts

pytestmark = pytest.mark.root

FILES = {
    "lib/new.so.1": "a library\n",
    "lib/new.so": Path("new.so.1"),
    "usr/bin/tool": "#!/bin/sh\n",
    "etc/tool.conf": "the package's\n",
    "usr/share/doc/tool/README": "doc\n",
}


@pytest.fixture
def deb(work: Path) -> str:
    return make_deb(work, "tool", FILES, conffiles=("/etc/tool.conf",))


def snapshot(bench: Bench) -> dict[str, str]:
    with looking(bench.device) as root:
        return trees.snapshot(root, "/", ("/var/log", "/lost+found"))


def saved(bench: Bench) -> list[str]:
    return [r.path for r in bench.records() if isinstance(r, Saved)]


def test_links_to_folders_stay_and_files_come_whole(bench: Bench, deb: str) -> None:
    assert bench.on_root(Unpack(archive=deb)) == "done"
    with looking(bench.device) as root:
        assert os.readlink(root / "lib") == "usr/lib"
        assert (root / "usr/lib/new.so.1").read_text() == "a library\n"
        assert os.readlink(root / "usr/lib/new.so") == "new.so.1"
        assert (root / "etc/tool.conf").read_text() == "the package's\n"


def test_undo_takes_a_package_out_again(bench: Bench, deb: str) -> None:
    before = snapshot(bench)
    assert bench.on_root(Unpack(archive=deb)) == "done"
    assert snapshot(bench) != before
    assert not undo(bench.runner, bench.resources, bench.directory, bench.places()).refused
    assert snapshot(bench) == before


def test_what_is_right_is_not_written_again(bench: Bench, deb: str, work: Path) -> None:
    assert bench.on_root(Unpack(archive=deb)) == "done"
    before = snapshot(bench)
    with disks.mounted_device(bench.device, "ext4") as root:
        inode = (root / "usr/lib/new.so.1").stat().st_ino
        (root / "usr/bin/tool").write_text("damaged\n")
    again = Bench(work, device=bench.device, run="again")
    assert again.on_root(Unpack(archive=deb)) == "done"
    assert saved(again) == ["/usr/bin/tool"]
    assert snapshot(bench) == before
    with looking(bench.device) as root:
        assert (root / "usr/lib/new.so.1").stat().st_ino == inode


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.chmod(0o000),
        lambda file: os.chown(file, 5, 5),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: file.unlink(),
    ],
    ids=["emptied", "mode", "owner", "a link instead", "gone"],
)
def test_damage_of_every_kind_is_mended(bench: Bench, deb: str, work: Path, damage: object) -> None:
    assert bench.on_root(Unpack(archive=deb)) == "done"
    good = snapshot(bench)
    with disks.mounted_device(bench.device, "ext4") as root:
        damage(root / "usr/lib/new.so.1")  # type: ignore[operator]
    again = Bench(work, device=bench.device, run="again")
    assert again.on_root(Unpack(archive=deb)) == "done"
    assert snapshot(bench) == good


def test_only_the_members_asked_for(bench: Bench, deb: str) -> None:
    before = snapshot(bench)
    assert bench.on_root(Unpack(archive=deb, members=("/usr/lib/new.so.1",))) == "done"
    after = snapshot(bench)
    assert set(after) - set(before) == {"/usr/lib/new.so.1"}


def test_a_member_that_is_not_there_is_an_error_before_anything_happens(bench: Bench, deb: str) -> None:
    before = snapshot(bench)
    outcome = bench.on_root(Unpack(archive=deb, members=("/usr/bin/tool", "/usr/bin/other")))
    assert "does not hold /usr/bin/other" in outcome
    assert snapshot(bench) == before


def test_the_owners_configuration_is_kept(bench: Bench, deb: str) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "etc/tool.conf").write_text("the owner's\n")
    assert bench.on_root(Unpack(archive=deb)) == "done"
    with looking(bench.device) as root:
        assert (root / "etc/tool.conf").read_text() == "the owner's\n"


def test_diversions_and_excluded_paths_are_honoured(bench: Bench, deb: str) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "var/lib/dpkg/diversions").write_text("/usr/bin/tool\n/usr/bin/tool.orig\n:\n")
        (root / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True)
        (root / "etc/dpkg/dpkg.cfg.d/nodoc").write_text("path-exclude=/usr/share/doc/*\n")
        (root / "usr/bin/tool").write_text("the local one\n")
    assert bench.on_root(Unpack(archive=deb)) == "done"
    with looking(bench.device) as root:
        assert (root / "usr/bin/tool").read_text() == "the local one\n"
        assert (root / "usr/bin/tool.orig").read_text() == "#!/bin/sh\n"
        assert not (root / "usr/share/doc/tool/README").exists()


def test_a_lost_folder_behind_a_link_is_made_again(bench: Bench, deb: str) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "lib").unlink()
        (root / "lib").symlink_to("usr/lost/lib")
    assert bench.on_root(Unpack(archive=deb)) == "done"
    with looking(bench.device) as root:
        assert (root / "usr/lost/lib/new.so.1").is_file()
        assert os.readlink(root / "lib") == "usr/lost/lib"


# --- hostile ------------------------------------------------------------------------------------


def rescue() -> object:
    return trees.snapshot(Path("/etc")), trees.snapshot(Path("/usr/local"))


@pytest.mark.parametrize("link", ["/etc", "../../../../../../etc", "/dev", "/proc/self/root/etc"])
def test_a_link_out_of_the_patient_is_followed_inside_or_refused(bench: Bench, work: Path, link: str) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "opt").symlink_to(link)
    deb = make_deb(work, "opt", {"opt/owned-by-lab": "x\n"})
    before = rescue()
    proc = Mount(source="proc", path="/proc", type="proc")
    outcome = bench.on_root(Bind(source="/dev", path="/dev"), proc, Unpack(archive=deb))
    assert rescue() == before
    assert not Path("/dev/owned-by-lab").exists()
    assert not Path("/etc/owned-by-lab").exists()
    with looking(bench.device) as root:
        inside = (root / "etc/owned-by-lab").exists()
    assert inside == (link.endswith("/etc") and "proc" not in link)
    assert outcome.startswith("done" if inside else "failed: "), outcome


def deb_of(work: Path, *members: tarfile.TarInfo) -> str:
    """Make a package with exactly these members, which no packager would produce."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    (work / "data.tar").write_bytes(data.getvalue())
    (work / "debian-binary").write_text("2.0\n")
    make_deb(work, "frame", {"a": "b"})
    disks.run("ar", "x", f"--output={work}", work / "frame.deb", "control.tar")
    disks.run("ar", "rc", work / "odd.deb", work / "debian-binary", work / "control.tar", work / "data.tar")
    return str(work / "odd.deb")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 3) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = size if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "members",
    [
        (member("./../../../../etc/owned-by-lab"),),
        (member("/etc/owned-by-lab"),),
        (member("./usr/../../etc/owned-by-lab"),),
        (member("./dev/owned-by-lab", tarfile.BLKTYPE),),
        (member("./etc/owned-by-lab", tarfile.FIFOTYPE),),
        (member("./home/owned-by-lab", tarfile.LNKTYPE, "../../../etc/passwd"),),
        (member("./home/owned-by-lab", tarfile.LNKTYPE, "./dev/null"),),
        (member("./home/owned-by-lab", tarfile.LNKTYPE, "./nothing"),),
        (member("./etc/passwd/owned-by-lab"),),
    ],
    ids=lambda members: f"{members[0].name} {members[0].linkname}",
)
def test_a_hostile_archive_is_refused(bench: Bench, work: Path, members: tuple[tarfile.TarInfo, ...]) -> None:
    deb = deb_of(work, *members)
    before = rescue(), snapshot(bench)
    outcome = bench.on_root(Bind(source="/dev", path="/dev"), Unpack(archive=deb))
    assert outcome.startswith("failed:"), outcome
    assert (rescue(), snapshot(bench)) == before


def test_an_archive_that_makes_its_own_way_out_stays_inside(bench: Bench, work: Path) -> None:
    """First a link to the rescue's /etc, then a file through it."""
    deb = deb_of(work, member("./srv", tarfile.SYMTYPE, "/etc"), member("./srv/owned-by-lab"))
    before = rescue()
    assert bench.on_root(Unpack(archive=deb)) == "done"
    assert rescue() == before
    with looking(bench.device) as root:
        assert (root / "etc/owned-by-lab").is_file()


def test_hard_links_and_set_user_id(bench: Bench, work: Path) -> None:
    first = member("./usr/bin/one")
    first.mode = 0o4755
    deb = deb_of(work, first, member("./usr/bin/two", tarfile.LNKTYPE, "./usr/bin/one"))
    assert bench.on_root(Unpack(archive=deb, members=("usr/bin/two",))) == "done"
    with looking(bench.device) as root:
        one, two = (root / "usr/bin/one").stat(), (root / "usr/bin/two").stat()
        assert one.st_ino == two.st_ino
        assert stat.S_IMODE(one.st_mode) == 0o4755


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_a_cut_off_archive_leaves_no_half_file(bench: Bench, work: Path, keep: float) -> None:
    deb = Path(make_deb(work, "big", {"usr/lib/big": os.urandom(2 << 20), "usr/lib/a": "a\n"}))
    whole = deb.read_bytes()
    deb.write_bytes(whole[: int(len(whole) * keep)])
    outcome = bench.on_root(Unpack(archive=str(deb)))
    assert outcome.startswith("failed:"), outcome
    assert "download it again" in outcome
    with looking(bench.device) as root:
        assert not (root / "usr/lib/big").exists()
        assert not list((root / "usr/lib").glob(".*rescue*"))
    assert not mounts.mounts_below("/run/rescue-agent/target")
