# SPDX-License-Identifier: GPL-3.0-or-later
"""Reinstalling damaged packages and finishing interrupted runs.

The way of every reinstallation: fetch (nothing on the patient changes, so what cannot be had is known
before) → lay the damaged files out from outside, where the patient's programs depend on them or where
changed files are to be saved first → prove that programs start → let the patient's own manager reinstall
the same packages at the same versions.

Configuration files are kept. One that is gone stays gone, since that is taken for its owner's wish,
except where the same package lost other files too: then it was lost with them, and comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rescue_agent.model.facts import DamagedFile, System
from rescue_agent.model.families import family_of
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import Operation, Run, SetMetadata, Unpack
from rescue_agent.model.plan import WORKSPACE, Deferred, Refusal, Step
from rescue_agent.model.queries import (
    bare_names,
    counted,
    human_size,
    program_devices,
    usable_bytes,
    whole_disks,
)
from rescue_agent.planning.families import Work, get_manager
from rescue_agent.planning.proposal import Case, Proposal, because, refuse
from rescue_agent.planning.recipes.sources import (
    find_supplies,
    find_wanted,
    is_inside_sound,
    needed_by_tools,
    room_on_patient,
    why_no_room,
)
from rescue_agent.planning.recipes.workspace import why_not_inside
from rescue_agent.planning.supply import Supply, Wanted, bind_archives

FETCH, UNPACK, REINSTALL, ATTRIBUTES = (
    "fetch-packages",
    "unpack-packages",
    "reinstall-packages",
    "restore-attributes",
)
MIN_INODES = 256
"""A package is unpacked beside its old files before it replaces them."""


def put_in_order(
    broken: tuple[Finding, ...], case: Case, system: System, freeing: tuple[Step, ...]
) -> Proposal:
    wanted, unknown = find_wanted(system, broken)
    by_name = {name: f for f in reversed(broken) for name in f.packages}
    refusals = [
        refuse(
            f"{name} is to be reinstalled, but the package database does not know it",
            "Install it by hand in 'rescue-agent shell'.",
            (by_name[name],),
        )
        for name in unknown
    ]
    short = _short_of_room(case, system, wanted)
    if short and freeing:
        wait = Deferred(
            stage="packages",
            reason=f"{short}; looked at again after step {freeing[0].id}",
            findings=tuple(f.id for f in broken),
        )
        return Proposal(deferred=(wait,), refusals=tuple(refusals))
    if short:
        no = refuse(short, "Make room by hand with 'rescue-agent shell' and start again.", broken)
        return Proposal(refusals=(*refusals, no))
    # What is done inside can put modes back only when the inside works.
    sound = is_inside_sound(system)
    mode_only = tuple(w for w in wanted if w.only_attributes and (sound or not needed_by_tools(system, w)))
    supplies, missing = find_supplies(case, system, (w for w in wanted if w not in mode_only))
    downloads = tuple(s for s in supplies if s.origin == "download")
    no_room = why_no_room(case, downloads) if downloads else ""
    if no_room:
        missing = (*missing, *((s.wanted, no_room) for s in downloads))
        supplies = tuple(s for s in supplies if s.origin != "download")
    refusals += _no_source(missing, broken, system)
    lacking = tuple(want for want, _ in missing if needed_by_tools(system, want))
    steps = _steps(broken, case, system, supplies, lacking, mode_only)
    outside_only = why_not_inside(case.facts, system)
    if outside_only:
        refusals.append(
            refuse(
                f"the system's own package manager is not started: {outside_only}",
                "What stands between it and a boot is laid out from outside; set the packages up on the "
                "machine itself once it runs.",
                broken,
            )
        )
    return Proposal(steps=steps, refusals=tuple(refusals))


def by_hand(system: System) -> str:
    """Return what a person can do about archives that cannot be had."""
    family, database = family_of(system), system.database
    asked_in_vain = database is not None and (database.sources_error or database.offers is not None)
    return (
        f"Put the {family.archive_suffix} files of these very versions into a folder and name it with "
        "--packages, or give the rescue system a network. "
        + (family.advise_sources(system) if asked_in_vain else "")
    ).strip()


def _no_source(
    missing: tuple[tuple[Wanted, str], ...], broken: tuple[Finding, ...], system: System
) -> list[Refusal]:
    by_reason: dict[str, list[Wanted]] = {}
    for want, reason in missing:
        by_reason.setdefault(reason, []).append(want)
    refusals = []
    for reason, wants in by_reason.items():
        names = {want.package.name for want in wants}
        concerned = [f for f in broken if names & bare_names(system.database, f.packages)]
        versions = ", ".join(f"{w.package.name} {w.package.version}" for w in wants)
        refusals.append(
            refuse(
                f"no archive of {versions} can be had for {system.name or system.device}: {reason}",
                by_hand(system),
                concerned,
            )
        )
    return refusals


def _steps(
    broken: tuple[Finding, ...],
    case: Case,
    system: System,
    supplies: tuple[Supply, ...],
    lacking: tuple[Wanted, ...],
    mode_only: tuple[Wanted, ...],
) -> tuple[Step, ...]:
    """Return the steps in their order. ``lacking``: what the tools inside stand on and nobody has.
    ``mode_only``: packages whose files are whole but for their modes."""
    manager = get_manager(system)
    forbidden = bool(why_not_inside(case.facts, system))
    sound = is_inside_sound(system) and not forbidden
    about = _findings_of([s.wanted for s in supplies], system, broken)
    steps: list[Step] = []
    needs: tuple[str, ...] = (WORKSPACE,)
    downloads = tuple(s for s in supplies if s.origin == "download")
    if downloads:
        steps.append(_fetch_step(downloads, about, case, system, needs))
        needs = (*needs, FETCH)
    unpacks = tuple(
        # A newer version may have its files under other names: then all of it.
        _unpack(system, s.outside, () if s.is_newer else tuple(f.path for f in files))
        for s in supplies
        if (files := _to_lay_out(s, system, sound=sound, forbidden=forbidden)) is not None
    )
    if unpacks:
        why = (
            "Files that were changed are saved and replaced first, so that the reinstallation loses nothing."
            if sound
            else "Programs inside the system cannot be relied on before these files are back, so they are "
            "laid out from outside; what they replace is saved."
        )
        steps.append(unpack_step(unpacks, why, about, case, system, needs))
        needs = (*needs, UNPACK)
    labels = manager.label(case, system, [s.outside for s in supplies])
    # Without knowledge of the tools the proof at the start of each step decides.
    may_enter = sound or bool(unpacks) or not system.tools
    if forbidden or lacking or not may_enter:
        if unpacks and labels is not None:
            steps.append(work_step(labels, about, case, system, needs))
        return tuple(steps)
    if supplies:
        steps.append(_reinstall_step(supplies, about, case, system, needs))
        needs = (*needs, REINSTALL)
        if labels is not None:
            steps.append(work_step(labels, about, case, system, needs))
    if mode_only:
        steps += _attribute_steps(mode_only, broken, case, system, needs)
    transaction = tuple(f for f in broken if f.code == "package-state-broken")
    if transaction:
        for work in manager.complete(case, system, transaction):
            steps.append(work_step(work, transaction, case, system, needs))
            needs = (*needs, work.id)
    return tuple(steps)


def _findings_of(
    wanted: Sequence[Wanted], system: System, broken: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    names = {w.package.name for w in wanted}
    return tuple(f for f in broken if names & bare_names(system.database, f.packages))


def _unpack(system: System, archive: str, members: tuple[str, ...]) -> Unpack:
    return Unpack(archive=archive, format=family_of(system).archive_format, members=members)


def work_step(
    work: Work, about: Sequence[Finding], case: Case, system: System, needs: tuple[str, ...]
) -> Step:
    """Return a family's work as a step of the plan."""
    return Step(
        id=work.id,
        stage="packages",
        title=work.title,
        why=work.why,
        findings=tuple(f.id for f in about),
        risk="reversible",
        operations=work.operations,
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=work.estimate_s,
    )


