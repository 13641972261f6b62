# SPDX-License-Identifier: GPL-3.0-or-later
"""The rescue system itself: what it can do for the patient."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psutil

from rescue_agent.model.facts import Rescue, Tool
from rescue_agent.system.runner import Runner
from rescue_agent.system.tools import TOOLS

_BIOS_MACHINES = frozenset({"x86_64", "i386", "i486", "i586", "i686"})
_ROUTE_UP = 0x1  # linux/route.h RTF_UP


def probe_rescue(runner: Runner, work_dir: str) -> Rescue:
    """Return the facts about the running system. ``work_dir`` need not exist yet."""
    system = os.uname()
    return Rescue(
        firmware=_firmware(system.machine),
        architecture=system.machine,
        kernel=system.release,
        memory_bytes=int(psutil.virtual_memory().total),
        cpus=len(os.sched_getaffinity(0)),
        tools=tuple(Tool(name=name, path=runner.which(name)) for name in sorted(TOOLS)),
        work_free_bytes=_free_bytes(work_dir),
        network=None if _has_network() else False,
        udev=os.path.isdir("/run/udev/data"),
    )


def _firmware(machine: str) -> Literal["uefi", "bios", "unknown"]:
    if os.path.isdir("/sys/firmware/efi"):
        return "uefi"
    # Other machines without EFI have neither (open firmware, device tree).
    return "bios" if machine in _BIOS_MACHINES else "unknown"


def _free_bytes(folder: str) -> int:
    """Return the room in a folder, or in the nearest one above it that exists."""
    place = Path(folder or "/")
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        figures = os.statvfs(place)
    except OSError:
        return 0
    return figures.f_bavail * figures.f_frsize


def _has_network() -> bool:
    """Return whether any route beyond this machine exists: without one there is nothing to try.

    A route does not prove that a server answers, so its presence alone says nothing.
    """
    try:
        routes = Path("/proc/net/route").read_text("ascii", "replace")
        routes6 = Path("/proc/net/ipv6_route").read_text("ascii", "replace")
    except OSError:
        return True
    return has_route(routes, routes6)


def has_route(routes: str, routes6: str) -> bool:
    """Return whether a routing table (proc_net(5)) names a usable route that is not local."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[0] != "lo" and int(fields[3], 16) & _ROUTE_UP:
            return True
    for line in routes6.splitlines():
        fields = line.split()
        link_local = fields and fields[0].startswith(("fe80", "ff00"))
        if len(fields) == 10 and fields[9] != "lo" and not link_local and int(fields[8], 16) & _ROUTE_UP:
            return True
    return False
