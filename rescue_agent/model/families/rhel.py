# SPDX-License-Identifier: GPL-3.0-or-later
"""Red Hat Enterprise Linux, CentOS, Fedora and what is made from them: rpm with yum or dnf."""

from __future__ import annotations

from types import MappingProxyType

from rescue_agent.model.facts import System
from rescue_agent.model.families import GLIBC
from rescue_agent.model.families.rpm import Places, RpmFamily

PLACES = Places(
    repositories=("/etc/yum.repos.d", "/etc/distro.repos.d"),
    variables=("/etc/dnf/vars", "/etc/yum/vars"),
    configs=("/etc/dnf/dnf.conf", "/etc/yum.conf", "/etc/yum/yum.conf"),
    caches=("/var/cache/dnf", "/var/cache/yum", "/var/cache/libdnf5"),
    keys=("/etc/pki/rpm-gpg",),
)


class Rhel(RpmFamily):
    """dnf and yum."""

    def advise_sources(self, system: System) -> str:
        """Return where the packages of a release are that left the mirrors."""
        major = system.os_version.partition(".")[0]
        if system.os_id != "centos" or major not in ("5", "6", "7", "8"):
            return ""
        return (
            f"CentOS {major} has left the mirrors: its packages are at https://vault.centos.org. To use "
            "them, name a baseurl below that address in /etc/yum.repos.d and start again."
        )


_OWNERS: dict[str, tuple[str, ...]] = {
    **GLIBC,
    "libresolv.so.2": ("glibc",),
    "ld64.so.2": ("glibc",),
    # What systemd links to.
    "libsystemd.so.0": ("systemd-libs",),
    "libsystemd-shared": ("systemd", "systemd-libs"),
    "libsystemd-core": ("systemd",),
    "libudev.so.1": ("systemd-libs",),
    "libacl.so.1": ("libacl",),
    "libattr.so.1": ("libattr",),
    "libaudit.so.1": ("audit-libs",),
    "libblkid.so.1": ("libblkid",),
    "libcap.so.2": ("libcap",),
    "libcap-ng.so.0": ("libcap-ng",),
    "libcrypt.so.1": ("libxcrypt", "glibc"),
    "libcrypt.so.2": ("libxcrypt",),
    "libcrypto.so.1.1": ("openssl-libs",),
    "libcrypto.so.10": ("openssl-libs",),
    "libcrypto.so.3": ("openssl-libs",),
    "libcryptsetup.so": ("cryptsetup-libs",),
    "libgcrypt.so": ("libgcrypt",),
    "libgpg-error.so.0": ("libgpg-error",),
    "libidn2.so.0": ("libidn2",),
    "libip4tc.so": ("iptables-libs",),
    "libkmod.so.2": ("kmod-libs",),
    "liblz4.so.1": ("lz4-libs", "lz4"),
    "liblzma.so.5": ("xz-libs",),
    "libmount.so.1": ("libmount",),
    "libpam.so.0": ("pam",),
    "libpcre.so.1": ("pcre",),
    "libpcre2-8.so.0": ("pcre2",),
    "libseccomp.so.2": ("libseccomp",),
    "libselinux.so.1": ("libselinux",),
    "libzstd.so.1": ("libzstd",),
    # What rpm, dnf, yum and the shell link to.
    "libbz2.so.1": ("bzip2-libs",),
    "libdb-5.3.so": ("libdb",),
    "libelf.so.1": ("elfutils-libelf",),
    "libgcc_s.so.1": ("libgcc",),
    "liblua": ("lua-libs", "lua"),
    "libnss3.so": ("nss",),
    "libpopt.so.0": ("popt",),
    "librpm.so": ("rpm-libs",),
    "librpmio.so": ("rpm-libs",),
    "libsqlite3.so.0": ("sqlite-libs", "sqlite"),
    "libstdc++.so.6": ("libstdc++",),
    "libtinfo.so.5": ("ncurses-libs",),
    "libtinfo.so.6": ("ncurses-libs",),
    "libz.so.1": ("zlib",),
    # Programs.
    "/sbin/init": ("systemd",),
    "/usr/sbin/init": ("systemd",),
    "/usr/lib/systemd/systemd": ("systemd",),
    "/usr/bin/sh": ("bash",),
    "/usr/bin/bash": ("bash",),
    "/usr/bin/rpm": ("rpm",),
}

_TOOL_PACKAGES = frozenset(
    {
        "audit-libs", "basesystem", "bash", "bzip2-libs", "coreutils", "dnf", "dnf-data",
        "elfutils-libelf", "expat", "file-libs", "filesystem", "glib2", "glibc", "glibc-common", "gnupg2",
        "gpgme", "grep", "libacl", "libattr", "libblkid", "libcap", "libcomps", "libcurl", "libdb", "libdnf",
        "libgcc", "libgcrypt", "libgpg-error", "libmodulemd", "libmount", "librepo", "libselinux", "libsolv",
        "libstdc++", "libuuid", "libxcrypt", "libxml2", "libzstd", "lua", "lua-libs",
        "nspr", "nss", "nss-softokn", "nss-softokn-freebl", "nss-util", "openssl-libs", "pcre", "pcre2",
        "platform-python", "popt", "python", "python-libs", "python3", "python3-dnf", "python3-libs",
        "python3-rpm", "readline", "rpm", "rpm-libs", "rpm-python", "sed", "setup", "sqlite", "sqlite-libs",
        "xz-libs", "yum", "zlib", "lz4-libs", "ncurses-libs",
    }
)  # fmt: skip

FAMILY = Rhel(
    name="rhel",
    ids=frozenset(
        {
            "rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn", "openeuler", "anolis", "alinux",
            "eurolinux", "scientific", "virtuozzo", "cloudlinux", "redhat", "openela",
        }
    ),
    marks=(("/var/lib/rpm",), ("/usr/lib/sysimage/rpm",)),
    managers=(("dnf", ("/usr/bin/dnf", "/usr/bin/dnf-3", "/usr/bin/dnf5")), ("yum", ())),
    tools=("/bin/sh", "rpm", "ldconfig", "cat", "rm", "sed", "grep"),
    # dnf and yum are Python programs; which Python they name is followed from there.
    optional_tools=("dnf", "yum", "gpg", "yum-complete-transaction"),
    database_folders=("/usr/lib/sysimage/rpm", "/var/lib/rpm"),
    database="the rpm database",
    checksums="rpm -V",
    history="rpm and its managers' history",
    listed_by="an entry in the manager's history",
    archive_suffix=".rpm",
    archive_format="rpm",
    version_advice="Find the version in /var/log/dnf.rpm.log or /var/log/yum.log ({package}).",
    owner_search="dnf provides",
    fetch_tool="dnf",
    sources_folder="/etc/yum.repos.d",
    rebuild_advice=(
        "Nothing is left of the rpm database, and no history of dnf or yum says which packages are "
        "installed. Copy /var/lib/rpm from a backup of the machine."
    ),
    tool_packages=_TOOL_PACKAGES,
    owners=MappingProxyType(_OWNERS),
)  # fmt: skip
