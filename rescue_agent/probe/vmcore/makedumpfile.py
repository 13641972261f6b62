# SPDX-License-Identifier: GPL-3.0-or-later
"""makedumpfile(8) for what Python cannot decompress: pages in lzo or snappy."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from rescue_agent.errors import CommandFailed, UsageError
from rescue_agent.model.document import printable
from rescue_agent.probe.vmcore.beside import read_lines
from rescue_agent.probe.vmcore.dump import Opened
from rescue_agent.probe.vmcore.kdump import KdumpMemory
from rescue_agent.probe.vmcore.memory import Memory
from rescue_agent.probe.vmcore.unpack import copy
from rescue_agent.system.runner import Runner

TIMEOUT_S = 1800.0
_PHYS_BASE = re.compile(rb"^NUMBER\(phys_base\)=(-?\d{1,19})$", re.MULTILINE)


def read_log_lines(runner: Runner, path: Path, opened: Opened, method: str, folder: Path) -> list[str]:
    """Return the kernel log of a kdump-compressed dump by ``makedumpfile --dump-dmesg``.

    A flattened dump, and one whose header has another phys_base than its kernel, are first written out
    anew into ``folder``: makedumpfile reads neither. Raises UsageError.
    """
    why = f"{path}: its pages are compressed with {method}"
    memory = opened.memory
    if not runner.which("makedumpfile"):
        raise UsageError(
            f"{why}, which only makedumpfile reads here",
            hint="install the package makedumpfile, or convert the dump with makedumpfile -c elsewhere",
        )
    name = str(path)
    base = _true_phys_base(memory)
    if isinstance(memory, KdumpMemory) and (opened.is_flattened or base not in memory.phys_bases):
        path = folder / "vmcore.plain"
        copy(opened.source, path, runner.cancel.check, (memory.block_bytes, struct.pack("<q", base)), name)
    out = folder / "dmesg"
    try:
        runner.run(("makedumpfile", "--dump-dmesg", str(path), str(out)), timeout_s=TIMEOUT_S)
        return read_lines(out)
    except (CommandFailed, OSError) as error:
        raise UsageError(
            f"{why}, and makedumpfile fails: {printable(str(error))}",
            hint="it may be built without that method; makedumpfile -c on another machine converts the dump",
        ) from error


def _true_phys_base(memory: Memory) -> int:
    found = _PHYS_BASE.search(memory.vmcoreinfo)
    return int(found[1]) if found else memory.phys_bases[0]