def _attribute_steps(
    wanted: Sequence[Wanted],
    broken: tuple[Finding, ...],
    case: Case,
    system: System,
    needs: tuple[str, ...],
) -> tuple[Step, ...]:
    manager = get_manager(system)
    runs = manager.restore_attributes(system, [w.package for w in wanted])
    effects: tuple[Operation, ...] = (*runs, *_owners_modes(wanted))
    about = _findings_of(wanted, system, broken)
    work = Work(
        ATTRIBUTES,
        f"Put modes and owners of {counted(len(wanted), 'package')} back",
        f"{because(about[0]) if about else ''} Their files are whole: nothing is replaced. What their owner "
        "chose for configuration files is set again.".strip(),
        (*manager.start_proof(), *effects),
        5.0,
    )
    return (work_step(work, about, case, system, needs),) if effects else ()


def _to_lay_out(
    supply: Supply, system: System, *, sound: bool, forbidden: bool
) -> tuple[DamagedFile, ...] | None:
    """Return the files to lay out from outside; none means all of the package; None: nothing to do."""
    files = supply.wanted.files
    if not sound and (forbidden or needed_by_tools(system, supply.wanted)):
        return files
    replaced = tuple(f for f in files if f.kind != "missing")
    return replaced or None


def _fetch_step(
    downloads: tuple[Supply, ...],
    about: tuple[Finding, ...],
    case: Case,
    system: System,
    needs: tuple[str, ...],
) -> Step:
    manager = get_manager(system)
    newer = [
        f"{s.wanted.package.name} {s.wanted.package.version} is not offered any more, {s.version} replaces it"
        for s in downloads
        if s.is_newer
    ]
    return Step(
        id=FETCH,
        stage="packages",
        title=f"Download {counted(len(downloads), 'package')} from the system's own sources",
        why=(
            f"The rescue system's {manager.fetcher()} fetches exactly the installed versions, with the "
            "patient's sources and keys, into the run's folder; nothing on the patient changes. "
            + (f"{'; '.join(newer)}." if newer else "")
        ).strip(),
        findings=tuple(f.id for f in about),
        risk="read-only",
        operations=manager.fetch(case, system, downloads),
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(10 + 2 * len(downloads)),
    )


