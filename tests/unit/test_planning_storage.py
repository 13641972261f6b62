# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for filesystems, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import BlockDevice, Content, Facts, Tool
from rescue_agent.model.operation import Run
from rescue_agent.model.plan import Plan, Policy, Step
from rescue_agent.planning import make_plan
from rescue_agent.planning.builder import order
from rescue_agent.planning.stale import stale_reason

WORK = "/var/lib/rescue-agent/runs/test"
POLICY = Policy(work_dir=WORK)


def plan(facts: Facts, policy: Policy = POLICY) -> Plan:
    return make_plan(facts, diagnose(facts), policy)


def step(made: Plan, step_id: str) -> Step:
    return next(s for s in made.steps if s.id == step_id)


def commands(made: Plan, step_id: str) -> list[tuple[str, ...]]:
    return [o.argv for o in step(made, step_id).operations if isinstance(o, Run)]


@pytest.mark.parametrize("root_type", ["ext4", "xfs", "btrfs"])
def test_a_healthy_machine_gets_an_empty_plan(root_type: str) -> None:
    made = plan(lab.healthy(root_type))
    assert (made.steps, made.deferred, made.refusals) == ((), (), ())
    assert made.system == lab.ROOT_UUID


# --- ext ----------------------------------------------------------------------------------------


def test_ext_is_repaired_until_a_look_finds_nothing_and_then_scanned() -> None:
    made = plan(lab.with_check(lab.healthy(), lab.HOME, "damaged"))
    assert [s.id for s in made.steps] == ["check-vda3", "scan-vda3"]
    repair, scan = made.steps
    undo = f"{WORK}/undo/vda3-0c1f63b5.e2undo"
    assert commands(made, "check-vda3") == [
        ("mkdir", "-p", f"{WORK}/undo"),
        ("fsck.ext4", "-f", "-y", "-C", "1", "-z", undo, lab.HOME),
        ("fsck.ext4", "-f", "-y", "-C", "1", lab.HOME),
    ]
    first, last = repair.operations[1:]
    assert isinstance(first, Run)
    assert isinstance(last, Run)
    assert first.inverse == ("e2undo", undo, lab.HOME)
    assert 8 in first.ok, "the undo file blocks some repairs; the next pass makes up for it"
    assert last.until == ("fsck.ext4", "-f", "-n", lab.HOME)
    assert last.max_runs == 4
    assert set(last.ok) == set(range(8)), "8 and more: e2fsck did not do its work"
    assert repair.risk == "lossy"
    assert repair.disks == (lab.DISK,)
    assert "invalid extent node" in repair.why
    assert scan.needs == ("check-vda3",)
    forget, read = commands(made, "scan-vda3")
    assert forget == ("rm", "-f", "--", f"{WORK}/undo/vda3-0c1f63b5.scan.e2undo")
    assert read[:4] == ("fsck.ext4", "-f", "-y", "-c")


def test_the_scan_can_be_left_out_and_says_how_long_it_takes() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "damaged")
    without = plan(facts, Policy(surface_scan=False))
    assert [s.id for s in without.steps] == ["check-vda3"]
    fast = step(plan(facts), "scan-vda3")
    slow = step(plan(lab.with_device(facts, lab.DISK, rotational=True)), "scan-vda3")
    assert fast.estimate_s is not None
    assert slow.estimate_s is not None
    assert slow.estimate_s > 3 * fast.estimate_s
    assert slow.estimate_s >= 6 * lab.GIB / 150e6
    assert "rotating" in slow.why
    assert "--no-surface-scan" in slow.why


@pytest.mark.parametrize(
    "message",
    [
        "ext2fs_check_desc: Corrupt group descriptor: bad block for inode table",
        "Inode table for group 0 is not in group.  (block 40000)",
        "e2fsck: Superblock invalid, trying backup blocks...",
    ],
)
def test_no_undo_file_where_it_would_block_the_repair(message: str) -> None:
    made = plan(lab.with_check(lab.healthy(), lab.HOME, "damaged", messages=(message,)))
    assert all("-z" not in argv for s in made.steps for argv in commands(made, s.id))


