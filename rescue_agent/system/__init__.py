# SPDX-License-Identifier: GPL-3.0-or-later
"""The only code that touches the machine: processes, mounts, files of the patient, images, signals."""
