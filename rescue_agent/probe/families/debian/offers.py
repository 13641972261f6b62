# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking the patient's own sources what they offer, before anything is planned on it.

Writes package lists to the run's folder and nothing to the patient. So a version that is gone, a
source that does not answer or a key that has expired is known while a plan is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rescue_agent.errors import CommandFailed, ToolMissing
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Offer, PackageDatabase
from rescue_agent.model.families import REMOTE
from rescue_agent.model.families.apt import lists_dir, outside_options
from rescue_agent.system.runner import ANY, Runner

UPDATE_TIMEOUT_S = 300.0
MAX_NAMES = 1000


class Answer(NamedTuple):
    """``offers`` is None when the sources could not be asked; ``reason`` says why, if one tried."""

    offers: tuple[Offer, ...] | None
    reason: str = ""


def wanted_names(database: PackageDatabase) -> tuple[str, ...]:
    """Return the packages that need mending and whose archive is not at hand, by name."""
    at_hand = {(a.package, a.version) for a in database.archives}
    damaged = {f.package for f in database.verification.damaged if f.package and not f.conffile}
    found = []
    for package in database.packages:
        qualified = f"{package.name}:{package.architecture}"
        unsound = package.reinstall_required or package.state in (
            "half-installed",
            "unpacked",
            "half-configured",
        )
        if (unsound or {package.name, qualified} & damaged) and (
            package.name,
            package.version,
        ) not in at_hand:
            found.append(package.name)
    return tuple(dict.fromkeys(found))[:MAX_NAMES]


def ask_sources(
    runner: Runner, root: str, work_dir: str, database: PackageDatabase, architectures: Iterable[str]
) -> Answer:
    """Ask the sources of the patient mounted (read-only) at ``root`` for the packages that need mending.

    ``architectures``: the native one first. Takes as long as ``apt-get update``; nothing is asked
    when nothing needs mending or no source is configured.
    """
    names = wanted_names(database)
    native, *_ = every = (*architectures, "")
    if not names or not native or not any(part in line for line in database.sources for part in REMOTE):
        return Answer(None)
    options = outside_options(root, work_dir, native, every[:-1])
    try:
        for folder in (f"{lists_dir(work_dir)}/partial", f"{work_dir}/archives/partial"):
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        update = runner.run(("apt-get", *options, "-q", "update"), ok=ANY, timeout_s=UPDATE_TIMEOUT_S)
        if not any(Path(lists_dir(work_dir)).glob("*_Packages*")):
            return Answer(
                None, f"the configured sources do not answer: {_complaint(update.stdout + update.stderr)}"
            )
        said = runner.run(("apt-cache", *options, "madison", *names), ok=ANY)
    except (ToolMissing, CommandFailed, OSError) as error:
        return Answer(None, f"the configured sources could not be asked: {printable(str(error))}")
    return Answer(parse_madison(said.stdout))


def _complaint(text: str) -> str:
    """Return apt's first sentence about what went wrong."""
    lines = (line for line in text.splitlines() if line.startswith(("E:", "W:", "Err:")))
    return printable(" ".join(next(lines, "it gave no reason").split()))[:300]


def parse_madison(text: str) -> tuple[Offer, ...]:
    """Return the offers in the output of ``apt-cache madison``, newest version first (apt-cache(8))."""
    found = []
    for line in text.splitlines():
        name, _, rest = line.partition("|")
        version, _, source = rest.partition("|")
        words = source.split()
        if len(words) >= 2 and words[-1] == "Packages":
            found.append(
                Offer(
                    package=printable(name.strip()),
                    version=printable(version.strip()),
                    architecture=printable(words[-2]),
                )
            )
    return tuple(dict.fromkeys(found))
