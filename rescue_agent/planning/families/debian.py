# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for apt and dpkg, Debian's family. Pure; every one was tried on Debian 12.

Two apts are at work. The rescue system's fetches, with the patient's own sources and keys, into the
run's folder: it runs no hook of the patient, locks nothing there, and its downloads are checked against
signed lists. The patient's own dpkg installs what was fetched, by path: apt itself cannot be given
local files whose names carry an epoch (``%3a``), and without lists it says "cannot be downloaded" and
exits with 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rescue_agent.model.facts import InstalledPackage, System
from rescue_agent.model.families.apt import lists_dir, outside_options
from rescue_agent.model.finding import Finding
from rescue_agent.model.operation import TARGET_ROOT, Operation, Run, WriteFile
from rescue_agent.model.queries import usable_backup
from rescue_agent.planning.families import Restoration, Work
from rescue_agent.planning.proposal import Case, because
from rescue_agent.planning.recipes.sources import why_no_download
from rescue_agent.planning.supply import Supply

CONFIGURE, DEPENDENCIES, RESTORE = "configure-packages", "fix-dependencies", "restore-database"
_STATUS = "/var/lib/dpkg/status"

NONINTERACTIVE = (("DEBIAN_FRONTEND", "noninteractive"),)
KEEP_CONFFILES = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")
"""The owner's configuration files stay; where he changed nothing the package's new one is taken."""
STATUS_ON_STDOUT = ("-o", "APT::Status-Fd=1", "-o", "Dpkg::Use-Pty=0")


def archive_name(package: InstalledPackage, version: str) -> str:
    """Return the file name that apt gives a download (apt's QuoteString with ``_:``)."""
    return f"{package.name}_{version.replace(':', '%3a')}_{package.architecture}.deb"


def spec(package: InstalledPackage, version: str) -> str:
    """Return ``name:architecture=version``, which names exactly one archive."""
    architecture = f":{package.architecture}" if package.architecture else ""
    return f"{package.name}{architecture}={version}"


def fetch_runs(
    work_dir: str, architecture: str, architectures: Iterable[str], specs: tuple[str, ...]
) -> tuple[Run, ...]:
    """Return what downloads exactly these packages into ``work_dir/archives``, changing nothing else.

    ``update`` says 100 when one of several sources fails; the others still serve.
    """
    options = outside_options(TARGET_ROOT, work_dir, architecture, architectures)
    folders = (f"{lists_dir(work_dir)}/partial", f"{work_dir}/archives/partial")
    return (
        Run(argv=("mkdir", "-p", *folders)),
        Run(
            argv=("apt-get", *options, "-q", "update"),
            ok=(0, 100),
            timeout_s=1800,
            environment=NONINTERACTIVE,
        ),
        Run(
            argv=(
                "apt-get",
                *options,
                *_option("APT::Status-Fd=1"),
                "-q",
                "-y",
                "--reinstall",
                "--download-only",
                "install",
                *specs,
            ),
            timeout_s=3600,
            environment=NONINTERACTIVE,
            progress="apt",
        ),
    )


def _option(setting: str) -> tuple[str, str]:
    return ("-o", setting)


def dpkg_install(paths: Iterable[str], *, missing_conffiles: bool = False) -> Run:
    """Return the patient's own dpkg at work on archives, by their paths inside the patient.

    ``missing_conffiles``: put conffiles back that are gone, which dpkg takes for the owner's wish
    otherwise (dpkg(1), --force-confmiss).
    """
    more = ("--force-confmiss",) if missing_conffiles else ()
    return Run(
        argv=("dpkg", "--force-confdef", "--force-confold", *more, "-i", *paths),
        inside=True,
        timeout_s=7200,
        environment=NONINTERACTIVE,
        progress="apt",
    )


def hold(packages: Iterable[str]) -> Run:
    """Return what holds packages again: ``dpkg -i`` takes the hold off."""
    return Run(argv=("apt-mark", "hold", *packages), inside=True, timeout_s=300)


def configure_run() -> Run:
    """Return what sets up every package that was only unpacked."""
    return Run(
        argv=("dpkg", "--force-confdef", "--force-confold", "--configure", "-a"),
        inside=True,
        timeout_s=7200,
        environment=NONINTERACTIVE,
        progress="apt",
    )


