# SPDX-License-Identifier: GPL-3.0-or-later
"""Places where a test can end the agent, to prove that whoever comes after can finish the work.

``RESCUE_AGENT_FAILPOINT=NAME[#N]:kill|int`` sends SIGKILL or SIGINT to this process the N-th time
(the first, when not said) that the place NAME is passed; the name ``any`` counts every place.
Unset, which is always so outside tests, passing a place costs one comparison.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import NamedTuple

VARIABLE = "RESCUE_AGENT_FAILPOINT"
_SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT}


class Failpoint(NamedTuple):
    """Where to end, at which passing, and how."""

    name: str
    passing: int
    signal: signal.Signals


def parse_failpoint(text: str) -> Failpoint | None:
    """Return what the variable asks for; None when it is empty. ValueError when it makes no sense."""
    if not text:
        return None
    place, _, action = text.partition(":")
    name, _, number = place.partition("#")
    if not name or action not in _SIGNALS:
        raise ValueError(f"{VARIABLE}={text}: expected NAME[#N]:kill or NAME[#N]:int")
    return Failpoint(name, int(number or "1"), _SIGNALS[action])


_wanted = parse_failpoint(os.environ.get(VARIABLE, ""))
_passings = itertools.count(1)


def passing(name: str) -> None:
    """Tell that the place ``name`` is reached."""
    if _wanted is None or _wanted.name not in (name, "any"):
        return
    if next(_passings) == _wanted.passing:
        os.kill(os.getpid(), _wanted.signal)
