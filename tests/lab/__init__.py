# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: Debian roots, disks made of them, faults to put in, and the agent run as a person would."""
