# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a run from its journal, and what counts as mended."""

from __future__ import annotations

from typing import Any

import msgspec
from lab import documents

from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.operation import Operation, Run, SetMetadata, Unpack, WriteFile
from rescue_agent.model.plan import Plan, Refusal
from rescue_agent.model.run import (
    Acquired,
    Approved,
    CommandRecord,
    Looked,
    OperationRecord,
    Outcome,
    Record,
    RunBegan,
    RunEnded,
    Saved,
    StepRecord,
)
from rescue_agent.report import build_result
from rescue_agent.verify import compare, outcomes

PLAN = documents.repair_plan()
DAMAGED, NO_LIBRARY, FULL = documents.DAMAGED, documents.NO_LIBRARY, documents.FULL


def at(second: int) -> str:
    return f"2026-01-02T03:04:{second:02d}Z"


def began() -> RunBegan:
    return RunBegan(time=at(0), run="run-1", agent_version="0.1.0", pid=7, command=("repair", "/dev/vda"))


def looked(*findings: Finding) -> Looked:
    return Looked(time=at(1), file="facts-1.json", diagnosis=documents.diagnosis(*findings))


def approved(plan: Plan = PLAN) -> Approved:
    return Approved(time=at(2), plan=plan)


def step(
    name: str, start: int, end: int, state: Any = "done", message: str = ""
) -> tuple[StepRecord, StepRecord]:
    return (
        StepRecord(time=at(start), step=name, state="intent"),
        StepRecord(time=at(end), step=name, state=state, message=message),
    )


def operation(of: Operation, *inner: Record, step: str = "outside") -> list[Record]:
    intent = OperationRecord(time=at(5), step=step, index=0, state="intent", operation=of)
    return [intent, *inner, msgspec.structs.replace(intent, state="done")]


def saved(path: str, **more: Any) -> Saved:
    return Saved(**{"time": at(5), "device": "partuuid:1", "path": path, "kind": "file", "copy": "1", **more})


def command(*argv: str, exit_code: int = 0, stdout: str = "") -> CommandRecord:
    return CommandRecord(time=at(5), argv=argv, exit_code=exit_code, duration_s=1.0, stdout=stdout)


def ended(code: int = 0, message: str = "nothing is wrong (any more)") -> RunEnded:
    return RunEnded(time=at(59), exit_code=code, message=message)


def results(found: tuple[Outcome, ...]) -> dict[str, str]:
    return {o.finding.id: o.result for o in found}


# --- what became of the findings -----------------------------------------------------------------


def test_mended_is_only_what_a_later_look_does_not_find() -> None:
    before, after = documents.diagnosis(DAMAGED, NO_LIBRARY), documents.diagnosis(NO_LIBRARY)
    assert results(compare(before, after)) == {DAMAGED.id: "mended", NO_LIBRARY.id: "not-mended"}


def test_one_look_proves_nothing() -> None:
    assert results(outcomes([documents.diagnosis(DAMAGED)])) == {DAMAGED.id: "not-mended"}
    assert outcomes([]) == ()


def test_what_only_a_later_look_sees_is_new() -> None:
    assert results(compare(documents.diagnosis(), documents.diagnosis(DAMAGED))) == {DAMAGED.id: "new"}


def test_what_came_and_went_in_between_is_mended() -> None:
    looks = [documents.diagnosis(DAMAGED), documents.diagnosis(NO_LIBRARY), documents.diagnosis()]
    assert results(outcomes(looks)) == {DAMAGED.id: "mended", NO_LIBRARY.id: "mended"}


def test_a_finding_that_the_last_look_could_not_see_is_not_mended() -> None:
    blind = msgspec.structs.replace(documents.diagnosis(), systems=())
    assert results(compare(documents.diagnosis(NO_LIBRARY), blind)) == {NO_LIBRARY.id: "not-mended"}
    gone = msgspec.structs.replace(documents.diagnosis(), disks=())
    assert results(compare(documents.diagnosis(DAMAGED), gone)) == {DAMAGED.id: "not-mended"}


def test_what_is_refused_says_why_unless_it_went_away() -> None:
    refusal = Refusal(reason="It is in use.", advice="Stop it", findings=(DAMAGED.id,))
    before = documents.diagnosis(DAMAGED)
    (found,) = compare(before, before, refusals=(refusal,))
    assert (found.result, found.reason) == ("refused", "It is in use. Stop it.")
    assert results(compare(before, documents.diagnosis(), refusals=(refusal,))) == {DAMAGED.id: "mended"}


def test_observations_are_no_outcomes() -> None:
    assert compare(documents.diagnosis(FULL), documents.diagnosis(FULL)) == ()


# --- the result ------------------------------------------------------------------------------------


def test_a_whole_run() -> None:
    records: list[Record] = [
        began(),
        looked(DAMAGED, NO_LIBRARY),
        approved(),
        *step("fsck-vda2", 3, 13),
        looked(NO_LIBRARY),
        approved(),
        *step("workspace", 14, 15),
        *step("outside", 15, 16, "failed", "no archive"),
        looked(NO_LIBRARY),
        ended(1, "1 fault(s) remain"),
    ]
    result = build_result(records, journal="/x/journal.jsonl")
    assert (result.run, result.exit_code, result.disks, result.agent_version) == (
        "run-1",
        1,
        ("/dev/vda",),
        "0.1.0",
    )
    assert [(s.step, s.status, s.duration_s) for s in result.steps] == [
        ("fsck-vda2", "done", 10.0),
        ("workspace", "done", 1.0),
        ("outside", "failed", 1.0),
        ("inside", "skipped", 0.0),
    ]
    assert results(result.outcomes) == {DAMAGED.id: "mended", NO_LIBRARY.id: "not-mended"}
    assert "skipped" in result.outcomes[1].reason or "no archive" in result.outcomes[1].reason
    assert result.message == "1 fault(s) remain"
    assert result.journal == "/x/journal.jsonl"


