# SPDX-License-Identifier: GPL-3.0-or-later
"""RPM packages for the demo and the tests, made from Debian's: real programs, real metadata, EL names.

Several .deb files become one package under the name that it has on an Enterprise Linux. What rpm
knows of a package (owners, modes, digests, configuration files, libraries required and provided) is
worked out by rpmbuild itself. Every package is signed with a key made on the spot, whose public half the
package ``centos-release`` installs where such keys lie.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rescue_agent.system.runner import ANY, Runner

TIMEOUT_S = 1800.0
KEY_FILE = "etc/pki/rpm-gpg/RPM-GPG-KEY-lab"
SUSE_KEY_FILE = "usr/lib/rpm/gnupg/keys/lab.asc"
DIST = "lab"
ROOTS = (
    *("bash", "coreutils", "grep", "sed", "gawk", "findutils", "util-linux", "mount", "tar", "gzip"),
    *("less", "procps", "systemd", "systemd-sysv", "udev", "rpm", "rpm2cpio", "dnf", "login", "passwd"),
    *("hostname", "kmod", "ncurses-base", "libc-bin", "cpio", "iproute2", "ca-certificates", "libcap2-bin"),
)
"""Debian packages whose closure is what the lab's distribution is made of."""

BASE = (
    *("bash", "coreutils", "grep", "sed", "gawk", "findutils", "util-linux", "tar", "gzip", "less"),
    *("procps-ng", "systemd", "systemd-udev", "rpm", "shadow-utils", "hostname", "kmod", "cpio", "iproute"),
    *("ca-certificates", "libcap"),
)
"""Packages of a small system, beside those that say which distribution it is and what manages it."""

_DEVICES = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))

GROUPS: Mapping[str, str] = {
    "audit-libs": "libaudit1 libaudit-common",
    "bzip2-libs": "libbz2-1.0",
    "cryptsetup-libs": "libcryptsetup12",
    "device-mapper": "dmsetup",
    "device-mapper-libs": "libdevmapper1.02.1",
    "elfutils-libs": "libelf1 libdw1",
    "expat": "libexpat1",
    "glib2": "libglib2.0-0",
    "glibc": "libc6 libc-bin",
    "gnupg2": "gnupg gpg gpg-agent gpgconf gpgv",
    "gpgme": "libgpgme11",
    "iproute": "iproute2",
    "kmod-libs": "libkmod2",
    "krb5-libs": "libgssapi-krb5-2 libk5crypto3 libkrb5-3 libkrb5support0",
    "libblkid": "libblkid1",
    "libcap": "libcap2 libcap2-bin",
    "libcomps": "libcomps0",
    "libcurl": "libcurl3-gnutls",
    "libdnf": "libdnf2 libdnf2-common",
    "libfdisk": "libfdisk1",
    "libgcc": "libgcc-s1",
    "libmodulemd": "libmodulemd2",
    "libmount": "libmount1",
    "librepo": "librepo0",
    "libselinux": "libselinux1",
    "libsemanage": "libsemanage2 libsemanage-common",
    "libsepol": "libsepol2",
    "libsmartcols": "libsmartcols1",
    "libsolv": "libsolv1 libsolvext1",
    "libstdc++": "libstdc++6",
    "libuuid": "libuuid1",
    "libzypp": "libzypp1722 libzypp-common libzypp-config",
    "ncurses-libs": "libtinfo6 libncursesw6",
    "nettle": "libnettle8 libhogweed6",
    "openssl-libs": "libssl3",
    "pam": "libpam0g libpam-modules libpam-modules-bin libpam-runtime",
    "pcre2": "libpcre2-8-0",
    "popt": "libpopt0",
    "procps-ng": "procps libproc2-0",
    "python3": "python3 python3-minimal python3.11 python3.11-minimal",
    "python3-libs": "libpython3-stdlib libpython3.11 libpython3.11-minimal libpython3.11-stdlib",
    "readline": "libreadline8",
    "rpm": "rpm rpm-common rpm2cpio",
    "rpm-libs": "librpm9 librpmio9 librpmbuild9 librpmsign9",
    "shadow-utils": "login passwd",
    "sqlite-libs": "libsqlite3-0",
    "systemd": "systemd systemd-sysv",
    "systemd-libs": "libsystemd0 libsystemd-shared",
    "systemd-udev": "udev libudev1",
    "util-linux": "util-linux util-linux-extra mount",
    "xz-libs": "liblzma5",
    "zlib": "zlib1g",
    "zypper": "zypper zypper-common",
}
"""Name on an Enterprise Linux → the Debian packages that bring the same; all others keep their name."""

