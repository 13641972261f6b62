# SPDX-License-Identifier: GPL-3.0-or-later
"""What the person gives beside the disks: saved logs, memory dumps, own signatures. Needs no root."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.diagnose.logs.signature import Signature, read_signatures
from rescue_agent.errors import UsageError
from rescue_agent.model.facts import Crash
from rescue_agent.model.logs import Log
from rescue_agent.probe.logs import ProgressSink, read_log, silent
from rescue_agent.system.runner import Runner

OWN_SIGNATURES = "/etc/rescue-agent/signatures"


class Given(NamedTuple):
    """What the person gave beside the disks."""

    logs: tuple[Log, ...] = ()
    crashes: tuple[Crash, ...] = ()


def read_logs(
    paths: Sequence[str], own: tuple[Signature, ...] = (), *, progress: ProgressSink = silent
) -> tuple[Log, ...]:
    """Return what saved logs say. Needs no root. Raises UsageError for one that cannot be read."""
    matcher = make_matcher(own)
    return tuple(read_log(lambda: LogScanner(matcher), path, progress=progress) for path in paths)


def read_dumps(
    paths: Sequence[str], own: tuple[Signature, ...] = (), *, debuginfo: str = "", save_dmesg: str = ""
) -> Given:
    """Return what memory dumps tell, and what their kernel logs say. Needs no root.

    ``debuginfo``: a vmlinux, or the package that holds it, for crash(8). ``save_dmesg``: a file that
    takes the kernel log of the one dump; it must not exist. Raises UsageError for what cannot be read.
    """
    from rescue_agent.probe.vmcore import read_crash  # heavy, and seldom needed

    if save_dmesg and len(paths) != 1:
        raise UsageError("--save-dmesg takes the log of one dump", hint="name one --vmcore")
    matcher = make_matcher(own)
    given = Given()
    for path in paths:
        crash, lines = read_crash(Runner(), path, work_dir=Path(tempfile.gettempdir()), debuginfo=debuginfo)
        text = "".join(f"{line}\n" for line in lines)
        if save_dmesg:
            _save_new(save_dmesg, text)
        scanner = LogScanner(matcher)
        scanner.feed(text.encode("utf-8", "backslashreplace"))
        log = scanner.finish(source=f"kernel log of {path}", kind="dump")
        given = Given((*given.logs, log), (*given.crashes, crash))
    return given


def _save_new(path: str, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name a file that does not exist yet") from error


def load_signatures(folder: str = "") -> tuple[Signature, ...]:
    """Return the person's own signatures: those of ``folder``, and of /etc/rescue-agent/signatures.

    Raises UsageError when ``folder`` is not there, DocumentError for a file that is not right.
    """
    if folder and not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder", hint="--signatures takes a folder with .toml files")
    files = [f for place in (OWN_SIGNATURES, folder) if place for f in sorted(Path(place).glob("*.toml"))]
    found: list[Signature] = []
    for file in files:
        try:
            found += read_signatures(file.read_text("utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
    return tuple(found)
