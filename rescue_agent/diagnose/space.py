# SPDX-License-Identifier: GPL-3.0-or-later
"""Room: a filesystem that the boot must write to and cannot."""

from __future__ import annotations

from collections.abc import Iterator

from rescue_agent.diagnose.findings import make_finding, saw
from rescue_agent.model.facts import Facts, Filesystem, Space, System
from rescue_agent.model.finding import Finding
from rescue_agent.model.queries import (
    human_size,
    mount_point_of,
    patient_systems,
    system_devices,
    usable_bytes,
)

_NEEDED = ("/", "/var", "/usr", "/var/log", "/var/lib")
"""Where a boot or a package script writes. /boot only matters to the next kernel: a warning."""

MIN_FREE_BYTES = 16 << 20
"""Below this a boot fails to write its logs and state, and dpkg cannot replace one package."""
MIN_FREE_INODES = 64


def _is_full(found: Filesystem, space: Space) -> bool:
    """Return whether so little is left that a boot or a package script would fail.

    Small filesystems are full when 2 % are left: an ESP of 32 MiB is not full with 10.
    """
    bytes_short = usable_bytes(found) < min(MIN_FREE_BYTES, space.total_bytes // 50)
    return bytes_short or bool(space.inodes_total and space.inodes_free < MIN_FREE_INODES)


def diagnose_space(facts: Facts) -> Iterator[Finding]:
    """Yield the filesystems of the installed systems that have no room left."""
    for system in patient_systems(facts):
        for device in system_devices(system):
            found = facts.filesystem(device)
            if found is not None and found.space is not None and _is_full(found, found.space):
                yield _full(system, found, found.space)


def _full(system: System, found: Filesystem, space: Space) -> Finding:
    device = found.device
    where = mount_point_of(system, device)
    needed = where in _NEEDED
    in_cache = _has_cached_archives(system, device)
    advice = (
        f"Make room by hand: 'rescue-agent shell' and 'du -xh --max-depth=2 {where}' show what is large. "
        "The agent removes nothing that a person may want."
    )
    return make_finding(
        "disk-full",
        f"{where} on {device}",
        f"{where} ({device}) has no room left",
        saw(
            f"statfs {where}",
            f"{human_size(usable_bytes(found))} of {human_size(space.total_bytes)} can still be used",
            f"{space.inodes_free} of {space.inodes_total} inodes free" if space.inodes_total else "",
        ),
        severity="error" if needed else "warning",
        device=device,
        system=system,
        repair="automatic" if needed and in_cache else "advice",
        advice="" if needed and in_cache else advice,
    )


def _has_cached_archives(system: System, device: str) -> bool:
    """Return whether package archives, which can be had again, lie on that filesystem."""
    database = system.database
    cached = database is not None and any(a.origin == "cache" for a in database.archives)
    mounts = {m.mount_point: m.device for m in system.mounts}
    holder = mounts.get("/var/cache") or mounts.get("/var") or system.device
    return cached and holder == device
