# SPDX-License-Identifier: GPL-3.0-or-later
"""rescue-agent: finds out why a Linux machine does not boot, and mends it."""

__version__ = "0.1.0"
