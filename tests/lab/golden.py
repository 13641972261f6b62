# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden files: what a person sees, kept word by word. ``UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "unit" / "golden"


def check(name: str, text: str) -> None:
    """Assert that ``text`` is what the golden file holds."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; see CONTRIBUTING.md on golden files"
