# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rescue system's rpm and dnf work for a patient that they do not run in. Pure.

Debian's rpm keeps a database of its own in the home of whoever calls it, and it would convert a
database that an older rpm wrote: so every call here names the folder that it may use.
"""

from __future__ import annotations

from collections.abc import Mapping

KEY_FOLDER = "/etc/pki/rpm-gpg"
"""Where the packages of a distribution put its public keys, for ``gpgkey=`` of its repositories."""
MAIN_FILES: Mapping[str, str] = {"rpmdb.sqlite": "sqlite", "Packages.db": "ndb", "Packages": "bdb"}
"""The file that holds the headers, by its name → the format (rpm's lib/backend)."""
HEADER_MAGIC = "8eade80100000000"
"""Stands before each header in a header list (rpm's lib/header.c, rpm_header_magic); not in the database."""

SALVAGE = (
    "import os, shutil, sqlite3, sys\n"
    "old, new = sys.argv[1:]\n"
    'for end in ("", "-wal"):\n'
    "    if os.path.exists(old + end):\n"
    '        shutil.copyfile(old + end, new + ".copy" + end)\n'
    'db = sqlite3.connect(new + ".copy")\n'
    "number = missed = 0\n"
    'with open(new, "wb") as out:\n'
    "    while missed < 4096:\n"
    "        number += 1\n"
    "        try:\n"
    '            row = db.execute("select blob from Packages where hnum=?", (number,)).fetchone()\n'
    "        except sqlite3.DatabaseError:\n"
    "            row = None\n"
    "        missed = 0 if row else missed + 1\n"
    "        if row:\n"
    f'            out.write(bytes.fromhex("{HEADER_MAGIC}") + row[0])\n'
)
"""A Python program that reads a damaged rpmdb.sqlite row by row, since one damaged page ends every query
that meets it, and writes what it got as a header list, which ``rpmdb --importdb`` takes. It reads a copy
beside the list. Arguments: the database, the list."""

EXPORT_KEYS = (
    'rm -r -f -- "$2"; cp -a -- "$1" "$2"; '
    'rpm --dbpath "$2" -q gpg-pubkey --qf "%{DESCRIPTION}\\n" > "$3" || : > "$3"'
)
"""A shell program that writes the keys which were imported into an rpm database, read in a copy.
Arguments: the database's folder, the copy, the file for the keys."""

_BY_MAJOR = frozenset({"centos", "rhel", "rocky", "almalinux", "ol", "anolis", "alinux"})


def keyring(work_dir: str) -> tuple[str, ...]:
    """Return the options by which rpmkeys uses a keyring of the run's own, and no database."""
    return (
        *("--dbpath", f"{work_dir}/no-rpmdb"),
        *("--define", "_keyring fs"),
        *("--define", f"_keyringpath {work_dir}/keys"),
    )


def trust(*, signed: bool) -> tuple[str, ...]:
    """Return the options for ``rpmkeys --checksig``: a known signature is demanded, or only digests are.

    ``signed``: the patient's own configuration demands it (``gpgcheck``, dnf.conf(5)).
    """
    return ("--define", "_pkgverify_level signature") if signed else ("--nosignature",)


def outside_options(root: str, work_dir: str, release: str) -> tuple[str, ...]:
    """Return the options that make the rescue system's dnf read the repositories of the patient at ``root``.

    It believes in an empty system below ``work_dir`` and writes only there. The patient's dnf.conf
    is not read. ``release`` is what ``$releasever`` stands for.
    """
    return (
        f"--installroot={work_dir}/dnf",
        f"--releasever={release}",
        f"--setopt=reposdir={root}/etc/yum.repos.d,{root}/etc/distro.repos.d",
        f"--setopt=varsdir={root}/etc/dnf/vars,{root}/etc/yum/vars",
        "--setopt=skip_if_unavailable=True",
        # No stream of a module is enabled in an empty system: without this what they bring is hidden.
        "--setopt=*.module_hotfixes=True",
        "--disableplugin=local",
        "-q",
        "-y",
    )


def release_version(os_id: str, os_version: str) -> str:
    """Return what ``$releasever`` stands for: the major number where repositories are named by that."""
    return os_version.partition(".")[0] if os_id in _BY_MAJOR else os_version
