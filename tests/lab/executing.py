# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans made by hand and run by the executor alone, on a small patient of a few files.

Run as a program (``python -m lab.executing IMAGE STATE``) it carries out one plan that has every
kind of operation, so that a test can kill it anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import disks
from rescue_agent.execute.executor import Executor
from rescue_agent.execute.journal import JOURNAL_NAME, Journal, read_journal
from rescue_agent.execute.undo import Place
from rescue_agent.model.operation import (
    TARGET_ROOT,
    Bind,
    Mount,
    Operation,
    RemoveFile,
    Run,
    SetMetadata,
    Symlink,
    Unpack,
    WriteFile,
)
from rescue_agent.model.plan import DiskIdentity, Plan, Policy, Stage, Step
from rescue_agent.model.run import Event, Record, RunBegan, RunEnded
from rescue_agent.system import guard, images
from rescue_agent.system.resources import Resources, now
from rescue_agent.system.runner import Runner

IDENTITY = "image:the-patient"
PROGRAMS = ("sh", "sleep", "true", "cat", "mount", "env")
POLICY = "#!/bin/sh\n# put here by rescue-agent\nexit 101\n"


def small_tree(folder: Path) -> Path:
    """Make a root with merged /usr in which a few programs run, and some files to change."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("etc", "dev", "proc", "sys", "run", "tmp", "var/log", "var/lib/dpkg", "home/user"):
        (folder / name).mkdir(parents=True)
    for name in PROGRAMS:
        program = Path(shutil.which(name) or f"/bin/{name}").resolve()
        shutil.copy(program, folder / "usr/bin" / name)
        for library in re.findall(r"(/\S+)", disks.run("ldd", program)):
            place = folder / Path(library).relative_to("/")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(library).resolve(), place)
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (folder / "etc/keep.conf").write_text("as it was\n")
    (folder / "etc/link").symlink_to("keep.conf")
    (folder / "home/user/data").write_text("precious\n" * 100)
    return folder


def small_image(work: Path) -> Path:
    """Make an ext4 image with ``small_tree`` on it."""
    tree = small_tree(work / "tree")
    image = work / "patient.img"
    disks.build_disk(image, [disks.Part(tree=tree)], size_mib=96, table="")
    shutil.rmtree(tree)
    return image


def make_deb(
    work: Path,
    name: str,
    files: Mapping[str, str | bytes | Path],
    *,
    conffiles: Sequence[str] = (),
) -> str:
    """Make a package; a Path as content makes a symbolic link. Names are as they stand in the archive."""
    tree = work / f"{name}-tree"
    for path, content in files.items():
        place = tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            place.symlink_to(content)
        else:
            place.write_bytes(content.encode() if isinstance(content, str) else content)
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: lab <lab@localhost>\nDescription: lab\n"
    )
    if conffiles:
        (control / "conffiles").write_text("".join(f"{path}\n" for path in conffiles))
    deb = work / f"{name}.deb"
    disks.run("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb)
    shutil.rmtree(tree)
    return str(deb)


def step(
    name: str,
    *operations: Operation,
    stage: Stage = "packages",
    needs: tuple[str, ...] = (),
    on: tuple[str, ...] = (),
) -> Step:
    return Step(
        id=name,
        stage=stage,
        title=f"step {name}",
        why="a test",
        risk="reversible",
        operations=operations,
        needs=needs,
        disks=on,
    )


class Bench:
    """A run folder and everything that an executor needs; events and results are kept to look at."""

    def __init__(self, work: Path, *, device: str = "", run: str = "run") -> None:
        self.device = device
        self.directory = work / "state" / "runs" / run
        self.cancel = guard.CancelToken()
        self.journal = Journal.create(self.directory)
        self.runner = Runner(cancel=self.cancel)
        self.resources = Resources(self.journal.append)
        self.events: list[Event] = []
        self.leaks: list[str] = []
        self.journal.append(
            RunBegan(
                time=now(),
                run=run,
                agent_version="test",
                pid=os.getpid(),
                command=("test",),
                namespace=guard.mount_namespace(),
            )
        )

    def root(self, options: str = "rw,nodev") -> Mount:
        return Mount(source=self.device, path="/", type="ext4", options=options)

    def plan(self, *steps: Step) -> Plan:
        return Plan(
            agent_version="test",
            created=now(),
            policy=Policy(work_dir=str(self.directory)),
            disks=(DiskIdentity(device=self.device, id=IDENTITY, size_bytes=0, head_sha256=""),),
            steps=steps,
        )

    def executor(self, *steps: Step) -> Executor:
        return Executor(self.runner, self.journal, self.resources, self.plan(*steps), self.events.append)

    def run(self, *steps: Step, stage: Stage = "packages") -> dict[str, str]:
        """Run a stage; return what became of each step: its status, and its message when it has one."""
        executor = self.executor(*steps)
        results = executor.run_stage(stage)
        self.leaks = executor.leaks
        return {r.step: f"{r.status}: {r.message}" if r.message else r.status for r in results}

    def on_root(self, *operations: Operation) -> str:
        """Run operations on the mounted patient; return what became of them."""
        return self.run(step("root", self.root()), step("work", *operations, needs=("root",)))["work"]

    def records(self) -> tuple[Record, ...]:
        return read_journal(self.directory / JOURNAL_NAME)

    def end(self) -> None:
        self.journal.append(RunEnded(time=now(), exit_code=0))
        self.journal.close()

    def places(self) -> dict[str, Place]:
        return {IDENTITY: Place(path=self.device, type="ext4")}


@contextmanager
def looking(device: str) -> Iterator[Path]:
    """Give the patient's tree, mounted read-only."""
    with disks.mounted_device(device, "ext4", "ro") as place:
        yield place


