# SPDX-License-Identifier: GPL-3.0-or-later
"""Data only: what was seen (facts), what is wrong (finding), what to do (operation, plan), what was done."""
