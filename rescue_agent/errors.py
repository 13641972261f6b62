# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error the agent raises on purpose.

RescueError                  code + message + hint; never raised itself
├── UsageError               exit 2   what was asked makes no sense
├── Refused                  exit 3   the agent will not do it, and says why
│   └── StalePlan            the disk is not the one the plan was made for
├── CommandFailed            a command ended with a code that is not acceptable
│   └── CommandTimeout       it did not end in its time
├── ToolMissing              a program is not installed on the rescue system
├── UnsafePath               a path of the patient leads out of it, or is not what it must be
├── MountFailed              a mount or a release did not work; names what holds it
├── DocumentError            a facts, plan or journal file cannot be read
└── Interrupted              exit 130 the person asked to stop

What is not named here is a fault of the agent itself (exit 4).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAULTS = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_FAILED = 4
EXIT_INTERRUPTED = 130


class RescueError(Exception):
    """What happened, to what, and what the person can do about it.

    ``exit_code`` is the process exit code of design section 6 when the error reaches the top.
    """

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(RescueError):
    """The request itself cannot be met: wrong flag, wrong file, wrong device name."""

    exit_code = EXIT_USAGE


class Refused(RescueError):
    """Safe work is not possible: in use, hibernated, locked, failing medium, several systems."""

    exit_code = EXIT_REFUSED


class StalePlan(Refused):
    """The plan was made for a disk with other contents."""


class CommandFailed(RescueError):
    """A command's exit code is not one that its caller accepts.

    Carries everything that is needed to replay and understand it, untruncated.
    ``exit_code_of_command`` is negative for a signal, as in ``subprocess``.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        exit_code_of_command: int,
        stdout: str = "",
        stderr: str = "",
        *,
        hint: str = "",
    ) -> None:
        last = (stderr.strip() or stdout.strip()).splitlines()[-1:] or ["no message"]
        super().__init__(f"{argv[0]} ended with {exit_code_of_command}: {last[0]}", hint=hint)
        self.argv = argv
        self.exit_code_of_command = exit_code_of_command
        self.stdout = stdout
        self.stderr = stderr


class CommandTimeout(CommandFailed):
    """The command was stopped because it did not end within ``timeout_s`` seconds."""

    def __init__(self, argv: tuple[str, ...], timeout_s: float, stdout: str = "", stderr: str = "") -> None:
        super().__init__(argv, -15, stdout, stderr)
        self.timeout_s = timeout_s
        self.message = f"{argv[0]} did not end within {timeout_s:g} s and was stopped"
        self.args = (self.message,)


class ToolMissing(RescueError):
    """A program that the work needs is not installed on the rescue system."""

    def __init__(self, name: str, *, hint: str = "") -> None:
        super().__init__(f"{name} is not installed on this rescue system", hint=hint)
        self.name = name


class UnsafePath(RescueError):
    """A path inside the patient is a link out of it, or not the kind of file it must be."""


class MountFailed(RescueError):
    """A mount could not be made or released."""


class DocumentError(RescueError):
    """A saved document is damaged, of another kind, or of a version this agent does not know."""

    exit_code = EXIT_USAGE


class Interrupted(RescueError):
    """The person asked to stop; what was held is released."""

    exit_code = EXIT_INTERRUPTED
