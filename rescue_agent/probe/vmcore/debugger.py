# SPDX-License-Identifier: GPL-3.0-or-later
"""crash(8) with a debug kernel: what the panicking task did, told without anyone at the keyboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from rescue_agent.errors import CommandFailed, CommandTimeout, UsageError
from rescue_agent.model.document import printable
from rescue_agent.system.runner import ANY, Runner
from rescue_agent.system.tools import require

COMMANDS = ("sys", "bt", "ps -A", "log", "quit")
"""crash starts in the context of the task that panicked; ``ps -A`` are the tasks that were on a CPU."""
TIMEOUT_S = 900.0
MAX_LINES = 200
MAX_LOG = 1 << 18
_SYSTEM = re.compile(r" *([A-Z][A-Z ]*): (.*)")
_TASK = re.compile(r'PID: (\d+) .*\bCPU: (\d+) +COMMAND: "(.*)"')
_FRAME = re.compile(r" *(#\d+ .*)")
_LOG_LINE = re.compile(r"\[ *\d+\.\d{6}\]")
_WANTED = frozenset(
    {"CPUS", "DATE", "UPTIME", "LOAD AVERAGE", "TASKS", "NODENAME", "RELEASE", "VERSION", "PANIC"}
)


class Debugged(NamedTuple):
    """What crash told."""

    system: tuple[str, ...] = ()
    """``NAME: value`` lines of ``sys``."""
    task: str = ""
    """The task that panicked, as ``systemd, PID 1, on CPU 0``."""
    backtrace: tuple[str, ...] = ()
    """Its stack frames, innermost first."""
    running: tuple[str, ...] = ()
    """The table of the tasks that were on a CPU, its heading first."""
    log: tuple[str, ...] = ()

    def value(self, name: str) -> str:
        """Return what ``sys`` says of a name, or an empty string."""
        return next((line.partition(": ")[2] for line in self.system if line.startswith(f"{name}: ")), "")


def crash_argv(commands: Path, vmlinux: Path, dump: Path) -> tuple[str, ...]:
    """Return the call of crash that runs a file of commands. Start-up files of the person stay out."""
    return ("crash", "--no_crashrc", "--no_scroll", "-s", "-i", str(commands), str(vmlinux), str(dump))


def debug(runner: Runner, vmlinux: Path, dump: Path, folder: Path) -> Debugged:
    """Run crash on a dump and return what it tells.

    Raises ToolMissing without crash, UsageError with crash's own words when it cannot use the two files.
    """
    require(runner, "crash")
    commands = folder / "crash-commands"
    commands.write_text("\n".join(COMMANDS) + "\n", encoding="ascii")
    environment = {"HOME": str(folder), "DEBUGINFOD_URLS": "", "TERM": "dumb"}
    try:
        done = runner.run(
            crash_argv(commands, vmlinux, dump), ok=ANY, timeout_s=TIMEOUT_S, environment=environment
        )
    except CommandTimeout as error:
        raise UsageError(f"{dump}: {error.message}", hint="the dump may be damaged") from error
    found = parse_output(done.stdout)
    if not found.system:
        failed = CommandFailed(done.argv, done.exit_code, done.stdout, done.stderr)
        raise UsageError(
            f"{dump}: crash cannot use it with {vmlinux}: {printable(failed.message)}",
            hint="the debug kernel must be of exactly the build that crashed",
        )
    return found


def parse_output(text: str) -> Debugged:
    """Return what the output of ``COMMANDS`` says; parts that crash could not tell are empty."""
    lines = [printable(line.expandtabs()) for line in text.split("\n")]
    at = next((index for index, line in enumerate(lines) if _LOG_LINE.match(line)), len(lines))
    log = tuple(lines[at:])
    while log and not log[-1]:
        log = log[:-1]
    lines = lines[:at][:MAX_LINES]
    head = next((index for index, line in enumerate(lines) if _TASK.match(line)), len(lines))
    table = next(
        (index for index, line in enumerate(lines) if line.split()[:2] == ["PID", "PPID"]), len(lines)
    )
    task = _TASK.match(lines[head]) if head < len(lines) else None
    system = (match for line in lines[: min(head, table)] if (match := _SYSTEM.match(line)))
    frames = (match for line in lines[head:table] if (match := _FRAME.match(line)))
    return Debugged(
        system=tuple(f"{match[1]}: {match[2].strip()}" for match in system if match[1] in _WANTED),
        task=f"{task[3]}, PID {task[1]}, on CPU {task[2]}" if task else "",
        backtrace=tuple(match[1] for match in frames),
        running=tuple(line.strip() for line in lines[table:] if line.strip()),
        log=log[-MAX_LOG:],
    )
