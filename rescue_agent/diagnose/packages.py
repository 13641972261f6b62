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
from rescue_agent.model.families import family_of
from rescue_agent.model.finding import DATABASE, Finding
from rescue_agent.model.queries import canonical_path, counted, patient_systems

_LITTER = "was left by an unpacking"
_SETTLED = ("installed", "config-files", "not-installed")


def diagnose_packages(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the packages of each installed system."""
    for system in patient_systems(facts):
        database = system.database
        if database is None:
            if family_of(system).archive_suffix:
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
        lost = family_of(system).find_loss(database)
        if lost:
            yield _database(system, database, lost)
            # The file lists and their checksums lie beside the lost file and still tell what is damaged.
            if database.verification.level != "none":
                yield from _files(system, database)
            continue
        yield from _doubtful(system, database)
        yield from _interrupted(system, database)
        yield from _files(system, database)


def _doubtful(system: System, database: PackageDatabase) -> Iterator[Finding]:
    family = family_of(system)
    lacking = family.find_doubt(database)
    if not lacking:
        return
    yield make_finding(
        "package-database-incomplete",
        f"packages on {system.device}",
        f"{counted(len(lacking), 'package')} that the history calls installed are not in {family.database}",
        saw(family.history, *lacking),
        severity="warning",
        confidence="possible",
        system=system,
        repair="advice",
        advice="When nobody removed them with rpm itself, the database has lost them: put their package "
        "files back in 'rescue-agent shell' with rpm -i --justdb, which enters them and touches no file.",
    )


def _database(system: System, database: PackageDatabase, lost: str) -> Finding:
    family = family_of(system)
    restorable = family.can_restore(database)
    file = family.database
    evidence = [*saw(file, lost)]
    if database.listed:
        evidence += saw(system.device, f"{counted(database.listed, 'package')} have {family.listed_by}")
    if database.detail and database.detail != lost:
        evidence += saw(file, database.detail)
    for other in database.backups:
        evidence += saw(
            other.path, f"names {other.packages} packages, {other.listed} of them with a file list"
        )
    return make_finding(
        "package-state-broken",
        f"{DATABASE} on {system.device}",
        f"The package database of {system.name or system.device} is lost: {lost}",
        evidence,
        severity="error",
        system=system,
        repair="automatic" if restorable else "advice",
        advice="" if restorable else family.rebuild_advice,
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
    family = family_of(system)
    evidence = [
        *saw(
            family.database,
            *(
                f"{p.name} {p.version}: {p.state}" + (", must be reinstalled" if p.reinstall_required else "")
                for p in unsettled
            ),
        ),
        *saw(family.history, *database.interrupted),
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
        repair="none" if litter else "automatic" if family.archive_suffix else "advice",
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
        saw(family_of(system).checksums, *(f"{f.path} ({f.package}): {f.kind}" for f in files)),
        severity="fatal" if stops_boot else "error",
        system=system,
        repair="automatic" if family_of(system).archive_suffix else "advice",
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
        saw(family_of(system).database, *(f"{f.path} ({f.package}): {f.kind}" for f in files)),
        severity="info",
        system=system,
        paths=[f.path for f in files],
    )
