# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rescue system's rpm and dnf work for a patient that they do not run in. Pure.

Debian's rpm keeps a database of its own in the home of whoever calls it, and it would convert a
database that an older rpm wrote: so every call here names the folder that it may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rescue_agent.model.facts import PackageDatabase
from rescue_agent.model.families import LOST_SHARE, Family


class Places(NamedTuple):
    """Where a family that uses rpm keeps what belongs to its repositories."""

    repositories: tuple[str, ...]
    """Folders of ``*.repo`` files."""
    variables: tuple[str, ...]
    """Folders with a file for each variable of repository addresses."""
    configs: tuple[str, ...]
    caches: tuple[str, ...]
    """Folders in which downloaded packages lie, at any depth up to four."""
    keys: tuple[str, ...]
    """Folders in which the distribution's own packages put its public keys."""


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


def outside_options(root: str, work_dir: str, release: str, places: Places) -> tuple[str, ...]:
    """Return the options that make the rescue system's dnf read the repositories of the patient at ``root``.

    It believes in an empty system below ``work_dir`` and writes only there. The patient's own
    configuration of its manager is not read. ``release`` is what ``$releasever`` stands for.
    """
    return (
        f"--installroot={work_dir}/dnf",
        f"--releasever={release}",
        f"--setopt=reposdir={','.join(root + folder for folder in places.repositories)}",
        f"--setopt=varsdir={','.join(root + folder for folder in places.variables)}",
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


class RpmFamily(Family):
    """rpm's database can be made anew from what is left of it and from the manager's history."""

    def find_loss(self, database: PackageDatabase) -> str:
        """Return in words why the database cannot be believed, or an empty string.

        What rpm installs or removes by itself is in no history: only a difference by half counts.
        """
        known = len(database.packages)
        if database.state == "ok":
            if known * 2 >= database.listed:
                return ""
            return f"it knows {known} packages, but {database.listed} have {self.listed_by}"
        return super().find_loss(database)

    def find_doubt(self, database: PackageDatabase) -> tuple[str, ...]:
        """Return what the history says is installed and the database does not know.

        It may have been removed by rpm itself; or ``rpm --rebuilddb`` has dropped what it could not read.
        """
        known = {(p.name, p.architecture) for p in database.packages}
        lacking = [p.labels[-1] for p in database.recorded if (p.name, p.architecture) not in known]
        return tuple(lacking) if len(lacking) > max(2, int(database.listed * LOST_SHARE)) else ()

    def can_restore(self, database: PackageDatabase) -> bool:
        """Return whether anything says which packages are installed."""
        return bool(database.recorded or database.packages)