def test_no_undo_file_without_room_for_it() -> None:
    facts = lab.with_check(lab.healthy(work_free_bytes=10 << 20), lab.HOME, "damaged")
    made = plan(facts)
    assert all("-z" not in argv for s in made.steps for argv in commands(made, s.id))


def test_a_lost_superblock_is_saved_and_taken_from_its_copy() -> None:
    made = plan(lab.with_bad_superblock(lab.healthy(), lab.HOME))
    _, save, repair, again = commands(made, "check-vda3")
    assert save[:3] == ("dd", f"if={lab.HOME}", f"of={WORK}/undo/vda3.superblock")
    assert repair == ("fsck.ext4", "-f", "-y", "-C", "1", "-b", "32768", "-B", "4096", lab.HOME)
    assert again == ("fsck.ext4", "-f", "-y", "-C", "1", lab.HOME)


def test_a_journal_alone_is_replayed_by_the_same_command() -> None:
    made = plan(lab.with_check(lab.healthy(), lab.HOME, "needs-recovery"))
    assert step(made, "check-vda3").title.startswith("Replay the journal")
    assert step(made, "check-vda3").risk == "reversible"


def test_only_what_is_not_in_order_is_touched() -> None:
    made = plan(lab.with_check(lab.healthy(), lab.HOME, "damaged"))
    words = {w for s in made.steps for o in s.operations if isinstance(o, Run) for w in o.argv}
    assert lab.ROOT not in words


def test_a_missing_checker_is_said_in_the_plan() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "damaged")
    tools = tuple(Tool(name=n) for n in ("fsck.ext4", "e2fsck"))
    made = plan(lab.with_rescue(facts, tools=tools))
    assert made.steps == ()
    assert "e2fsck is not installed" in made.refusals[0].reason
    only_link = plan(lab.with_rescue(facts, tools=tools[:1]))
    assert commands(only_link, "check-vda3")[1][0] == "e2fsck"


# --- others --------------------------------------------------------------------------------------


def test_xfs_is_replayed_by_mounting_before_anything_else() -> None:
    made = plan(lab.with_check(lab.healthy("xfs"), lab.ROOT, "needs-recovery"))
    assert [s.id for s in made.steps] == ["replay-vda2", "check-vda2"]
    assert step(made, "check-vda2").needs == ("replay-vda2",)
    kinds = [argv[0] for argv in commands(made, "replay-vda2")]
    assert kinds == ["mkdir", "mount", "umount"]
    words = [w for s in made.steps for argv in commands(made, s.id) for w in argv]
    assert "-L" not in words
    assert any("--accept-log-loss" in d.reason for d in made.deferred)


def test_xfs_damage_without_a_log_is_only_repaired() -> None:
    made = plan(lab.with_check(lab.healthy("xfs"), lab.ROOT, "damaged"))
    assert commands(made, "check-vda2") == [("xfs_repair", "-e", lab.ROOT)]
    run = step(made, "check-vda2").operations[0]
    assert isinstance(run, Run)
    assert set(run.ok) == {0, 4}
    assert run.until == ("xfs_repair", "-n", lab.ROOT)


def test_the_log_is_thrown_away_only_when_that_was_allowed_and_after_a_replay_was_tried() -> None:
    facts = lab.with_check(lab.healthy("xfs"), lab.ROOT, "needs-recovery")
    made = plan(facts, msgspec.structs.replace(POLICY, accept_log_loss=True))
    kinds = [argv[0] for argv in commands(made, "check-vda2")]
    assert kinds == ["mkdir", "mount", "umount", "xfs_repair"]
    assert "-L" in commands(made, "check-vda2")[-1]
    assert step(made, "check-vda2").risk == "lossy"


