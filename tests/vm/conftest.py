# SPDX-License-Identifier: GPL-3.0-or-later
"""The VM ring: boots machines under QEMU. Needs root (to build their disks) and qemu-system-x86."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import agent as agents
from lab import disks

from rescue_agent.system import guard


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ring where it can't run, with the reason."""
    missing = disks.missing_tools("qemu-system-x86_64", "mmdebstrap")
    reason = "the VM ring needs root" if os.geteuid() else f"not installed: {', '.join(missing)}"
    if os.geteuid() or missing:
        for item in items:
            if item.get_closest_marker("vm"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _private_namespace() -> None:
    if os.geteuid() == 0:
        guard.enter_private_namespace()
        agents.own_run_dir()


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder for disk images, removed at the end."""
    place = Path(os.environ.get("RESCUE_AGENT_TEST_WORK", "/var/tmp")) / f"rescue-agent-vm-{os.getpid()}"
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)
