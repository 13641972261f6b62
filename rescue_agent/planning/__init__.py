# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings and facts in, a plan out. Pure: what the plan prints is what runs."""

from __future__ import annotations

from rescue_agent.planning.builder import make_plan, make_workspace_plan

__all__ = ["make_plan", "make_workspace_plan"]
