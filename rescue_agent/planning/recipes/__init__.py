# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes: pure functions from findings and facts to steps. A new repair is one recipe and its tests."""
