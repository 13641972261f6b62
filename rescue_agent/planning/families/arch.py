# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for pacman. Pure; tried with pacman 6.0.

The rescue system's pacman fetches and proves, with a database, a configuration and a copy of the
patient's keys that all lie in the run's folder. The patient's own pacman installs, by path.
"""

from __future__ import annotations

from collections.abc import Sequence

from rescue_agent.model.facts import InstalledPackage, PackageDatabase, System
from rescue_agent.model.families.arch import (
    ARCHITECTURES,
    LOCAL,
    LOCK,
    SUPERSEDED,
    config_command,
    outside_options,
    prepare_commands,
)
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import TARGET_ROOT, Operation, RemoveFile, Run, WriteFile
from rescue_agent.model.queries import is_missing_tool
from rescue_agent.planning.families import Restoration, Work
from rescue_agent.planning.proposal import Case, because
from rescue_agent.planning.supply import Supply

COMPLETE = "complete-transaction"
_ENTRY_FILES = ("desc", "files", "mtree", "install", "changelog")
_ONE_NAME = (
    'cd "$1" && for file in *.pkg.tar.*; do '
    "case $file in *.sig) end=.pkg.tar.sig ;; *) end=.pkg.tar ;; esac; "
    'new=${file%.pkg.tar.*}$end; [ "$file" = "$new" ] || mv -f -- "$file" "$new"; done'
)
"""A shell program that gives downloads names that do not tell how they are packed: that is only known
once they are there. Argument: the folder."""


def inside(*argv: str, timeout_s: float = 7200.0) -> Run:
    """Return a command of the patient's own."""
    return Run(argv=argv, inside=True, timeout_s=timeout_s)


def _entry(package: InstalledPackage) -> str:
    return f"{LOCAL}/{package.name}-{package.version}"


class Pacman:
    """pacman."""

    family = "arch"

    def fetcher(self) -> str:
        """Return how people call the rescue system's program that downloads."""
        return "pacman"

    def installer(self, system: System) -> str:
        """Return the patient's own program that reinstalls."""
        return "pacman"

    def archive_name(self, package: InstalledPackage, version: str) -> str:
        """Return the file name that a download is given."""
        return f"{package.name}-{version}-{package.architecture}.pkg.tar"

    def fetch(self, case: Case, system: System, downloads: Sequence[Supply]) -> tuple[Run, ...]:
        """Return what downloads exactly these into ``work_dir/archives``, changing nothing else.

        Each is checked against its repository's SigLevel, by a copy of the patient's keys.
        """
        work = case.policy.work_dir
        sources = system.database.sources if system.database is not None else ()
        wanted = (f"{s.wanted.package.name}={s.version}" for s in downloads)
        return (
            *(Run(argv=argv) for argv in prepare_commands(work, TARGET_ROOT)),
            Run(argv=config_command(work, sources, _architecture(system))),
            # -dd: what they depend on is on the patient already.
            Run(argv=("pacman", *outside_options(work), "-Syw", "-dd", *wanted), timeout_s=3600),
            Run(argv=("sh", "-c", _ONE_NAME, "sh", f"{work}/archives")),
        )

    def prove(self, case: Case, system: System, archives: Sequence[str]) -> tuple[Run, ...]:
        """Return what reads the archives to their end and checks their signatures as the patient would.

        ``--print`` installs nothing. A rescue system without pacman can only do without where the
        patient demands no signature of package files.
        """
        database = system.database
        if database is None or not archives:
            return ()
        if is_missing_tool(case.facts, "pacman") and not database.signed:
            return ()
        work = case.policy.work_dir
        level = "Required" if database.signed else "Optional"
        return (
            *(Run(argv=argv) for argv in prepare_commands(work, TARGET_ROOT)),
            Run(argv=config_command(work, (), _architecture(system), local_level=level)),
            Run(argv=("pacman", *outside_options(work), "-U", "--print", "-dd", *archives), timeout_s=1800),
        )

    def start_proof(self) -> tuple[Run, ...]:
        """Return what shows that programs start inside."""
        return (inside("/bin/true", timeout_s=60), inside("pacman", "--version", timeout_s=60))

    def reinstall(self, case: Case, system: System, supplies: Sequence[Supply]) -> tuple[Operation, ...]:
        """Return what reinstalls these inside; changed backup files of the same version stay.

        An entry of the database that says nothing would make pacman refuse the package: it is emptied,
        and since it then owns no file, files that are there are overwritten by the package's own.
        """
        database = system.database
        signs = [sign.partition(": ")[0] for sign in database.interrupted] if database is not None else []
        operations = list(_settled(database))
        broken = [s for s in supplies if s.wanted.package.reinstall_required]
        emptied = {f"{_entry(s.wanted.package)}/{n}" for s in broken for n in ("desc", "files")}
        operations += [WriteFile(path=path, content="") for path in dict.fromkeys(signs) if path in emptied]
        whole = [s for s in supplies if not s.wanted.package.reinstall_required]
        for part, more in ((broken, ("--overwrite", "*")), (whole, ())):
            if part:
                operations.append(
                    inside("pacman", "-U", "--noconfirm", "--noprogressbar", *more, *(s.inside for s in part))
                )
        # pacman puts them back; that they were gone is taken for their owner's wish.
        kept_away = {s.wanted.package.name for s in supplies if not s.wanted.lost_conffiles}
        damaged = database.verification.damaged if database is not None else ()
        operations += [
            RemoveFile(path=f.path)
            for f in damaged
            if f.conffile and f.kind == "missing" and f.package in kept_away
        ]
        return tuple(operations)

    def restore_attributes(self, system: System, packages: Sequence[InstalledPackage]) -> tuple[Run, ...]:
        """Return nothing: no command of pacman does; the facts name what is right, from the mtree."""
        return ()

    def label(self, case: Case, system: System, archives: Sequence[str]) -> Work | None:
        """Return None: the family's files carry no labels."""
        return None

    def complete(self, case: Case, system: System, transaction: Sequence[Finding]) -> tuple[Work, ...]:
        """Return what takes away what a pacman that died has left: its lock, old halves of upgrades."""
        operations = _settled(system.database)
        if not operations:
            return ()
        return (
            Work(
                COMPLETE,
                "Take away what an interrupted pacman left",
                f"{because(transaction[0])} The system does not run, so no pacman of it holds the lock any "
                "more. What the interrupted run had not begun is not begun here; --upgrade does that.",
                operations,
                2.0,
            ),
        )

    def restore_database(self, case: Case, system: System) -> Restoration:
        """Return why the database does not come back."""
        return Restoration(missing="pacman keeps no copy of it")

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return ``pacman -Syu``: nothing less is supported by these distributions."""
        return (inside("pacman", "-Syu", "--noconfirm", "--noprogressbar"),)


def _settled(database: PackageDatabase | None) -> tuple[Operation, ...]:
    """Return what removes the lock of a pacman that died, and entries that a later one replaces."""
    operations: list[Operation] = []
    if database is None:
        return ()
    if any(sign.startswith(f"{LOCK}: ") for sign in database.interrupted):
        operations.append(RemoveFile(path=LOCK))
    for package in database.packages:
        if package.state == SUPERSEDED:
            folder = _entry(package)
            operations += [RemoveFile(path=f"{folder}/{name}") for name in _ENTRY_FILES]
            operations.append(
                inside("sh", "-c", '[ ! -d "$1" ] || rmdir -- "$1"', "sh", folder, timeout_s=60)
            )
    return tuple(operations)


def _architecture(system: System) -> str:
    return ARCHITECTURES.get(system.architecture, system.architecture)


MANAGER = Pacman()
