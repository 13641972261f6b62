# SPDX-License-Identifier: GPL-3.0-or-later
"""How the medium under a disk is doing: write protection, the kernel's log, SMART."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from rescue_agent.errors import Interrupted, RescueError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import BlockDevice, Health, ProbeError
from rescue_agent.system.runner import ANY, Runner

MAX_LINES = 10
MAX_LINE = 300
MAX_RECORDS = 200_000
SMART_TIMEOUT_S = 30.0
SMART_OPEN_FAILED = 0x2
SMART_FAILING = 0x8
"""Bits of smartctl(8)'s exit code."""

_NAMED = re.compile(
    # block/blk-core.c (blk_errors): every status is named like this, from Linux 4.14 on.
    r"(?:I/O|critical (?:medium|target|nexus)|protection|hardware|timeout|recoverable transport)"
    r" error, dev (?P<a>\S+?), sector \d+"
    # fs/buffer.c, mm/page_io.c, and the direct-I/O warnings beside them
    r"|[Bb]uffer I/O error on dev(?:ice)? (?P<b>\S+?), logical block"
    r"|lost (?:async|sync) page write .*on (?P<c>\S+?)[, ]"
    # drivers/scsi/sd.c and scsi_logging.c
    r"|\[(?P<d>sd[a-z]+)\].*Sense Key : (?:Medium|Hardware) Error"
    r"|\[(?P<e>sd[a-z]+)\].*FAILED Result: hostbyte=(?!DID_OK)"
    # drivers/nvme/host/core.c (nvme_log_error) and pci.c
    r"|^(?P<f>nvme\d+n\d+): .*(?:Media error|Unrecovered Read Error|Write Fault|Data Transfer Error)"
    # drivers/mmc/core/block.c
    r"|^(?P<g>mmcblk\d+): .*(?:error -\d+|response CRC error)",
    re.IGNORECASE,
)
_NEW_MEDIUM = re.compile(
    # block/genhd.c (set_capacity_and_notify), drivers/scsi/sd.c (sd_probe)
    r"^(?P<a>\S+): detected capacity change from 0 to|\[(?P<b>sd[a-z]+)\] Attached SCSI"
)
_NO_SMART = re.compile(r"/dev/(?:loop|dm-|md|vd|xvd|nbd|zram|ram|mapper/|sr|mmcblk)")


class KernelErrors(NamedTuple):
    """What this kernel has logged about one device."""

    number: int
    lines: tuple[str, ...]


def probe_health(
    runner: Runner, disk: BlockDevice, device_names: Sequence[str], log: Sequence[str], *, smart: bool = True
) -> Health:
    """Return the health of a disk.

    ``device_names``: it and its partitions as the kernel's log names them. ``log``: the kernel's log.
    """
    errors = find_errors(log, device_names)
    health = Health(
        device=disk.path,
        read_only=disk.read_only,
        io_errors=errors.number,
        io_error_lines=errors.lines,
    )
    if not smart or disk.kind != "disk" or _NO_SMART.match(disk.path) or not runner.which("smartctl"):
        return health
    try:
        done = runner.run(("smartctl", "--json", "-H", "--", disk.path), ok=ANY, timeout_s=SMART_TIMEOUT_S)
    except Interrupted:
        raise
    except RescueError as error:
        return msgspec.structs.replace(health, smart_detail=printable(error.message))
    state, detail = parse_smart(done.stdout, done.exit_code)
    return msgspec.structs.replace(health, smart=state, smart_detail=detail)


def parse_smart(text: str, exit_code: int) -> tuple[Literal["passed", "failing", "unknown"], str]:
    """Return the meaning of ``smartctl --json -H``: the disk's own verdict, else its exit bits."""
    try:
        answer = msgspec.json.decode(text.encode("utf-8", "replace"))
    except msgspec.DecodeError:
        return "unknown", "smartctl gave no readable answer"
    if not isinstance(answer, dict):
        return "unknown", "smartctl gave no readable answer"
    status = answer.get("smart_status")
    passed = status.get("passed") if isinstance(status, dict) else None
    if exit_code & SMART_FAILING or passed is False:
        return "failing", "the disk's own self-assessment says that it is failing"
    if passed is True:
        return "passed", ""
    inner = answer.get("smartctl")
    messages = inner.get("messages", []) if isinstance(inner, dict) else []
    words = [str(m.get("string", "")) for m in messages if isinstance(m, dict)]
    if exit_code & SMART_OPEN_FAILED and not words:
        words = ["smartctl could not open the device"]
    return "unknown", printable(" ".join(words))[:MAX_LINE]


def find_errors(log: Sequence[str], device_names: Sequence[str]) -> KernelErrors:
    """Return the medium errors in a kernel log that concern these devices.

    Names are used again: what was logged before another medium took the name does not count.
    """
    wanted = set(device_names)
    found: list[str] = []
    for line in log:
        if (fresh := _NEW_MEDIUM.search(line)) and (fresh["a"] or fresh["b"]) in wanted:
            found.clear()
        elif (match := _NAMED.search(line)) and match[match.lastgroup or 0] in wanted:
            found.append(printable(line)[:MAX_LINE])
    return KernelErrors(len(found), tuple(found[-MAX_LINES:]))


def probe_kernel_log() -> tuple[tuple[str, ...], tuple[ProbeError, ...]]:
    """Return the messages that the kernel still has, oldest first (dev-kmsg in the kernel's ABI docs)."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        message = f"the kernel log cannot be read: {error.strerror}"
        return (), (ProbeError(probe="health", subject="/dev/kmsg", message=message),)
    lines: list[str] = []
    try:
        for _ in range(MAX_RECORDS):
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:  # this record was overwritten; the next read goes on after it
                continue
            except OSError:  # EAGAIN: that was the last one
                break
            if not record:
                break
            lines.append(parse_record(record))
    finally:
        os.close(descriptor)
    return tuple(lines), ()


def parse_record(record: bytes) -> str:
    """Return the message of one /dev/kmsg record, without its prefix and its dictionary lines."""
    text = record.split(b"\n", 1)[0].decode("utf-8", "backslashreplace")
    return text.partition(";")[2]
