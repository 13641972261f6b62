# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's family, looked at: dpkg's database is read by the agent itself."""

from __future__ import annotations

import msgspec

from rescue_agent.model.facts import PackageDatabase
from rescue_agent.probe.families import PackageLook, Packages
from rescue_agent.probe.families.debian import archives, dpkg
from rescue_agent.probe.families.debian.exclusion import probe_exclusions
from rescue_agent.probe.families.debian.offers import ask_sources
from rescue_agent.probe.families.debian.verification import verify


class DebianProbe:
    """dpkg and apt."""

    family = "debian"
    folders = (dpkg.ADMIN,)

    def look(self, look: PackageLook) -> Packages:
        """Return what is installed, what is damaged, what is at hand and what the sources offer."""
        root, found = look.root, dpkg.probe_database(look.root)
        verified = verify(
            root,
            found.to_verify,
            level=look.level,
            conffiles=found.conffiles,
            diversions=dpkg.probe_diversions(root),
            exclusions=probe_exclusions(root),
            cancel=look.runner.cancel,
            on_progress=lambda done: look.report(f"comparing packaged files on {look.device}", done),
        )
        fact = found.fact
        detail = fact.detail
        if fact.state != "ok" and look.level != "none":
            detail += "; files were compared with what the file lists and checksums beside it say"
        at_hand = archives.probe_cache(root)
        if look.packages_dir:
            at_hand += archives.probe_folder(look.runner, look.packages_dir, fact.packages)
        fact = msgspec.structs.replace(
            fact,
            detail=detail,
            verification=verified.fact,
            interrupted=dpkg.with_leftovers(fact, verified.leftovers),
            archives=at_hand,
            sources=archives.probe_sources(root),
        )
        if look.ask_dir:
            fact = _asked(look, fact, found.native)
        return Packages(fact, lambda wanted: dpkg.find_listed(root, wanted), found.native)


def _asked(look: PackageLook, fact: PackageDatabase, native: str) -> PackageDatabase:
    look.report("asking the package sources", 0.0)
    foreign = {p.architecture for p in fact.packages} - {native, "all", ""}
    answer = ask_sources(look.runner, look.root.path, look.ask_dir, fact, (native, *sorted(foreign)))
    return msgspec.structs.replace(fact, offers=answer.offers, sources_error=answer.reason)


PROBE = DebianProbe()
