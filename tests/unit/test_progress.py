# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress on a terminal and in a log, and the question before a repair."""

from __future__ import annotations

import io
from typing import get_args

import pytest
from lab import documents

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
from rescue_agent.ui.progress import ProgressDisplay, TerminalFrontend, bar, event_text

SAMPLES: tuple[Event, ...] = (
    StageStarted(stage="observe", detail="look 1"),
    StepStarted(step="a", title="Repair", number=1, of=2),
    StepEnded(step="a", status="done", duration_s=2.0),
    OperationStarted(step="a", text="e2fsck -fy /dev/vda2"),
    Progressed(task="e2fsck", fraction=0.5),
    Output(task="e2fsck", line="Pass 1"),
    Notice(level="warning", message="slow", hint="wait"),
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def display(live: bool, **options: bool) -> tuple[ProgressDisplay, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return ProgressDisplay(stream, live=live, clock=clock, **options), stream, clock


def test_every_kind_of_event_has_its_words() -> None:
    assert {type(e) for e in SAMPLES} == set(get_args(Event))
    for event in SAMPLES:
        assert event_text(event) or isinstance(event, Progressed | Output)


def test_a_log_gets_a_line_every_few_seconds_at_most() -> None:
    shown, stream, clock = display(live=False)
    for percent in range(1001):
        clock.now = percent * 0.1  # 100 s in all
        shown.emit(Progressed(task="fsck", fraction=percent / 1000))
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 22
    assert lines[-1].split() == ["100%", "fsck"]
    assert "\r" not in stream.getvalue()


def test_a_log_is_not_told_of_what_is_over_at_once() -> None:
    shown, stream, _ = display(live=False)
    shown.emit(Progressed(task="verify", fraction=1.0))
    assert stream.getvalue() == ""


def test_a_terminal_has_one_line_that_is_drawn_over() -> None:
    shown, stream, clock = display(live=True)
    for percent in (10, 20, 30):
        clock.now += 1
        shown.emit(Progressed(task="fsck", fraction=percent / 100))
    assert "\n" not in stream.getvalue()
    shown.emit(Notice(level="info", message="hello"))
    assert stream.getvalue().endswith("\rhello\n")


def test_text_of_commands_is_never_raw() -> None:
    for live in (True, False):
        shown, stream, _ = display(live=live, show_output=True)
        shown.emit(Output(task="x", line="a\x1b[31mb"))
        shown.emit(Progressed(task="x\x1b", fraction=0.5, detail="\x07"))
        shown.emit(StepEnded(step="a", status="failed", duration_s=1, message="\x1b]0;x"))
        assert "\x1b" not in stream.getvalue()
        assert "\x07" not in stream.getvalue()


@pytest.mark.parametrize(("fraction", "percent"), [(0.0, "  0%"), (0.29, " 29%"), (1.0, "100%")])
def test_bar(fraction: float, percent: str) -> None:
    assert bar(fraction).endswith(percent)
    assert len(bar(fraction)) == len(bar(None))


def frontend(*answers: str, yes: bool = False) -> tuple[TerminalFrontend, list[str], io.StringIO]:
    asked: list[str] = []
    left = list(answers)

    def ask(question: str) -> str:
        asked.append(question)
        return left.pop(0)

    stream = io.StringIO()
    return TerminalFrontend(assume_yes=yes, stream=stream, ask=ask), asked, stream


def test_yes_asks_nothing() -> None:
    front, asked, _ = frontend(yes=True)
    assert front.approve(documents.repair_plan())
    assert asked == []


@pytest.mark.parametrize(
    ("answer", "agreed"), [("/dev/vda\n", True), ("y\n", False), ("\n", False), ("", False)]
)
def test_where_data_can_be_lost_the_disk_has_to_be_typed(answer: str, agreed: bool) -> None:
    front, asked, stream = frontend(answer)
    assert front.approve(documents.repair_plan()) is agreed
    assert "/dev/vda" in asked[0]
    assert "What will be done" in stream.getvalue()


def test_what_was_approved_is_not_asked_again_but_more_is() -> None:
    import msgspec

    whole = documents.repair_plan()
    first = msgspec.structs.replace(whole, steps=whole.steps[1:3])
    front, asked, _ = frontend("yes\n", "\n")
    assert front.approve(first)
    assert front.approve(msgspec.structs.replace(whole, steps=whole.steps[2:3]))
    assert len(asked) == 1
    assert not front.approve(msgspec.structs.replace(whole, steps=whole.steps[1:]))
    assert asked[1].endswith("[y/N] ")
