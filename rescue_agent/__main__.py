# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point: enters the private mount namespace, then hands over to the command line."""

from __future__ import annotations


def main() -> None:
    """Run the command line; never returns normally (SystemExit carries the code of design section 6)."""
    from rescue_agent.ui.cli import app

    app()


if __name__ == "__main__":
    main()