_UNUSED = re.compile(
    r"(perl|libperl|debconf|cdebconf|dpkg|adduser|usrmerge|debugedit|pinentry|gnupg-|gpg-wks|dirmngr|gpgsm"
    r"|lsb-base|init-system-helpers|base-files|base-passwd|libdebconf|gcc-12-base|sysvinit-utils"
    r"|media-types|readline-common|libgdbm|openssl|libfile-find|libnumber-compare|libtext-glob|python3-lib2to3)"
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LEFT_OUT = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"),
    *("usr/share/info", "etc/init.d", "etc/rc0.d"),
)
FOLDERS = (
    *("boot", "dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr"),
    *("var", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/libexec"),
    *("usr/include", "usr/local", "usr/local/bin", "usr/local/sbin", "usr/share", "usr/share/man", "usr/src"),
    *("var/cache", "var/lib", "var/lib/rpm", "var/log", "var/opt", "var/spool", "var/tmp", "etc/rpm"),
    *("etc/yum.repos.d", "etc/profile.d", "etc/sysconfig", "etc/pam.d", "etc/default", "etc/pki"),
    "etc/pki/rpm-gpg",
)
"""What the package ``filesystem`` owns, and no other."""


@dataclass
class Package:
    """A package on its way: its files lie below ``tree``."""

    name: str
    version: str
    release: str
    tree: Path
    requires: Sequence[str] = ()
    provides: Sequence[str] = ()
    config: frozenset[str] = field(default_factory=frozenset)
    scripts: str = ""


class Maker:
    """Makes packages and a repository of them, with scratch files below ``work``."""

    def __init__(self, runner: Runner, work: Path, more: Sequence[str] = ()) -> None:
        """``more``: Debian packages that the repository has beside ``ROOTS``, with what they need."""
        self._runner = runner
        self._work = work
        self._more = tuple(more)

    def build_repository(self, target: Path, *, jobs: int = 2) -> None:
        """Make the lab's distribution in the folder ``target``: signed packages and their metadata.

        Needs root (for owners), apt with package lists, rpm, createrepo-c and gpg.
        """
        target.mkdir(parents=True)
        gpg = self.make_key()
        debs = self._download(self._work / "debs", self._closure())
        groups = _grouped(debs)
        with ThreadPoolExecutor(jobs) as pool:
            packages = [*self._own_packages((self._work / "key.asc").read_text())]
            packages += pool.map(lambda name: self._from_debs(name, groups), sorted(groups))
            list(pool.map(lambda package: self.rpmbuild(package, target), packages))
        self.sign(gpg, *sorted(target.glob("*.rpm")))
        self.index(target, gpg)

    def make_key(self) -> Path:
        """Make the lab's signing key; return gpg's home. The public half is ``key.asc`` in ``work``."""
        home = self._work / "gpg"
        home.mkdir(mode=0o700)
        (home / "batch").write_text(
            "%no-protection\nKey-Type: RSA\nKey-Length: 2048\nName-Real: lab\nName-Email: lab@localhost\n"
            "Expire-Date: 0\n%commit\n"
        )
        self._run("gpg", "--homedir", home, "--batch", "-q", "--gen-key", home / "batch")
        (self._work / "key.asc").write_text(self._run("gpg", "--homedir", home, "--armor", "--export", "lab"))
        return home

    def sign(self, gpg: Path, *archives: Path) -> None:
        """Sign package files with the key in gpg's home."""
        macros = {"_gpg_name": "lab", "_gpg_path": str(gpg), "__gpg": "/usr/bin/gpg"}
        self._run("rpmsign", *_defines(macros), "--addsign", *archives)
        self._end_agent(gpg)

    def index(self, repository: Path, gpg: Path | None = None) -> None:
        """Write the metadata of a repository, signed with the key in gpg's home if one is given."""
        self._run("createrepo_c", "-q", repository)
        if gpg is not None:
            words = ("--batch", "--yes", "--armor", "--detach-sign", "-u", "lab")
            self._run("gpg", "--homedir", gpg, *words, repository / "repodata/repomd.xml")
            self._end_agent(gpg)

    def _end_agent(self, gpg: Path) -> None:
        """End the process that gpg leaves behind to hold the key."""
        self._run("gpgconf", "--homedir", gpg, "--kill", "gpg-agent")

    def rpmbuild(self, package: Package, target: Path) -> Path:
        """Build one package; its tree is used up. Returns the path of the package file."""
        top = self._work / "build" / f"{package.name}-{package.version}"
        top.mkdir(parents=True)
        spec = top / f"{package.name}.spec"
        spec.write_text("\n".join(_spec(package)) + "\n")
        macros = {
            "_topdir": str(top),
            "_rpmdir": str(target),
            "_dbpath": str(top / "no-database"),
            "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        }
        self._run(
            *("rpmbuild", "-bb", "--buildroot", package.tree, *_defines(macros)),
            *("--target", "x86_64-linux", "--noclean", spec),
        )
        shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(package.tree, ignore_errors=True)
        return target / f"{package.name}-{package.version}-{package.release}.x86_64.rpm"

    def _closure(self) -> list[str]:
        """Return the Debian packages that ROOTS need, on a system that has none."""
        empty = self._work / "status"
        empty.write_text("")
        told = self._run(
            *(
                "apt-get",
                "-o",
                f"Dir::State::status={empty}",
                "-s",
                "install",
                "--no-install-recommends",
                *ROOTS,
                *self._more,
            )
        )
        names = re.findall(r"^Inst (\S+)", told, re.MULTILINE)
        return sorted({name.partition(":")[0] for name in names if not _UNUSED.match(name)})

    def _download(self, folder: Path, names: Sequence[str]) -> dict[str, Path]:
        folder.mkdir()
        self._run("env", "-C", folder, "apt-get", "-q", "download", *names, "base-passwd")
        return {path.name.partition("_")[0]: path for path in folder.glob("*.deb")}

    def _from_debs(self, name: str, groups: Mapping[str, Sequence[Path]]) -> Package:
        tree = self._work / "trees" / name
        config = self._unpack(groups[name], tree)
        version, _, revision = self._field(groups[name][0], "Version").rpartition(":")[2].partition("-")
        revision = re.sub(r"[^0-9.].*", "", revision).strip(".") or "1"
        package = Package(
            name,
            version.replace("-", "."),
            f"{revision}.{DIST}",
            tree,
            requires=["filesystem", *self._required(name, groups)],
            config=config,
        )
        _adapt(package)
        return package

    def _required(self, name: str, groups: Mapping[str, Sequence[Path]]) -> list[str]:
        """Return the packages that no library tells of: scripts and data that Debian depends on."""
        owner = {path.name.partition("_")[0]: group for group, paths in groups.items() for path in paths}
        found = set()
        for deb in groups[name] if name != "glibc" else ():
            for text in (self._field(deb, "Pre-Depends"), self._field(deb, "Depends")):
                for word in text.replace("\n", " ").split(","):
                    found.add(owner.get(re.split(r"[ (:|]", word.strip())[0], name))
        return sorted(found - {name})

    def _unpack(self, debs: Iterable[Path], tree: Path) -> frozenset[str]:
        """Unpack Debian packages with a merged /usr; return their configuration files."""
        tree.mkdir(parents=True)
        config: set[str] = set()
        for deb in debs:
            self._run("dpkg-deb", "-x", deb, tree)
            argv = ("dpkg-deb", "-I", str(deb), "conffiles")
            told = self._runner.run(argv, ok=ANY).stdout  # it ends with 2 when there are none
            config.update(line for line in told.splitlines() if line.startswith("/"))
        for name in _MERGED:
            if (tree / name).is_dir() and not (tree / name).is_symlink():
                self._run("cp", "-a", f"{tree}/{name}/.", _made(tree / "usr" / name))
                shutil.rmtree(tree / name)
        for name in _LEFT_OUT:
            shutil.rmtree(tree / name, ignore_errors=True)
        return frozenset(config)

    def _own_packages(self, key: str) -> Iterator[Package]:
        """Yield the packages that no Debian package is like."""
        tree = self._work / "trees/filesystem"
        for name in FOLDERS:
            _made(tree / name)
        for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
            (tree / name).chmod(mode)
        for name in ("bin", "sbin", "lib", "lib64"):
            (tree / name).symlink_to(f"usr/{name}")
        (tree / "var/run").symlink_to("../run")
        yield Package("filesystem", "3.8", f"1.{DIST}", tree, requires=("setup",))

        tree = self._work / "trees/setup"
        self._unpack((next((self._work / "debs").glob("base-passwd_*.deb")),), tree)
        masters = {
            name: (tree / f"usr/share/base-passwd/{name}.master").read_text() for name in ("passwd", "group")
        }
        shutil.rmtree(tree)
        texts = {
            **masters,
            "shadow": "root:*:19000:0:99999:7:::\n",
            "hosts": "127.0.0.1 localhost\n",
            "shells": "/bin/sh\n/bin/bash\n",
            "fstab": "",
            "profile": "PATH=/usr/sbin:/usr/bin\n",
        }
        _write(_etc(tree, texts) / "usr/share/setup/uidgid", "root 0 0\n")
        yield Package("setup", "2.12", f"1.{DIST}", tree, config=_all_config(texts))

        for major in ("7", "8"):
            yield self.release_package(major, key)
        yield self.suse_package(key)
        tree = self._work / "trees/yum"
        config = self._unpack((self._work / "debs").glob("dnf_*.deb"), tree)
        (tree / "usr/bin/dnf").unlink()  # a link
        (tree / "usr/bin/dnf-3").rename(tree / "usr/bin/yum")
        yield Package(
            "yum",
            "3.4.3",
            f"168.{DIST}",
            tree,
            requires=("filesystem", "dnf-data", "python3-dnf", "rpm"),
            config=config,
        )

    def release_package(self, major: str, key: str) -> Package:
        """Return the package that says which Enterprise Linux it is, with its repository and its key."""
        package = self._release("centos-release", f"{major}.9", KEY_FILE, "etc/yum.repos.d", key)
        for name in ("redhat-release", "system-release"):
            (package.tree / "etc" / name).symlink_to("centos-release")
        _etc(package.tree, {"centos-release": f"CentOS Linux release {major}.9 (lab)\n"})
        _os_release(package.tree, "CentOS Linux", major, "centos", "rhel fedora")
        return package

    def suse_package(self, key: str) -> Package:
        """Return the same for zypper's family."""
        package = self._release("openSUSE-release", "15.6", SUSE_KEY_FILE, "etc/zypp/repos.d", key)
        _os_release(package.tree, "openSUSE Leap", "15.6", "opensuse-leap", "suse opensuse")
        return package

    def _release(self, name: str, version: str, key_file: str, repositories: str, key: str) -> Package:
        tree = self._work / f"trees/{name}-{version}"
        repo = "[baseos]\nname=lab $releasever\nbaseurl=file:///srv/repo\nenabled=1\ngpgcheck=1\n"
        _write(tree / repositories / "lab.repo", f"{repo}gpgkey=file:///{key_file}\n")
        _write(tree / key_file, key)
        major = version.partition(".")[0]
        return Package(
            name,
            version,
            f"1.{DIST}",
            tree,
            requires=("filesystem",),
            provides=(f"system-release = {version}", f"system-release(releasever) = {major}"),
            config=frozenset({f"/{repositories}/lab.repo"}),
        )

    def _field(self, deb: Path, name: str) -> str:
        return self._run("dpkg-deb", "-f", deb, name).strip()

    def install(self, repository: Path, root: Path, *names: str) -> None:
        """Install packages of a repository into a new root with dnf, as an image builder does.

        Then the root is given a user, its keys and the few device nodes that programs open.
        """
        root.mkdir()
        home = self._work / "home"
        home.mkdir(exist_ok=True)
        # dnf asks the macros where the database lies; those of Debian say ~/.rpmdb.
        (home / ".rpmmacros").write_text("%_dbpath /var/lib/rpm\n")
        self._run(
            *("env", f"HOME={home}", "dnf", "-q", "-y", f"--installroot={root}", "--releasever=8"),
            *("--disablerepo=*", f"--repofrompath=lab,file://{repository}", "--nogpgcheck"),
            *("--setopt=reposdir=/dev/null", f"--setopt=cachedir={home}/cache", "--disableplugin=local"),
            *("--setopt=install_weak_deps=False", "install", *names),
        )
        for name, minor in _DEVICES:
            device = root / "dev" / name
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, minor))
                device.chmod(0o666)
        for line in (
            ("useradd", "-m", "-s", "/bin/bash", "alice"),
            ("rpm", "--import", next(f"/{k}" for k in (KEY_FILE, SUSE_KEY_FILE) if (root / k).exists())),
            ("ldconfig",),  # a scriptlet of glibc made its cache before other libraries were there
        ):
            self._run("chroot", root, *line)
        for path in (root / "var/cache/dnf").glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _run(self, *argv: str | Path) -> str:
        return self._runner.run([str(a) for a in argv], timeout_s=TIMEOUT_S).stdout


