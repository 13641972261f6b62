# SPDX-License-Identifier: GPL-3.0-or-later
"""What logs say: the lines that a signature knows, boot by boot. The logs themselves are not kept."""

from __future__ import annotations

from typing import Literal

import msgspec

from rescue_agent.model.document import Model

LogKind = Literal["file", "dump", "journal", "syslog", "pstore", "crash"]
"""``file``: given by the person. ``dump``: out of a memory dump. The others lie on the patient;
``crash``: what kdump left there."""


class LogHit(Model, frozen=True, kw_only=True):
    """A line that a signature knows."""

    signature: str
    line: int
    """1-based, counted by line feeds of the unpacked source."""
    text: str
    """The line as it stands there, safe to print, cut to a bound."""
    values: dict[str, str] = msgspec.field(default_factory=dict)
    """The named groups of the signature's pattern: ``device``, ``exitcode``, ``library``, …"""
    count: int = 1
    """How many lines of this boot match the signature with the same values."""


class Boot(Model, frozen=True, kw_only=True):
    """One start of a machine, as far as a log shows it."""

    first_line: int
    kernel: str = ""
    """The release that its ``Linux version`` line names."""
    hits: tuple[LogHit, ...] = ()
    """In the order of their lines."""


class Log(Model, frozen=True, kw_only=True):
    """One log that was read."""

    source: str
    """Path as it was given, path on the patient, or the name of a journal's boot."""
    kind: LogKind = "file"
    system: str = ""
    """Id of the installed system that wrote it; empty when not known."""
    size_bytes: int = 0
    """Unpacked, as far as it was read."""
    lines: int = 0
    boots: tuple[Boot, ...] = ()
    """The newest last; the oldest ones are left out of a long log."""
    boots_seen: int = 0
    problem: str = ""
    """Why it was not read whole; empty when it was."""
