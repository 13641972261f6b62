# SPDX-License-Identifier: GPL-3.0-or-later
"""Roots of the pacman family: packages made from Debian's programs, installed by the real pacman.

A package is made as makepkg makes it: ``.PKGINFO``, ``.MTREE`` by bsdtar's mtree writer with makepkg's
keywords, the tar packed (PKGBUILD(5)), a detached signature beside it. Everything is cached below
``lab.roots.cache_dir``.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lab import disks, trees
from lab.agent import OFFLINE
from lab.disks import Disk, Part
from lab.roots import cache_dir
from lab.rpmroots import _built as built_once

NEEDED = ("pacman", "repo-add", "bsdtar", "zstd", "xz", "gpg")
"""Programs of the machine without which no test of this family can run."""
LOCAL = "var/lib/pacman/local"
ARCHITECTURE = "x86_64"
SIZE_MIB = 480
CONFIG = (
    "[options]\nHoldPkg = pacman glibc\nArchitecture = auto\nCheckSpace\n"
    "SigLevel = Required DatabaseOptional\nLocalFileSigLevel = Optional\n\n"
    "[lab]\nInclude = /etc/pacman.d/mirrorlist\n"
)

_ROOTS = (
    *("bash", "coreutils", "grep", "sed", "gawk", "findutils", "util-linux", "mount", "tar", "gzip", "less"),
    *("procps", "systemd", "systemd-sysv", "udev", "pacman-package-manager", "libarchive-tools", "gpg"),
    *("gpg-agent", "login", "passwd", "hostname", "kmod", "ncurses-base", "libc-bin", "iproute2"),
)
_GROUPS: Mapping[str, str] = {
    "acl": "libacl1",
    "curl": "libcurl4",
    "gcc-libs": "libgcc-s1 libstdc++6",
    "glibc": "libc6 libc-bin",
    "gnupg": "gpg gpg-agent gpgconf",
    "gpgme": "libgpgme11",
    "iproute2": "iproute2",
    "kmod": "kmod libkmod2",
    "libarchive": "libarchive13 libarchive-tools",
    "libcap": "libcap2 libcap2-bin",
    "openssl": "libssl3",
    "pacman": "pacman-package-manager libalpm13",
    "pam": "libpam0g libpam-modules libpam-modules-bin libpam-runtime",
    "procps-ng": "procps libproc2-0",
    "readline": "libreadline8",
    "shadow": "login passwd",
    "systemd": "systemd systemd-sysv udev",
    "systemd-libs": "libsystemd0 libsystemd-shared libudev1",
    "util-linux": "util-linux util-linux-extra mount",
    "util-linux-libs": "libblkid1 libmount1 libsmartcols1 libuuid1 libfdisk1",
    "xz": "liblzma5",
    "zlib": "zlib1g",
    "zstd": "libzstd1",
}
"""Name on Arch → the Debian packages that bring the same; all others keep their name."""
_UNUSED = re.compile(
    r"(perl|libperl|debconf|cdebconf|dpkg|adduser|usrmerge|pinentry|base-files|base-passwd|sysvinit-utils"
    r"|init-system-helpers|libdebconf|gcc-12-base|lsb-base|readline-common|media-types|openssl\Z)"
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LEFT_OUT = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"),
    *("usr/share/info", "etc/init.d"),
)
_FOLDERS = (
    *("boot", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr/bin"),
    *("usr/sbin", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/share", "var/cache/pacman/pkg", "var/log"),
    *("var/lib/pacman", "var/tmp", "etc/pacman.d"),
)
_MTREE = "!all,use-set,type,uid,gid,mode,time,size,md5,sha256,link"
_DEVICES = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))

OWN = (*trees.TRACES, "/var/lib/pacman", "/etc/pacman.d/gnupg", "/root/.gnupg", "/etc/ld.so.cache")
"""What pacman writes for itself, beside what the agent leaves."""


def repository() -> Path:
    """Return the folder of the lab's packages and the database ``lab.db`` of them; build it on first use."""
    return _built() / "repo"


def signing_home() -> Path:
    """Return gpg's home with the key that the packages are signed with."""
    return _built() / "gpg"


def golden_tree() -> Path:
    """Return an installed root. It is shared: read it, never write to it."""
    made = _built()

    def build(folder: Path) -> None:
        _install(made, folder / "tree")

    return built_once("arch-root", Path(__file__), build, extra=made.name) / "tree"


