# SPDX-License-Identifier: GPL-3.0-or-later
"""Linters as tests: style, types, layers, shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import documents

from rescue_agent.model.document import encode
from rescue_agent.model.plan import Plan
from rescue_agent.ui.shell_script import plan_shell

pytestmark = pytest.mark.real_commands

ROOT = Path(__file__).parents[2]
SHELL_FOLDERS = (".ci", "tests", "iso-overlay", "systemd")


def run(*argv: str, text: str | None = None) -> None:
    done = subprocess.run(argv, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def python_module(*argv: str) -> None:
    run(sys.executable, "-m", *argv)


def shell_files() -> list[str]:
    found = []
    for folder in SHELL_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.read_bytes()[:64].split(b"\n")[0].rstrip().endswith(
                (b"/sh", b"/bash")
            ):
                found.append(str(path.relative_to(ROOT)))
    return found


def test_ruff_check() -> None:
    python_module("ruff", "check", "rescue_agent", "tests")


def test_ruff_format() -> None:
    python_module("ruff", "format", "--check", "rescue_agent", "tests")


def test_mypy() -> None:
    python_module("mypy", "--strict", "rescue_agent")


def test_layers() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def need_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")


def test_shell_files() -> None:
    need_shellcheck()
    files = shell_files()
    assert ".ci/run" in files
    run("shellcheck", *files)


@pytest.mark.parametrize("plan", documents.plans(), ids=lambda plan: plan.system_name or "unnamed")
def test_plan_scripts(plan: Plan) -> None:
    need_shellcheck()
    script = plan_shell(plan)
    assert "shellcheck disable" not in script
    run("shellcheck", "--shell=sh", "-", text=script)
    shell = "dash" if shutil.which("dash") else "sh"
    run(shell, "-n", text=script)


def test_documents_are_whole() -> None:
    """The samples themselves can be written and read again."""
    from rescue_agent.model.document import decode

    for plan in documents.plans():
        assert decode(encode(plan), Plan) == plan


def test_modules_are_of_a_size_that_can_be_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "rescue_agent").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 550
    }
    assert not long


def test_every_file_names_its_licence() -> None:
    without = [
        str(path.relative_to(ROOT))
        for folder in ("rescue_agent", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if "SPDX-License-Identifier: GPL-3.0-or-later" not in path.read_text(encoding="utf-8")[:200]
        and path.stat().st_size
    ]
    assert not without