def test_btrfs_is_never_repaired_by_itself() -> None:
    made = plan(lab.with_check(lab.healthy("btrfs"), lab.ROOT, "damaged"))
    assert made.steps == ()
    assert not made.refused
    assert "btrfs check --readonly" in made.refusals[0].advice
    assert lab.ROOT in made.refusals[0].advice


def test_a_btrfs_log_is_replayed() -> None:
    made = plan(lab.with_check(lab.healthy("btrfs"), lab.ROOT, "needs-recovery"))
    assert [s.id for s in made.steps] == ["replay-vda2"]


def test_fat_is_repaired_and_looked_at_again() -> None:
    made = plan(lab.with_check(lab.healthy(), lab.ESP, "damaged"))
    run = step(made, "check-vda1").operations[0]
    assert isinstance(run, Run)
    assert run.argv == ("fsck.fat", "-a", lab.ESP)
    assert run.until == ("fsck.fat", "-n", lab.ESP)


def test_what_cannot_be_repaired_is_not_touched() -> None:
    made = plan(lab.with_check(lab.healthy(), lab.HOME, "unrepairable"))
    assert made.steps == ()
    assert [r.blocks_everything for r in made.refusals] == [False]


# --- what waits -----------------------------------------------------------------------------------


def test_packages_seen_through_a_damaged_root_wait() -> None:
    facts = lab.with_check(lab.with_missing_libc(lab.healthy()), lab.ROOT, "damaged")
    made = plan(facts)
    assert {s.stage for s in made.steps} == {"filesystem"}
    waiting = {i for d in made.deferred if d.stage == "packages" for i in d.findings}
    assert waiting == {f.id for f in diagnose(facts).findings if f.code.startswith(("init", "package"))}


def test_an_unreadable_root_is_said_to_hide_the_rest() -> None:
    facts = lab.without_systems(lab.with_bad_superblock(lab.healthy(), lab.ROOT))
    made = plan(facts)
    assert any("can't be read" in d.reason for d in made.deferred)


def test_packages_do_not_wait_for_home() -> None:
    made = plan(lab.with_check(lab.with_missing_libc(lab.healthy()), lab.HOME, "damaged"))
    assert {s.stage for s in made.steps} == {"filesystem", "packages"}
    sources = [getattr(o, "source", "") for o in step(made, "workspace").operations]
    assert lab.HOME not in sources, "it is not mounted before it is in order"


def test_packages_are_not_touched_where_the_check_gave_no_answer() -> None:
    facts = lab.with_missing_libc(lab.healthy())
    made = plan(lab.with_check(facts, lab.ROOT, "unknown"))
    assert made.steps == ()
    assert any("not known to be in order" in r.reason for r in made.refusals)
    no_checker = lab.with_filesystem(facts, lab.ROOT, type="f2fs", check=None, state="unknown")
    assert plan(no_checker).steps


def test_nothing_is_done_to_packages_on_a_root_that_stays_damaged() -> None:
    made = plan(lab.with_check(lab.with_missing_libc(lab.healthy("btrfs")), lab.ROOT, "damaged"))
    assert made.steps == ()
    assert any("packages are not touched" in r.reason for r in made.refusals)


# --- refusals -------------------------------------------------------------------------------------


def clone(facts: Facts) -> Facts:
    copy = BlockDevice(
        path="/dev/vdc",
        id="serial:C",
        kind="disk",
        disk="/dev/vdc",
        size_bytes=1,
        content=Content(type="ext4", usage="filesystem", uuid=lab.ROOT_UUID),
    )
    return msgspec.structs.replace(facts, devices=(*facts.devices, copy), disks=(lab.DISK, copy.path))


