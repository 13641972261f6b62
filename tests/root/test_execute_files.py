# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations on files of the patient: atomic, on record, taken back by undo, never outside the patient."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lab import disks, trees
from lab.executing import IDENTITY, POLICY, Bench, looking, step

from rescue_agent.execute.undo import Place, undo
from rescue_agent.model.operation import (
    TARGET_ROOT,
    Bind,
    Mount,
    Operation,
    RemoveFile,
    Run,
    SetMetadata,
    Symlink,
    WriteFile,
)
from rescue_agent.model.run import Acquired, Notice, Saved

pytestmark = pytest.mark.root


def snapshot(bench: Bench) -> dict[str, str]:
    with looking(bench.device) as root:
        return trees.snapshot(root, "/", ("/var/log/rescue-agent", "/lost+found"))


EDITS: tuple[Operation, ...] = (
    WriteFile(path="/etc/keep.conf", content="changed\n"),
    WriteFile(path="/etc/new.d/deep/new.conf", content="new\n", mode=0o640),
    WriteFile(path="/etc/copy", copy_of="/home/user/data"),
    WriteFile(path="/etc/link", content="a file in place of a link\n"),
    RemoveFile(path="/home/user/data"),
    RemoveFile(path="/etc/never-there"),
    Symlink(path="/etc/passwd.link", target="../../../../etc/passwd"),
    SetMetadata(path="/usr/bin/true", mode=0o4711, uid=7, gid=8),
)


def test_edits_and_their_undo(bench: Bench) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        keep = root / "etc/keep.conf"
        os.chown(keep, 12, 34)
        keep.chmod(0o604)
        os.setxattr(keep, "user.mark", b"kept")
    before = snapshot(bench)
    assert bench.on_root(*EDITS) == "done"
    with looking(bench.device) as root:
        keep = root / "etc/keep.conf"
        state = keep.stat()
        assert keep.read_text() == "changed\n"
        assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (12, 34, 0o604)
        assert os.getxattr(keep, "user.mark") == b"kept"
        assert stat.S_IMODE((root / "etc/new.d/deep/new.conf").stat().st_mode) == 0o640
        assert (root / "etc/copy").read_text().startswith("precious")
        assert not (root / "etc/link").is_symlink()
        assert not (root / "home/user/data").exists()
        assert os.readlink(root / "etc/passwd.link") == "../../../../etc/passwd"
        assert stat.S_IMODE((root / "usr/bin/true").stat().st_mode) == 0o4711
        copy = root / "var/log/rescue-agent" / bench.directory.name / "journal.jsonl"
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        assert b'"saved"' in copy.read_bytes()
    undone = undo(bench.runner, bench.resources, bench.directory, bench.places())
    assert not undone.refused
    assert snapshot(bench) == before
    with looking(bench.device) as root:
        assert os.getxattr(root / "etc/keep.conf", "user.mark") == b"kept"
    again = undo(bench.runner, bench.resources, bench.directory, bench.places())
    assert not again.refused, "what is as it was needs nothing, and is no refusal"
    assert not [done for done in again.restored if "true" not in done]


def test_every_change_is_on_record_before_it_is_made(bench: Bench) -> None:
    assert bench.on_root(*EDITS) == "done"
    saved = [record for record in bench.records() if isinstance(record, Saved)]
    assert {record.path for record in saved} == {
        "/etc/keep.conf",
        "/etc/new.d",
        "/etc/new.d/deep",
        "/etc/new.d/deep/new.conf",
        "/etc/copy",
        "/etc/link",
        "/home/user/data",
        "/etc/passwd.link",
        "/usr/bin/true",
    }
    assert {record.device for record in saved} == {IDENTITY}


def test_undo_leaves_alone_what_somebody_changed_since(bench: Bench) -> None:
    assert bench.on_root(*EDITS[:1]) == "done"
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "etc/keep.conf").write_text("by the owner, later\n")
    undone = undo(bench.runner, bench.resources, bench.directory, bench.places())
    assert not undone.restored
    assert "changed since" in undone.refused[0]
    with looking(bench.device) as root:
        assert (root / "etc/keep.conf").read_text() == "by the owner, later\n"


def test_undo_works_on_the_right_device_only(bench: Bench) -> None:
    assert bench.on_root(*EDITS[:1]) == "done"
    elsewhere = {"image:another": Place(path=bench.device, type="ext4")}
    assert "no device here" in undo(bench.runner, bench.resources, bench.directory, elsewhere).refused[0]
    busy = {IDENTITY: Place(path=bench.device, type="ext4", busy="it is mounted at /mnt")}
    assert "mounted at /mnt" in undo(bench.runner, bench.resources, bench.directory, busy).refused[0]
    with looking(bench.device) as root:
        assert (root / "etc/keep.conf").read_text() == "changed\n"


