# SPDX-License-Identifier: GPL-3.0-or-later
"""The pacman family, looked at: its database and its mtree files are read by the agent itself."""

from __future__ import annotations

import msgspec

from rescue_agent.model.facts import Offer, PackageDatabase
from rescue_agent.model.families import REMOTE, get_family
from rescue_agent.model.families.arch import FOLDER, source_line
from rescue_agent.model.queries import packages_by_label
from rescue_agent.probe.families import PackageLook, Packages, at_hand
from rescue_agent.probe.families.arch import sources
from rescue_agent.probe.families.arch.database import find_listed, probe_database, probe_recorded
from rescue_agent.probe.families.arch.verification import verify


class PacmanProbe:
    """pacman."""

    family = "arch"
    folders = (FOLDER,)

    def look(self, look: PackageLook) -> Packages:
        """Return what is installed, what is damaged, what is at hand and what the sources offer."""
        database = probe_database(look.root)
        recorded = probe_recorded(look.root)
        config = sources.probe_config(look.root)
        task = f"comparing packaged files on {look.device}"
        verification, unread = verify(
            look.root,
            database.entries,
            config.exclusions,
            level=look.level,
            cancel=look.runner.cancel,
            report=lambda done: look.report(task, done),
        )
        archives = sources.probe_cache(look.root, config)
        if look.packages_dir:
            archives += sources.probe_folder(look.packages_dir, config)
        spoiled = {sign.split("/")[-2] for sign in unread}
        fact = PackageDatabase(
            manager="pacman",
            folder=FOLDER,
            state=database.state,
            detail=database.detail,
            listed=len(recorded),
            packages=tuple(
                msgspec.structs.replace(e.package, state="half-installed", reinstall_required=True)
                if e.folder in spoiled
                else e.package
                for e in database.entries
            ),
            interrupted=(*database.interrupted, *unread),
            verification=verification,
            archives=archives,
            sources=tuple(source_line(*server) for server in config.servers),
            signed=config.local_signed,
        )
        if get_family(self.family).find_loss(fact):
            fact = msgspec.structs.replace(fact, recorded=recorded)
        if look.ask_dir and self._needs(fact) and any(r in line for line in fact.sources for r in REMOTE):
            look.report("asking the package sources", 0.0)
            offers, error = sources.ask_sources(
                look.runner, look.root, look.ask_dir, fact.sources, database.architecture
            )
            kept = None if offers is None else _exact(offers, fact)
            fact = msgspec.structs.replace(fact, offers=kept, sources_error=error)
        return Packages(
            fact,
            lambda wanted: find_listed(look.root, database.entries, list(wanted)),
            database.architecture,
        )

    @staticmethod
    def _needs(fact: PackageDatabase) -> bool:
        """Return whether a repair wants a package file that is not at hand."""
        known = packages_by_label(fact)
        damaged = {f.package for f in fact.verification.damaged if not f.conffile}
        needed = {known[name] for name in damaged if name in known}
        needed |= {p for p in fact.packages if p.reinstall_required}
        usable: set[tuple[str, str]] = at_hand(fact.archives)
        return any((p.name, p.version) not in usable for p in needed)


def _exact(offers: tuple[Offer, ...], fact: PackageDatabase) -> tuple[Offer, ...]:
    """Return the offers of exactly what is installed.

    A newer version of one package alone is a partial upgrade, which no distribution of this family
    supports: it is not taken in place of the installed one.
    """
    own = {(p.name, p.version): p.architecture for p in fact.packages}
    return tuple(
        msgspec.structs.replace(o, architecture=own[o.package, o.version])
        for o in offers
        if (o.package, o.version) in own
    )


PROBE = PacmanProbe()