def _spec(package: Package) -> Iterator[str]:
    yield "%global _build_id_links none"
    yield "%global debug_package %{nil}"
    yield "%global __os_install_post %{nil}"
    yield "%global _binary_payload w1.gzdio"
    # Debian's perl scripts must not bring perl along, nor what it only recommends (libatm).
    yield "%global __requires_exclude ^(/usr/|/opt/|/bin/(dash|perl)|perl|pkgconfig|libatm).*"
    for name, value in (
        ("Name", package.name),
        ("Version", package.version),
        ("Release", package.release),
        ("Summary", f"{package.name} of the lab"),
        ("License", "as the Debian packages"),
    ):
        yield f"{name}: {value}"
    yield from (f"Requires: {name}" for name in package.requires)
    yield from (f"Provides: {name}" for name in package.provides)
    yield from ("%description", "Made for tests.", package.scripts, "%files", "%defattr(-,root,root,-)")
    yield from _file_lines(package)


def _file_lines(package: Package) -> Iterator[str]:
    for folder, folders, names in os.walk(package.tree):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in links]
        inside = "/" + os.path.relpath(folder, package.tree)
        if inside != "/." and (package.name == "filesystem" or inside[1:] not in FOLDERS):
            yield f"%dir {_pattern(inside)}"
        for name in (*names, *links):
            path = os.path.normpath(f"{inside}/{name}")
            kind = "%config(noreplace) " if path in package.config else ""
            yield kind + _pattern(path)


