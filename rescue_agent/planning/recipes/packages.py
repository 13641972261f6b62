# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages: which repair for which finding, the database, room, upgrades. The same for every family."""

from __future__ import annotations

import msgspec

from rescue_agent.model.facts import Archive, System
from rescue_agent.model.families import family_of
from rescue_agent.model.finding import DATABASE, Finding
from rescue_agent.model.operation import TARGET_ROOT, RemoveFile, Symlink, Unpack
from rescue_agent.model.plan import WORKSPACE, Deferred, Refusal, Step
from rescue_agent.model.queries import lost_links, whole_disks
from rescue_agent.planning.families import find_manager, get_manager
from rescue_agent.planning.proposal import Case, Proposal, because, merge, refuse
from rescue_agent.planning.recipes.reinstall import by_hand, put_in_order, unpack_step, work_step
from rescue_agent.planning.recipes.sources import find_wanted, is_inside_sound, why_no_download
from rescue_agent.planning.recipes.workspace import why_not_inside

LINKS, FREE, UPGRADE = "restore-links", "free-room", "upgrade"
CODES = (
    "init-missing",
    "init-missing-library",
    "init-not-executable",
    "package-tools-broken",
    "package-files-damaged",
    "package-state-broken",
    "disk-full",
)


def repair_packages(findings: tuple[Finding, ...], case: Case, system: System) -> Proposal:
    """Plan the package stage for one system, without the workspace that its steps need."""
    database = system.database
    findings = tuple(f for f in findings if f.repair == "automatic")
    room = merge(_free_room(f, case, system) for f in findings if f.code == "disk-full")
    broken = tuple(f for f in findings if f.code != "disk-full")
    if database is None or not broken:
        return room
    if find_manager(system) is None:
        no = refuse(
            f"packages of {system.name or system.device} are not repaired: its package manager is "
            f"{system.package_manager}",
            "Use its own package manager from 'rescue-agent shell'.",
            broken,
        )
        return merge((room, Proposal(refusals=(no,))))
    links = lost_links(system)
    if links:
        return merge((room, _restore_links(links, broken, case, system, room.steps)))
    lost = _database_lost(case, system)
    freed = tuple(step.id for step in room.steps)
    if lost is not None:
        return merge((room, _restore(lost, broken, case, system, freed)))
    return merge((room, put_in_order(broken, case, system, room.steps)))


def _database_lost(case: Case, system: System) -> Finding | None:
    return next(
        (
            f
            for f in case.diagnosis.findings
            if f.code == "package-state-broken" and f.system == system.id and f.subject.startswith(DATABASE)
        ),
        None,
    )


# --- links of a merged /usr ----------------------------------------------------------------


def _restore_links(
    links: tuple[str, ...], broken: tuple[Finding, ...], case: Case, system: System, freeing: tuple[Step, ...]
) -> Proposal:
    """Before anything else: with a link gone, every file behind it looks missing, and unpacking makes
    a real folder in its place."""
    ids = tuple(f.id for f in broken)
    step = Step(
        id=LINKS,
        stage="packages",
        title=f"Put back the links {', '.join(links)} of the merged /usr",
        why=(
            f"{', '.join(links)} and the like are links to the folders below /usr on this system, and "
            f"{'these are' if len(links) > 1 else 'this one is'} gone, so that files behind look missing. "
            f"{because(broken[0])}"
        ),
        findings=ids,
        risk="reversible",
        operations=tuple(Symlink(path=path, target=f"usr{path}") for path in links),
        needs=(WORKSPACE, *(s.id for s in freeing)),
        disks=whole_disks(case.facts, system.device),
        estimate_s=1.0,
    )
    wait = Deferred(
        stage="packages",
        reason=f"which files are really missing is only known after step {LINKS}",
        findings=ids,
    )
    return Proposal(steps=(step,), deferred=(wait,))


# --- the database ------------------------------------------------------------------------------


def _restore(
    lost: Finding, broken: tuple[Finding, ...], case: Case, system: System, freed: tuple[str, ...]
) -> Proposal:
    others = tuple(f for f in broken if f.id != lost.id)
    restoration = get_manager(system).restore_database(case, system)
    # Without the database nobody knows what is damaged: whether tools start is all that can be seen.
    dead = any(tool.faults for tool in system.tools) or bool(why_not_inside(case.facts, system))
    if not restoration.works or (restoration.enters and dead):
        return _without_database(others, case, system)
    steps: list[Step] = []
    needs = (WORKSPACE, *freed)
    for work in restoration.works:
        step = work_step(work, (lost,), case, system, needs)
        steps.append(msgspec.structs.replace(step, why=f"{because(lost)} {work.why}"))
        needs = (*needs, work.id)
    wait = Deferred(
        stage="packages",
        reason="which versions are installed, and what else is wrong, is only known after step "
        f"{steps[-1].id}",
        findings=tuple(f.id for f in others),
    )
    refusals = (
        (refuse(f"the package database: {restoration.missing}", by_hand(system), (lost,)),)
        if restoration.missing
        else ()
    )
    return Proposal(tuple(steps), (wait,), refusals)


