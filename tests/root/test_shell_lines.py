# SPDX-License-Identifier: GPL-3.0-or-later
"""What real shells make of the lines that plans print, and what a script does when things go wrong."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import disks
from lab.disks import Disk, Part

from rescue_agent.model.operation import (
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
from rescue_agent.model.plan import DiskIdentity, Plan, Policy, Step
from rescue_agent.model.rendering import describe, quote
from rescue_agent.ui.shell_script import plan_shell

pytestmark = pytest.mark.root

SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
ALPHABET = "abc $`\\'\"~!#%*?[]{}()<>|&;=-/\t\n\x1b\r\x00é\u2018\u201d\u202e\xa0漢0179"
POLICY = "/usr/sbin/policy-rc.d"


def hostile_words(count: int) -> list[str]:
    pick = random.Random(5)
    words = ["", "~/x", "-n", "a\\", "'", "foo\\'", "$(x)", "a'b'c", "\n", "x\n\n", "=x", "!x!", "# c", "\\n"]
    words += ["".join(pick.choices(ALPHABET, k=pick.randint(1, 14))) for _ in range(count)]
    return [word.replace("\x00", "") for word in words]


# --- lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_quoted_word_is_one_word_with_the_same_characters(shell: str, work: Path) -> None:
    words = hostile_words(800)
    script = work / "words.sh"
    script.write_text(
        "#!/bin/sh\n" + "".join(f"printf '%s\\0' {quote(w)}\n" for w in words), encoding="utf-8"
    )
    said = subprocess.run([shell, script], capture_output=True, check=True).stdout.decode()
    assert said.split("\x00")[:-1] == words
    if shutil.which("shellcheck"):
        disks.run("shellcheck", script)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("content", ["", "a\n", "a", "\n\n", "a\tb\n", "%s\\n\n", "-x\n", *hostile_words(30)])
def test_a_written_file_holds_exactly_the_content(shell: str, content: str, work: Path) -> None:
    root = patient_tree(work)
    do(shell, WriteFile(path="/etc/x", content=content, mode=0o640), root, work)
    assert (root / "etc/x").read_bytes() == content.encode()
    assert stat.S_IMODE((root / "etc/x").stat().st_mode) == 0o640


def test_a_written_file_keeps_mode_and_owner_and_follows_no_link(work: Path) -> None:
    root = patient_tree(work)
    (root / "etc/x").write_text("old")
    os.chown(root / "etc/x", 3, 4)
    (root / "etc/x").chmod(0o4711)
    outside = work / "outside"
    outside.write_text("mine")
    (root / "etc/.x.rescue").symlink_to(outside)
    (root / "etc/l").symlink_to(outside)
    do("sh", WriteFile(path="/etc/x", content="new\n"), root, work)
    do("sh", WriteFile(path="/etc/l", copy_of="/etc/x"), root, work)
    state = (root / "etc/x").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o4711, 3, 4)
    assert (root / "etc/l").read_text() == "new\n"
    assert not (root / "etc/l").is_symlink()
    assert outside.read_text() == "mine"


def test_links_modes_and_removal(work: Path) -> None:
    root = patient_tree(work)
    for name in ("a", "b"):
        (root / "etc" / name).write_text(name)
    do("sh", Symlink(path="/etc/a", target="-x y"), root, work)
    do("sh", Symlink(path="/etc/a", target="b"), root, work)
    do("sh", SetMetadata(path="/etc/b", mode=0o2755, uid=5), root, work)
    assert os.readlink(root / "etc/a") == "b"
    state = (root / "etc/b").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o2755, 5, 0)
    do("sh", RemoveFile(path="/etc/a"), root, work)
    assert os.listdir(root / "etc") == ["b"]


def test_repeating_stops_when_the_check_is_satisfied_and_fails_when_it_never_is(work: Path) -> None:
    root = patient_tree(work)
    count = work / "count"
    more = Run(
        argv=("sh", "-c", f"echo >> {count}"),
        until=("sh", "-c", f"test $(wc -l < {count}) -ge 2"),
        max_runs=4,
    )
    count.touch()
    do("sh", more, root, work)
    do("sh", more, root, work)
    assert count.read_text() == "\n\n"
    never = Run(argv=more.argv, until=("false",), max_runs=3)
    with pytest.raises(subprocess.CalledProcessError):
        do("sh", never, root, work)
    assert count.read_text() == "\n" * 5


def patient_tree(work: Path) -> Path:
    root = work / "root"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    for name in ("bind", "held", "unpack"):
        (work / name).mkdir(exist_ok=True)
    return root


def do(shell: str, operation: Operation, root: Path, work: Path) -> None:
    lines = "\n".join(describe(operation, str(root), str(work)))
    subprocess.run([shell, "-e", "-u", "-c", lines], check=True, capture_output=True)


# --- whole scripts ------------------------------------------------------------------------------------


@pytest.fixture
def small(work: Path) -> Iterator[tuple[Disk, Path]]:
    """A disk with a small tree, and the tree that it was made from."""
    tree = work / "tree"
    for folder in ("etc/dpkg/dpkg.cfg.d", "usr/sbin", "usr/lib", "usr/share/doc", "var/lib/dpkg", "run"):
        (tree / folder).mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    (tree / POLICY.lstrip("/")).write_text("the owner's\n")
    (tree / "etc/app.conf").write_text("changed by the owner\n")
    (tree / "etc/dpkg/dpkg.cfg.d/slim").write_text(
        "path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n"
    )
    (tree / "var/lib/dpkg/diversions").write_text("/usr/sbin/app\n/usr/sbin/app.real\nother\n")
    yield disks.build_disk(work / "small.img", [Part("ext4", tree=tree)], size_mib=32, table=""), tree


def script_for(device: str, work: Path, *operations: Operation, held: tuple[Operation, ...] = ()) -> Path:
    head = hashlib.sha256()
    with open(device, "rb") as disk:
        head.update(disk.read(1 << 20))
        size = disk.seek(0, os.SEEK_END)
    plan = Plan(
        agent_version="0",
        created="2026-01-02T03:04:05Z",
        policy=Policy(work_dir=str(work / "run")),
        root=str(work / "mnt"),
        disks=(DiskIdentity(device=device, id="x", size_bytes=size, head_sha256=head.hexdigest()),),
        steps=(
            Step(
                id="open",
                stage="packages",
                title="Open",
                why="x",
                risk="reversible",
                operations=(Mount(source=device, path="/", type="ext4"), *held),
            ),
            Step(
                id="work",
                stage="packages",
                title="Work",
                why="x",
                risk="reversible",
                operations=operations,
                needs=("open",),
            ),
        ),
    )
    path = work / "plan.sh"
    path.write_text(plan_shell(plan), encoding="utf-8")
    return path


def run_script(script: Path) -> tuple[int, str]:
    done = subprocess.run(["/bin/sh", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_package_is_laid_out_as_dpkg_would(small: tuple[Disk, Path], work: Path) -> None:
    disk, _ = small
    package = work / "package"
    for name, text in {
        "DEBIAN/control": "Package: app\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: x\n",
        "DEBIAN/conffiles": "/etc/app.conf\n/etc/new.conf\n",
        "etc/app.conf": "shipped\n",
        "etc/new.conf": "shipped\n",
        "lib/app.so": "library\n",
        "usr/sbin/app": "program\n",
        "usr/share/doc/app/README": "long\n",
        "usr/share/doc/app/copyright": "short\n",
        "usr/share/doc/app-doc/README": "long\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    disks.run("dpkg-deb", "--root-owner-group", "-b", package, work / "app_1_all.deb")
    with disks.loop(disk.path) as device:
        code, said = run_script(script_for(device, work, Unpack(archive=str(work / "app_1_all.deb"))))
    assert code == 0, said
    with disks.mounted(disk, read_only=True) as root:
        assert os.readlink(root / "lib") == "usr/lib"
        assert (root / "usr/lib/app.so").read_text() == "library\n"
        assert (root / "etc/app.conf").read_text() == "changed by the owner\n"
        assert (root / "etc/new.conf").read_text() == "shipped\n"
        assert not (root / "usr/sbin/app").exists()
        assert (root / "usr/sbin/app.real").read_text() == "program\n"
        docs = sorted(str(p.relative_to(root / "usr/share/doc")) for p in (root / "usr/share/doc").rglob("*"))
        assert docs == ["app", "app/copyright"]


HELD = WriteFile(path=POLICY, content="#!/bin/sh\nexit 101\n", held=True)


def test_what_is_held_goes_back_also_after_a_failure(small: tuple[Disk, Path], work: Path) -> None:
    disk, _ = small
    shown = Bind(source="", path="/etc/shown", content="x\n")
    check = Run(argv=("grep", "-q", "101", str(work / "mnt") + POLICY))
    with disks.loop(disk.path) as device:
        code, said = run_script(
            script_for(
                device,
                work,
                check,
                Run(argv=("false",)),
                RemoveFile(path="/etc/app.conf"),
                held=(shown, HELD),
            )
        )
    assert code == 1, said
    with disks.mounted(disk, read_only=True) as root:
        assert (root / POLICY.lstrip("/")).read_text() == "the owner's\n"
        assert (root / "etc/app.conf").exists()
        assert not (root / "etc/shown").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_is_held_goes_back_after_a_signal(
    small: tuple[Disk, Path], work: Path, number: signal.Signals, code: int
) -> None:
    disk, _ = small
    ready = work / "ready"
    with disks.loop(disk.path) as device:
        script = script_for(
            device, work, Run(argv=("touch", str(ready))), Run(argv=("sleep", "1.5")), held=(HELD,)
        )
        process = subprocess.Popen(["/bin/sh", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    with disks.mounted(disk, read_only=True) as root:
        assert (root / POLICY.lstrip("/")).read_text() == "the owner's\n"


def test_a_changed_disk_is_refused(small: tuple[Disk, Path], work: Path) -> None:
    disk, _ = small
    with disks.loop(disk.path) as device:
        script = script_for(device, work, RemoveFile(path="/etc/app.conf"))
        with disks.mounted_device(device, "ext4"):
            pass
        code, said = run_script(script)
    assert code == 3
    assert "was changed since" in said


def test_a_disk_in_use_is_refused(small: tuple[Disk, Path], work: Path) -> None:
    disk, _ = small
    with disks.loop(disk.path) as device, disks.mounted_device(device, "ext4", "ro,noload"):
        code, said = run_script(script_for(device, work, RemoveFile(path="/etc/app.conf")))
    assert code == 3
    assert "in use" in said


@pytest.mark.parametrize(
    "operation",
    [
        WriteFile(path="/way/out/x", content="x"),
        Symlink(path="/way/out/x", target="y"),
        RemoveFile(path="/way/out/keep"),
        SetMetadata(path="/way/out/keep", mode=0o777),
        WriteFile(path="/etc/copy", copy_of="/way/out/keep"),
        Mount(source="tmpfs", path="/way/out", type="tmpfs"),
        Bind(source="/dev", path="/way", folder=True),
    ],
    ids=lambda o: type(o).__name__,
)
def test_no_link_of_the_patient_leads_out(small: tuple[Disk, Path], work: Path, operation: Operation) -> None:
    disk, _ = small
    outside = work / "outside"
    (outside / "out").mkdir(parents=True)
    (outside / "out/keep").write_text("keep")
    mode = (outside / "out/keep").stat().st_mode
    with disks.mounted(disk) as root:
        (root / "way").symlink_to(outside)
    with disks.loop(disk.path) as device:
        code, said = run_script(script_for(device, work, operation))
    assert code == 1, said
    assert os.listdir(outside / "out") == ["keep"]
    assert (outside / "out/keep").read_text() == "keep"
    assert (outside / "out/keep").stat().st_mode == mode
    with disks.mounted(disk, read_only=True) as root:
        assert not (root / "etc/copy").exists()
