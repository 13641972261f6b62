# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory dumps of kernels that panicked: the log, and what else can be told without debug information.

The dump is read by a small reader of our own, since no tool reads all that hypervisors write; it is
hostile input, so every length is bounded by what is there. makedumpfile(8) helps with page
compressions that Python lacks, crash(8) when the person has the debug kernel.
"""

from __future__ import annotations

from rescue_agent.probe.vmcore.reading import read_crash

__all__ = ["read_crash"]