def build_arch_disk(path: Path) -> Disk:
    """Make the disk of a healthy root at ``path``: a DOS table with one ext4 partition."""
    part = Part(tree=golden_tree(), uuid=disks.ROOT_UUID, label="root")
    return disks.build_disk(path, [part], size_mib=SIZE_MIB)


def packages() -> tuple[str | Path, ...]:
    """Return the options for a repair with the lab's packages at hand and no network."""
    return ("--packages", repository(), *OFFLINE)


def verify(root: Path) -> list[str]:
    """Return what the root's own pacman finds different, backup files and times apart."""
    # Its exit code only says that there are differences. Errors come first: both are one stream otherwise.
    line = 'said=$(chroot "$1" pacman -Qkk 2>&1 > "$2" || :); echo "$said"; cat "$2"'
    with tempfile.NamedTemporaryFile() as out:
        lines = disks.run("sh", "-c", line, "sh", root, out.name).splitlines()
    noise = re.compile(r"\A\Z| altered files?\Z|Modification time|database file for|\Abackup file: ")
    return [line for line in lines if not noise.search(line)]


def changes(before: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return what is different from a snapshot, apart from what pacman writes for itself."""
    found = trees.changes(dict(before), trees.snapshot(root))
    return {path: how for path, how in found.items() if not path.startswith(OWN)}


def installed(root: Path) -> dict[str, str]:
    """Return name and version of each package, as the root's own pacman tells them."""
    lines = disks.run("chroot", root, "pacman", "-Q").splitlines()
    return dict(line.split(" ", 1) for line in lines)  # type: ignore[misc]


def entry(root: Path, name: str) -> Path:
    """Return the folder of a package in the local database."""
    (found,) = (p for p in (root / LOCAL).iterdir() if p.name.rsplit("-", 2)[0] == name)
    return found


def make_package(
    work: Path,
    target: Path,
    name: str,
    version: str,
    tree: Path,
    backup: Sequence[str] = (),
    pack: str = "zst",
) -> Path:
    """Make a package file of all that lies below ``tree``, which is used up. Returns its path."""
    size = sum(p.lstat().st_size for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    needs = {"filesystem": (), "glibc": ("filesystem",)}.get(name, ("filesystem", "glibc"))
    (tree / ".PKGINFO").write_text(
        f"pkgname = {name}\npkgbase = {name}\npkgver = {version}\npkgdesc = made for tests\n"
        f"url = about:blank\nbuilddate = 1700000000\npackager = lab\nsize = {size}\narch = {ARCHITECTURE}\n"
        + "".join(f"backup = {path.lstrip('/')}\n" for path in backup)
        + "".join(f"depend = {need}\n" for need in needs)
    )
    names = [".PKGINFO", *sorted(p.name for p in tree.iterdir() if p.name != ".PKGINFO")]
    files = work / f"{name}-{version}.tar"
    disks.run(
        *("env", "-C", tree, "LANG=C", "bsdtar", "-c", "-z", "-f", ".MTREE", "--format=mtree"),
        *(f"--options={_MTREE}", *names),
    )
    disks.run("env", "-C", tree, "LANG=C", "bsdtar", "--no-fflags", "-c", "-f", files, ".MTREE", *names)
    target.mkdir(parents=True, exist_ok=True)
    made = target / f"{name}-{version}-{ARCHITECTURE}.pkg.tar.{pack}"
    packer = {"zst": ("zstd", "-q", "-1", "-f", "-o"), "gz": ("sh", "-c", 'gzip -c < "$1" > "$0"')}[pack]
    disks.run(*packer, made, files)
    files.unlink()
    shutil.rmtree(tree)
    return made


def sign(home: Path, *archives: Path) -> None:
    """Put a detached signature beside each package file."""
    for path in archives:
        disks.run("gpg", "--homedir", home, "--batch", "--yes", "-q", "--no-armor", "--detach-sign", path)
    disks.run("gpgconf", "--homedir", home, "--kill", "gpg-agent")


def index(folder: Path, name: str = "lab") -> None:
    """Write the database of a repository over all its packages."""
    archives = sorted(p for p in folder.glob("*.pkg.tar.*") if p.suffix != ".sig")
    disks.run("repo-add", "-q", folder / f"{name}.db.tar.gz", *archives)


@contextmanager
def key_home() -> Iterator[Path]:
    """Give the signing home under a short name: gpg-agent's socket has at most 108 bytes."""
    with tempfile.TemporaryDirectory() as short:
        place = Path(short) / "gpg"
        shutil.copytree(signing_home(), place, ignore=shutil.ignore_patterns("S.*"))
        place.chmod(0o700)
        yield place


def _built() -> Path:
    return built_once("arch-packages", Path(__file__), _build)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir()) as place, tempfile.TemporaryDirectory() as short:
        work, target = Path(place), folder / "repo"
        target.mkdir()
        home = _make_key(Path(short))
        debs = _download(work)
        groups = _grouped(debs)
        _base_package(work, target, debs["base-passwd"])

        def make(name: str) -> None:
            _from_debs(work, target, name, groups[name])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(make, sorted(groups)))
        sign(home, *sorted(target.glob("*.pkg.tar.*")))
        index(target)
        (target / "key.asc").write_text(disks.run("gpg", "--homedir", home, "--armor", "--export", "lab"))
        shutil.copytree(home, folder / "gpg", ignore=shutil.ignore_patterns("S.*"))


