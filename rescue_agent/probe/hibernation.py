# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the patient sleeps: a memory image waits in its swap, and its filesystems must not be touched.

The kernel marks the swap header with ``S1SUSPEND`` (kernel/power/swap.c); blkid calls such a device
``swsuspend``.
"""

from __future__ import annotations

import re

from rescue_agent.errors import UnsafePath
from rescue_agent.model.facts import BlockDevice, FstabEntry
from rescue_agent.probe.fstab import find_device
from rescue_agent.system.root import TargetRoot

SUSPENDED = "swsuspend"
_SIGNATURE = b"S1SUSPEND"
_PAGE_SIZES = (4096, 8192, 16384, 65536)
_RESUME_FILES = ("/etc/initramfs-tools/conf.d/resume", "/etc/default/grub", "/etc/kernel/cmdline")


def is_hibernated(
    root: TargetRoot, fstab: tuple[FstabEntry, ...], devices: tuple[BlockDevice, ...], root_device: str
) -> bool:
    """Return whether one of the machine's swaps holds a memory image.

    Its swaps are those of its fstab and its resume device; when it names none, every swap on the
    disk of its root.
    """
    files = [e.spec for e in fstab if e.type == "swap" and e.spec.startswith("/") and not e.device]
    if any(_file_sleeps(root, path) for path in files):
        return True
    named = {e.device for e in fstab if e.type == "swap" and e.device}
    named |= {d for spec in _resume_specs(root) if (d := find_device(spec, devices, root_device))}
    asleep = [d for d in devices if d.content is not None and d.content.type == SUSPENDED]
    if named:
        return any(d.path in named for d in asleep)
    disk = next((d.disk for d in devices if d.path == root_device), "")
    return any(d.disk == disk for d in asleep)


def _resume_specs(root: TargetRoot) -> list[str]:
    found: list[str] = []
    for path in _RESUME_FILES:
        try:
            text = root.read_text(path, 1 << 18)
        except (OSError, UnsafePath):
            continue
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        found += re.findall(r"\bresume=[\"']?([^\s\"']+)", "\n".join(lines), re.IGNORECASE)
    return found


def _file_sleeps(root: TargetRoot, path: str) -> bool:
    try:
        with root.open_file(path) as file:
            start = file.read(_PAGE_SIZES[-1])
    except (OSError, UnsafePath):
        return False
    return any(start[size - 10 : size].startswith(_SIGNATURE) for size in _PAGE_SIZES)
