# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens, shown while it happens, on standard error; and the one question that is asked.

On a terminal the last line is a bar that is drawn over; elsewhere each task gets a plain line every
few seconds at most, so that a log stays readable.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO, assert_never

from rescue_agent.model.document import printable
from rescue_agent.model.operation import Operation
from rescue_agent.model.plan import Plan
from rescue_agent.model.rendering import disk_names
from rescue_agent.model.run import (
    Event,
    Notice,
    OperationStarted,
    Output,
    Progressed,
    StageStarted,
    StepEnded,
    StepStarted,
)
from rescue_agent.ui.page import human_duration

BAR_CELLS = 24
DRAW_EVERY_S = 0.1
LINE_EVERY_S = 5.0
LINE_EVERY_FRACTION = 0.05


def event_text(event: Event) -> str:
    """Return the line that tells of an event; empty for those that only move a bar."""
    match event:
        case StageStarted(stage=stage, detail=detail):
            return f"== {stage}" + (f": {detail}" if detail else "")
        case StepStarted(title=title, number=number, of=of):
            return f"-- {number} of {of}: {title}"
        case StepEnded(status=status, duration_s=duration_s, message=message):
            return f"   {status} ({human_duration(duration_s)})" + (f": {message}" if message else "")
        case OperationStarted(text=text):
            return "\n".join(f"   # {line}" for line in text.splitlines())
        case Notice(level=level, message=message, hint=hint):
            name = "" if level == "info" else f"{level}: "
            return f"{name}{message}" + (f" ({hint})" if hint else "")
        case Progressed() | Output():
            return ""
        case _:
            assert_never(event)


def bar(fraction: float | None, cells: int = BAR_CELLS) -> str:
    """Return a bar with its percentage in ASCII; dots when nothing is known."""
    if fraction is None:
        return "[" + "." * cells + "]     "
    full = int(min(max(fraction, 0.0), 1.0) * cells + 1e-9)
    return "[" + "#" * full + "-" * (cells - full) + f"] {int(fraction * 100 + 1e-9):3d}%"


class ProgressDisplay:
    """Writes events to a stream. Thread-safe.

    ``live``: draw a bar over its own line (default: when the stream is a terminal).
    ``show_output``: also print what commands say.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        show_output: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() if live is None else live
        self._show_output = show_output
        self._clock = clock
        self._lock = threading.Lock()
        self._drawn = ""
        self._drawn_at = float("-inf")
        self._told: dict[str, tuple[float, float | None]] = {}
        self._tasks: dict[str, Progressed] = {}

    def emit(self, event: Event) -> None:
        """Show an event."""
        with self._lock:
            if isinstance(event, Progressed):
                self._progress(event)
            elif isinstance(event, Output):
                if self._show_output:
                    self._line(f"   | {event.line}")
            else:
                if isinstance(event, StepEnded | StageStarted):
                    self._tasks.clear()
                    self._told.clear()
                self._line(event_text(event))

    def close(self) -> None:
        """Leave no half-drawn line behind."""
        with self._lock:
            self._clear()

    def _line(self, text: str) -> None:
        self._clear()
        for line in text.split("\n"):
            self._write(printable(line) + "\n")

    def _progress(self, event: Progressed) -> None:
        self._tasks[event.task] = event
        if event.fraction is not None and event.fraction >= 1:
            del self._tasks[event.task]
        if self._live:
            self._draw(event)
        else:
            self._tell(event)

    def _draw(self, event: Progressed) -> None:
        now = self._clock()
        ended = event.task not in self._tasks
        if now - self._drawn_at < DRAW_EVERY_S and not ended:
            return
        others = len([task for task in self._tasks if task != event.task])
        more = f" (+{others} more)" if others else ""
        text = f"{bar(event.fraction)} {event.task}{more} {event.detail}".rstrip()
        width = shutil.get_terminal_size().columns - 1
        text = printable(text)[:width]
        self._write("\r" + text.ljust(len(self._drawn)))
        self._drawn, self._drawn_at = text, now
        if ended and not self._tasks:
            self._clear()

    def _tell(self, event: Progressed) -> None:
        now = self._clock()
        at, fraction = self._told.get(event.task, (float("-inf"), None))
        ended = event.fraction is not None and event.fraction >= 1
        if ended and fraction is not None and fraction >= 1:
            return
        step = (event.fraction or 0.0) - (fraction or 0.0)
        moved = event.fraction is None or fraction is None or step >= LINE_EVERY_FRACTION
        if not ended and (now - at < LINE_EVERY_S or not moved):
            return
        if ended and event.task not in self._told:
            return  # over before it was worth a line
        self._told[event.task] = (now, event.fraction)
        percent = "" if event.fraction is None else f"{int(event.fraction * 100 + 1e-9):3d}% "
        self._write(f"   {percent}{printable(event.task)} {printable(event.detail)}".rstrip() + "\n")

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r" + " " * len(self._drawn) + "\r")
            self._drawn = ""

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()


class TerminalFrontend:
    """The frontend of the command line: events to standard error, the question on the terminal."""

    def __init__(
        self,
        *,
        assume_yes: bool,
        stream: TextIO | None = None,
        ask: Callable[[str], str] | None = None,
        show_output: bool = False,
    ) -> None:
        self._stream = stream or sys.stderr
        self._display = ProgressDisplay(self._stream, show_output=show_output)
        self._assume_yes = assume_yes
        self._ask = ask or self._ask_on_terminal
        self._approved: set[Operation] = set()

    def emit(self, event: Event) -> None:
        """Show an event."""
        self._display.emit(event)

    def approve(self, plan: Plan) -> bool:
        """Return whether this plan may be carried out.

        A plan is asked for once: when a later round plans only what was approved before, nobody is
        asked again. "No" is the answer of an empty line; where data can be lost for good, the name
        of the disk has to be typed.
        """
        wanted = {operation for step in plan.steps for operation in step.operations}
        if self._assume_yes or wanted <= self._approved:
            return True
        from rescue_agent.ui.render import plan_text

        self._display.close()
        self._stream.write("\n" + plan_text(plan, color=self._stream.isatty()) + "\n")
        names = disk_names(plan)
        if any(step.risk == "lossy" for step in plan.steps) and names:
            question = f"A step can discard damaged data for good. Type {names[0]} to carry this out: "
            agreed = self._ask(question).strip() == names[0]
        else:
            agreed = self._ask("Carry this out? [y/N] ").strip().lower() in ("y", "yes")
        if agreed:
            self._approved |= wanted
        return agreed

    def close(self) -> None:
        """Leave no half-drawn line behind."""
        self._display.close()

    def _ask_on_terminal(self, question: str) -> str:
        self._stream.write(printable(question))
        self._stream.flush()
        return sys.stdin.readline()
