# SPDX-License-Identifier: GPL-3.0-or-later
"""Reinstalling damaged packages and finishing interrupted runs.

The way of every reinstallation: fetch (nothing on the patient changes, so what cannot be had is known
before) → lay the damaged files out from outside, where the patient's programs depend on them or where
changed files are to be saved first → prove that programs start → let the patient's own dpkg reinstall
the same packages at the same versions.

Configuration files are kept. One that is gone stays gone, since dpkg takes that for its owner's wish,
except where the same package lost other files too: then it was lost with them, and comes back.
"""

from __future__ import annotations

from rescue_agent.model.facts import DamagedFile, System
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import Bind, Operation, Run, Unpack
from rescue_agent.model.plan import WORKSPACE, Deferred, Refusal, Step
from rescue_agent.model.queries import counted, human_size, program_devices, usable_bytes, whole_disks
from rescue_agent.planning.proposal import Case, Proposal, because, refuse
from rescue_agent.planning.recipes.apt import (
    INSIDE_ARCHIVES,
    INSIDE_FOLDER,
    configure_run,
    dpkg_install,
    fetch_runs,
    hold,
    inside_apt,
    proof_runs,
    spec,
)
from rescue_agent.planning.recipes.sources import (
    Supply,
    Wanted,
    find_supplies,
    find_wanted,
    is_inside_sound,
    needed_by_tools,
    room_on_patient,
    why_no_download,
    why_no_room,
)
from rescue_agent.planning.recipes.workspace import why_not_inside

FETCH, UNPACK, REINSTALL, CONFIGURE, DEPENDENCIES = (
    "fetch-packages",
    "unpack-packages",
    "reinstall-packages",
    "configure-packages",
    "fix-dependencies",
)
MIN_INODES = 256
"""A package is unpacked beside its old files before it replaces them."""
_BY_HAND = (
    "Put the .deb files of these very versions into a folder and name it with --packages, or give the rescue "
    "system a network."
)


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
    supplies, missing = find_supplies(case, system, wanted)
    downloads = tuple(s for s in supplies if s.origin == "download")
    no_room = why_no_room(case, downloads) if downloads else ""
    if no_room:
        missing = (*missing, *((s.wanted, no_room) for s in downloads))
        supplies = tuple(s for s in supplies if s.origin != "download")
    refusals += _no_source(missing, broken, system)
    lacking = tuple(want for want, _ in missing if needed_by_tools(system, want))
    steps = _steps(broken, case, system, supplies, lacking)
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


def _no_source(
    missing: tuple[tuple[Wanted, str], ...], broken: tuple[Finding, ...], system: System
) -> list[Refusal]:
    by_reason: dict[str, list[Wanted]] = {}
    for want, reason in missing:
        by_reason.setdefault(reason, []).append(want)
    refusals = []
    for reason, wants in by_reason.items():
        names = {want.package.name for want in wants}
        concerned = [f for f in broken if names & {p.partition(":")[0] for p in f.packages}]
        versions = ", ".join(f"{w.package.name} {w.package.version}" for w in wants)
        refusals.append(
            refuse(
                f"no archive of {versions} can be had for {system.name or system.device}: {reason}",
                _BY_HAND,
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
) -> tuple[Step, ...]:
    """Return the steps in their order. ``lacking``: what the tools inside stand on and nobody has."""
    forbidden = bool(why_not_inside(case.facts, system))
    sound = is_inside_sound(system) and not forbidden
    about = _findings_of(supplies, broken)
    steps: list[Step] = []
    needs: tuple[str, ...] = (WORKSPACE,)
    downloads = tuple(s for s in supplies if s.origin == "download")
    if downloads:
        steps.append(_fetch_step(downloads, about, case, system, needs))
        needs = (*needs, FETCH)
    unpacks = tuple(
        # A newer version may have its files under other names: then all of it.
        Unpack(archive=s.outside, members=() if s.is_newer else tuple(f.path for f in files))
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
    # Without knowledge of the tools the proof at the start of each step decides.
    may_enter = sound or bool(unpacks) or not system.tools
    if forbidden or lacking or not may_enter:
        return tuple(steps)
    if supplies:
        steps.append(_reinstall_step(supplies, about, case, system, needs))
        needs = (*needs, REINSTALL)
    transaction = tuple(f for f in broken if f.code == "package-state-broken")
    if transaction:
        steps += _set_up_steps(transaction, case, system, needs)
    return tuple(steps)


def _findings_of(supplies: tuple[Supply, ...], broken: tuple[Finding, ...]) -> tuple[Finding, ...]:
    names = {s.wanted.package.name for s in supplies}
    return tuple(f for f in broken if names & {p.partition(":")[0] for p in f.packages})


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
    database = system.database
    assert database is not None
    architectures = {p.architecture for p in database.packages} - {"all", ""}
    native = system.architecture or next(iter(sorted(architectures)), "amd64")
    ordered = (native, *sorted(architectures - {native}))
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
            "The rescue system's apt fetches exactly the installed versions, with the patient's sources and "
            "keys, into the run's folder; nothing on the patient changes. "
            + (f"{'; '.join(newer)}." if newer else "")
        ).strip(),
        findings=tuple(f.id for f in about),
        risk="read-only",
        operations=fetch_runs(
            case.policy.work_dir,
            native,
            ordered,
            tuple(spec(s.wanted.package, s.version) for s in downloads),
        ),
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(10 + 2 * len(downloads)),
    )


