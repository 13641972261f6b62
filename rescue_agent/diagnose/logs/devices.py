# SPDX-License-Identifier: GPL-3.0-or-later
"""Which device a line of a log speaks of, in the log's own words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rescue_agent.model.logs import LogHit

_GROUPS = (
    re.compile(r"device\d*$"),
    re.compile(r"unit\d*$"),
    re.compile(r"(?:name|array|disk)\d*$"),
    re.compile(r"(?:mount_point|server)\d*$"),
)
"""Named groups of signatures that tell a device, the closest first."""
_IDENTITY = re.compile(r"uuid\d*$")

_NAME = (
    r"(?:[shv]d[a-z]{1,2}\d{0,3}|xvd[a-z]{1,2}\d{0,3}|nvme\d+n\d+(?:p\d+)?|nvme\d+|mmcblk\d+(?:p\d+)?"
    r"|md_?d?\d{1,4}(?:p\d+)?|dm-\d+|mtdblock\d+|nbd\d+|sr\d+|loop\d+(?:p\d+)?)"
)
_IN_TEXT = (
    re.compile(r"(/dev/(?!null\b|console\b|tty|pts|root\b|sg\d|shm|fd\b)[\w./+:-]*\w)"),
    re.compile(rf"[(\[](?:device )?({_NAME})[)\]:]"),
    re.compile(r"\b((?:PART)?(?:UUID|LABEL)=[\w./-]+)"),
    re.compile(rf"(?:^|[\s,:'\"])({_NAME})(?=[\s,:;'\".)]|$)"),
    re.compile(r"(\(hd\d+(?:,\w+){0,2}\)|\bhd\d+\b)"),
)
"""How lines name a device: a path, the kernel's name in brackets, an identity, the bare name, GRUB's."""
_PORT = re.compile(r"\b(ata\d+)(?:\.\d+)?:|\b(\d{1,3}:\d{1,3}:\d{1,4}:\d{1,5})\b")
"""A port of libata, or host:channel:target:lun (drivers/scsi/scsi_sysfs.c)."""


def device_of(hit: LogHit) -> str:
    """Return the device that a line names, without the punctuation around it; empty when it names none."""
    for group in _GROUPS[:2]:
        found = _from_groups(hit, group)
        if found:
            return found
    found = device_in(hit.text)
    for group in _GROUPS[2:]:
        found = found or _from_groups(hit, group)
    return found


def find_device(hits: Iterable[LogHit]) -> str:
    """Return the first device that any of these lines names; empty when none does."""
    return next((device for hit in hits if (device := device_of(hit))), "")


def find_identity(hits: Iterable[LogHit]) -> str:
    """Return what else tells the device where no line names it: an identity, or the port that it is on."""
    hits = tuple(hits)
    uuid = next((found for hit in hits if (found := _from_groups(hit, _IDENTITY))), "")
    port = next((match for hit in hits if (match := _PORT.search(hit.text))), None)
    return uuid or (port[1] or port[2] if port is not None else "")


def device_in(text: str) -> str:
    """Return the device that a text names most plainly, or an empty string."""
    for pattern in _IN_TEXT:
        match = pattern.search(text)
        if match is not None:
            return match[1].rstrip(".:")
    return ""


def _from_groups(hit: LogHit, group: re.Pattern[str]) -> str:
    for name, value in hit.values.items():
        if group.match(name) and not value.startswith(("(null", "<NULL")) and not _PORT.fullmatch(value):
            return path_of_unit(value.strip("\"'`.,:;"))
    return ""


def path_of_unit(name: str) -> str:
    r"""Return the path that a device unit stands for (systemd.unit(5), string escaping); others as they are.

    ``dev-disk-by\x2duuid-1.device`` is ``/dev/disk/by-uuid/1``.
    """
    match = re.fullmatch(r"(dev-\S+?)(?:\.(?:device|swap))?", name)
    if match is None or not (name.startswith("dev-disk") or name.endswith((".device", ".swap"))):
        return name
    path = "/" + match[1].replace("-", "/")
    return re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), path)
