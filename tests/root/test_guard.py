# SPDX-License-Identifier: GPL-3.0-or-later
"""The private namespace, the lock and the signals, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rescue_agent.errors import Refused
from rescue_agent.system import guard
from rescue_agent.system.mounts import mounts

pytestmark = pytest.mark.root


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_not_even_sigkill_leaves_a_mount(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
from rescue_agent.system.guard import enter_private_namespace, in_private_namespace
enter_private_namespace()
assert in_private_namespace()
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
open(sys.argv[1] + "/inside", "w")
print("mounted", flush=True)
time.sleep(60)
"""
    process = python(code, str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == "mounted\n"
    assert not (tmp_path / "inside").exists(), "the mount is seen outside its namespace"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not [m for m in mounts() if m.target == str(tmp_path)]


def test_two_runs_never_work_at_once(tmp_path: Path) -> None:
    with (
        guard.exclusive_lock(tmp_path),
        pytest.raises(Refused, match=str(os.getpid())),
        guard.exclusive_lock(tmp_path),
    ):
        pass
    with guard.exclusive_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from rescue_agent.system.guard import exclusive_lock
with exclusive_lock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
    process = python(code, str(tmp_path))
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    with guard.exclusive_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_set_the_token_and_do_nothing_else(number: signal.Signals) -> None:
    token = guard.CancelToken()
    before = signal.getsignal(number)
    with guard.cancel_on_signals(token):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert token.words == 2
    assert signal.getsignal(number) is before


def test_children_end_with_the_agent() -> None:
    code = """
from rescue_agent.system.runner import Runner
handle = Runner().start(("sleep", "99"))
print(handle.pid, flush=True)
import time
time.sleep(60)
"""
    process = python(code)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1]:
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()