def test_a_killed_run() -> None:
    held = Acquired(
        time=at(2),
        key="loop-1",
        kind="loop",
        state="held",
        what="/dev/loop3",
        release=("losetup", "-d", "/dev/loop3"),
    )
    mounted = Acquired(time=at(3), key="mount-2", kind="mount", state="held", what="/run/rescue-agent/target")
    records = [began(), held, mounted, looked(DAMAGED), approved(), step("fsck-vda2", 3, 4)[0]]
    result = build_result(records)
    assert result.exit_code == 4
    assert result.ended == ""
    assert [(s.step, s.status) for s in result.steps] == [("fsck-vda2", "interrupted")]
    (leak,) = result.leaks
    assert "/dev/loop3" in leak
    assert "losetup -d /dev/loop3" in leak
    assert results(result.outcomes) == {DAMAGED.id: "not-mended"}


def test_what_was_released_is_no_leak() -> None:
    held = Acquired(time=at(2), key="loop-1", kind="loop", state="held", what="/dev/loop3")
    released = msgspec.structs.replace(held, state="released")
    assert build_result([began(), held, released]).leaks == ()
    assert build_result([began(), held, ended()], leaks=("x",)).leaks == ("x",)


def test_a_journal_without_a_word() -> None:
    result = build_result([])
    assert (result.exit_code, result.run, result.steps, result.outcomes) == (4, "", (), ())


# --- what is different -------------------------------------------------------------------------------


def changes(*records: Record) -> dict[str, str]:
    return {c.path: c.how for c in build_result([began(), *records, ended()]).changes}


def test_files() -> None:
    held = WriteFile(path="/usr/sbin/policy-rc.d", content="x", held=True)
    found = changes(
        *operation(WriteFile(path="/etc/fstab", content="x"), saved("/etc/fstab")),
        *operation(WriteFile(path="/etc/new", content="x"), saved("/etc/new", kind="absent", copy="")),
        *operation(SetMetadata(path="/a", mode=0o755), saved("/a", kind="metadata", copy="", mode=0o600)),
        *operation(held, saved("/usr/sbin/policy-rc.d", kind="absent", copy="")),
    )
    assert found == {
        "/etc/fstab": "replaced; the former one is kept as saved/1",
        "/etc/new": "created",
        "/a": "mode or owner set; it was 0600, 0:0",
    }


def test_the_files_of_one_package_are_counted() -> None:
    found = changes(
        *operation(
            Unpack(archive="/w/archives/libc6.deb"),
            saved("/lib/a", kind="absent", copy=""),
            saved("/lib/b"),
            saved("/lib/c"),
        )
    )
    assert found == {"libc6.deb": "laid over the root; missing files put back: 1, others replaced: 2 (saved)"}


def test_checkers_that_only_looked_changed_nothing() -> None:
    assert changes(command("e2fsck", "-f", "-n", "/dev/vda2"), command("xfs_repair", "-n", "/dev/vda3")) == {}
    assert changes(command("btrfs", "check", "--readonly", "/dev/vda3")) == {}


def test_checkers_that_wrote() -> None:
    lost = "Connect to /lost+found? yes\nInode 12 ref count is 2\nConnect to /lost+found? yes\n"
    found = changes(
        command("fsck.ext4", "-f", "-y", "-C", "1", "/dev/vda2", exit_code=1, stdout=lost),
        command("fsck.ext4", "-f", "-y", "/dev/vda2"),
    )
    assert found == {
        "/dev/vda2": "the filesystem went through fsck.ext4 -f -y -C 1 (exit code 1), "
        "fsck.ext4 -f -y (exit code 0); 2 entries without a name were put into lost+found"
    }


def test_packages_by_what_dpkg_said() -> None:
    said = (
        "Unpacking libc6:amd64 (2.36-9) over (2.36-9) ...\nSetting up libc6:amd64 (2.36-9) ...\n"
        "Unpacking tar (1.35) over (1.34) ...\nSetting up tar (1.35) ...\nSetting up dash (0.5) ...\n"
    )
    inside = Run(argv=("dpkg", "-i", "x.deb"), inside=True)
    from rescue_agent.model.rendering import run_argv

    assert changes(command(*run_argv(inside.argv, inside, "/mnt"), stdout=said)) == {
        "package libc6:amd64": "reinstalled, version 2.36-9",
        "package tar": "version 1.34 replaced by 1.35",
        "package dash": "set up, version 0.5",
    }
    assert changes(command("cat", "/var/log/dpkg.log", stdout=said)) == {}


def test_every_look_may_be_the_last() -> None:
    """The order of the outcomes is that in which the findings were found."""
    looks: list[Diagnosis] = [documents.diagnosis(NO_LIBRARY), documents.diagnosis(DAMAGED, NO_LIBRARY)]
    assert [o.finding.id for o in outcomes(looks)] == [NO_LIBRARY.id, DAMAGED.id]