@pytest.mark.parametrize("former", [None, "#!/bin/sh\n# the administrator's own\nexit 0\n"])
def test_a_held_file_is_there_for_the_stage_only(bench: Bench, former: str | None) -> None:
    if former is not None:
        with disks.mounted_device(bench.device, "ext4") as root:
            (root / "usr/sbin/policy-rc.d").write_text(former)
    before = snapshot(bench)
    policy = WriteFile(path="/usr/sbin/policy-rc.d", content=POLICY, mode=0o755, held=True)
    during = Run(argv=("sh", "-c", "cat /usr/sbin/policy-rc.d > /etc/seen"), inside=True)
    assert bench.on_root(policy, during) == "done"
    with looking(bench.device) as root:
        assert (root / "etc/seen").read_text() == POLICY
    after = snapshot(bench)
    assert {p for p in {*before, *after} if before.get(p) != after.get(p)} <= {
        "/etc/seen",
        "/etc",
        "/usr/sbin",
        "/var/log",
    }
    held = [r for r in bench.records() if isinstance(r, Acquired) and r.kind == "file"]
    assert [r.state for r in held] == ["intent", "held", "released"]
    assert undo(bench.runner, bench.resources, bench.directory, bench.places()) == ((), ())


def device_names() -> list[str]:
    """Return what lies in /dev but loop devices, which other tests make and remove."""
    return sorted(name for name in os.listdir("/dev") if not name.startswith("loop"))


def hostile(root: Path) -> None:
    shown = root / "etc/shown"
    shown.symlink_to("/dev")
    (root / "etc/out").symlink_to("../../../../../../../../etc")
    os.mkfifo(root / "etc/fifo")
    os.mknod(root / "etc/disk", 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    (root / "etc/loop").symlink_to("loop")


@pytest.mark.parametrize(
    "operation",
    [
        WriteFile(path="/etc/shown/owned", content="x"),
        WriteFile(path="/etc/shown/sub/owned", content="x"),
        WriteFile(path="/dev/owned", content="x"),
        WriteFile(path="/etc/fifo", content="x"),
        WriteFile(path="/etc/loop/x", content="x"),
        WriteFile(path="/etc/copied", copy_of="/etc/fifo"),
        WriteFile(path="/etc/copied", copy_of="/etc/disk"),
        Symlink(path="/etc/shown/owned", target="/etc/passwd"),
        SetMetadata(path="/etc/link", mode=0o777),
        SetMetadata(path="/etc/disk", mode=0o777),
        RemoveFile(path="/etc"),
        Mount(source="tmpfs", path="/etc/shown", type="tmpfs"),
        Bind(source="/etc", path="/etc/out"),
        Bind(source="/etc", path="/etc/shown/owned"),
    ],
    ids=lambda operation: f"{type(operation).__name__} {operation.path} {getattr(operation, 'copy_of', '')}",
)
def test_what_leads_off_the_patient_is_refused(bench: Bench, operation: Operation) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        hostile(root)
    before = snapshot(bench)
    rescue = device_names(), trees.snapshot(Path("/etc"))
    outcome = bench.on_root(Bind(source="/dev", path="/dev"), operation)
    assert outcome.startswith("failed:"), outcome
    assert (device_names(), trees.snapshot(Path("/etc"))) == rescue
    assert not bench.leaks
    changed = {p for p in {*before, *snapshot(bench)} if before.get(p) != snapshot(bench).get(p)}
    assert changed <= {"/var/log"}, changed


def test_a_write_through_a_link_stays_inside(bench: Bench) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        hostile(root)
    passwd = Path("/etc/passwd").read_bytes()
    assert bench.on_root(WriteFile(path="/etc/out/passwd", content="inside\n")) == "done"
    assert Path("/etc/passwd").read_bytes() == passwd
    with looking(bench.device) as root:
        assert (root / "etc/passwd").read_text() == "inside\n"


def test_a_hostile_log_folder_gets_no_journal(bench: Bench) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        (root / "var/log/rescue-agent").symlink_to("/etc")
    assert bench.on_root(RemoveFile(path="/etc/link")) == "done"
    assert any(isinstance(e, Notice) and "no copy of the journal" in e.message for e in bench.events)
    with looking(bench.device) as root:
        assert not list((root / "etc").glob("run*"))


def test_nothing_is_written_when_the_root_is_not_mounted(bench: Bench) -> None:
    Path(TARGET_ROOT).mkdir(parents=True, exist_ok=True)
    for operation in (WriteFile(path="/x", content="x"), Run(argv=("true",), inside=True)):
        outcome = bench.run(step("work", operation))["work"]
        assert "not mounted" in outcome
    assert not os.listdir(TARGET_ROOT)


def test_a_full_patient_keeps_the_old_file(bench: Bench) -> None:
    with disks.mounted_device(bench.device, "ext4") as root:
        room = os.statvfs(root)
        with open(root / "filler", "wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_frsize - (2 << 20))
    outcome = bench.on_root(WriteFile(path="/etc/keep.conf", content="x" * (32 << 20)))
    assert "No space left" in outcome
    with looking(bench.device) as root:
        assert (root / "etc/keep.conf").read_text() == "as it was\n"
        assert not list((root / "etc").glob(".*rescue*"))
