# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for the families that use rpm. Pure; tried with rpm 4.18, dnf 4.14 and zypper 1.14.

The rescue system's dnf only downloads, and its rpmkeys prove who signed what. Whatever writes to the
patient's database is the patient's own rpm, by itself or through its manager: formats differ, and a
newer rpm would leave a database that the older one cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescue_agent.model.facts import InstalledPackage, PackageDatabase, System
from rescue_agent.model.families.rpm import (
    EXPORT_KEYS,
    SALVAGE,
    Places,
    keyring,
    outside_options,
    release_version,
    trust,
)
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import TARGET_ROOT, Operation, RemoveFile, Run, WriteFile
from rescue_agent.model.queries import counted, is_missing_tool
from rescue_agent.planning.families import Restoration, Work
from rescue_agent.planning.proposal import Case, because
from rescue_agent.planning.recipes.sources import find_supplies, why_no_download
from rescue_agent.planning.supply import Supply, Wanted, bind_archives

FETCH, REBUILD, LABEL, COMPLETE = (
    "fetch-packages",
    "rebuild-database",
    "label-files",
    "complete-transaction",
)
SCRATCH = "/run/rescue-agent/rpmdb"
"""Where a new database is built, inside the patient: in memory, on the workspace's own /run."""
HEADERS = "/run/rescue-agent/headers"
AUTORELABEL = "/.autorelabel"

_RESTORE_SINCE = (4, 16)
"""rpm that surely knows --restore; older ones set owners and modes by two options."""
_ONLY_RECORD = ("-i", "--justdb", "--nodeps", "--noscripts", "--notriggers", "--ignoresize", "--force")
_COUNTED = '[ "$(rpm --dbpath "$1" -qa | wc -l)" -ge "$2" ]'
_LABEL = (
    "root=$1 contexts=$2 database=$3; shift 3; "
    'rpm --dbpath "$database" -q -l -p --nosignature -- "$@" | sed "s|^|$root|" | '
    'setfiles -i -F -r "$root" -f - "$contexts"'
)


def archive_name(package: InstalledPackage, version: str) -> str:
    """Return the file name that a repository gives a package; the epoch is no part of it."""
    return f"{package.name}-{version.rpartition(':')[2]}.{package.architecture}.rpm"


def inside(*argv: str, ok: tuple[int, ...] = (0,), timeout_s: float = 7200.0) -> Run:
    """Return a command of the patient's own."""
    return Run(argv=argv, inside=True, ok=ok, timeout_s=timeout_s)


