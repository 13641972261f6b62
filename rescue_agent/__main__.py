# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point: enters the private mount namespace, then hands over to the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; never returns normally (SystemExit carries the code of design section 6)."""
    if os.geteuid() == 0 and not {"--version", "--help", "-h"} & set(sys.argv[1:2]):
        _enter_private_namespace()
    from rescue_agent.ui.cli import app

    app()


def _enter_private_namespace() -> None:
    """Leave the shared mount namespace while there is but one thread (unshare(2) is per thread).

    A refusal is no error here: what needs the namespace looks for it again (``pipeline.Session``).
    """
    from rescue_agent.errors import RescueError
    from rescue_agent.system.guard import enter_private_namespace

    try:
        enter_private_namespace()
    except RescueError as error:
        print(f"rescue-agent: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
