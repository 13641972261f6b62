# SPDX-License-Identifier: GPL-3.0-or-later
"""openSUSE and SLES: rpm with zypper."""

from __future__ import annotations

from types import MappingProxyType

from rescue_agent.model.families import GLIBC
from rescue_agent.model.families.rpm import Places, RpmFamily

PLACES = Places(
    repositories=("/etc/zypp/repos.d",),
    variables=("/etc/zypp/vars.d",),
    configs=("/etc/zypp/zypp.conf",),
    caches=("/var/cache/zypp/packages",),
    keys=("/usr/lib/rpm/gnupg/keys", "/etc/pki/rpm-gpg"),
)

_OWNERS: dict[str, tuple[str, ...]] = {
    **GLIBC,
    "libsystemd.so.0": ("libsystemd0", "systemd-libs"),
    "libsystemd-shared": ("systemd",),
    "libudev.so.1": ("libudev1", "systemd-libs"),
    "libacl.so.1": ("libacl1", "libacl"),
    "libaudit.so.1": ("libaudit1", "audit-libs"),
    "libblkid.so.1": ("libblkid1", "libblkid"),
    "libcap.so.2": ("libcap2", "libcap"),
    "libcrypt.so.1": ("libcrypt1", "glibc"),
    "libkmod.so.2": ("libkmod2", "kmod-libs"),
    "liblzma.so.5": ("liblzma5", "xz-libs"),
    "libmount.so.1": ("libmount1", "libmount"),
    "libpam.so.0": ("pam",),
    "libselinux.so.1": ("libselinux1", "libselinux"),
    "libzstd.so.1": ("libzstd1",),
    "libz.so.1": ("libz1", "zlib"),
    "libstdc++.so.6": ("libstdc++6", "libstdc++"),
    "libgcc_s.so.1": ("libgcc_s1", "libgcc"),
    "librpm.so": ("rpm", "rpm-libs"),
    "libzypp.so": ("libzypp",),
    "libsolv.so": ("libsolv-tools-base", "libsolv"),
    "/usr/lib/systemd/systemd": ("systemd",),
    "/usr/sbin/init": ("systemd-sysvinit", "systemd"),
    "/usr/bin/sh": ("bash-sh", "bash"),
    "/usr/bin/bash": ("bash",),
    "/usr/bin/rpm": ("rpm",),
    "/usr/bin/zypper": ("zypper",),
}

_TOOL_PACKAGES = frozenset(
    {
        "bash", "bash-sh", "coreutils", "filesystem", "glibc", "grep", "libacl1", "libattr1", "libaudit1",
        "libaugeas0", "libboost_thread", "libcap2", "libcurl4", "libgcc_s1", "libgcrypt20", "libglib-2_0-0",
        "libgpgme11", "liblua5_3-5", "liblzma5", "libopenssl1_1", "libopenssl3", "libpopt0", "libproxy1",
        "libselinux1", "libsigc-2_0-0", "libsolv-tools", "libstdc++6", "libudev1", "libxml2-2", "libyaml-cpp",
        "libz1", "libzstd1", "libzypp", "rpm", "sed", "zypper",
    }
)  # fmt: skip

FAMILY = RpmFamily(
    name="suse",
    ids=frozenset(
        {
            "suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "opensuse-microos", "sles", "sled",
            "sles_sap", "sle-micro",
        }
    ),
    marks=(("/var/lib/rpm", "/usr/bin/zypper"), ("/usr/lib/sysimage/rpm", "/usr/bin/zypper")),
    managers=(("zypper", ()),),
    tools=("/bin/sh", "rpm", "ldconfig", "cat", "rm", "sed", "grep"),
    optional_tools=("zypper",),
    database_folders=("/usr/lib/sysimage/rpm", "/var/lib/rpm"),
    database="the rpm database",
    checksums="rpm -V",
    history="zypper's history",
    listed_by="an entry in zypper's history",
    archive_suffix=".rpm",
    archive_format="rpm",
    version_advice="Find the version in /var/log/zypp/history ({package}).",
    owner_search="zypper search --provides --file-list",
    fetch_tool="dnf",
    sources_folder="/etc/zypp/repos.d",
    rebuild_advice=(
        "Nothing is left of the rpm database, and zypper's history says nothing of what is installed. Copy "
        "the database from a backup of the machine."
    ),
    tool_packages=_TOOL_PACKAGES,
    owners=MappingProxyType(_OWNERS),
)  # fmt: skip
