# SPDX-License-Identifier: GPL-3.0-or-later
"""Arch Linux and what is made from it: pacman."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from rescue_agent.model.facts import System
from rescue_agent.model.families import GLIBC, REMOTE, Family

FOLDER = "/var/lib/pacman"
LOCAL = f"{FOLDER}/local"
"""One folder for each installed package, ``NAME-VERSION-RELEASE`` (pacman(8), libalpm's be_local.c)."""
LOCK = f"{FOLDER}/db.lck"
"""There while a pacman works on the database (libalpm's handle.c, _alpm_handle_lock)."""
KEYRING = "/etc/pacman.d/gnupg"
ARCHIVE_SUFFIX = ".pkg.tar"
SUPERSEDED = "superseded"
"""State of the older of two entries, of which an upgrade ought to have removed it."""

ARCHITECTURES = MappingProxyType({"amd64": "x86_64", "arm64": "aarch64", "armhf": "armv7h", "i386": "i686"})
"""dpkg's names of architectures, where pacman has others."""

_OWNERS: dict[str, tuple[str, ...]] = {
    **GLIBC,
    "libsystemd.so.0": ("systemd-libs",),
    "libsystemd-shared": ("systemd", "systemd-libs"),
    "libudev.so.1": ("systemd-libs",),
    "libacl.so.1": ("acl",),
    "libaudit.so.1": ("audit", "libaudit1"),
    "libblkid.so.1": ("util-linux-libs",),
    "libmount.so.1": ("util-linux-libs",),
    "libcap.so.2": ("libcap",),
    "libcrypt.so.1": ("libxcrypt",),
    "libcrypto.so.3": ("openssl",),
    "libkmod.so.2": ("kmod",),
    "liblzma.so.5": ("xz",),
    "libpam.so.0": ("pam",),
    "libseccomp.so.2": ("libseccomp",),
    "libz.so.1": ("zlib", "zlib-ng-compat"),
    "libzstd.so.1": ("zstd",),
    "libstdc++.so.6": ("gcc-libs", "libstdc++"),
    "libgcc_s.so.1": ("gcc-libs", "libgcc"),
    "libalpm.so": ("pacman",),
    "libarchive.so.13": ("libarchive",),
    "libcurl.so.4": ("curl",),
    "libgpgme.so.11": ("gpgme",),
    "/usr/lib/systemd/systemd": ("systemd",),
    "/usr/sbin/init": ("systemd-sysvcompat", "systemd"),
    "/usr/bin/init": ("systemd-sysvcompat", "systemd"),
    "/usr/bin/sh": ("bash",),
    "/usr/bin/bash": ("bash",),
    "/usr/bin/pacman": ("pacman",),
}

_TOOL_PACKAGES = frozenset(
    {
        "acl", "attr", "bash", "brotli", "bzip2", "coreutils", "curl", "e2fsprogs", "expat", "filesystem",
        "gcc-libs", "glibc", "gnupg", "gpgme", "grep", "icu", "keyutils", "krb5", "libarchive", "libassuan",
        "libcap", "libgcc", "libgcrypt", "libgpg-error", "libidn2", "libksba", "libnghttp2", "libnghttp3",
        "libpsl", "libssh2", "libstdc++", "libunistring", "libxml2", "lz4", "ncurses", "npth", "openssl",
        "pacman", "readline", "sed", "sqlite", "xz", "zlib", "zlib-ng-compat", "zstd",
    }
)  # fmt: skip


COPY_KEYS = (
    'for name in pubring.gpg pubring.kbx trustdb.gpg; do if [ -f "$1/$name" ] && [ ! -L "$1/$name" ]; then '
    'cp -- "$1/$name" "$2/$name"; fi; done'
)
"""A shell program that copies the public keys and what of them is trusted. Not the rest of gpg's folder,
whose configuration can name programs to start. Arguments: the patient's keyring, the copy."""

WRITE_LINES = 'printf "%s\\n" "$@" > "$0"'


def source_line(repository: str, server: str, levels: str) -> str:
    """Return how a server of a repository is told among the facts, with the SigLevel that holds for it."""
    return f"{repository} {server} {levels}".rstrip()


def prepare_commands(work_dir: str, root: str) -> tuple[tuple[str, ...], ...]:
    """Return what makes ready for the rescue system's pacman: an empty database, and the patient's keys."""
    own = f"{work_dir}/pacman"
    return (
        ("mkdir", "-p", "-m", "0700", f"{work_dir}/archives", f"{own}/root", f"{own}/db", f"{own}/gnupg"),
        ("sh", "-c", COPY_KEYS, "sh", f"{root}{KEYRING}", f"{own}/gnupg"),
    )


def config_command(
    work_dir: str, sources: Sequence[str], architecture: str, *, local_level: str = "Optional"
) -> tuple[str, ...]:
    """Return what writes a pacman.conf(5) with these sources, each with its own SigLevel.

    The patient's own is not read: it can name programs that pacman starts (XferCommand), and what it
    includes lies on the patient. ``local_level``: LocalFileSigLevel.
    """
    lines = ["[options]", f"Architecture = {architecture or 'auto'}", f"LocalFileSigLevel = {local_level}"]
    section = ""
    for source in sources:
        repository, _, rest = source.partition(" ")
        server, _, levels = rest.partition(" ")
        if not server.startswith(REMOTE):
            continue
        if repository != section:
            section = repository
            lines += [f"[{repository}]", *([f"SigLevel = {levels}"] if levels else [])]
        lines.append(f"Server = {server}")
    return ("sh", "-c", WRITE_LINES, f"{work_dir}/pacman/pacman.conf", *lines)


def outside_options(work_dir: str) -> tuple[str, ...]:
    """Return the options by which the rescue system's pacman works below ``work_dir`` alone."""
    own = f"{work_dir}/pacman"
    return (
        *("--config", f"{own}/pacman.conf", "--root", f"{own}/root", "--dbpath", f"{own}/db"),
        *("--gpgdir", f"{own}/gnupg", "--hookdir", f"{own}/root", "--logfile", f"{own}/pacman.log"),
        *("--cachedir", f"{work_dir}/archives", "--noconfirm", "--noprogressbar"),
    )


class PacmanFamily(Family):
    """pacman's sources hold one version of a package: the newest."""

    def advise_sources(self, system: System) -> str:
        """Return where older versions are kept."""
        if system.os_id == "arch":
            return (
                "https://archive.archlinux.org/packages/ keeps every version that Arch ever had, with its "
                "signature."
            )
        return ""


FAMILY = PacmanFamily(
    name="arch",
    ids=frozenset(
        {"arch", "archarm", "artix", "cachyos", "endeavouros", "garuda", "manjaro", "manjaro-arm", "steamos"}
    ),
    marks=(("/var/lib/pacman/local",),),
    managers=(("pacman", ()),),
    tools=("/bin/sh", "pacman", "ldconfig", "cat", "rm", "sed", "grep"),
    database_folders=(FOLDER,),
    database=LOCAL,
    checksums="pacman's mtree files",
    history=FOLDER,
    listed_by="an entry in /var/log/pacman.log",
    archive_suffix=ARCHIVE_SUFFIX + ".*",
    archive_format="pacman",
    version_advice="Find the version in /var/log/pacman.log ({package}).",
    owner_search="pacman -F",
    fetch_tool="pacman",
    sources_folder="/etc/pacman.conf",
    rebuild_advice=(
        "Copy /var/lib/pacman/local from a backup of the machine, or enter the packages again in "
        "'rescue-agent shell' with pacman -S --dbonly; /var/log/pacman.log says which were installed."
    ),
    tool_packages=_TOOL_PACKAGES,
    owners=MappingProxyType(_OWNERS),
)  # fmt: skip
