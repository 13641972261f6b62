# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged file systems: faults put into a real Debian, and images that other projects broke.

The images lie beside the repository (``shared/fs-images``, or ``$RESCUE_AGENT_FS_IMAGES``); their
manifest says what the best possible end of each is.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from lab import agent as agents
from lab import disks, faults, trees
from lab.agent import OFFLINE, Agent
from lab.disks import Disk, Slot
from lab.faults import BlockFault

pytestmark = pytest.mark.root


def manifest() -> list[dict[str, Any]]:
    file = disks.CORPUS / "manifest.json"
    return list(json.loads(file.read_text())["images"]) if file.exists() else []


@pytest.mark.parametrize("fault", faults.BLOCK_FAULTS, ids=lambda fault: fault.name)
def test_ext4_of_a_debian_is_mended(
    fault: BlockFault, agent: Agent, disk: Disk, debs: Path, golden_files: dict[str, str]
) -> None:
    fault.inject(disk)
    diagnosis = agent.diagnose(disk.path)
    assert agents.root_causes(diagnosis) == {fault.code}
    plan = agent.plan(disk.path, "--no-surface-scan")
    checks = [argv for argv in agents.commands(plan) if "e2fsck" in argv[0] or "fsck.ext" in argv[0]]
    assert checks
    assert all("-c" not in argv for argv in checks)
    agent.mend(disk.path, "--packages", debs, *OFFLINE)
    assert disks.checker_exit_code(disk) == 0
    with disks.mounted(disk, read_only=True) as root:
        after = trees.snapshot(root)
        assert disks.run("chroot", root, "/usr/lib/systemd/systemd", "--version").startswith("systemd")
    untouched = (*trees.TRACES, *fault.loses)
    lost = {p: how for p, how in golden_files.items() if after.get(p) != how and not p.startswith(untouched)}
    assert not lost, "files outside the damage differ"


def test_a_tree_without_a_name_comes_back_in_lost_and_found(
    agent: Agent, disk: Disk, golden_files: dict[str, str]
) -> None:
    faults.orphan_tree(disk)
    agent.mend(disk.path, *OFFLINE)
    with disks.mounted(disk, read_only=True) as root:
        found = trees.snapshot(root, "/lost+found")
    letters = {p.rpartition("/")[2]: how for p, how in golden_files.items() if "/letters/letter-" in p}
    assert {p.rpartition("/")[2]: how for p, how in found.items() if "letter-" in p} == letters


def test_what_only_the_journal_knows_is_kept(agent: Agent, disk: Disk) -> None:
    faults.dirty_journal(disk)
    agent.mend(disk.path, *OFFLINE)
    with disks.mounted(disk, read_only=True) as root:
        assert (root / "home/alice/unsaved/note-199").read_text() == "note 199\n" * 20


def test_the_surface_scan_of_the_classic_recipe(agent: Agent, disk: Disk) -> None:
    faults.crosslink_blocks(disk)
    plan = agent.plan(disk.path, "--no-network")
    flags = [set("".join(a.lstrip("-") for a in argv if a.startswith("-"))) for argv in agents.commands(plan)]
    repair = next(i for i, f in enumerate(flags) if "y" in f and "c" not in f)
    scan = next(i for i, f in enumerate(flags) if "c" in f)
    assert repair < scan, "the surface scan must come after the repair"
    agent.mend(disk.path, "--no-network")


@pytest.mark.parametrize("entry", manifest(), ids=lambda entry: str(entry["id"]))
def test_images_end_as_the_manifest_says(entry: dict[str, Any], agent: Agent, work: Path) -> None:
    image = unpacked(entry, work)
    kind = "ext4" if entry["fs"] == "ext" else entry["fs"]
    disk = Disk(image, (Slot(0, 0, image.stat().st_size, kind),))
    before = trees.sha256(image) if entry["fs"] != "btrfs" else block_hash(image)
    diagnosis = agent.diagnose(image)
    assert agents.faults(diagnosis), "the damage was not seen"
    now = trees.sha256(image) if entry["fs"] != "btrfs" else block_hash(image)
    assert now == before, "looking wrote to the image"
    done = agent.run("repair", image, "--yes", "--json", *OFFLINE)
    if entry["cls"] in ("unrepairable",) or entry["fs"] == "btrfs":
        # btrfs check --repair never runs by itself: the verdict and the advice are what is due.
        done.expect(1, 3)
        assert all(o["result"] != "mended" for o in done.document["outcomes"])
        now = trees.sha256(image) if entry["fs"] != "btrfs" else block_hash(image)
        assert now == before, "what can't be repaired was changed"
        findings = agents.faults(diagnosis)
        assert all(f["repair"] != "automatic" and f["advice"] for f in findings)
        return
    # The tree on the xfs image looks like a system without an init, which no repair can bring.
    done.expect(0, 1) if entry["fs"] == "xfs" else done.expect(0)
    assert not {code for code in agents.codes(agent.diagnose(image)) if "fs-" in code}
    if entry["fs"] == "vfat":
        assert disks.status("fsck.fat", "-n", image) == 0
        assert trees.sha256(image) == entry["measured"]["reference_sha256"]
        return
    assert disks.checker_exit_code(disk) == 0
    with disks.mounted(disk, read_only=True) as root:
        assert trees.digest(root) == entry["after"]["tree_digest"], trees.counts(root)


def test_there_are_images_to_try() -> None:
    if not disks.CORPUS.is_dir():
        pytest.skip(f"no broken images at {disks.CORPUS}")
    assert len(manifest()) >= 12


def unpacked(entry: dict[str, Any], work: Path) -> Path:
    """Unpack an image; a btrfs metadata dump is restored."""
    source, target = disks.CORPUS / entry["file"], work / "image"
    plain = work / "image.packed"
    if source.suffix == ".xz":
        with lzma.open(source) as packed, open(plain, "wb") as out:
            shutil.copyfileobj(packed, out)
    else:
        shutil.copyfile(source, plain)
    if entry["fs"] == "btrfs":
        disks.run("btrfs-image", "-r", plain, target)
        plain.unlink()
    else:
        disks.run("cp", "--sparse=always", plain, target)
        plain.unlink()
    return target


def block_hash(image: Path) -> str:
    """Return a hash of a sparse image's data alone, with where it lies: quick for a 3 TB one."""
    import hashlib

    sums = hashlib.sha256()
    with open(image, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        place = 0
        while place < end:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:
                break
            place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            file.seek(start)
            sums.update(b"%d-%d" % (start, place))
            sums.update(file.read(place - start))
    return sums.hexdigest()