def inside_apt(*words: str, ok: tuple[int, ...] = (0,)) -> Run:
    """Return a call of the patient's own apt-get that asks nothing and keeps configuration files."""
    return Run(
        argv=("apt-get", *KEEP_CONFFILES, *STATUS_ON_STDOUT, "-q", "-y", *words),
        inside=True,
        ok=ok,
        timeout_s=7200,
        environment=NONINTERACTIVE,
        progress="apt",
    )


def proof_runs() -> tuple[Run, ...]:
    """Return what shows that programs start inside: the only test, since outside proves nothing."""
    return (
        Run(argv=("/bin/true",), inside=True, timeout_s=60),
        Run(argv=("dpkg", "--version"), inside=True, timeout_s=60),
    )


class Apt:
    """dpkg and apt."""

    family = "debian"

    def fetcher(self) -> str:
        """Return how people call the rescue system's program that downloads."""
        return "apt"

    def installer(self, system: System) -> str:
        """Return the patient's own program that reinstalls."""
        return "dpkg"

    def archive_name(self, package: InstalledPackage, version: str) -> str:
        """Return the file name that a download gets."""
        return archive_name(package, version)

    def fetch(self, case: Case, system: System, downloads: Sequence[Supply]) -> tuple[Run, ...]:
        """Return what downloads exactly these into ``work_dir/archives``, changing nothing else."""
        packages = system.database.packages if system.database is not None else ()
        architectures = {p.architecture for p in packages} - {"all", ""}
        native = system.architecture or next(iter(sorted(architectures)), "amd64")
        return fetch_runs(
            case.policy.work_dir,
            native,
            (native, *sorted(architectures - {native})),
            tuple(spec(s.wanted.package, s.version) for s in downloads),
        )

    def prove(self, case: Case, system: System, archives: Sequence[str]) -> tuple[Run, ...]:
        """Return nothing: apt checks its downloads against lists that the patient's keys have signed."""
        return ()

    def start_proof(self) -> tuple[Run, ...]:
        """Return what shows that programs start inside."""
        return proof_runs()

    def reinstall(self, case: Case, system: System, supplies: Sequence[Supply]) -> tuple[Operation, ...]:
        """Return what reinstalls these inside, by the patient's own dpkg."""
        operations: list[Operation] = []
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
        return tuple(operations)

    def restore_attributes(self, system: System, packages: Sequence[InstalledPackage]) -> tuple[Run, ...]:
        """Return nothing: dpkg's database does not know modes and owners."""
        return ()

    def label(self, case: Case, system: System, archives: Sequence[str]) -> Work | None:
        """Return None: Debian's files carry no labels."""
        return None

    def complete(self, case: Case, system: System, transaction: Sequence[Finding]) -> tuple[Work, ...]:
        """Return what sets up the packages that were only unpacked, and what they depend on."""
        words = ("-f", "install") if not why_no_download(case, system) else ("--no-download", "-f", "install")
        return (
            Work(
                CONFIGURE,
                "Set up every package that was only unpacked",
                f"{because(transaction[0])} dpkg goes on where it stopped; configuration files are kept.",
                (*proof_runs(), configure_run()),
                30.0,
            ),
            Work(
                DEPENDENCIES,
                "Let apt complete what is missing between packages",
                "An interrupted run can leave packages without what they depend on; mostly nothing is left.",
                (inside_apt(*words),),
                10.0,
            ),
        )

    def restore_database(self, case: Case, system: System) -> Restoration:
        """Return how the status file comes back from its best backup."""
        database = system.database
        backup = usable_backup(database) if database is not None else None
        if database is None or backup is None:
            return Restoration(missing="no usable backup of it is left")
        work = Work(
            RESTORE,
            "Put the package database back from its backup",
            f"{backup.path} is whole and names {backup.listed} of the {database.listed} "
            "packages that have a file list. The broken file is saved first.",
            (WriteFile(path=_STATUS, copy_of=backup.path),),
            1.0,
        )
        return Restoration((work,))

    def upgrade(self, system: System) -> tuple[Run, ...]:
        """Return ``apt-get update`` and ``apt-get upgrade``."""
        return (inside_apt("update", ok=(0, 100)), inside_apt("upgrade"))


MANAGER = Apt()
