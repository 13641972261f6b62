# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rescue system's apt works for a patient that it does not run in. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def lists_dir(work_dir: str) -> str:
    """Return where the run keeps the package lists that it fetched."""
    return f"{work_dir}/apt/lists"


def outside_options(
    root: str, work_dir: str, architecture: str, architectures: Iterable[str]
) -> tuple[str, ...]:
    """Return the options that make apt work for the patient mounted at ``root``.

    Only ``work_dir`` is written to. ``Dir`` moves sources, keys, pins and passwords to the patient's;
    its apt.conf is not read, since configuration is loaded before the option counts. The sandbox user
    is off because the run's folder is for root alone.
    """
    settings = (
        f"Dir={root}",
        f"Dir::State::status={root}/var/lib/dpkg/status",
        f"Dir::State::lists={lists_dir(work_dir)}",
        f"Dir::Cache={work_dir}/apt",
        f"Dir::Cache::archives={work_dir}/archives",
        f"Dir::Etc::TrustedParts={root}/etc/apt/trusted.gpg.d",
        f"APT::Architecture={architecture}",
        *(f"APT::Architectures::={name}" for name in architectures),
        "APT::Sandbox::User=root",
        "Debug::NoLocking=true",
    )
    return tuple(word for setting in settings for word in ("-o", setting))