class Rpm:
    """rpm, without the words of the manager above it."""

    family: str
    places: Places

    def fetcher(self) -> str:
        """Return how people call the rescue system's program that downloads."""
        return "dnf"

    def installer(self, system: System) -> str:
        """Return the patient's own program that reinstalls: rpm itself where there is no other."""
        names = {tool.name.rpartition("/")[2] for tool in system.tools}
        return system.package_manager if system.package_manager in names else "rpm"

    def archive_name(self, package: InstalledPackage, version: str) -> str:
        """Return the file name that a download gets."""
        return archive_name(package, version)

    def fetch(self, case: Case, system: System, downloads: Sequence[Supply]) -> tuple[Run, ...]:
        """Return what downloads exactly these into ``work_dir/archives``, changing nothing else."""
        work = case.policy.work_dir
        release = release_version(system.os_id, system.os_version)
        options = outside_options(TARGET_ROOT, work, release, self.places)
        names = [archive_name(s.wanted.package, s.version).removesuffix(".rpm") for s in downloads]
        return (
            Run(argv=("mkdir", "-p", f"{work}/dnf", f"{work}/archives")),
            Run(
                argv=("dnf", *options, "download", "--destdir", f"{work}/archives", *names),
                timeout_s=3600,
            ),
        )

    def prove(self, case: Case, system: System, archives: Sequence[str]) -> tuple[Run, ...]:
        """Return what proves digests and, where the patient demands them, signatures by its own keys."""
        database = system.database
        if database is None or not archives:
            return ()
        work = case.policy.work_dir
        checked = ("rpmkeys", *keyring(work), *trust(signed=database.signed), "--checksig", "--", *archives)
        runs = [Run(argv=("mkdir", "-p", f"{work}/keys"))]
        keys = [TARGET_ROOT + path for path in database.keys]
        if database.signed and database.state == "ok":
            imported = f"{work}/imported.asc"
            runs.append(
                Run(
                    argv=(
                        *("sh", "-c", EXPORT_KEYS, "sh", TARGET_ROOT + database.folder),
                        *(f"{work}/rpmdb-of-keys", imported),
                    )
                )
            )
            keys.append(imported)
        if database.signed and keys:
            # There may be a key that this rpm does not know; what is signed with that is refused.
            runs.append(Run(argv=("rpmkeys", *keyring(work), "--import", *keys), ok=tuple(range(256))))
        return (*runs, Run(argv=checked, timeout_s=1800))

    def start_proof(self) -> tuple[Run, ...]:
        """Return what shows that programs start inside."""
        return (inside("/bin/true", timeout_s=60), inside("rpm", "--version", timeout_s=60))

    def reinstall(self, case: Case, system: System, supplies: Sequence[Supply]) -> tuple[Operation, ...]:
        """Return what reinstalls these inside; changed configuration files of the same version stay."""
        same = [s.inside for s in supplies if not s.is_newer]
        newer = [s.inside for s in supplies if s.is_newer]
        runs = []
        if same:
            runs.append(self.reinstall_run(system, same))
        if newer:
            runs.append(self.update_run(system, newer))
        return tuple(runs)

    def reinstall_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what reinstalls packages of the installed versions."""
        return inside("rpm", "-U", "--replacepkgs", "--oldpackage", *paths)

    def update_run(self, system: System, paths: Sequence[str]) -> Run:
        """Return what puts newer packages in place of the installed ones."""
        return inside("rpm", "-U", *paths)

    def restore_attributes(self, system: System, packages: Sequence[InstalledPackage]) -> tuple[Run, ...]:
        """Return rpm's own way to put modes, owners and capabilities back."""
        names = [package.labels[-1] for package in packages]
        if _rpm_version(system.database) >= _RESTORE_SINCE:
            return (inside("rpm", "--restore", *names),)
        # Owners first: changing them takes the set-user-id bit away.
        return (inside("rpm", "--setugids", *names), inside("rpm", "--setperms", *names))

    def label(self, case: Case, system: System, archives: Sequence[str]) -> Work | None:
        """Return what labels the files of these packages by the patient's policy.

        No kernel here enforces it, so neither the agent nor the patient's rpm labels what it writes.
        """
        if not system.file_contexts or not archives:
            return None
        if is_missing_tool(case.facts, "setfiles"):
            return Work(
                LABEL,
                "Have the system label its files anew when it starts",
                "SELinux is on there, and this rescue system has no setfiles (policycoreutils) to label what "
                f"was laid out: {AUTORELABEL} makes the next start do it, which takes a while and then "
                "starts once more.",
                (WriteFile(path=AUTORELABEL, content="-F\n"),),
                1.0,
            )
        run = Run(
            argv=(
                *("sh", "-c", _LABEL, "sh", TARGET_ROOT, TARGET_ROOT + system.file_contexts),
                f"{case.policy.work_dir}/no-rpmdb",
                *archives,
            ),
            timeout_s=1800,
        )
        return Work(
            LABEL,
            f"Label the files of {counted(len(archives), 'package')} for SELinux",
            "No kernel here labels what is written; setfiles does it by the policy of the system itself.",
            (run,),
            2.0,
        )

    def complete(self, case: Case, system: System, transaction: Sequence[Finding]) -> tuple[Work, ...]:
        """Return what ends an upgrade whose old halves are still there.

        ``dnf history redo`` cannot: it wants every old version to be there still ("Cannot find rpm nevra").
        """
        database = system.database
        if database is None:
            return ()
        old = [p.labels[-1] for p in database.packages if p.state == "superseded"]
        operations: list[Operation] = [*self.start_proof()]
        if old:
            # rpm runs their scripts as within the upgrade, and keeps every file that the newer one has.
            operations.append(inside("rpm", "-e", "--nodeps", *old))
        names = {tool.name.rpartition("/")[2] for tool in system.tools}
        finisher = "yum-complete-transaction"  # of yum-utils
        words = [sign.partition(": ")[0] for sign in database.interrupted if "/transaction-all." in sign]
        if words and finisher in names and not why_no_download(case, system):
            operations.append(inside(finisher, "-y"))
            words = []
        for path in words:  # as yum-complete-transaction --cleanup-only does
            operations.append(RemoveFile(path=path))
            operations.append(RemoveFile(path=path.replace("/transaction-all.", "/transaction-done.")))
        if len(operations) == len(self.start_proof()):
            return ()
        return (
            Work(
                COMPLETE,
                "End the upgrade that was interrupted",
                f"{because(transaction[0])} The old halves go, whose newer versions are in place"
                + (f": {', '.join(old)}." if old else ".")
                + " What the upgrade had not begun is not begun here; --upgrade does that.",
                tuple(operations),
                10.0,
            ),
        )

    # --- the database ---------------------------------------------------------------------------

    def restore_database(self, case: Case, system: System) -> Restoration:
        """Return how the database is made anew: what can be read of it, the rest from the history.

        The history names the packages, their archives tell the rest. It is built beside the old one
        and takes its place only when it knows as many packages as it must.
        """
        database = system.database
        if database is None:
            return Restoration(missing="it was not looked at")
        known = {package.labels[-1] for package in database.packages}
        absent = [p for p in database.recorded if p.labels[-1] not in known]
        supplies, lacking = find_supplies(case, system, (Wanted(p, (), False) for p in absent))
        count = len(known) + len(supplies)
        missing = ""
        if lacking:
            names = ", ".join(want.package.labels[-1] for want, _ in lacking[:5])
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            missing = f"{names}{more} cannot be entered into it: {lacking[0][1]}"
        if not count or count * 2 < len(database.recorded):
            return Restoration(missing=missing or "nothing says which packages are installed")
        works = []
        downloads = [s for s in supplies if s.origin == "download"]
        if downloads:
            works.append(
                Work(
                    FETCH,
                    f"Download {counted(len(downloads), 'package')} from the system's own sources",
                    "They tell what the database has to know; nothing on the patient changes.",
                    self.fetch(case, system, downloads),
                    float(10 + len(downloads)),
                )
            )
        works.append(self._rebuild(case, system, database, supplies, count))
        return Restoration(tuple(works), missing, enters=True)

    def _rebuild(
        self,
        case: Case,
        system: System,
        database: PackageDatabase,
        supplies: Sequence[Supply],
        count: int,
    ) -> Work:
        operations: list[Operation] = [
            *bind_archives(case.policy, supplies),
            *self.prove(case, system, [s.outside for s in supplies]),
            *self.start_proof(),
        ]
        saved = len(database.packages)
        if database.format == "sqlite":
            operations += _anew(database, supplies, count)
        else:
            operations += _in_place(database, supplies, count)
        return Work(
            REBUILD,
            f"Make the package database anew, of {counted(count, 'package')}",
            f"{counted(saved, 'package')} can still be read from it; {len(supplies)} are entered again from "
            "their package files, without touching any other file. The system's own rpm writes it, and it "
            "is only taken when it names as many packages. The broken files are saved first.",
            tuple(operations),
            float(10 + count // 20),
        )

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return what brings all packages up to date, inside."""
        raise NotImplementedError


def _anew(database: PackageDatabase, supplies: Sequence[Supply], count: int) -> tuple[Operation, ...]:
    """Build a new sqlite database in memory, and put its one file in the place of the old one."""
    main = f"{database.folder}/rpmdb.sqlite"
    operations: list[Operation] = [inside("mkdir", "-p", SCRATCH)]
    if database.packages:
        operations.append(
            Run(
                argv=("python3", "-c", SALVAGE, TARGET_ROOT + main, TARGET_ROOT + HEADERS),
                timeout_s=1800,
            )
        )
        operations.append(inside("sh", "-c", 'rpmdb --dbpath "$1" --importdb < "$2"', "sh", SCRATCH, HEADERS))
    if supplies:
        operations.append(inside("rpm", "--dbpath", SCRATCH, *_ONLY_RECORD, *(s.inside for s in supplies)))
    operations.append(inside("sh", "-c", _COUNTED, "sh", SCRATCH, str(count)))
    operations.append(WriteFile(path=main, copy_of=f"{SCRATCH}/rpmdb.sqlite"))
    # What was not yet merged into the old file must not be merged into the new one.
    operations += [
        RemoveFile(path=f"{database.folder}/{name}")
        for name in database.files
        if name in ("rpmdb.sqlite-wal", "rpmdb.sqlite-shm")
    ]
    return tuple(operations)


def _in_place(database: PackageDatabase, supplies: Sequence[Supply], count: int) -> tuple[Operation, ...]:
    """Put what can be read back as the file of headers, and let the patient's rpm make its indexes."""
    folder = database.folder
    operations: list[Operation] = []
    if database.format == "bdb" and database.packages:
        operations += (
            inside("mkdir", "-p", SCRATCH),
            Run(
                argv=(
                    *("sh", "-c", 'db5.3_dump -r "$1" | db5.3_load "$2"', "sh"),
                    *(f"{TARGET_ROOT}{folder}/Packages", f"{TARGET_ROOT}{SCRATCH}/Packages"),
                ),
                timeout_s=1800,
            ),
            inside("sh", "-c", _COUNTED, "sh", SCRATCH, str(len(database.packages))),
            WriteFile(path=f"{folder}/Packages", copy_of=f"{SCRATCH}/Packages"),
        )
    keep = ("Packages",) if database.format == "bdb" and database.packages else ()
    operations += [
        RemoveFile(path=f"{folder}/{name}")
        for name in database.files
        if name not in keep and not name.startswith(".") and re.fullmatch(r"[A-Za-z0-9_.]+", name)
    ]
    operations.append(inside("rpm", "--rebuilddb" if keep else "--initdb"))
    if supplies:
        operations.append(inside("rpm", *_ONLY_RECORD, *(s.inside for s in supplies)))
    operations.append(inside("sh", "-c", _COUNTED, "sh", folder, str(count)))
    return tuple(operations)


def _rpm_version(database: PackageDatabase | None) -> tuple[int, ...]:
    packages = database.packages if database is not None else ()
    version = next((p.version for p in packages if p.name == "rpm"), "")
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("-")[0])[:3])