def _pattern(path: str) -> str:
    """Return a path for %files, which is a glob: a ``?`` for each special character."""
    return '"' + re.sub(r"[\[\]*?{}]", "?", path.replace("%", "%%")) + '"'


def _grouped(debs: Mapping[str, Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    taken = {"base-passwd"}
    for name, members in GROUPS.items():
        found = [debs[member] for member in members.split() if member in debs]
        taken.update(members.split())
        if found:
            groups[name] = found
    groups.update({name: [path] for name, path in debs.items() if name not in taken})
    return groups


def _adapt(package: Package) -> None:
    """Make a package what it is on an Enterprise Linux."""
    tree = package.tree
    if package.name == "glibc":
        package.provides = ("/sbin/ldconfig", "rtld(GNU_HASH)")
        package.scripts = "%post -p /sbin/ldconfig"
        package.requires = ("filesystem",)
    elif package.name == "bash":
        (tree / "usr/bin/sh").symlink_to("bash")
        package.provides = ("/bin/sh", "/bin/bash", "/usr/bin/sh")
    elif package.name == "rpm":
        _made(tree / "etc/rpm").joinpath("macros.lab").write_text("%_dbpath /var/lib/rpm\n%_vendor redhat\n")
    elif package.name == "dnf":
        (tree / "usr/bin/yum").symlink_to("dnf")


def _os_release(tree: Path, name: str, version: str, identity: str, like: str) -> None:
    _made(tree / "etc").joinpath("os-release").symlink_to("../usr/lib/os-release")
    _write(
        tree / "usr/lib/os-release",
        f'NAME="{name}"\nVERSION="{version}"\nID="{identity}"\nID_LIKE="{like}"\n'
        f'VERSION_ID="{version}"\nPRETTY_NAME="{name} {version} (lab)"\n',
    )


def _write(path: Path, text: str) -> None:
    _made(path.parent).joinpath(path.name).write_text(text, encoding="utf-8")


def _etc(tree: Path, texts: Mapping[str, str]) -> Path:
    for name, text in texts.items():
        _write(tree / "etc" / name, text)
    if "shadow" in texts:
        (tree / "etc/shadow").chmod(0)
    return tree


def _all_config(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(f"/etc/{name}" for name in texts)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _defines(macros: Mapping[str, str]) -> list[str | Path]:
    return [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
