# SPDX-License-Identifier: GPL-3.0-or-later
"""The package database and the packaged files.

A configuration file that differs is its owner's work (deb-conffiles(5)): an observation, never a
fault. So is one that is gone: dpkg respects a removal, and so does the agent.
"""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import listed, make_finding, saw
from rescue_agent.diagnose.owners import is_about
from rescue_agent.model.facts import DamagedFile, Facts, PackageDatabase, System
from rescue_agent.model.finding import Finding
from rescue_agent.model.queries import canonical_path, counted, patient_systems, usable_backup

_LITTER = "was left by an unpacking"
_SETTLED = ("installed", "config-files", "not-installed")
_LOST_SHARE = 0.05
"""A readable database that knows so many fewer packages than have file lists has lost some."""

REBUILD_ADVICE = (
    "No usable backup of the package database is left. It can be rebuilt from the names in "
    "/var/lib/dpkg/info/*.list, the versions in /var/log/dpkg.log* and the fields of the archive's Packages "
    "files; until then nothing can say which packaged files are damaged."
)


def diagnose_packages(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the packages of each installed system."""
    for system in patient_systems(facts):
        database = system.database
        if database is None:
            if system.family == "debian":
                yield make_finding(
                    "packages-not-verified",
                    f"packages on {system.device}",
                    "The package database was not looked at",
                    saw(system.device, "no package database was read"),
                    severity="warning",
                    confidence="possible",
                    system=system,
                )
            continue
        lost = _lost(database)
        if lost:
            yield _database(system, database, lost)
            # The file lists and their checksums lie beside the lost file and still tell what is damaged.
            if database.verification.level != "none":
                yield from _files(system, database)
            continue
        yield from _interrupted(system, database)
        yield from _files(system, database)


def _lost(database: PackageDatabase) -> str:
    """Return in words why the database cannot be believed, or an empty string."""
    if database.state == "missing":
        return "it does not exist"
    if database.state == "empty":
        return "it is empty"
    if database.state == "damaged":
        return database.detail or "it cannot be parsed"
    known = len(database.packages)
    if database.listed and known < database.listed - max(2, int(database.listed * _LOST_SHARE)):
        return f"it knows {known} packages, but {database.listed} have a file list"
    return ""


def _database(system: System, database: PackageDatabase, lost: str) -> Finding:
    backup = usable_backup(database)
    file = {"dpkg": "/var/lib/dpkg/status"}.get(database.manager, f"the {database.manager} database")
    evidence = [*saw(file, lost), *saw("/var/lib/dpkg/info", f"{database.listed} packages have a file list")]
    if database.detail and database.detail != lost:
        evidence += saw(file, database.detail)
    for other in database.backups:
        evidence += saw(
            other.path, f"names {other.packages} packages, {other.listed} of them with a file list"
        )
    return make_finding(
        "package-state-broken",
        f"package database on {system.device}",
        f"The package database of {system.name or system.device} is lost: {lost}",
        evidence,
        severity="error",
        system=system,
        repair="automatic" if backup is not None and database.manager == "dpkg" else "advice",
        advice="" if backup is not None else REBUILD_ADVICE,
        paths=(file,) if file.startswith("/") else (),
    )


def _interrupted(system: System, database: PackageDatabase) -> Iterator[Finding]:
    unsettled = [p for p in database.packages if p.state not in _SETTLED or p.reinstall_required]
    if not unsettled and not database.interrupted:
        return
    # Half-unpacked files beside settled packages are litter: dpkg ignores them.
    litter = not unsettled and all(sign.endswith(_LITTER) for sign in database.interrupted)
    again = [
        f"{p.name}:{p.architecture}" if p.architecture else p.name
        for p in unsettled
        if p.reinstall_required or p.state == "half-installed"
    ]
    evidence = [
        *saw(
            "/var/lib/dpkg/status",
            *(
                f"{p.name} {p.version}: {p.state}" + (", must be reinstalled" if p.reinstall_required else "")
                for p in unsettled
            ),
        ),
        *saw("/var/lib/dpkg", *database.interrupted),
    ]
    names = listed(p.name for p in unsettled)
    yield make_finding(
        "package-state-broken",
        f"package transaction on {system.device}",
        "An interrupted unpacking left files behind"
        if litter
        else "The package manager was interrupted" + (f": {names} not set up" if names else ""),
        evidence,
        severity="warning" if litter else "error",
        system=system,
        repair="none" if litter else "automatic" if database.manager == "dpkg" else "advice",
        packages=again,
    )


def _files(system: System, database: PackageDatabase) -> Iterator[Finding]:
    verification = database.verification
    if verification.level == "none":
        yield make_finding(
            "packages-not-verified",
            f"packages on {system.device}",
            "The packaged files were not compared with the package database",
            saw(system.device, "verification was left out"),
            severity="info",
            system=system,
        )
        return
    damaged = [f for f in verification.damaged if not f.conffile and f.package]
    faults = list(system.init.faults) if system.init is not None else []
    # What keeps init from starting is told there, with the file as its evidence.
    others = [f for f in damaged if not any(is_about(f, fault) for fault in faults)]
    if others:
        yield _damaged(system, others)
    yield from _configuration(system, [f for f in verification.damaged if f.conffile])


def _damaged(system: System, files: list[DamagedFile]) -> Finding:
    packages = list(dict.fromkeys(f.package for f in files))
    counts: dict[str, int] = {}
    for file in files:
        counts[file.kind] = counts.get(file.kind, 0) + 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    in_closure = _needed_by_init(system)
    stops_boot = any(canonical_path(f.path) in in_closure for f in files)
    return make_finding(
        "package-files-damaged",
        f"packaged files on {system.device}",
        f"{counted(len(files), 'file')} of {counted(len(packages), 'package')} not as installed "
        f"({kinds}): {listed(packages)}",
        saw("/var/lib/dpkg/info/*.md5sums", *(f"{f.path} ({f.package}): {f.kind}" for f in files)),
        severity="fatal" if stops_boot else "error",
        system=system,
        repair="automatic" if system.package_manager == "apt" else "advice",
        packages=packages,
        paths=[f.path for f in files],
    )


def _needed_by_init(system: System) -> set[str]:
    return {canonical_path(path) for path in system.init.objects} if system.init is not None else set()


def _configuration(system: System, files: list[DamagedFile]) -> Iterator[Finding]:
    if not files:
        return
    yield make_finding(
        "configuration-changed",
        f"configuration on {system.device}",
        f"{len(files)} configuration files differ from what their packages brought; they are kept",
        saw("/var/lib/dpkg/status", *(f"{f.path} ({f.package}): {f.kind}" for f in files)),
        severity="info",
        system=system,
        paths=[f.path for f in files],
    )
