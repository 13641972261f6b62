# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at devices that a test made."""

from __future__ import annotations

from rescue_agent.model.facts import Facts, Image
from rescue_agent.model.run import Progressed
from rescue_agent.probe.observe import Request, observe
from rescue_agent.system.runner import Runner


def look(*devices: str, image: Image | None = None, check: bool = True) -> Facts:
    """Return the facts about these devices; packages are not verified. ``image``: what the first shows."""
    told: list[float] = []

    def progress(event: Progressed) -> None:
        if event.task == "looking at the disks" and event.fraction is not None:
            assert not told or told[-1] <= event.fraction <= 1.0
            told.append(event.fraction)

    request = Request(
        work_dir="/run/rescue-agent-test",
        disks=devices,
        images={devices[0]: image} if image else {},
        verify="none",
        check_filesystems=check,
    )
    return observe(Runner(), request, progress=progress)