def _without_database(others: tuple[Finding, ...], case: Case, system: System) -> Proposal:
    """Nothing says which versions are installed: only archives at hand can help, and only from outside."""
    database = system.database
    assert database is not None
    family = family_of(system)
    unpacks: list[Unpack] = []
    done: list[Finding] = []
    refusals: list[Refusal] = []
    for finding in others:
        for name in finding.packages:
            bare, _, architecture = name.partition(":")
            known = {p.version for p in database.recorded if p.name == bare}
            found = [
                a
                for a in database.archives
                if a.package == bare and architecture in ("", a.architecture) and a.architecture != ""
                if not a.refused and (not known or a.version in known)
            ]
            if len({a.version for a in found}) != 1:
                refusals.append(
                    refuse(
                        f"{name} cannot be put back: the package database is lost, and no archive of one "
                        "known version is at hand",
                        family.version_advice.format(package=bare)
                        + f" Put that {family.archive_suffix} file into a folder, named with --packages.",
                        (finding,),
                    )
                )
                continue
            archive = _archive_outside(found[0])
            members = tuple(
                f.path
                for f in database.verification.damaged
                if f.package.partition(":")[0] == bare and not f.conffile
            )
            unpacks.append(Unpack(archive=archive, format=family.archive_format, members=members))
            done.append(finding)
    if not unpacks:
        return Proposal(refusals=tuple(refusals))
    step = unpack_step(
        tuple(dict.fromkeys(unpacks)),
        "The package database is lost; these archives are at hand, and only files are laid out.",
        tuple(done),
        case,
        system,
        (WORKSPACE,),
    )
    return Proposal(steps=(step,), refusals=tuple(refusals))


def _archive_outside(archive: Archive) -> str:
    return TARGET_ROOT + archive.path if archive.origin == "cache" else archive.path


# --- room --------------------------------------------------------------------------------------


def _free_room(finding: Finding, case: Case, system: System) -> Proposal:
    """Remove package archives from the cache: they can be had again, and each is saved all the same."""
    database = system.database
    if database is None:
        return Proposal()
    broken = [f for f in case.diagnosis.findings if f.system == system.id and f.repair == "automatic"]
    needed = {(w.package.name, w.package.version) for w in find_wanted(system, broken)[0]}
    needed |= {(p.name, p.version) for p in database.recorded}  # a lost database is made anew from them
    spare = [
        a.path for a in database.archives if a.origin == "cache" and (a.package, a.version) not in needed
    ]
    if not spare:
        no = refuse(
            f"{finding.title}, and the package cache holds nothing that can go",
            "Make room by hand with 'rescue-agent shell'; the agent removes nothing that a person may want.",
            (finding,),
        )
        return Proposal(refusals=(no,))
    step = Step(
        id=FREE,
        stage="packages",
        title=f"Remove {len(spare)} package archives from the system's download cache",
        why=f"{because(finding)} The archives can be downloaded again; user data is never touched.",
        findings=(finding.id,),
        risk="reversible",
        operations=tuple(RemoveFile(path=path) for path in spare),
        needs=(WORKSPACE,),
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(1 + len(spare) // 20),
    )
    return Proposal(steps=(step,))


# --- upgrade -----------------------------------------------------------------------------------


def upgrade_packages(case: Case, system: System) -> Proposal:
    """Plan bringing all packages up to date, when the system's own manager can run inside."""
    no_download = why_no_download(case, system)
    inside = why_not_inside(case.facts, system)
    manager = find_manager(system)
    if manager is None:
        inside = f"its package manager is {system.package_manager}"
    elif not inside and not is_inside_sound(system):
        inside = "its own programs are not whole"
    if manager is None or no_download or inside:
        no = refuse(
            f"{system.name or system.device} is not upgraded: {no_download or inside}",
            "Upgrade it once it runs by itself.",
        )
        return Proposal(refusals=(no,))
    step = Step(
        id=UPGRADE,
        stage="packages",
        title="Upgrade all packages",
        why="You asked for it (--upgrade). No package is added or removed; configuration files are kept.",
        risk="lossy",
        operations=manager.upgrade(system),
        needs=(WORKSPACE,),
        disks=whole_disks(case.facts, system.device),
        estimate_s=600.0,
    )
    return Proposal(steps=(step,))
