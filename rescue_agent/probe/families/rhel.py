# SPDX-License-Identifier: GPL-3.0-or-later
"""dnf's and yum's systems, looked at."""

from __future__ import annotations

from rescue_agent.model.families.rhel import PLACES
from rescue_agent.probe.families.rpm import RpmProbe
from rescue_agent.probe.families.rpm.history import probe_history

PROBE = RpmProbe("rhel", PLACES, probe_history)
