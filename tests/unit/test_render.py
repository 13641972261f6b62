# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads: complete, within 80 columns, and never a control character of the disk."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import documents, facts, golden

from rescue_agent.model.facts import ElfFault, Facts, Holder, Mount, ProbeError
from rescue_agent.model.plan import Plan
from rescue_agent.model.rendering import describe
from rescue_agent.model.run import Change, Outcome, RunResult, StepResult
from rescue_agent.ui import render
from rescue_agent.ui.page import COLUMNS, Page, folded_command, human_duration, human_size, with_variable

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def ill_facts() -> Facts:
    """The healthy machine with most of what can be wrong at once."""
    seen = facts.healthy()
    system = msgspec.structs.replace(
        seen.systems[0],
        init=msgspec.structs.replace(
            facts.init(), faults=(ElfFault(kind="missing-library", path="libc.so.6", needed_by="systemd"),)
        ),
        hibernated=True,
        unusual=("/dev of the patient is a link",),
    )
    health = tuple(
        msgspec.structs.replace(
            h, io_errors=3, io_error_lines=("I/O error, dev vda, sector 8",), smart="failing"
        )
        for h in seen.health[:1]
    )
    devices = (
        msgspec.structs.replace(
            seen.devices[0],
            mounts=(Mount(source="/dev/vda2", target="/media/x", type="ext4"),),
            held_by=(Holder(pid=7, command="qemu", path="/dev/vda"),),
        ),
        *seen.devices[1:],
    )
    return msgspec.structs.replace(
        seen,
        devices=devices,
        systems=(system,),
        health=health,
        errors=(
            ProbeError(probe="smart", subject="/dev/vda", message="smartctl is not installed", hint="apt"),
        ),
    )


def result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "agent_version": "0.1.0",
        "run": "20260102T030405Z-00aa",
        "created": documents.CREATED,
        "ended": "2026-01-02T03:09:05Z",
        "exit_code": 1,
        "disks": ("/dev/vda",),
        "system_name": "Debian GNU/Linux 12 (bookworm)",
        "steps": (
            StepResult(step="a", stage="filesystem", title="Repair ext4", status="done", duration_s=91.0),
            StepResult(step="b", stage="packages", title="Reinstall", status="failed", message="no network"),
        ),
        "outcomes": (
            Outcome(finding=documents.DAMAGED, result="mended", reason="a later look did not find it"),
            Outcome(finding=documents.NO_LIBRARY, result="not-mended", reason="no network"),
            Outcome(finding=documents.FULL, result="refused", reason="Data is never removed."),
        ),
        "changes": (Change(path="/etc/fstab", how="replaced; the former one is kept as saved/1"),),
        "leaks": ("/run/rescue-agent/target: held by bash (12)",),
        "message": "1 fault(s) remain",
        "journal": "/var/lib/rescue-agent/runs/20260102T030405Z-00aa/journal.jsonl",
    }
    return RunResult(**{**values, **changes})


TEXTS: dict[str, Callable[[], str]] = {
    "facts.txt": lambda: render.facts_text(ill_facts()),
    "facts-healthy.txt": lambda: render.facts_text(facts.healthy()),
    "diagnosis.txt": lambda: render.diagnosis_text(
        documents.diagnosis(documents.DAMAGED, documents.NO_LIBRARY, documents.FULL)
    ),
    "diagnosis-healthy.txt": lambda: render.diagnosis_text(documents.diagnosis()),
    "plan.txt": lambda: render.plan_text(documents.repair_plan()),
    "plan-empty.txt": lambda: render.plan_text(documents.empty_plan()),
    "plan-refused.txt": lambda: render.plan_text(documents.refused_plan()),
    "result.txt": lambda: render.result_text(result()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_it_reads_as_it_did(name: str) -> None:
    golden.check(name, TEXTS[name]())


@pytest.mark.parametrize("name", TEXTS)
def test_it_fits_on_a_serial_console(name: str) -> None:
    for line in TEXTS[name]().splitlines():
        assert len(line) <= COLUMNS or " " not in line.strip().removesuffix(" \\"), line


@pytest.mark.parametrize("plan", documents.plans(), ids=lambda p: p.system_name[:8])
def test_nothing_of_the_disk_is_printed_raw(plan: Plan) -> None:
    assert render.plan_text(plan).replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("plan", documents.plans()[:2], ids=lambda p: p.system_name[:8])
def test_the_plan_shows_every_command_whole(plan: Plan) -> None:
    """Folded lines put together again, and variables replaced, are what the script runs."""
    shown = unfolded(render.plan_text(plan))
    for name in ("T", "W"):
        if value := re.search(rf"^    {name}=(.*)$", shown, re.MULTILINE):
            shown = re.sub(rf"\${name}(?![A-Za-z_0-9])", value[1], shown)
    for step in plan.steps:
        for operation in step.operations:
            for line in unfolded("\n".join(describe(operation, plan.root, plan.policy.work_dir))).split("\n"):
                assert line.strip() in shown


def unfolded(text: str) -> str:
    return re.sub(r" \\\n +", " ", text)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("cat -- /mnt/etc/x > /mnt/y", "cat -- $T/etc/x > $T/y"),
        ("umount -- /mnt; true", "umount -- $T; true"),
        ("cat '/mnt/a b' /mnt2 /x/mnt", "cat '/mnt/a b' /mnt2 /x/mnt"),
        ('[ -e /mnt"$file" ]', '[ -e $T"$file" ]'),
    ],
)
def test_a_variable_stands_for_the_path_alone(line: str, shown: str) -> None:
    assert with_variable(line, "/mnt", "T") == shown


@given(
    st.lists(
        st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=12), min_size=1, max_size=30
    )
)
def test_folding_keeps_the_words(words: list[str]) -> None:
    line = shlex.join(words)
    pieces = folded_command(line, 40)
    assert all(piece.endswith(" \\") for piece in pieces[:-1])
    assert shlex.split("".join(piece.removesuffix("\\") for piece in pieces)) == words


def test_colour_only_when_asked() -> None:
    for text in (render.plan_text, render.facts_text, render.diagnosis_text, render.result_text):
        document: Any = {
            render.plan_text: documents.repair_plan(),
            render.facts_text: ill_facts(),
            render.diagnosis_text: documents.diagnosis(documents.DAMAGED),
            render.result_text: result(),
        }[text]
        plain, coloured = text(document), text(document, color=True)  # type: ignore[operator]
        assert "\x1b" not in plain
        assert "\x1b[" in coloured
        assert ANSI.sub("", coloured) == plain


def test_ascii_where_nothing_else_can_be_shown() -> None:
    page = Page(encoding="ascii")
    page.put("Größe → 5", label="├─ x")
    assert page.text().isascii()
    assert "`" not in page.text()
    assert Page(encoding="utf-8").text() == "\n"


def test_a_chain_that_bites_its_tail_is_shown_once() -> None:
    one = msgspec.structs.replace(documents.DAMAGED, consequence_of=documents.NO_LIBRARY.id)
    text = render.diagnosis_text(documents.diagnosis(one, documents.NO_LIBRARY))
    assert text.count(one.title) == 1


def test_a_rehearsal_does_not_speak_of_what_is() -> None:
    text = render.result_text(result(rehearsal=True))
    assert "Rehearsal" in text
    assert "would be different" in text
    assert "undo" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1024, "1.0 KiB"), (20 << 30, "20.0 GiB"), (300 << 20, "300 MiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("time", "text"), [(0.2, "less than 1 s"), (61, "61 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(time: float, text: str) -> None:
    assert human_duration(time) == text
