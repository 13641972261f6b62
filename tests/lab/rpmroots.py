# SPDX-License-Identifier: GPL-3.0-or-later
"""Roots of the RPM families for the tests: with dnf (like EL 8), yum alone (like EL 7), zypper (like Leap).

Built once and cached beside the Debian roots (see lab.roots), from the packages of lab.rpms: about
half a minute for the repository and 5 s for each root. The same root is then had as a disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lab import disks, trees
from lab.agent import OFFLINE
from lab.disks import Disk, Part
from lab.roots import MARK, cache_dir
from rescue_agent.system.runner import Runner
from rescue_agent.ui import demo_rpms as rpms

Flavour = Literal["el8", "el7", "leap"]

NEEDED = ("rpm", "rpmbuild", "rpmsign", "rpmkeys", "dnf", "createrepo_c", "gpg")
"""Programs of the machine without which no test of this family can run."""
DATABASE = "var/lib/rpm"
SIZE_MIB = 480

_PACKAGES: dict[Flavour, tuple[str, ...]] = {
    "el8": (*rpms.BASE, "dnf", "centos-release-8.9"),
    "el7": (*rpms.BASE, "yum", "centos-release-7.9"),
    "leap": (*rpms.BASE, "zypper", "openSUSE-release"),
}


def repository() -> Path:
    """Return the folder of the lab's packages, every one signed; build it on first use."""
    return _built("rpms", Path(rpms.__file__), _build_repository) / "repo"


def signing_home() -> Path:
    """Return gpg's home with the key that the packages are signed with."""
    repository()
    return _built("rpms", Path(rpms.__file__), _build_repository) / "gpg"


def golden_tree(flavour: Flavour = "el8") -> Path:
    """Return an installed root. It is shared: read it, never write to it."""
    source = repository().parent / MARK

    def build(folder: Path) -> None:
        _install(flavour, folder / "tree")

    return _built(f"rpm-{flavour}", Path(__file__), build, extra=str(source.parent.name)) / "tree"


@contextmanager
def fresh_tree(work: Path, flavour: Flavour = "el8") -> Iterator[Path]:
    """Give a writable copy of a root below ``work``: an overlay mount, gone afterwards."""
    upper, scratch, merged = work / "upper", work / "overlay-work", work / "tree"
    for folder in (upper, scratch, merged):
        folder.mkdir(parents=True)
    layers = f"lowerdir={golden_tree(flavour)},upperdir={upper},workdir={scratch}"
    disks.run("mount", "-t", "overlay", "-o", layers, "overlay", merged)
    try:
        yield merged
    finally:
        disks.run("umount", "--", merged)


def build_rpm_disk(path: Path, flavour: Flavour = "el8") -> Disk:
    """Make the disk of a healthy root at ``path``: a DOS table with one ext4 partition."""
    part = Part(tree=golden_tree(flavour), uuid=disks.ROOT_UUID, label="root")
    return disks.build_disk(path, [part], size_mib=SIZE_MIB)


def installed(root: Path) -> set[str]:
    """Return the packages that the root's own database names, as its own rpm tells them."""
    form = "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\\n"
    return set(disks.run("chroot", root, "rpm", "-qa", "--qf", form).split())


def verify(root: Path) -> list[str]:
    """Return what the root's own rpm finds different, configuration and times apart."""
    with tempfile.NamedTemporaryFile("w+") as out:
        # Its exit code only says that there are differences.
        disks.run("sh", "-c", f"chroot '{root}' rpm -Va --nodeps --noscripts > {out.name} || true")
        lines = out.read().splitlines()
    return [line for line in lines if " c /" not in line and not re.match(r"[.]{7}T[.] ", line)]


OWN = (
    *trees.TRACES,
    *("/var/lib/rpm", "/var/lib/dnf", "/var/lib/yum", "/var/lib/zypp", "/var/lib/YaST2", "/root/.gnupg"),
)
"""What a package manager writes for itself, beside what the agent leaves."""


