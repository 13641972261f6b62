# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a saved plan still fit the disk?"""

from __future__ import annotations

from rescue_agent.model.facts import BlockDevice, Facts
from rescue_agent.model.plan import DiskIdentity, Plan
from rescue_agent.model.queries import human_size


def stale_reason(plan: Plan, facts: Facts) -> str:
    """Return why a plan does not fit what is here now, in words; an empty string when it fits.

    Compared by identity, not by name: the device must still be there, under the name that the plan's
    commands use, with the same size and the same first MiB. What was not known is not compared.
    """
    for disk in plan.disks:
        reason = _changed(disk, facts)
        if reason:
            return reason
    return ""


def _changed(disk: DiskIdentity, facts: Facts) -> str:
    candidates = [device for device in facts.devices if device.id == disk.id]
    if not candidates:
        return f"{disk.device} ({disk.id}) is not here"
    same_name = next((device for device in candidates if device.path == disk.device), None)
    if same_name is None:
        return f"{disk.id} is {candidates[0].path} now, and the plan names {disk.device}"
    return _differs(disk, same_name)


def _differs(disk: DiskIdentity, now: BlockDevice) -> str:
    if now.size_bytes != disk.size_bytes:
        return (
            f"{disk.device} has {now.size_bytes} bytes ({human_size(now.size_bytes)}) now, and had "
            f"{disk.size_bytes} ({human_size(disk.size_bytes)}) when the plan was made"
        )
    if disk.head_sha256 and now.head_sha256 and disk.head_sha256 != now.head_sha256:
        return f"the contents of {disk.device} have changed since the plan was made"
    return ""
