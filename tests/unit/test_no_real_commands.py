# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of the unit ring itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from rescue_agent.system.runner import Runner


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=False),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: Runner().run(("true",)),
    ],
)
def test_starting_a_process_fails(start: Callable[[], object]) -> None:
    with pytest.raises(BaseException, match="started a real command"):
        start()
