# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold for every plan, whatever the machine looks like."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.document import decode, encode
from rescue_agent.model.facts import DamagedFile, Facts, Offer, Space
from rescue_agent.model.finding import Diagnosis
from rescue_agent.model.operation import Bind, Mount, Run, Unpack, WriteFile
from rescue_agent.model.plan import STAGES, Plan, Policy
from rescue_agent.planning import make_plan
from rescue_agent.planning.stale import stale_reason

VERDICTS = ("clean", "needs-recovery", "damaged", "unrepairable", "unreadable", "unknown")
PACKAGES = tuple(p.name for p in lab.packages())


@st.composite
def broken_machines(draw: st.DrawFn) -> Facts:
    """A machine with any combination of the faults that the builders know."""
    facts = lab.healthy(draw(st.sampled_from(("ext4", "ext2", "xfs", "btrfs", "vfat"))))
    if draw(st.booleans()):
        facts = lab.with_missing_libc(facts)
    files = draw(
        st.lists(
            st.builds(
                DamagedFile,
                path=st.sampled_from(("/usr/bin/a", "/lib/b.so.1", "/etc/c", lab.LIBC_LISTED)),
                package=st.sampled_from((*PACKAGES, "unknown", "")),
                kind=st.sampled_from(("missing", "changed", "empty", "wrong-type", "unreadable")),
                conffile=st.booleans(),
            ),
            max_size=4,
        )
    )
    facts = lab.with_damaged_files(facts, *files)
    if draw(st.booleans()):
        name = draw(st.sampled_from(PACKAGES))
        state = draw(st.sampled_from(("unpacked", "half-installed", "half-configured", "installed")))
        facts = lab.with_package(facts, name, state=state, held=draw(st.booleans()))
    if draw(st.booleans()):
        facts = lab.with_archives(facts, *(lab.cached(n) for n in draw(st.sets(st.sampled_from(PACKAGES)))))
    if draw(st.booleans()):
        versions = st.sampled_from(("1", lab.version_of("libc6")))
        offers = st.builds(
            Offer, package=st.sampled_from(PACKAGES), version=versions, architecture=st.just("amd64")
        )
        facts = lab.with_database(facts, offers=tuple(draw(st.lists(offers, max_size=4))))
    if draw(st.integers(0, 3)) == 0:
        facts = lab.with_lost_database(facts)
    if draw(st.integers(0, 3)) == 0:
        free = draw(st.sampled_from((0, 20 << 20)))
        facts = lab.with_filesystem(facts, lab.ROOT, space=Space(total_bytes=lab.GIB, free_bytes=free))
    for device in (lab.ESP, lab.ROOT, lab.HOME):
        facts = lab.with_check(facts, device, draw(st.sampled_from(VERDICTS)))
    if draw(st.integers(0, 4)) == 0:
        facts = lab.with_bad_superblock(facts, lab.HOME)
    if draw(st.integers(0, 4)) == 0:
        facts = lab.with_second_system(facts)
    if draw(st.integers(0, 9)) == 0:
        facts = lab.with_hibernation(facts)
    if draw(st.integers(0, 9)) == 0:
        facts = lab.with_locked_luks(facts)
    if draw(st.integers(0, 9)) == 0:
        facts = lab.mounted_elsewhere(facts)
    if draw(st.integers(0, 9)) == 0 and facts.systems:
        facts = lab.with_system(facts, unusual=("/proc is a link",))
    if draw(st.booleans()):
        facts = lab.with_rescue(facts, network=draw(st.sampled_from((None, False))), work_free_bytes=1 << 29)
    return facts


policies = st.builds(
    Policy,
    surface_scan=st.booleans(),
    accept_log_loss=st.booleans(),
    upgrade=st.booleans(),
    network=st.booleans(),
    system=st.sampled_from(("", "", lab.ROOT_UUID[:8], lab.HOME_UUID[:8])),
    packages_dir=st.sampled_from(("", "/media/packages")),
)


