# SPDX-License-Identifier: GPL-3.0-or-later
"""Which package brings a file that init needs.

First by the damaged files that the package database accounts for; when the database says nothing,
by names that have been the same in every Debian and Ubuntu release for years.
"""

from __future__ import annotations

from rescue_agent.model.facts import DamagedFile, ElfFault, System
from rescue_agent.model.queries import canonical_path, find_package

KNOWN_OWNERS: dict[str, tuple[str, ...]] = {
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
"""Soname (or its part before the version), or canonical path, → the packages that bring it; the first
that is installed is meant, since a library changed its package from one release to the next."""


def is_about(file: DamagedFile, fault: ElfFault) -> bool:
    """Return whether a damaged packaged file explains why the loader stumbled.

    A soname is mostly a link to a file with a longer version: libacl.so.1 to libacl.so.1.1.2301.
    """
    name = fault.path.rpartition("/")[2]
    own = file.path.rpartition("/")[2]
    if canonical_path(file.path) in (canonical_path(fault.path), canonical_path(fault.expected or "/")):
        return True
    is_library = ".so" in name
    return is_library and (own == name or own.startswith(name + "."))


def find_owners(system: System, fault: ElfFault) -> tuple[str, ...]:
    """Return the package to reinstall for a fault of init or a tool, or nothing when nobody knows."""
    database = system.database
    damaged = database.verification.damaged if database is not None else ()
    by_database = [f.package for f in damaged if f.package and is_about(f, fault)]
    if by_database:
        return tuple(dict.fromkeys(by_database))
    candidates = _known(fault)
    for name in candidates:
        own = f"{name}:{system.architecture}"
        if find_package(database, own) is not None:
            return (own,)
        if find_package(database, name) is not None:
            return (name,)
    # Without any database the names mean nothing: it may be no Debian at all.
    return candidates[:1] if database is not None and database.state != "ok" else ()


def _known(fault: ElfFault) -> tuple[str, ...]:
    name = fault.path.rpartition("/")[2]
    for key in (name, canonical_path(fault.path), fault.path):
        if key in KNOWN_OWNERS:
            return KNOWN_OWNERS[key]
    for key, owners in KNOWN_OWNERS.items():
        if key.startswith("lib") and (name.startswith(key + ".") or name.startswith(key + "-")):
            return owners
    return ()
