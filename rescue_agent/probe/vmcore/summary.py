# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lines of a kernel log say of the kernel's end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescue_agent.model.document import printable

_STAMP = re.compile(r"(?:<\d+>)?\[ *(\d{1,12}\.\d{1,9})\] ?")
_CALLER = re.compile(r"\[ *[TC]\d+\] ")
_PANIC = re.compile(r"Kernel panic - not syncing: ")
_FAULT = re.compile(
    r"BUG: unable to handle|BUG: kernel NULL pointer|kernel BUG at |general protection fault|double fault:"
    r"|Unable to handle kernel |Internal error: |[Ss]ys[Rr]q ?: Trigger a crash|BUG: soft lockup|hard LOCKUP"
)
_MAX_CHARS = 500


def find_panic(lines: Sequence[str]) -> str:
    """Return the panic's line without its time stamp.

    A kernel that dumps at the fault itself never says "panic": then the last line that tells of a
    deadly fault. Empty when there is neither.
    """
    found = next((line for line in lines if _PANIC.search(line) and "---[ end" not in line), "")
    if not found:
        found = next((line for line in reversed(lines) if _FAULT.search(line)), "")
    return printable(_CALLER.sub("", _STAMP.sub("", found, count=1), count=1))[:_MAX_CHARS].strip()


def find_uptime_s(lines: Sequence[str]) -> float | None:
    """Return the time stamp of the last line that has one, in seconds since boot."""
    stamps = (match for line in reversed(lines) if (match := _STAMP.match(line)))
    return next((float(match[1]) for match in stamps), None)
