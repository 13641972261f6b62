# SPDX-License-Identifier: GPL-3.0-or-later
"""Which damaged packages are to be reinstalled, and where each one's archive comes from.

Sources in order: the patient's package cache, the folder that the person named, the patient's own
download sources.
"""

from __future__ import annotations

from collections.abc import Iterable

from rescue_agent.model.facts import Archive, DamagedFile, InstalledPackage, PackageDatabase, System
from rescue_agent.model.families import REMOTE, family_of
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import TARGET_ROOT
from rescue_agent.model.queries import (
    canonical_path,
    human_size,
    is_below,
    is_missing_tool,
    packages_by_label,
)
from rescue_agent.planning.families import get_manager
from rescue_agent.planning.proposal import Case
from rescue_agent.planning.supply import INSIDE_ARCHIVES, INSIDE_FOLDER, Supply, Wanted

LISTS_BYTES = 200 << 20
"""Room for the lists of all sources of a large installation, unpacked."""
UNKNOWN_PACKAGE_BYTES = 32 << 20
_DOCUMENTATION = tuple(f"/usr/share/{name}" for name in ("doc", "info", "lintian", "locale", "man"))
RESERVE_BYTES = 4 << 20
"""What is left alone on the patient beside a reinstallation: logs, the database's next version."""


def find_wanted(system: System, findings: Iterable[Finding]) -> tuple[tuple[Wanted, ...], tuple[str, ...]]:
    """Return the packages that the findings name, and the names that the database does not know."""
    database = system.database
    known = packages_by_label(database)
    damaged: dict[InstalledPackage, list[DamagedFile]] = {}
    for file in database.verification.damaged if database is not None else ():
        if file.package in known:
            damaged.setdefault(known[file.package], []).append(file)
    found: dict[InstalledPackage, Wanted] = {}
    unknown: list[str] = []
    for name in dict.fromkeys(name for finding in findings for name in finding.packages):
        package = known.get(name)
        if package is None:
            unknown.append(name)
            continue
        own = damaged.get(package, [])
        files = tuple(f for f in own if not f.conffile)
        gone = any(f.kind == "missing" for f in files)
        lost_too = gone and any(f.conffile and f.kind == "missing" for f in own)
        own_modes = tuple(f for f in own if f.mode is not None)
        found[package] = Wanted(package, files, lost_too, own_modes)
    return tuple(found.values()), tuple(unknown)


def find_supplies(
    case: Case, system: System, wanted: Iterable[Wanted]
) -> tuple[tuple[Supply, ...], tuple[tuple[Wanted, str], ...]]:
    """Return where each archive comes from, and the packages without any source, each with the reason."""
    database = system.database
    assert database is not None
    supplies: list[Supply] = []
    missing: list[tuple[Wanted, str]] = []
    no_download = why_no_download(case, system)
    manager = get_manager(system)
    for want in wanted:
        package = want.package
        at_hand = _find_archive(database, package)
        if at_hand is not None and not at_hand.refused:
            supplies.append(from_archive(case, want, at_hand))
            continue
        if no_download:
            refused = f"{at_hand.path} {at_hand.refused}; " if at_hand is not None else ""
            missing.append((want, refused + no_download))
            continue
        version = _offered(database, package)
        if not version:
            missing.append((want, "none of the configured sources offers it any more"))
            continue
        name = manager.archive_name(package, version)
        supplies.append(
            Supply(
                want,
                "download",
                version,
                f"{case.policy.work_dir}/archives/{name}",
                f"{INSIDE_ARCHIVES}/{name}",
            )
        )
    return tuple(supplies), tuple(missing)


def _find_archive(database: PackageDatabase, package: InstalledPackage) -> Archive | None:
    exact = [
        a
        for a in database.archives
        if (a.package, a.version) == (package.name, package.version)
        and a.architecture in (package.architecture, "all", "")
    ]
    return min(exact, key=lambda a: (bool(a.refused), a.origin != "cache"), default=None)


