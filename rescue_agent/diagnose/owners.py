# SPDX-License-Identifier: GPL-3.0-or-later
"""Which package brings a file that init needs.

First by the damaged files that the package database accounts for; when the database says nothing,
by names that have been the same in every Debian and Ubuntu release for years.
"""

from __future__ import annotations

from rescue_agent.model.facts import DamagedFile, ElfFault, System
from rescue_agent.model.families import Family, family_of
from rescue_agent.model.queries import RPM_ARCHITECTURES, canonical_path, find_package


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
    candidates = _known(family_of(system), fault)
    for name in candidates:
        for architecture in (system.architecture, RPM_ARCHITECTURES.get(system.architecture, "")):
            own = f"{name}:{architecture}"
            if find_package(database, own) is not None:
                return (own,)
        if find_package(database, name) is not None:
            return (name,)
    # Without any database the names mean nothing: it may be no Debian at all.
    return candidates[:1] if database is not None and database.state != "ok" else ()


def _known(family: Family, fault: ElfFault) -> tuple[str, ...]:
    name = fault.path.rpartition("/")[2]
    for key in (name, canonical_path(fault.path), fault.path):
        if key in family.owners:
            return family.owners[key]
    for key, owners in family.owners.items():
        if key.startswith("lib") and (name.startswith(key + ".") or name.startswith(key + "-")):
            return owners
    return ()
