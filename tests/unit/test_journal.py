# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: whole lines in order, whatever ends the writer, and nothing that is not on record."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from rescue_agent.errors import DocumentError, RescueError
from rescue_agent.execute import journal as module
from rescue_agent.execute.failpoints import Failpoint, parse_failpoint
from rescue_agent.execute.journal import (
    JOURNAL_NAME,
    OUTPUT_LIMIT,
    Journal,
    bounded,
    has_ended,
    read_journal,
    unreleased,
)
from rescue_agent.model.run import Acquired, CommandRecord, RunEnded, StepRecord

TIME = "2026-01-01T00:00:00Z"


def step(name: str, state: str = "intent") -> StepRecord:
    return StepRecord(time=TIME, step=name, state=state)  # type: ignore[arg-type]


def held(key: str, state: str, what: str = "/mnt") -> Acquired:
    return Acquired(time=TIME, key=key, kind="mount", state=state, what=what)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "state" / "run")


def test_records_come_back_in_order(run: Journal) -> None:
    records = (step("a"), held("mount-1", "held"), step("a", "done"), RunEnded(time=TIME, exit_code=0))
    for record in records:
        run.append(record)
    assert read_journal(run.directory / JOURNAL_NAME) == records
    assert has_ended(records)
    assert run.steps == {"a": "done"}


def test_the_run_folder_is_closed_to_others(run: Journal) -> None:
    for path in (run.directory, *run.directory.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert {"saved", "undo", "archives", "bind"} <= {p.name for p in run.directory.iterdir()}


def test_two_runs_never_share_a_journal(run: Journal) -> None:
    with pytest.raises(RescueError, match="cannot be kept"):
        Journal.create(run.directory)


def test_a_torn_last_line_is_dropped_and_cut_off_when_reopened(run: Journal) -> None:
    run.append(step("a"))
    run.append(step("b"))
    run.close()
    path = run.directory / JOURNAL_NAME
    whole = path.read_bytes()
    for length in range(len(whole) - 1, whole.index(b"\n"), -1):
        path.write_bytes(whole[:length])
        assert read_journal(path) == (step("a"),)
    again = Journal.reopen(run.directory)
    again.append(step("c"))
    again.close()
    assert read_journal(path) == (step("a"), step("c"))


def test_a_damaged_line_in_the_middle_is_named(run: Journal) -> None:
    run.append(step("a"))
    path = run.directory / JOURNAL_NAME
    path.write_bytes(b'{"record":"tea"}\n' + path.read_bytes())
    with pytest.raises(DocumentError, match="line 1"):
        read_journal(path)
    with pytest.raises(DocumentError, match="cannot be read"):
        read_journal(path.with_name("nothing"))


def test_a_record_that_does_not_fit_is_taken_back_and_stops_the_run(
    run: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append(step("a"))
    real_write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, bytes(data)[:15])

    monkeypatch.setattr(module.os, "write", half)
    with pytest.raises(RescueError, match="No space left"):
        run.append(step("b"))
    command = CommandRecord(time=TIME, argv=("true",), exit_code=0, duration_s=0.1)
    run.append(command)  # a mere log entry stops nothing
    monkeypatch.setattr(module.os, "write", real_write)
    run.append(step("c"))
    assert read_journal(run.directory / JOURNAL_NAME) == (step("a"), step("c"))


def test_an_intent_is_synced_before_append_returns(run: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(
        module.os, "fdatasync", lambda _: synced.append((run.directory / JOURNAL_NAME).stat().st_size)
    )
    run.append(step("a"))
    assert synced == [(run.directory / JOURNAL_NAME).stat().st_size]


def test_threads_never_mix_their_lines(run: Journal) -> None:
    def write(name: str) -> None:
        for number in range(50):
            run.append(step(f"{name}-{number}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_journal(run.directory / JOURNAL_NAME)
    for name in "abcd":
        mine = [r.step for r in records if isinstance(r, StepRecord) and r.step.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(50)]


def test_long_output_is_bounded_with_both_ends(run: Journal) -> None:
    text = "first\n" + "x" * (3 * OUTPUT_LIMIT) + "\nlast"
    run.append(CommandRecord(time=TIME, argv=("a",), exit_code=1, duration_s=1.0, stdout=text, stderr=text))
    (record,) = read_journal(run.directory / JOURNAL_NAME)
    assert isinstance(record, CommandRecord)
    assert len(record.stdout) < OUTPUT_LIMIT + 100
    assert record.stdout.startswith("first") and record.stderr.endswith("last")
    assert bounded("short") == "short"


def test_what_is_still_held_newest_first() -> None:
    records = (
        held("mount-1", "intent"),
        held("mount-1", "held"),
        held("mount-2", "intent", "/mnt/two"),
        held("mount-3", "held", "/mnt/three"),
        held("mount-3", "released", "/mnt/three"),
        held("mount-4", "leaked", "/mnt/four"),
    )
    assert [(a.what, a.state) for a in unreleased(records)] == [
        ("/mnt/four", "leaked"),
        ("/mnt/two", "intent"),
        ("/mnt", "held"),
    ]


def test_failpoints_are_read_strictly() -> None:
    assert parse_failpoint("") is None
    assert parse_failpoint("saved:kill") == Failpoint("saved", 1, 9)  # type: ignore[arg-type]
    assert parse_failpoint("any#7:int") == Failpoint("any", 7, 2)  # type: ignore[arg-type]
    for wrong in ("saved", "saved:stop", ":kill", "any#x:kill"):
        with pytest.raises(ValueError):
            parse_failpoint(wrong)
