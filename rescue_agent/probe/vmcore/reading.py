# SPDX-License-Identifier: GPL-3.0-or-later
"""One dump, from the path that the person named to what it tells."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from rescue_agent.errors import ToolMissing, UsageError
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Crash
from rescue_agent.probe.vmcore import makedumpfile
from rescue_agent.probe.vmcore.beside import Text, find_text
from rescue_agent.probe.vmcore.debugger import Debugged, debug
from rescue_agent.probe.vmcore.debuginfo import find_build_id, find_vmlinux
from rescue_agent.probe.vmcore.dump import Opened, decode, open_memory
from rescue_agent.probe.vmcore.formats import HEAD_BYTES, name_format
from rescue_agent.probe.vmcore.source import CompressedPages, FileSource, Unreadable, open_file
from rescue_agent.probe.vmcore.summary import find_panic, find_uptime_s
from rescue_agent.probe.vmcore.unpack import packed_with, unpack
from rescue_agent.probe.vmcore.vmcoreinfo import VmcoreInfo
from rescue_agent.system.runner import Runner


def read_crash(runner: Runner, path: str, *, work_dir: Path, debuginfo: str = "") -> tuple[Crash, list[str]]:
    """Return what a memory dump tells, and its kernel log, ``[    1.234567] text`` a line.

    The log as text beside the dump is preferred when it is of the same kernel. ``debuginfo``: a
    vmlinux, or a .deb or .rpm that holds one, for crash(8). What has to be unpacked goes to
    ``work_dir`` and is removed again. Raises UsageError for a file that cannot be read, which says what
    it is and what converts it, and for a ``debuginfo`` that is of no use.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vmcore-", dir=work_dir) as folder:
        reading = _Reading(runner, path, Path(folder))
        reading.read(debuginfo)
        return reading.result()


class _Reading:
    """What is known so far of one dump."""

    def __init__(self, runner: Runner, given: str, folder: Path) -> None:
        self._runner = runner
        self._given = given
        self._folder = folder
        self._path = Path(os.path.abspath(given))
        self._format = ""
        self._release = ""
        self._info = VmcoreInfo(b"")
        self._how = ""
        self._lines: list[str] = []
        self._lost = 0
        self._remarks: list[str] = []
        self._problem: UsageError | None = None
        self._crash_may_read_it = True
        self._debugged = Debugged()

    def read(self, debuginfo: str) -> None:
        """Find the log. Raises UsageError when there is none to be had."""
        text = find_text(self._path)
        with open_file(self._path) as file:
            packed = packed_with(file.read(0, 8))
        if packed and text is not None and not debuginfo:
            self._format = f"packed with {packed}"
            self._take_text(text)
            return
        if packed:
            unpacked = self._folder / "vmcore"
            unpack(self._path, packed, unpacked, self._runner.cancel.check)
            self._path = unpacked
        with open_file(self._path) as file:
            opened = self._open(file)
            if text is not None and self._fits(text):
                self._take_text(text)
            elif opened is not None:
                self._decode(opened)
        if packed:
            self._format += f", packed with {packed}"
        if debuginfo and self._crash_may_read_it:
            self._debug(debuginfo)
        if not self._lines:
            raise self._problem or UsageError(f"{self._given}: the kernel log in it is empty")

    def _open(self, file: FileSource) -> Opened | None:
        """Open the dump and note which kernel it is of; on failure note why."""
        try:
            opened = open_memory(file, self._runner.cancel.check)
        except Unreadable as error:
            self._format = "a damaged dump"
            self._fail(f"{self._given} is a memory dump, but it cannot be read: {error}")
            return None
        if opened is None:
            other = name_format(file.read(0, HEAD_BYTES), self._path.name)
            self._format = other.name
            self._crash_may_read_it = other.crash_reads_it
            self._fail(f"{self._given} is {other.name}, no dump that can be read here", other.advice)
            return None
        self._format = opened.format
        self._release = opened.memory.release
        self._remarks += opened.memory.remarks
        self._know(VmcoreInfo(opened.memory.vmcoreinfo))
        return opened

    def _fail(self, message: str, hint: str = "") -> None:
        self._problem = UsageError(
            message, hint=hint or "crash may still read it: name the kernel's debuginfo with --debuginfo"
        )

    def _know(self, info: VmcoreInfo) -> None:
        self._info = info
        self._release = info.release or self._release

    def _fits(self, text: Text) -> bool:
        if text.release and self._release and text.release != self._release:
            self._remarks.append(
                f"{text.name} beside it is of another kernel ({text.release}) and was not used"
            )
            return False
        return True

    def _take_text(self, text: Text) -> None:
        self._how = f"{text.name} beside the dump"
        self._release = self._release or text.release
        self._lines = text.lines
        if self._problem is not None:
            self._remarks.append(self._problem.message)

    def _decode(self, opened: Opened) -> None:
        try:
            decoded = decode(opened.memory, self._runner.cancel.check)
        except CompressedPages as error:
            self._ask_makedumpfile(opened, error.method)
        except Unreadable as error:
            self._fail(f"{self._given}: the {opened.format} dump cannot be read: {error}")
        else:
            self._know(decoded.info)
            self._how, self._lines, self._lost = decoded.how, decoded.log.lines, decoded.log.lost
            if decoded.log.shortened:
                self._remarks.append("the log is longer than what is kept: its oldest lines are missing")

    def _ask_makedumpfile(self, opened: Opened, method: str) -> None:
        try:
            self._lines = makedumpfile.read_log_lines(self._runner, self._path, opened, method, self._folder)
            self._how = "makedumpfile"
        except UsageError as error:
            self._problem = error

    def _debug(self, debuginfo: str) -> None:
        """Let crash look, with a debug kernel of the same build; its failure costs nothing that is known."""
        vmlinux = find_vmlinux(self._runner, debuginfo, self._folder)
        build_id = find_build_id(vmlinux)
        if build_id and self._info.build_id and build_id != self._info.build_id:
            raise UsageError(
                f"{debuginfo} is of another build than the kernel that crashed (build-id {build_id}; "
                f"the dump is of {self._release}, build-id {self._info.build_id})",
                hint=f"name the debug kernel of exactly {self._release}",
            )
        try:
            self._debugged = debug(self._runner, vmlinux, self._path, self._folder)
        except (UsageError, ToolMissing) as error:
            self._remarks.append(str(error))
            return
        self._release = self._release or self._debugged.value("RELEASE")
        if not self._lines:
            self._lines, self._how = list(self._debugged.log), "crash"

    def result(self) -> tuple[Crash, list[str]]:
        """Return what was found."""
        panic = find_panic(self._lines) or self._debugged.value("PANIC").strip('"')
        crash = Crash(
            source=printable(self._given),
            format=self._format,
            release=printable(self._release),
            build_id=self._info.build_id,
            crash_time=self._info.crash_time,
            uptime_s=find_uptime_s(self._lines),
            panic=panic,
            how=self._how,
            lines=len(self._lines),
            lost=self._lost,
            remarks=tuple(self._remarks),
            system=self._debugged.system,
            task=self._debugged.task,
            backtrace=self._debugged.backtrace,
            running=self._debugged.running,
        )
        return crash, self._lines
