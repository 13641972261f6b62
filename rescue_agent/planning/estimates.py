# SPDX-License-Identifier: GPL-3.0-or-later
"""How long things are expected to take: an order of magnitude that a person can plan with."""

from __future__ import annotations

from rescue_agent.model.facts import Facts
from rescue_agent.model.queries import whole_disks

ROTATING_BYTES_PER_S = 150_000_000
OTHER_BYTES_PER_S = 500_000_000
"""Sequential reading of a hard disk and of anything without moving parts: what a surface scan does."""
_METADATA_S_PER_GIB = 0.25
"""A check reads metadata: a 16 GiB filesystem with a million files took 2 to 5 s on a fast store."""
_SEEK_FACTOR = 8.0


def is_rotating(facts: Facts, device: str) -> bool:
    """Return whether one of the disks under a device rotates."""
    disks = (facts.device(path) for path in (*whole_disks(facts, device), device))
    return any(disk is not None and disk.rotational for disk in disks)


def device_bytes(facts: Facts, device: str) -> int:
    """Return the size of a device; 0 when it is not known."""
    found = facts.device(device)
    return found.size_bytes if found is not None else 0


def check_s(facts: Facts, device: str) -> float:
    """Return the expected time of a filesystem check."""
    gib = device_bytes(facts, device) / (1 << 30)
    return round(1 + gib * _METADATA_S_PER_GIB * (_SEEK_FACTOR if is_rotating(facts, device) else 1), 1)


def scan_s(facts: Facts, device: str) -> float:
    """Return the expected time of reading a whole device, and the check that goes with it."""
    rate = ROTATING_BYTES_PER_S if is_rotating(facts, device) else OTHER_BYTES_PER_S
    return round(device_bytes(facts, device) / rate + check_s(facts, device), 1)


def timeout_s(estimate_s: float) -> float:
    """Return a limit that only something that hangs reaches."""
    return max(3600.0, 20 * estimate_s)


def in_words(seconds: float) -> str:
    """Return a time for people: ``40 s``, ``12 min``, ``3.7 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