def everything(bench: Bench, deb: str) -> tuple[Step, ...]:
    """Return steps that hold, write, remove, link, unpack and run inside."""
    return (
        step(
            "workspace",
            bench.root(),
            Mount(source="proc", path="/proc", type="proc"),
            Bind(source="/dev", path="/dev"),
            Mount(source="tmpfs", path="/run", type="tmpfs"),
            Bind(source="", path="/run/resolv.conf", content="nameserver 192.0.2.1\n", read_only=True),
            WriteFile(path="/usr/sbin/policy-rc.d", content=POLICY, mode=0o755, held=True),
        ),
        step(
            "work",
            WriteFile(path="/etc/keep.conf", content="changed\n"),
            RemoveFile(path="/etc/link"),
            Symlink(path="/etc/new-link", target="keep.conf"),
            SetMetadata(path="/home/user/data", mode=0o600),
            Unpack(archive=deb),
            Run(argv=("sh", "-c", "cat /run/resolv.conf > /dev/null"), inside=True),
            needs=("workspace",),
        ),
    )


def start_killable(image: Path, state: Path, deb: str, failpoint: str) -> subprocess.Popen[bytes]:
    """Start this module as a program that fails at the place named."""
    environment = {
        **os.environ,
        "RESCUE_AGENT_FAILPOINT": failpoint,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lab.executing", str(image), str(state), deb],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main(image: str, state: str, deb: str) -> int:
    guard.enter_private_namespace()
    name = f"run-{len(list(Path(state).glob('state/runs/*')))}"
    bench = Bench(Path(state), run=name)
    with guard.cancel_on_signals(bench.cancel):
        try:
            bench.device = images.attach(bench.runner, bench.resources, image, writable=True).device
            outcome = bench.run(*everything(bench, deb))
        finally:
            left = bench.resources.release_to(0)
        bench.end()
    good = set(outcome.values()) == {"done"} and not left and not bench.leaks
    print(outcome, left, bench.leaks, Path(TARGET_ROOT).exists())
    return 0 if good else 130 if bench.cancel.cancelled else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