def packages() -> tuple[str | Path, ...]:
    """Return the options for a repair with the lab's packages at hand and no network."""
    return ("--packages", repository(), *OFFLINE)


def changes(before: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return what is different from a snapshot, apart from what a package manager writes for itself."""
    found = trees.changes(dict(before), trees.snapshot(root))
    return {path: how for path, how in found.items() if not path.startswith(OWN)}


def archive(name: str) -> Path:
    """Return the package file of one package."""
    (found,) = (
        p for p in repository().glob("*.rpm") if re.fullmatch(re.escape(name) + r"-[^-]+-[^-]+", p.stem)
    )
    return found


def _built(name: str, recipe: Path, build: object, extra: str = "") -> Path:
    """Return the folder of something that is built once, named by what it is made by."""
    assert callable(build)
    digest = hashlib.sha256(recipe.read_bytes() + extra.encode()).hexdigest()[:12]
    folder = cache_dir() / f"{name}-{digest}"
    if (folder / MARK).exists():
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(cache_dir() / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / MARK).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            (folder / MARK).touch()
    return folder


def maker(work: Path) -> rpms.Maker:
    """Return what makes packages, with its scratch files below ``work``."""
    return rpms.Maker(Runner(), work)


def _build_repository(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        more = ("zypper", "libzypp-common", "libzypp-config")
        rpms.Maker(Runner(), Path(work), more).build_repository(folder / "repo")
        shutil.copytree(Path(work) / "gpg", folder / "gpg", ignore=shutil.ignore_patterns("S.*"))


def _install(flavour: Flavour, root: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        maker(Path(work)).install(repository(), root, *_PACKAGES[flavour])
    letters = root / "home/alice/letters"
    letters.mkdir(mode=0o700)
    for number in range(1, 10):
        (letters / f"letter-{number}").write_text("".join(f"{n}\n" for n in range(number * 4000)))
    (root / "home/alice/latest").symlink_to("letters/letter-1")
    disks.run("chroot", root, "chown", "-R", "alice:alice", "/home/alice")
    (root / "etc/hostname").write_text("patient\n")
    (root / "etc/machine-id").write_text("5e5c00e000000000000000000000a6e7\n")
    (root / "etc/fstab").write_text(f"UUID={disks.ROOT_UUID} / ext4 defaults 0 1\n")
    if flavour == "el7":
        _yum_history(root)
    if flavour == "leap":
        _zypp_history(root)


def _zypp_history(root: Path) -> None:
    """Keep the history as zypper does: a line for each installed package (libzypp's HistoryLog.cc)."""
    form = "2026-11-24 10:00:00|install|%{NAME}|%{VERSION}-%{RELEASE}|%{ARCH}||lab||\\n"
    lines = disks.run("chroot", root, "rpm", "-qa", "--qf", form).splitlines()
    (root / "var/log/zypp").mkdir(parents=True, exist_ok=True)
    (root / "var/log/zypp/history").write_text("".join(f"{x}\n" for x in lines if "gpg-pubkey" not in x))
    for path in (root / "var/lib/dnf").glob("history.sqlite*"):
        path.unlink()


def _yum_history(root: Path) -> None:
    """Keep the history as yum 3 does: a folder for each installed package (yum/rpmsack.py, yumdb)."""
    for label in sorted(installed(root)):
        if label.startswith("gpg-pubkey-"):
            continue
        name, version, rest = label.rsplit("-", 2)
        release, _, arch = rest.rpartition(".")
        identity = hashlib.sha1(label.encode()).hexdigest()
        place = root / f"var/lib/yum/yumdb/{name[0]}/{identity}-{name}-{version}-{release}-{arch}"
        place.mkdir(parents=True)
        (place / "reason").write_text("user")
    for path in (root / "var/lib/dnf").glob("history.sqlite*"):
        path.unlink()
