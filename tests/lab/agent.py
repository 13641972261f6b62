# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent, run as a person runs it: a process, its streams, its exit code, and what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_agent.system import guard

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Done:
    """A run of the agent that ended."""

    argv: tuple[str, ...]
    exit_code: int
    """Negative: ended by that signal."""
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode("utf-8", "replace")

    @property
    def err(self) -> str:
        return self.stderr.decode("utf-8", "replace")

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        try:
            loaded = json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"no JSON on standard output: {error}\n{self}") from error
        assert isinstance(loaded, dict), self
        return loaded

    def expect(self, *codes: int) -> Done:
        """Return itself; fail with all that the agent said when it ended otherwise."""
        assert self.exit_code in codes, str(self)
        return self

    def __str__(self) -> str:
        head = f"{' '.join(self.argv)}\nended with {self.exit_code}"
        return f"{head}\n--- stdout\n{self.out[-6000:]}\n--- stderr\n{self.err[-6000:]}"


class Agent:
    """Runs the command line with a state folder of its own, below ``work``."""

    def __init__(self, work: Path) -> None:
        self.state = work / "state"
        self.state.mkdir(parents=True, exist_ok=True)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RESCUE_AGENT_")}
        return {**kept, "RESCUE_AGENT_STATE": str(self.state), "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}

    def run(
        self,
        *argv: str | Path,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        """Run the agent to its end; never asks anything, since its standard input is empty."""
        line = command(argv)
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            cwd=REPOSITORY,
            env=self.environment(environment),
        )
        return Done(tuple(line), done.returncode, done.stdout, done.stderr)

    def start(
        self, *argv: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start the agent and return at once, for tests that interrupt it."""
        return subprocess.Popen(
            command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=self.environment(environment),
            start_new_session=True,
        )

    def mend(self, *argv: Path | str) -> dict[str, Any]:
        """Diagnose, repair, diagnose again; return the run's document. Fails unless all is mended.

        ``argv``: the disks, then the options. The repair must have proved each fault of the first
        diagnosis, and the second must find none.
        """
        options = [str(a).startswith("-") for a in argv]
        targets = argv[: options.index(True)] if True in options else argv
        before = faults(self.diagnose(*targets))
        assert before, "the first diagnosis finds nothing"
        done = self.run("repair", *argv, "--yes", "--json")
        assert done.exit_code == 0, f"{done}\n--- found before: {[f['id'] for f in before]}"
        result = done.document
        outcomes = {o["finding"]["code"]: o["result"] for o in result["outcomes"]}
        for fault in before:
            assert outcomes.get(fault["code"]) == "mended", (fault["id"], outcomes)
        assert not result.get("leaks"), result["leaks"]
        after = faults(self.diagnose(*targets))
        assert not after, f"still there: {[f['id'] for f in after]}\n{done}"
        return result

    def scan(self, *disks: Path | str) -> dict[str, Any]:
        return self.run("scan", *disks, "--json").expect(0).document

    def diagnose(self, *disks: Path | str) -> dict[str, Any]:
        """Return the diagnosis; its exit code must fit what it says."""
        done = self.run("diagnose", *disks, "--json").expect(0, 1)
        document = done.document
        assert done.exit_code == int(bool(faults(document))), str(done)
        return document

    def plan(self, *argv: Path | str) -> dict[str, Any]:
        return self.run("plan", *argv, "--json").expect(0, 1, 3).document

    def repair(
        self, *argv: Path | str, expect: int = 0, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        done = self.run("repair", *argv, "--yes", "--json", environment=environment).expect(expect)
        return done.document


def command(argv: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "rescue_agent", *(str(a) for a in argv)]


OFFLINE = ("--no-network", "--no-surface-scan")
"""What most repairs of the tests are run with: no download, no reading of every block."""


def faults(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the findings that stand between the machine and health."""
    return [f for f in diagnosis.get("findings", ()) if f["severity"] in ("fatal", "error")]


def codes(diagnosis: Mapping[str, Any]) -> set[str]:
    """Return the codes of all faults."""
    return {f["code"] for f in faults(diagnosis)}


def root_causes(diagnosis: Mapping[str, Any]) -> set[str]:
    """Return the codes of the faults that are not a consequence of another one."""
    return {f["code"] for f in faults(diagnosis) if not f.get("consequence_of")}


def commands(plan: Mapping[str, Any]) -> list[list[str]]:
    """Return the argv of every ``Run`` operation of a plan, in order."""
    return [op["argv"] for step in plan["steps"] for op in step["operations"] if op["op"] == "run"]


def own_run_dir() -> None:
    """Give the agents of this mount namespace a run folder, so a lock, of their own.

    A test never waits for, or is refused because of, an agent that somebody else runs on the machine.
    """
    guard.RUN_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "lab", str(guard.RUN_DIR)], check=True)


def leftovers(image: Path | None = None) -> list[str]:
    """Return what a run left behind on the system: mounts, loop devices, export processes.

    With ``image``: only loop devices over that file; mounts are the agent's own in any case.
    """
    found = []
    for pid in ("self", "1"):
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            target = line.split(" ")[4]
            if target.startswith(("/run/rescue-agent/", "/var/lib/rescue-agent")):
                found.append(f"mount {target} (seen by {pid})")
    for device in sorted(Path("/sys/block").glob("loop*")):
        backing = device / "loop/backing_file"
        try:
            name = backing.read_text().strip()
        except OSError:
            continue
        if image is None or name.startswith(str(image)):
            found.append(f"{device.name} shows {name}")
    return found


def assert_nothing_left(image: Path) -> None:
    """Fail when a mount or a loop device of the agent is still there."""
    left = leftovers(image)
    assert not left, "left behind: " + "; ".join(left)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to the agent alone (not to its children, as a person's kill does not)."""
    process.send_signal(number)