def from_archive(case: Case, want: Wanted, archive: Archive) -> Supply:
    """Return an archive that is at hand as the source of a package."""
    version = want.package.version
    if archive.origin == "cache":
        return Supply(want, "cache", version, TARGET_ROOT + archive.path, archive.path)
    below = archive.path.removeprefix(case.policy.packages_dir.rstrip("/") + "/")
    return Supply(want, "folder", version, archive.path, f"{INSIDE_FOLDER}/{below}")


def _offered(database: PackageDatabase, package: InstalledPackage) -> str:
    """Return the version to ask the sources for; empty when they are known to have none."""
    if database.offers is None:
        return package.version
    own = [
        o.version
        for o in database.offers
        if o.package == package.name and o.architecture in (package.architecture, "all")
    ]
    if package.version in own:
        return package.version
    return own[0] if own else ""


def why_no_download(case: Case, system: System) -> str:
    """Return why nothing can be downloaded for this system, or an empty string."""
    facts, database, family = case.facts, system.database, family_of(system)
    if not case.policy.network:
        return "downloads were ruled out"
    if facts.rescue.network is False:
        return "this rescue system has no network"
    if database is None or not any(remote in line for line in database.sources for remote in REMOTE):
        return f"no download source is configured in {family.sources_folder} on {system.device}"
    if database.sources_error:
        return database.sources_error
    if is_missing_tool(facts, family.fetch_tool):
        return f"{family.fetch_tool} is not installed on this rescue system"
    return ""


def why_no_room(case: Case, downloads: Iterable[Supply]) -> str:
    """Return why the downloads do not fit beside the patient, or an empty string."""
    needed = LISTS_BYTES + sum(_bytes(s.wanted.package) // 2 for s in downloads)
    free = case.facts.rescue.work_free_bytes
    if free >= needed:
        return ""
    return (
        f"there is no room for the download: about {human_size(needed)} are needed in "
        f"{case.policy.work_dir}, {human_size(free)} are free"
    )


def room_on_patient(wanted: Iterable[Wanted]) -> int:
    """Return the bytes that a reinstallation takes for a while: dpkg keeps one package twice."""
    return max((_bytes(want.package) for want in wanted), default=0) + RESERVE_BYTES


def _bytes(package: InstalledPackage) -> int:
    return package.installed_bytes or UNKNOWN_PACKAGE_BYTES


def is_inside_sound(system: System) -> bool:
    """Return whether everything that package repair inside stands on is known to be whole."""
    if not system.tools or any(tool.faults for tool in system.tools):
        return False
    damaged = system.database.verification.damaged if system.database is not None else ()
    used = _used_by_tools(system)
    known, below = packages_by_label(system.database), family_of(system).tool_packages
    return not any(
        canonical_path(f.path) in used
        or (_is_working_part(f) and f.package in known and known[f.package].name in below)
        for f in damaged
        if not f.conffile and f.kind != "attributes"  # what cannot be started is told by the tools
    )


def _is_working_part(file: DamagedFile) -> bool:
    """Return whether a program could miss the file: it is more than documentation."""
    return not is_below(canonical_path(file.path), _DOCUMENTATION)


def _used_by_tools(system: System) -> set[str]:
    return {canonical_path(p) for tool in system.tools for p in (tool.path, *tool.objects) if p}


def needed_by_tools(system: System, want: Wanted) -> bool:
    """Return whether the package must be whole before anything is started inside."""
    if want.package.name in family_of(system).tool_packages and (
        not want.files or any(_is_working_part(file) for file in want.files)
    ):
        return True
    used = _used_by_tools(system)
    stumbles = tuple(
        fault.path.rpartition("/")[2] for tool in system.tools for fault in tool.faults if fault.path
    )
    return any(
        canonical_path(f.path) in used or f.path.rpartition("/")[2].startswith(stumbles) for f in want.files
    )
