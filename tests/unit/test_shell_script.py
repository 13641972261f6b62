# SPDX-License-Identifier: GPL-3.0-or-later
"""The script of a plan. That it does the work: tests/root; that shellcheck takes it: test_linters.py."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import documents, golden

from rescue_agent.model.plan import Plan
from rescue_agent.model.rendering import describe, release_lines
from rescue_agent.ui.shell_script import plan_shell


def test_the_script_reads_as_it_did() -> None:
    golden.check("plan.sh", plan_shell(documents.repair_plan()))


@pytest.mark.parametrize("plan", documents.plans(), ids=lambda p: p.system_name[:8])
def test_every_command_of_the_plan_is_in_the_script(plan: Plan) -> None:
    script = plan_shell(plan)
    wanted = [
        line
        for step in plan.steps
        for operation in step.operations
        for line in (
            *describe(operation, plan.root, plan.policy.work_dir),
            *release_lines(operation, plan.root, plan.policy.work_dir),
        )
    ]
    assert [line for line in wanted if line.strip() not in script] == []


def test_the_script_refuses_what_the_plan_refuses() -> None:
    script = plan_shell(documents.refused_plan())
    assert script.endswith("exit 3\n")
    assert "mount" not in script


def test_nothing_to_do_is_said() -> None:
    assert "There is nothing to do." in plan_shell(documents.empty_plan())


def test_each_disk_is_compared_before_the_first_step() -> None:
    plan = documents.repair_plan()
    lines = plan_shell(plan).splitlines()
    check = lines.index(f"same_disk /dev/vda {20 << 30} {'a' * 64}")
    assert check < next(n for n, line in enumerate(lines) if line.startswith("# --- 1 of"))


def test_the_private_namespace_comes_before_everything_else() -> None:
    lines = plan_shell(documents.repair_plan()).splitlines()
    enter = next(n for n, line in enumerate(lines) if "exec unshare -m --propagation private" in line)
    assert enter < next(n for n, line in enumerate(lines) if line.startswith("same_disk /"))


def test_nothing_is_released_lazily() -> None:
    for plan in documents.plans():
        for line in plan_shell(plan).splitlines():
            assert "umount -l" not in line
            assert "umount -R" not in line


@given(st.text(max_size=60))
def test_text_of_the_disk_stays_in_comments_and_quotes(text: str) -> None:
    """Whatever the system is called, the script differs in its comment alone."""
    plan = msgspec.structs.replace(documents.repair_plan(), system_name=text)
    script = plan_shell(plan)
    assert script.replace("\n", "").replace("\t", "").isprintable()
    plain = plan_shell(documents.repair_plan())
    assert _code(script) == _code(plain)


def _code(script: str) -> list[str]:
    return [line for line in script.splitlines() if not line.startswith("#")]
