# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian, Ubuntu and what is made from them: dpkg and apt."""

from __future__ import annotations

from types import MappingProxyType

from rescue_agent.model.facts import PackageDatabase
from rescue_agent.model.families import Family
from rescue_agent.model.queries import usable_backup


class Debian(Family):
    """dpkg keeps older copies of its status file."""

    def can_restore(self, database: PackageDatabase) -> bool:
        """Return whether a usable backup of the status file is there."""
        return usable_backup(database) is not None


_OWNERS: dict[str, tuple[str, ...]] = {
    # The C library and its loader; libm, libpthread and the rest moved into it with glibc 2.34.
    "libc.so.6": ("libc6",),
    "libm.so.6": ("libc6",),
    "libpthread.so.0": ("libc6",),
    "libdl.so.2": ("libc6",),
    "librt.so.1": ("libc6",),
    "libresolv.so.2": ("libc6",),
    "ld-linux-x86-64.so.2": ("libc6",),
    "ld-linux-aarch64.so.1": ("libc6",),
    "ld-linux-armhf.so.3": ("libc6",),
    "ld-linux.so.2": ("libc6",),
    # What systemd links to.
    "libsystemd.so.0": ("libsystemd0",),
    "libsystemd-core": ("systemd",),
    "libsystemd-shared": ("libsystemd-shared", "systemd"),
    "libudev.so.1": ("libudev1",),
    "libacl.so.1": ("libacl1",),
    "libapparmor.so.1": ("libapparmor1",),
    "libaudit.so.1": ("libaudit1",),
    "libblkid.so.1": ("libblkid1",),
    "libcap.so.2": ("libcap2",),
    "libcap-ng.so.0": ("libcap-ng0",),
    "libcrypt.so.1": ("libcrypt1", "libc6"),
    "libcrypto.so.3": ("libssl3t64", "libssl3"),
    "libcrypto.so.1.1": ("libssl1.1",),
    "libcryptsetup.so.12": ("libcryptsetup12",),
    "libgcrypt.so.20": ("libgcrypt20",),
    "libgpg-error.so.0": ("libgpg-error0",),
    "libidn2.so.0": ("libidn2-0",),
    "libip4tc.so.2": ("libip4tc2",),
    "libkmod.so.2": ("libkmod2",),
    "liblz4.so.1": ("liblz4-1",),
    "liblzma.so.5": ("liblzma5",),
    "libmount.so.1": ("libmount1",),
    "libpam.so.0": ("libpam0g",),
    "libpcre2-8.so.0": ("libpcre2-8-0",),
    "libseccomp.so.2": ("libseccomp2",),
    "libselinux.so.1": ("libselinux1",),
    "libzstd.so.1": ("libzstd1",),
    # What dpkg, apt and the shell link to.
    "libapt-pkg.so.6.0": ("libapt-pkg6.0",),
    "libapt-private.so.0.0": ("apt",),
    "libbz2.so.1.0": ("libbz2-1.0",),
    "libgcc_s.so.1": ("libgcc-s1", "libgcc1"),
    "libmd.so.0": ("libmd0",),
    "libstdc++.so.6": ("libstdc++6",),
    "libtinfo.so.6": ("libtinfo6",),
    "libxxhash.so.0": ("libxxhash0",),
    "libz.so.1": ("zlib1g",),
    # Programs.
    "/sbin/init": ("systemd-sysv", "sysvinit-core", "init"),
    "/usr/sbin/init": ("systemd-sysv", "sysvinit-core", "init"),
    "/usr/lib/systemd/systemd": ("systemd",),
    "/usr/bin/sh": ("dash",),
    "/usr/bin/dash": ("dash",),
    "/usr/bin/bash": ("bash",),
    "/usr/bin/dpkg": ("dpkg",),
    "/usr/bin/apt-get": ("apt",),
    "/usr/bin/tar": ("tar",),
    "/usr/bin/perl": ("perl-base",),
}

_TOOL_PACKAGES = frozenset(
    {
        "libc6",
        "libc-bin",
        "libacl1",
        "libattr1",
        "libselinux1",
        "libpcre2-8-0",
        "libpcre3",
        "liblzma5",
        "zlib1g",
        "libbz2-1.0",
        "libzstd1",
        "liblz4-1",
        "libmd0",
        "libgcrypt20",
        "libgpg-error0",
        "libcrypt1",
        "libgcc-s1",
        "libstdc++6",
        "libtinfo6",
        "libapt-pkg6.0",
        "libsystemd0",
        "libudev1",
        "libdb5.3",
        "libxxhash0",
        "libseccomp2",
        "libgmp10",
        "coreutils",
        "tar",
        "dash",
        "bash",
        "sed",
        "grep",
        "findutils",
        "diffutils",
        "debianutils",
        "dpkg",
        "apt",
        "gpgv",
        "perl-base",
        "debconf",
        "init-system-helpers",
        "base-files",
        "sensible-utils",
    }
)

FAMILY = Debian(
    name="debian",
    ids=frozenset({"debian", "ubuntu", "raspbian", "linuxmint", "kali"}),
    marks=(("/var/lib/dpkg/info",), ("/var/lib/dpkg/status",)),
    managers=(("apt", ()),),
    # What dpkg demands in its PATH (dpkg's main.c, checkpath) and what apt needs to fetch and check.
    tools=(
        "/bin/sh", "dpkg", "dpkg-deb", "dpkg-split", "apt-get", "/usr/lib/apt/methods/http", "gpgv",
        "tar", "rm", "mv", "cat", "sort", "sed", "grep", "find", "diff", "ldconfig", "start-stop-daemon",
        "perl",
    ),
    database_folders=("/var/lib/dpkg",),
    database="/var/lib/dpkg/status",
    history="/var/lib/dpkg",
    checksums="/var/lib/dpkg/info/*.md5sums",
    policy_rc_d=True,
    archive_suffix=".deb",
    version_advice="Find the version in /usr/share/doc/{package}/changelog.Debian.gz or /var/log/dpkg.log.",
    owner_search="apt-file, or packages.debian.org",
    fetch_tool="apt-get",
    sources_folder="/etc/apt",
    rebuild_advice=(
        "No usable backup of the package database is left. It can be rebuilt from the names in "
        "/var/lib/dpkg/info/*.list, the versions in /var/log/dpkg.log* and the fields of the archive's "
        "Packages files; until then nothing can say which packaged files are damaged."
    ),
    tool_packages=_TOOL_PACKAGES,
    owners=MappingProxyType(_OWNERS),
)  # fmt: skip
