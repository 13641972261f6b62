# SPDX-License-Identifier: GPL-3.0-or-later
"""``rescue-agent demo`` from end to end."""

from __future__ import annotations

import os

import pytest
from lab import disks, roots, rpmroots
from lab.agent import Agent

pytestmark = pytest.mark.root


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("family", "tools"), [("debian", ("mmdebstrap",)), ("rpm", rpmroots.NEEDED)], ids=["debian", "rpm"]
)
def test_the_demo_holds(family: str, tools: tuple[str, ...], agent: Agent, network: None) -> None:
    if missing := disks.missing_tools(*tools):
        pytest.skip(f"not installed: {', '.join(missing)}")
    before = set(os.listdir("/tmp"))
    cache = {"RESCUE_AGENT_CACHE": str(roots.cache_dir())}
    done = agent.run("demo", "--family", family, environment=cache, timeout_s=800).expect(0)
    assert "exit 127" in done.out
    assert "FAILS" not in done.out
    assert not {n for n in set(os.listdir("/tmp")) - before if n.startswith("rescue-agent-demo")}