BROKEN = lab.with_check(lab.healthy(), lab.HOME, "damaged")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (lab.with_check(BROKEN, lab.ROOT, "unreadable"), "ddrescue"),
        (lab.with_health(BROKEN, lab.DISK, smart="failing"), "ddrescue"),
        (lab.with_hibernation(BROKEN), "mkswap"),
        (lab.with_hibernation(lab.healthy()), "mkswap"),
        (lab.mounted_elsewhere(BROKEN), "Unmount"),
        (lab.mounted_elsewhere(lab.healthy()), "Unmount"),
        (lab.with_filesystem(BROKEN, lab.ROOT, size_bytes=99 * lab.GIB), "former size"),
        (lab.with_device(BROKEN, lab.DISK, read_only=True), "write-protect"),
        (clone(BROKEN), "Detach"),
        (lab.with_second_system(BROKEN), "--system"),
        (lab.with_locked_luks(lab.healthy()), "cryptsetup"),
    ],
)
def test_what_forbids_all_work(facts: Facts, words: str) -> None:
    made = plan(facts)
    assert made.refused
    assert made.steps == ()
    assert any(words in r.advice for r in made.refusals)


@pytest.mark.parametrize(
    "facts",
    [
        lab.with_second_system(lab.healthy()),
        lab.with_device(lab.healthy(), lab.DISK, read_only=True),
        clone(lab.healthy()),
        lab.without_systems(lab.healthy()),
    ],
)
def test_nothing_is_refused_where_nothing_is_to_be_done(facts: Facts) -> None:
    assert plan(facts).refusals == ()


def test_a_system_is_chosen_by_the_beginning_of_its_id() -> None:
    facts = lab.with_missing_libc(lab.with_second_system(lab.healthy()))
    made = plan(facts, msgspec.structs.replace(POLICY, system=lab.ROOT_UUID[:6].upper()))
    assert made.system == lab.ROOT_UUID
    assert not made.refused
    assert plan(facts, msgspec.structs.replace(POLICY, system="nothing")).refused


def test_the_filesystem_of_a_system_that_was_not_chosen_is_left_alone() -> None:
    facts = lab.with_check(lab.with_second_system(lab.healthy()), lab.HOME, "damaged")
    made = plan(facts, msgspec.structs.replace(POLICY, system=lab.ROOT_UUID))
    assert made.steps == ()
    assert any("not chosen" in r.reason for r in made.refusals)


# --- order and staleness ----------------------------------------------------------------------------


def make_step(step_id: str, stage: str = "filesystem", needs: tuple[str, ...] = ()) -> Step:
    return Step(
        id=step_id,
        stage=stage,
        title="",
        why="",
        risk="read-only",
        operations=(),
        needs=needs,  # type: ignore[arg-type]
    )


def test_order_is_by_stage_then_by_need() -> None:
    steps = (
        make_step("late", "packages"),
        make_step("second", needs=("first", "unknown")),
        make_step("first"),
    )
    ordered = order(steps)
    assert [s.id for s in ordered] == ["first", "second", "late"]
    assert ordered[1].needs == ("first",)


def test_steps_that_need_each_other_are_a_fault() -> None:
    with pytest.raises(ValueError, match="need each other"):
        order((make_step("a", needs=("b",)), make_step("b", needs=("a",))))


def test_a_plan_fits_the_facts_that_it_was_made_from() -> None:
    facts = lab.with_check(lab.healthy(), lab.HOME, "damaged")
    made = plan(facts)
    assert stale_reason(made, facts) == ""
    assert {d.device for d in made.disks} == {lab.DISK, lab.ESP, lab.ROOT, lab.HOME}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_bytes": 1}, "1 bytes"),
        ({"head_sha256": "f" * 64}, "contents of /dev/vda2 have changed"),
        ({"id": "partuuid:other"}, "is not here"),
        ({"path": "/dev/vdq2"}, "is /dev/vdq2 now"),
    ],
)
def test_a_changed_disk_makes_a_plan_stale(changes: dict[str, object], words: str) -> None:
    made = plan(lab.healthy())
    assert words in stale_reason(made, lab.with_device(lab.healthy(), lab.ROOT, **changes))


def test_what_was_not_known_is_not_compared() -> None:
    made = plan(lab.with_device(lab.healthy(), lab.ROOT, head_sha256=""))
    assert stale_reason(made, lab.healthy()) == ""