def _make_key(place: Path) -> Path:
    home = place / "gpg"
    home.mkdir(mode=0o700)
    words = ("--batch", "-q", "--passphrase", "", "--quick-generate-key", "lab <lab@localhost>")
    disks.run("gpg", "--homedir", home, *words, "rsa2048", "sign", "never")
    disks.run("gpgconf", "--homedir", home, "--kill", "gpg-agent")
    return home


def _download(work: Path) -> dict[str, Path]:
    """Download the Debian packages that the root is made of, with what they need on an empty system."""
    folder, empty = work / "debs", work / "status"
    folder.mkdir()
    empty.write_text("")
    options = ("-o", f"Dir::State::status={empty}", "-s", "install", "--no-install-recommends")
    told = disks.run("apt-get", *options, *_ROOTS)
    found = {n.partition(":")[0] for n in re.findall(r"^Inst (\S+)", told, re.MULTILINE)}
    names = sorted(n for n in found if not _UNUSED.match(n))
    disks.run("env", "-C", folder, "apt-get", "-q", "download", *names, "base-passwd")
    return {path.name.partition("_")[0]: path for path in folder.glob("*.deb")}


def _grouped(debs: Mapping[str, Path]) -> dict[str, list[Path]]:
    groups, taken = {}, {"base-passwd"}
    for name, members in _GROUPS.items():
        found = [debs[member] for member in members.split() if member in debs]
        taken.update(members.split())
        if found:
            groups[name] = found
    return {**{name: [path] for name, path in debs.items() if name not in taken}, **groups}


def _from_debs(work: Path, target: Path, name: str, debs: Sequence[Path]) -> None:
    tree = work / "trees" / name
    tree.mkdir(parents=True)
    backup: set[str] = set()
    for deb in debs:
        disks.run("dpkg-deb", "-x", deb, tree)
        told = disks.run("sh", "-c", f"dpkg-deb -I '{deb}' conffiles 2> /dev/null || true")
        backup.update(line.strip() for line in told.splitlines() if line.startswith("/"))
    for part in _MERGED:
        if (tree / part).is_dir() and not (tree / part).is_symlink():
            (tree / "usr" / part).mkdir(parents=True, exist_ok=True)
            disks.run("cp", "-a", f"{tree}/{part}/.", tree / "usr" / part)
            shutil.rmtree(tree / part)
    for part in _LEFT_OUT:
        shutil.rmtree(tree / part, ignore_errors=True)
    if name == "bash":
        (tree / "usr/bin/sh").symlink_to("bash")
    if name == "dash":
        (tree / "usr/bin/sh").unlink()
    if name == "pacman":
        _write(tree / "etc/pacman.conf", CONFIG)
        _write(tree / "etc/pacman.d/mirrorlist", "Server = file:///srv/repo\n")
        backup |= {"/etc/pacman.conf", "/etc/pacman.d/mirrorlist"}
    version = disks.run("dpkg-deb", "-f", debs[0], "Version").strip().rpartition(":")[2]
    version, _, revision = version.partition("-")
    revision = re.sub(r"[^0-9.].*", "", revision).strip(".") or "1"
    there = [path for path in sorted(backup) if (tree / path[1:]).is_file()]
    pack = "gz" if name == "less" else "zst"
    make_package(work, target, name, f"{version.replace('-', '.')}-{revision}", tree, there, pack)