def unpack_step(
    unpacks: tuple[Unpack, ...],
    why: str,
    about: tuple[Finding, ...],
    case: Case,
    system: System,
    needs: tuple[str, ...],
) -> Step:
    manager = get_manager(system)
    proof: tuple[Run, ...] = () if why_not_inside(case.facts, system) else manager.start_proof()
    trust = manager.prove(case, system, [u.archive for u in unpacks])
    seen = f" {because(about[0])}" if about else ""
    return Step(
        id=UNPACK,
        stage="packages",
        title=f"Lay the damaged files of {counted(len(unpacks), 'package')} out again, from outside",
        why=why + seen + (" Then it is tried whether programs start inside." if proof else ""),
        findings=tuple(f.id for f in about),
        risk="reversible",
        operations=(*trust, *unpacks, *proof),
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(1 + len(unpacks)),
    )


def _reinstall_step(
    supplies: tuple[Supply, ...],
    about: tuple[Finding, ...],
    case: Case,
    system: System,
    needs: tuple[str, ...],
) -> Step:
    manager = get_manager(system)
    operations: list[Operation] = [*bind_archives(case.policy, supplies)]
    operations += manager.prove(case, system, [s.outside for s in supplies])
    operations += manager.start_proof()
    operations += manager.reinstall(case, system, supplies)
    operations += _owners_modes(s.wanted for s in supplies)
    same = [s for s in supplies if not s.is_newer]
    held = [s.wanted.name for s in supplies if s.wanted.package.held]
    lost_too = [s.wanted.name for s in same if s.wanted.lost_conffiles]
    names = ", ".join(f"{s.wanted.package.name} {s.version}" for s in supplies)
    return Step(
        id=REINSTALL,
        stage="packages",
        title=f"Reinstall {counted(len(supplies), 'damaged package')} at the installed version",
        why=(
            f"{because(about[0], 1) if about else ''} Exactly these are reinstalled by the system's own "
            f"{manager.installer(system)}, which also runs their scripts: {names}. Changed configuration "
            "files are kept."
            + (
                f" Lost configuration files of {', '.join(lost_too)} come back, since other files of the "
                "same packages are gone too."
                if lost_too
                else ""
            )
            + (f" The hold on {', '.join(held)} is set again." if held else "")
        ).strip(),
        findings=tuple(f.id for f in about),
        # The patient's manager cannot be undone, but puts nothing there that was not there before.
        risk="reversible",
        operations=tuple(operations),
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(5 + 3 * len(supplies)),
    )


def _owners_modes(wanted: Iterable[Wanted]) -> tuple[SetMetadata, ...]:
    """Return what sets the permissions that are known: those that their owner chose, or the packaged ones."""
    return tuple(
        SetMetadata(path=file.path, mode=file.mode, uid=file.uid, gid=file.gid)
        for want in wanted
        for file in want.own_modes
    )


def _short_of_room(case: Case, system: System, wanted: tuple[Wanted, ...]) -> str:
    """Return in words which filesystem has too little room for the reinstallation."""
    needed = room_on_patient(wanted)
    for device in program_devices(system):
        found = case.facts.filesystem(device)
        mount = next((m.mount_point for m in system.mounts if m.device == device), "/")
        if found is None or found.space is None or mount not in ("/", "/usr", "/var"):
            continue
        if found.space.inodes_total and found.space.inodes_free < MIN_INODES:
            return f"{mount} ({device}) has {found.space.inodes_free} inodes free"
        if usable_bytes(found) < needed:
            return (
                f"{mount} ({device}) has {human_size(usable_bytes(found))} free, and the reinstallation "
                f"takes about {human_size(needed)} for a while"
            )
    return ""
