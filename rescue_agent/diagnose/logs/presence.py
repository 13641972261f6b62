# SPDX-License-Identifier: GPL-3.0-or-later
"""What a log names, found among the patient's devices; and whether it is still so there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rescue_agent.diagnose.codes import find_code
from rescue_agent.model.facts import Facts, Filesystem
from rescue_agent.model.finding import Finding
from rescue_agent.model.queries import (
    is_ancestor,
    is_patient,
    patient_devices,
    patient_filesystems,
    patient_systems,
    system_devices,
)

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PARTITION_NUMBER = re.compile(r"(?:(?<=\dp)|(?<=[a-z]))(\d{1,4})$")
_NAMED_BY_THE_KERNEL = ("disk", "partition", "loop", "rom")
"""Kinds of devices that another machine calls otherwise."""
_CONTAINERS = {
    "luks-not-unlocked": "luks",
    "volume-group-unavailable": "lvm",
    "md-array-not-assembled": "md",
}


def find_named(facts: Facts, finding: Finding) -> frozenset[str] | None:
    """Return the patient's devices that a log's finding may mean; None when it cannot be told.

    The machine's names of its disks are not those of the rescue system. What they share: UUIDs, the
    names of volumes, and the number of a partition, on whichever disk; on its own before others where
    a system's own log names it.
    """
    devices = patient_devices(facts)
    words = " ".join((finding.device, *(e.excerpt for e in finding.evidence)))
    uuids = {uuid.lower() for uuid in _UUID.findall(words)}
    found = {
        d.path
        for d in devices
        if (d.content is not None and d.content.uuid.lower() in uuids)
        or (d.partition is not None and d.partition.uuid.lower() in uuids)
    }
    name = finding.device.rpartition("/")[2]
    if not found and name:
        found = {
            d.path
            for d in devices
            if d.kind not in _NAMED_BY_THE_KERNEL and d.path.rpartition("/")[2] == name and name[:3] != "dm-"
        }
    number = _PARTITION_NUMBER.search(name)
    if not found and number:
        found = {d.path for d in devices if d.partition is not None and d.partition.number == int(number[1])}
    system = facts.system(finding.system)
    own = found.intersection(system_devices(system)) if system is not None else set()
    return frozenset(own or found) or None


def is_about(facts: Facts, named: frozenset[str] | None, device: str) -> bool:
    """Return whether a finding of ``device`` can be about what a log named: the same, below or above it."""
    if named is None or not device:
        return True
    return any(n == device or is_ancestor(facts, n, device) or is_ancestor(facts, device, n) for n in named)


def is_gone(facts: Facts, finding: Finding) -> bool:
    """Return whether the disks were looked at closely enough to say that a log's fault is not there.

    What could not be looked at, or was not, is not gone: nobody knows.
    """
    page = find_code(finding.code)
    if page is None or not page.seen_on_disk or not facts.disks:
        return False
    own = facts.system(finding.system)
    systems = (own,) if own is not None else patient_systems(facts)
    if finding.code.startswith("init-"):
        return _all(s.init is not None and not s.init.faults for s in systems)
    if finding.code == "fstab-bad-entry":
        return _all(s.fstab_state == "ok" for s in systems)
    if finding.code == "package-state-broken":
        return _all(s.database is not None and s.database.state == "ok" for s in systems)
    if finding.code in _CONTAINERS:
        mine = [c for c in facts.containers if is_patient(facts, c.device)]
        return _all(c.state == "open" for c in mine if c.kind == _CONTAINERS[finding.code])
    named = find_named(facts, finding)
    if finding.code == "partition-destroyed":
        disks = [d for d in patient_devices(facts) if d.path in (named or facts.disks)]
        return _all(bool(d.table or (d.content is not None and d.content.type)) for d in disks)
    looked = [f for f in patient_filesystems(facts) if named is None or f.device in named]
    if finding.code == "disk-full":
        return _all(f.space is not None for f in looked)
    if finding.code.endswith("-fs-corrupt"):
        looked = [f for f in looked if f.type.startswith(finding.code.removesuffix("-fs-corrupt"))]
    return _all(_is_clean(f) for f in looked)


def _all(answers: Iterable[bool]) -> bool:
    """Return whether there is an answer, and every one is yes."""
    every = tuple(answers)
    return bool(every) and all(every)


def _is_clean(found: Filesystem) -> bool:
    return found.check is not None and found.check.verdict == "clean"
