# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines for apt and dpkg. Pure; every one was tried on Debian 12.

Two apts are at work. The rescue system's fetches, with the patient's own sources and keys, into the
run's folder: it runs no hook of the patient, locks nothing there, and its downloads are checked against
signed lists. The patient's own dpkg installs what was fetched, by path: apt itself cannot be given
local files whose names carry an epoch (``%3a``), and without lists it says "cannot be downloaded" and
exits with 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from rescue_agent.model.apt import lists_dir, outside_options
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.model.operation import TARGET_ROOT, Run

NONINTERACTIVE = (("DEBIAN_FRONTEND", "noninteractive"),)
KEEP_CONFFILES = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")
"""The owner's configuration files stay; where he changed nothing the package's new one is taken."""
STATUS_ON_STDOUT = ("-o", "APT::Status-Fd=1", "-o", "Dpkg::Use-Pty=0")

INSIDE_ARCHIVES = "/run/rescue-agent/archives"
INSIDE_FOLDER = "/run/rescue-agent/packages"
"""Where the run's downloads and the person's folder of packages are seen inside the patient."""


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
