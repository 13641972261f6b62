# SPDX-License-Identifier: GPL-3.0-or-later
"""Installed systems: is there one, and can its init start?"""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import listed, make_finding, saw
from rescue_agent.diagnose.owners import find_owners, is_about
from rescue_agent.model.facts import ElfFault, Facts, Program, System
from rescue_agent.model.families import family_of
from rescue_agent.model.finding import Evidence, Finding
from rescue_agent.model.queries import patient_filesystems, patient_systems

_NOT_RUNNABLE = ("not-executable", "not-elf", "truncated", "wrong-architecture", "unreadable")


def diagnose_systems(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with each installed system as a whole."""
    systems = patient_systems(facts)
    if not systems and facts.disks:
        yield _none_found(facts)
    if len(systems) > 1:
        yield make_finding(
            "several-systems",
            listed(facts.disks),
            f"{len(systems)} systems are installed here",
            saw("etc/os-release", *(f"{s.name} on {s.device} (id {s.id})" for s in systems)),
            severity="info",
            advice="Name the one to mend with --system ID.",
        )
    for system in systems:
        yield from _init(system)
        yield from _tools(system)


def _none_found(facts: Facts) -> Finding:
    seen = tuple(
        f"{f.device}: {f.type or 'unknown'}, " + ("no system on it" if f.readable else "could not be read")
        for f in patient_filesystems(facts)
    )
    return make_finding(
        "no-system-found",
        listed(facts.disks),
        "No installed system was found on this disk",
        saw("mount -o ro", *(seen or ("no filesystem was found",))),
        severity="warning",
        confidence="likely",
        device=facts.disks[0],
        advice="It may be a data disk. When a system should be on it, look at the findings above first, "
        "or attach the disk that holds its root.",
    )


def _init(system: System) -> Iterator[Finding]:
    program = system.init
    if program is None:
        yield make_finding(
            "init-not-checked",
            f"/sbin/init on {system.device}",
            "Whether init can start was not found out",
            saw(system.device, "the look at init gave no answer"),
            severity="warning",
            confidence="possible",
            system=system,
            repair="advice",
            advice="See the failed probes; look again once they are mended.",
        )
        return
    by_code: dict[str, list[ElfFault]] = {}
    for fault in program.faults:
        by_code.setdefault(_init_code(program, fault), []).append(fault)
    for code, faults in by_code.items():
        yield _program_finding(system, program, code, faults)


def _init_code(program: Program, fault: ElfFault) -> str:
    """Return the taxonomy's label: is init itself gone, unfit to run, or does it lack a library?"""
    itself = fault.path in (program.name, program.path) or not fault.needed_by
    if fault.kind in ("missing", "link-loop") and itself:
        return "init-missing"
    if fault.kind in _NOT_RUNNABLE and itself:
        return "init-not-executable"
    return "init-missing-library"


def _program_finding(system: System, program: Program, code: str, faults: list[ElfFault]) -> Finding:
    owners, evidence, paths = _explained(system, faults)
    first = faults[0]
    title = {
        "init-missing": f"There is no {program.name} to start",
        "init-not-executable": f"{first.path} cannot be run: {_in_words(first)}",
        "init-missing-library": f"{program.name} cannot start: {_in_words(first)}",
    }[code]
    return make_finding(
        code,
        f"{program.name} on {system.device}",
        title,
        evidence,
        severity="fatal",
        system=system,
        repair="automatic" if owners else "advice",
        advice=""
        if owners
        else "No installed package is known to bring it. Find the package that owns it "
        f"({family_of(system).owner_search}) and reinstall that.",
        packages=owners,
        paths=paths,
    )


def _tools(system: System) -> Iterator[Finding]:
    """The programs that package repair stands on, as far as init's own findings leave them open."""
    faults = [fault for tool in system.tools for fault in tool.faults]
    if not faults:
        return
    names = [tool.name for tool in system.tools if tool.faults]
    owners, evidence, paths = _explained(system, faults)
    yield make_finding(
        "package-tools-broken",
        f"package tools on {system.device}",
        f"{listed(names)} cannot start: {_in_words(faults[0])}",
        evidence,
        severity="error",
        system=system,
        repair="automatic" if owners else "advice",
        advice="" if owners else "Reinstall the packages that own these programs from a rescue system.",
        packages=owners,
        paths=paths,
    )


def _explained(system: System, faults: list[ElfFault]) -> tuple[list[str], list[Evidence], list[str]]:
    """Return the packages to reinstall, what was seen, and the files concerned."""
    owners: list[str] = []
    evidence: list[Evidence] = []
    paths: list[str] = []
    manager = system.database.manager if system.database is not None else "package"
    for fault in faults:
        found = find_owners(system, fault)
        owners += [name for name in found if name not in owners]
        evidence += saw(fault.needed_by or fault.path, _in_words(fault))
        paths.append(fault.expected or fault.path)
        database = system.database
        for file in database.verification.damaged if database is not None else ():
            if is_about(file, fault):
                evidence += saw(f"{manager} database, {file.package}", f"{file.path} is {file.kind}")
    return owners, list(dict.fromkeys(evidence)), paths


def _in_words(fault: ElfFault) -> str:
    where = f" (expected at {fault.expected})" if fault.expected else ""
    return {
        "missing": f"{fault.path} does not exist",
        "not-executable": f"{fault.path} may not be executed",
        "not-elf": f"{fault.path} is no program",
        "truncated": f"{fault.path} is cut off",
        "wrong-architecture": f"{fault.path} is for another processor",
        "missing-interpreter": f"the loader {fault.path} does not exist",
        "missing-library": f"the library {fault.path} cannot be found{where}",
        "unreadable": f"{fault.path} cannot be read",
        "link-loop": f"{fault.path} is a link that leads back to itself",
    }[fault.kind]
