# SPDX-License-Identifier: GPL-3.0-or-later
"""The families that use rpm, looked at: with the rescue system's rpm, on copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from rescue_agent.model.facts import Archive, PackageDatabase, Verification
from rescue_agent.model.families import REMOTE, get_family
from rescue_agent.model.families.rpm import Places, release_version
from rescue_agent.model.queries import packages_by_label
from rescue_agent.probe.families import PackageLook, Packages, at_hand
from rescue_agent.probe.families.rpm import sources
from rescue_agent.probe.families.rpm.database import FOLDERS, Database, probe_database
from rescue_agent.probe.families.rpm.history import History
from rescue_agent.probe.families.rpm.verification import find_listed, verify
from rescue_agent.system.root import TargetRoot


class RpmProbe:
    """rpm with the history and the repositories of one family's manager."""

    folders = FOLDERS

    def __init__(
        self, family: str, places: Places, probe_history: Callable[[TargetRoot, Path], History]
    ) -> None:
        self.family = family
        self._places = places
        self._probe_history = probe_history

    def look(self, look: PackageLook) -> Packages:
        """Return what is installed, what is damaged, what is at hand and what the sources offer."""
        database = probe_database(look.runner, look.root, look.work_dir)
        history = self._probe_history(look.root, look.work_dir)
        verification = _verified(look, database)
        repositories, signed = sources.probe_repositories(look.root, self._places)
        fact = PackageDatabase(
            manager="rpm",
            format=database.format,
            folder=database.folder,
            files=database.files,
            state=database.state,
            detail=database.detail,
            listed=len(history.recorded),
            packages=database.packages,
            interrupted=_interrupted(database, history),
            verification=verification,
            sources=tuple(f"{r.name} {r.address}" for r in repositories),
            keys=sources.probe_keys(look.root, self._places),
            signed=signed,
        )
        lost = bool(get_family(self.family).find_loss(fact))
        if lost or len(history.recorded) > len(fact.packages):
            fact = msgspec.structs.replace(fact, recorded=history.recorded)
        needed = _needed(fact, lost=lost)
        fact = msgspec.structs.replace(fact, archives=_archives(look, self._places, fact, database, needed))
        missing = [name for name, version in needed if (name, version) not in at_hand(fact.archives)]
        if look.ask_dir and missing and any(part in line for line in fact.sources for part in REMOTE):
            look.report("asking the package sources", 0.0)
            release = release_version(look.release.get("ID", ""), look.release.get("VERSION_ID", ""))
            offers, error = sources.ask_repositories(
                look.runner,
                look.root,
                look.ask_dir,
                release,
                self._places,
                list(dict.fromkeys(missing)),
            )
            fact = msgspec.structs.replace(fact, offers=offers, sources_error=error)
        return Packages(fact, lambda wanted: find_listed(look.runner, database, list(wanted)))


def _verified(look: PackageLook, database: Database) -> Verification:
    task = f"comparing packaged files on {look.device}"
    look.report(task, 0.0)
    return verify(
        look.runner,
        look.root,
        database,
        level=look.level,
        report=lambda done: look.report(task, done),
    )


def _interrupted(database: Database, history: History) -> tuple[str, ...]:
    """Return the signs of an interrupted run, when something shows that it was left half done.

    dnf's history keeps a run without an end for ever: alone it says nothing of today.
    """
    halves = [p.labels[-1] for p in database.packages if p.state != "installed"]
    yum = tuple(sign for sign in history.interrupted if "/transaction-all" in sign)
    return tuple(history.interrupted) if halves else yum


def _needed(fact: PackageDatabase, *, lost: bool) -> list[tuple[str, str]]:
    """Return name and version of the packages whose archives a repair may need."""
    if lost:
        return [(p.name, p.version) for p in fact.recorded]
    labels = {d.package for d in fact.verification.damaged if not d.conffile}
    known = packages_by_label(fact)
    return sorted((known[label].name, known[label].version) for label in labels if label in known)


def _archives(
    look: PackageLook,
    places: Places,
    fact: PackageDatabase,
    database: Database,
    needed: Sequence[tuple[str, str]],
) -> tuple[Archive, ...]:
    known = (*fact.packages, *fact.recorded)
    found = sources.probe_cache(look.root, places, known)
    if look.packages_dir:
        found += sources.probe_folder(look.runner, look.packages_dir, known, look.work_dir)
    if not needed or not found:
        return found
    sources.make_keyring(look.runner, look.root, fact.keys, database.copy, look.work_dir)
    return sources.with_trust(
        look.runner, look.root, found, frozenset(needed), look.work_dir, signed=fact.signed
    )