def both(facts: Facts, policy: Policy) -> tuple[Diagnosis, Plan]:
    diagnosis = diagnose(facts)
    return diagnosis, make_plan(facts, diagnosis, policy)


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_documents_survive_json(facts: Facts, policy: Policy) -> None:
    diagnosis, plan = both(facts, policy)
    assert decode(encode(facts), Facts) == facts
    assert decode(encode(diagnosis), Diagnosis) == diagnosis
    assert decode(encode(plan), Plan) == plan
    again = decode(encode(facts), Facts)
    assert both(again, policy) == (diagnosis, plan), "the same facts give the same plan"


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_order_respects_stages_and_needs(facts: Facts, policy: Policy) -> None:
    _, plan = both(facts, policy)
    stages = [STAGES.index(s.stage) for s in plan.steps]
    assert stages == sorted(stages)
    done: set[str] = set()
    for step in plan.steps:
        assert set(step.needs) <= done
        assert step.id not in done
        assert step.why
        assert step.title
        assert step.operations
        assert step.disks == (lab.DISK,)
        done.add(step.id)


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_no_operation_names_the_live_medium(facts: Facts, policy: Policy) -> None:
    _, plan = both(facts, policy)
    for step in plan.steps:
        for operation in step.operations:
            assert lab.LIVE_DISK not in encode(operation).decode(), (step.id, operation)


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_every_fault_is_answered(facts: Facts, policy: Policy) -> None:
    """By a step, a deferral or a refusal; unless everything is refused already."""
    diagnosis, plan = both(facts, policy)
    assert not (plan.refused and plan.steps)
    if plan.refused:
        return
    told = {i for s in plan.steps for i in s.findings}
    told |= {i for d in plan.deferred for i in d.findings}
    told |= {i for r in plan.refusals for i in r.findings}
    assert {f.id for f in diagnosis.faults} <= told
    known = {f.id for f in diagnosis.findings}
    assert told <= known
    assert {f.consequence_of for f in diagnosis.findings} <= known | {""}
    assert all(f.evidence for f in diagnosis.findings)


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_no_damaged_filesystem_is_mounted_writable(facts: Facts, policy: Policy) -> None:
    _, plan = both(facts, policy)
    unclean = {f.device for f in facts.filesystems if f.state != "clean"}
    mounted = {o.source for s in plan.steps for o in s.operations if isinstance(o, Mount)}
    assert not mounted & unclean
    fsck_later = {s.id for s in plan.steps if s.stage == "filesystem"}
    if mounted & {lab.ROOT}:
        assert "check-vda2" not in fsck_later


@settings(max_examples=80, deadline=None)
@given(broken_machines(), policies)
def test_what_is_held_or_unpacked_comes_after_the_workspace(facts: Facts, policy: Policy) -> None:
    _, plan = both(facts, policy)
    for step in plan.steps:
        works_inside = any(
            isinstance(o, Unpack | WriteFile | Bind) or (isinstance(o, Run) and o.inside)
            for o in step.operations
        )
        assert not works_inside or step.id == "workspace" or "workspace" in step.needs


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(("ext2", "ext3", "ext4", "xfs", "btrfs")), policies)
def test_a_mended_machine_gets_an_empty_plan(root_type: str, policy: Policy) -> None:
    facts = lab.healthy(root_type)
    policy = msgspec.structs.replace(policy, upgrade=False, system="")
    _, plan = both(facts, policy)
    assert (plan.steps, plan.deferred, plan.refusals) == ((), (), ())


@settings(max_examples=40, deadline=None)
@given(broken_machines(), policies)
def test_a_plan_fits_the_machine_that_it_was_made_for(facts: Facts, policy: Policy) -> None:
    _, plan = both(facts, policy)
    assert stale_reason(plan, facts) == ""
    moved = lab.with_device(facts, lab.DISK, size_bytes=1)
    assert stale_reason(plan, moved) != ""
