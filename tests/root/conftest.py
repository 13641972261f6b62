# SPDX-License-Identifier: GPL-3.0-or-later
"""The root ring: real tools on devices that the tests make themselves, in a private mount namespace."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from lab import agent as agents
from lab import archroots, disks, roots, rpmroots, trees
from lab.disks import Disk
from lab.executing import Bench, small_image

from rescue_agent.model.operation import TARGET_ROOT
from rescue_agent.system import guard, mounts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ring where it can't run, with the reason."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="the root ring needs root"))


@pytest.fixture(scope="session", autouse=True)
def _private_namespace() -> None:
    """Move the test process to a private mount namespace: a failed test leaves no mount on the host."""
    if os.geteuid() == 0:
        guard.enter_private_namespace()
        agents.own_run_dir()


def _roomy_folder() -> str:
    """Return /dev/shm where there is room for the images: what they cost is mostly fsync."""
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory > 8 << 30 and shutil.disk_usage("/dev/shm").free > 8 << 30:
        return "/dev/shm"
    return "/var/tmp"


@pytest.fixture(scope="session")
def lab_dir() -> Iterator[Path]:
    """A folder for what the session's tests share; on the same filesystem as their own folders."""
    place = (
        Path(os.environ.get("RESCUE_AGENT_TEST_WORK") or _roomy_folder()) / f"rescue-agent-lab-{os.getpid()}"
    )
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def work(lab_dir: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for one test, removed at its end: disk images are large."""
    place = lab_dir / f"{abs(hash(request.node.nodeid)):x}"
    place.mkdir()
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def golden_disk(lab_dir: Path) -> Disk:
    """A healthy Debian on a disk image: DOS table, one ext4 partition. Shared: copy it."""
    return disks.build_debian_disk(lab_dir / "golden", lab_dir / "golden.img")


@pytest.fixture(scope="session")
def golden_files(golden_disk: Disk) -> dict[str, str]:
    """What every file of the healthy disk is (``trees.snapshot``)."""
    with disks.mounted(golden_disk, read_only=True) as root:
        return trees.snapshot(root)


@pytest.fixture(scope="session")
def debs() -> Path:
    """Every package file of the root, at the installed versions: repairs without a network."""
    return roots.golden_debs()


@pytest.fixture
def disk(golden_disk: Disk, work: Path) -> Disk:
    """A copy of the healthy disk for one test to break."""
    return golden_disk.copy(work / "disk.img")


@pytest.fixture
def agent(work: Path, request: pytest.FixtureRequest) -> Iterator[agents.Agent]:
    """The agent with a state folder of its own; afterwards nothing of it may be left."""
    yield agents.Agent(work)
    left = agents.leftovers(work)
    assert not left, "left behind: " + "; ".join(left)


@pytest.fixture(scope="session")
def network() -> None:
    """Skip the test when the Debian mirror can't be reached."""
    host = roots.MIRROR.split("/")[2]
    try:
        socket.create_connection((host, 80), timeout=5).close()
    except OSError as error:
        pytest.skip(f"{host} can't be reached: {error}")


@pytest.fixture(scope="session")
def small_root(lab_dir: Path) -> Path:
    """An image with a small root in which a few programs run. Shared: copy it."""
    folder = lab_dir / "small"
    folder.mkdir()
    return small_image(folder)


@pytest.fixture
def bench(small_root: Path, work: Path) -> Iterator[Bench]:
    """The executor with a copy of the small root as its patient; afterwards nothing is mounted there."""
    disks.run("cp", "--sparse=always", small_root, work / "patient.img")
    with disks.loop(work / "patient.img") as device:
        yield Bench(work, device=device)
        assert not mounts.mounts_below(TARGET_ROOT)


@pytest.fixture(scope="session")
def rpm_tools() -> None:
    """Skip the test where this machine cannot make RPM packages."""
    missing = disks.missing_tools(*rpmroots.NEEDED)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def golden_rpm_disks(lab_dir: Path, rpm_tools: None) -> Callable[[rpmroots.Flavour], Disk]:
    """Healthy roots of the RPM family on disk images, each made when it is first asked for. Copy them."""

    @cache
    def make(flavour: rpmroots.Flavour) -> Disk:
        return rpmroots.build_rpm_disk(lab_dir / f"golden-{flavour}.img", flavour)

    return make


@pytest.fixture(params=["el8", "el7"])
def rpm_disk(
    request: pytest.FixtureRequest, golden_rpm_disks: Callable[[rpmroots.Flavour], Disk], work: Path
) -> Disk:
    """A copy of a healthy disk of the RPM family, one test for each flavour."""
    return golden_rpm_disks(request.param).copy(work / "disk.img")


@pytest.fixture(scope="session")
def golden_arch_disk(lab_dir: Path) -> Disk:
    """A healthy root of the pacman family on a disk image. Shared: copy it."""
    missing = disks.missing_tools(*archroots.NEEDED)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return archroots.build_arch_disk(lab_dir / "golden-arch.img")