def unpack_step(
    unpacks: tuple[Operation, ...],
    why: str,
    about: tuple[Finding, ...],
    case: Case,
    system: System,
    needs: tuple[str, ...],
) -> Step:
    proof: tuple[Run, ...] = () if why_not_inside(case.facts, system) else proof_runs()
    seen = f" {because(about[0])}" if about else ""
    return Step(
        id=UNPACK,
        stage="packages",
        title=f"Lay the damaged files of {counted(len(unpacks), 'package')} out again, from outside",
        why=why + seen + (" Then it is tried whether programs start inside." if proof else ""),
        findings=tuple(f.id for f in about),
        risk="reversible",
        operations=(*unpacks, *proof),
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
    operations: list[Operation] = []
    if any(s.origin == "download" for s in supplies):
        operations.append(
            Bind(source=f"{case.policy.work_dir}/archives", path=INSIDE_ARCHIVES, folder=True, read_only=True)
        )
    if any(s.origin == "folder" for s in supplies):
        operations.append(
            Bind(source=case.policy.packages_dir, path=INSIDE_FOLDER, folder=True, read_only=True)
        )
    operations += proof_runs()
    same = [s for s in supplies if not s.is_newer]
    for lost in (False, True):
        paths = [s.inside for s in same if s.wanted.lost_conffiles == lost]
        if paths:
            operations.append(dpkg_install(paths, missing_conffiles=lost))
    newer = [s for s in supplies if s.is_newer]
    if newer:
        # A newer version may want others along with it: apt's own work.
        operations.append(inside_apt("update", ok=(0, 100)))
        operations.append(
            inside_apt("--reinstall", "install", *(spec(s.wanted.package, s.version) for s in newer))
        )
    held = [s.wanted.name for s in supplies if s.wanted.package.held]
    if held:
        operations.append(hold(held))
    lost_too = [s.wanted.name for s in same if s.wanted.lost_conffiles]
    names = ", ".join(f"{s.wanted.package.name} {s.version}" for s in supplies)
    return Step(
        id=REINSTALL,
        stage="packages",
        title=f"Reinstall {counted(len(supplies), 'damaged package')} at the installed version",
        why=(
            f"{because(about[0], 1) if about else ''} Exactly these are reinstalled by the system's own "
            f"dpkg, which also runs their scripts: {names}. Changed configuration files are kept."
            + (
                f" Lost configuration files of {', '.join(lost_too)} come back, since other files of the "
                "same packages are gone too."
                if lost_too
                else ""
            )
            + (f" The hold on {', '.join(held)} is set again." if held else "")
        ).strip(),
        findings=tuple(f.id for f in about),
        # dpkg cannot be undone, but puts nothing there that was not there before.
        risk="reversible",
        operations=tuple(operations),
        needs=needs,
        disks=whole_disks(case.facts, system.device),
        estimate_s=float(5 + 3 * len(supplies)),
    )


def _set_up_steps(
    transaction: tuple[Finding, ...], case: Case, system: System, needs: tuple[str, ...]
) -> tuple[Step, ...]:
    disks = whole_disks(case.facts, system.device)
    ids = tuple(f.id for f in transaction)
    configure = Step(
        id=CONFIGURE,
        stage="packages",
        title="Set up every package that was only unpacked",
        why=f"{because(transaction[0])} dpkg goes on where it stopped; configuration files are kept.",
        findings=ids,
        risk="reversible",
        operations=(*proof_runs(), configure_run()),
        needs=needs,
        disks=disks,
        estimate_s=30.0,
    )
    words = ("-f", "install") if not why_no_download(case, system) else ("--no-download", "-f", "install")
    dependencies = Step(
        id=DEPENDENCIES,
        stage="packages",
        title="Let apt complete what is missing between packages",
        why="An interrupted run can leave packages without what they depend on; mostly nothing is left.",
        findings=ids,
        risk="reversible",
        operations=(inside_apt(*words),),
        needs=(*needs, CONFIGURE),
        disks=disks,
        estimate_s=10.0,
    )
    return (configure, dependencies)


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
