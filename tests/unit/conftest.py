# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit ring is pure: a test that starts a process fails, whatever library it goes through."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import NoReturn

import pytest

_STARTERS = ("fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "system")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_commands: may start processes in the unit ring (the linters)")


class StartedACommand(BaseException):
    """Not an Exception: no ``except`` of the code under test may hide it."""


@pytest.fixture(autouse=True)
def no_real_commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every start of a process fail, unless the test is marked ``real_commands``."""
    if request.node.get_closest_marker("real_commands") is None:

        def forbidden(*args: object, **_: object) -> NoReturn:
            raise StartedACommand(f"a unit test started a real command: {args!r}; use tests/root for that")

        for name in _STARTERS:
            monkeypatch.setattr(os, name, forbidden)
        monkeypatch.setattr(subprocess, "Popen", forbidden)
    yield