def _base_package(work: Path, target: Path, passwd: Path) -> None:
    """Make the package ``filesystem``: folders, links, users and what says which distribution it is."""
    tree = work / "trees/filesystem"
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        (tree / name).chmod(mode)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "var/run").symlink_to("../run")
    (tree / "etc/mtab").symlink_to("../proc/self/mounts")
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    _write(
        tree / "usr/lib/os-release",
        'NAME="Arch Linux"\nPRETTY_NAME="Arch Linux (lab)"\nID=arch\nBUILD_ID=rolling\n',
    )
    unpacked = work / "base-passwd"
    disks.run("dpkg-deb", "-x", passwd, unpacked)
    texts = {
        "passwd": (unpacked / "usr/share/base-passwd/passwd.master").read_text(),
        "group": (unpacked / "usr/share/base-passwd/group.master").read_text(),
        "shadow": "root:*:19000:0:99999:7:::\n",
        "hosts": "127.0.0.1 localhost\n",
        "shells": "/bin/sh\n/bin/bash\n",
        "fstab": "",
        "profile": "PATH=/usr/sbin:/usr/bin\n",
    }
    for name, text in texts.items():
        _write(tree / "etc" / name, text)
    (tree / "etc/shadow").chmod(0o600)
    make_package(work, target, "filesystem", "2026.11.1-1", tree, [f"/etc/{name}" for name in texts])


def install(root: Path, *archives: Path) -> None:
    """Install package files into a root with the machine's own pacman."""
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "pacman.conf"
        config.write_text("[options]\nArchitecture = auto\nSigLevel = Never\nLocalFileSigLevel = Never\n")
        disks.run(
            *("pacman", "--root", root, "--dbpath", root / "var/lib/pacman", "--cachedir", place),
            *("--hookdir", place, "--gpgdir", place, "--logfile", root / "var/log/pacman.log"),
            *("--config", config, "--noconfirm", "--noprogressbar", "-U", *archives),
        )


def _install(made: Path, root: Path) -> None:
    """Install every package with the real pacman, as pacstrap(8) does, and give the root a user."""
    for name in ("var/lib/pacman", "dev"):
        (root / name).mkdir(parents=True)
    install(root, *sorted(p for p in (made / "repo").glob("*.pkg.tar.*") if p.suffix != ".sig"))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "gnupg"
        home.mkdir(mode=0o700)
        (home / "pubring.gpg").touch()  # as pacman-key --init does: the one that pacman looks for
        disks.run("gpg", "--homedir", home, "--batch", "-q", "--import", made / "repo/key.asc")
        listed = disks.run("gpg", "--homedir", home, "--with-colons", "--list-keys")
        mark = re.search(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)
        assert mark is not None
        disks.run("gpg", "--homedir", home, "--batch", "-q", "--import-ownertrust", stdin=f"{mark[1]}:6:\n")
        disks.run("gpg", "--homedir", home, "--batch", "-q", "--check-trustdb")
        disks.run("sh", "-c", f"gpgconf --homedir '{home}' --kill all || true")
        shutil.copytree(home, root / "etc/pacman.d/gnupg", ignore=shutil.ignore_patterns("S.*"))
    for name, minor in _DEVICES:
        os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    disks.run("chroot", root, "useradd", "-m", "-s", "/bin/bash", "alice")
    letters = root / "home/alice/letters"
    letters.mkdir(mode=0o700)
    for number in range(1, 10):
        (letters / f"letter-{number}").write_text("".join(f"{n}\n" for n in range(number * 4000)))
    disks.run("chroot", root, "chown", "-R", "alice:alice", "/home/alice")
    disks.run("chroot", root, "ldconfig")
    (root / "etc/hostname").write_text("patient\n")
    (root / "etc/machine-id").write_text("5e5c00e000000000000000000000a6e7\n")
    (root / "etc/fstab").write_text(f"UUID={disks.ROOT_UUID} / ext4 defaults 0 1\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
