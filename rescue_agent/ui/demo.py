# SPDX-License-Identifier: GPL-3.0-or-later
"""``rescue-agent demo``: break a real disk twice, mend it with the agent, prove it from outside.

Nothing here takes a short cut: the agent is started as a person would start it, on an image file, and
what is proved at the end is proved with e2fsck, mount and chroot, not with the agent's own words.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import typer

from rescue_agent.errors import CommandFailed, Refused, RescueError, ToolMissing, UsageError
from rescue_agent.model.rendering import shell_line
from rescue_agent.system.guard import cancel_on_signals, in_private_namespace
from rescue_agent.system.mounts import mount, release
from rescue_agent.system.runner import ANY, Runner
from rescue_agent.ui import demo_rpms

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "e2fsprogs",
    "iproute2",
    "openssh-server",
    "ca-certificates",
)
PACKAGES_NEEDED = {
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "losetup": "mount",
    "chroot": "coreutils",
}
SIZE_MIB = 1024
START_BYTES = 1 << 20
BLOCK_BYTES = 4096
UUID = "de300000-0000-4000-8000-000000000001"
LIBRARY = "usr/lib/x86_64-linux-gnu/libc.so.6"
USER_FILES = "home/alice"
LETTERS = 12
PHOTO_BYTES = 3 << 20
ROOM_BYTES = 3 << 30
BUILD_TIMEOUT_S = 1800.0
AGENT_TIMEOUT_S = 1800.0
NOT_FOUND = 127


class Kind(NamedTuple):
    """One family of package managers to show."""

    title: str
    made: str
    """How the healthy disk is made."""
    needs: Mapping[str, str]
    """Programs that only this family needs, with the Debian packages that bring them."""
    recipe: str
    """What its disk is made of: another recipe is another image."""
    build: Callable[[Runner, Path, Path], None]
    """Makes the tree of a healthy system; the second folder is kept beside the image."""
    offline: bool
    """Its packages lie in the folder that is kept: no mirror has them."""


def _kinds() -> dict[str, Kind]:
    return {
        "debian": Kind(
            "Debian",
            "made by mmdebstrap",
            {"mmdebstrap": "mmdebstrap"},
            repr((SUITE, PACKAGES)),
            _build_debian,
            offline=False,
        ),
        "rpm": Kind(
            "Enterprise Linux",
            "made of signed RPM packages, with rpm and dnf as on EL 8",
            {
                "rpm": "rpm",
                "rpmbuild": "rpm",
                "dnf": "dnf-plugins-core",
                "createrepo_c": "createrepo-c",
                "gpg": "gpg",
                "rpm2archive": "rpm2cpio",
            },
            Path(demo_rpms.__file__).read_text(encoding="utf-8"),
            _build_rpm,
            offline=True,
        ),
    }


def run_demo(*, family: str = "debian", keep: Path | None = None) -> int:
    """Show the whole loop on a disk image made on the spot; return 0 only if every proof holds.

    ``family``: ``debian`` or ``rpm``. ``keep``: where the mended image is left. Needs root and what
    the family is made with; the root that it builds is kept below ``/var/cache/rescue-agent`` so that
    the next demo starts at once. Raises RescueError when it can't even begin.
    """
    kinds = _kinds()
    if family not in kinds:
        raise UsageError(f"there is no demo of {family!r}", hint="one of " + ", ".join(kinds))
    kind = kinds[family]
    runner = Runner()
    _check_means(runner, kind)
    started = time.monotonic()
    with cancel_on_signals(runner.cancel), tempfile.TemporaryDirectory(prefix="rescue-agent-demo-") as folder:
        image = Path(folder) / "demo.img"
        _say(f"A healthy {kind.title}", f"{kind.made}, one ext4 partition on a disk image")
        golden = _golden_image(runner, kind)
        runner.run(("cp", "--sparse=always", str(golden), str(image)), timeout_s=600)
        before = _user_files(runner, image)
        typer.echo(f"  {image}: {SIZE_MIB} MiB, {len(before)} files of its user alice, remembered by SHA-256")
        _break(runner, image)
        options = ("--packages", str(_kept(golden)), "--no-network") if kind.offline else ()
        proofs = [_loop_of_commands(runner, image, options), *_prove(runner, image, before)]
        if keep is not None:
            shutil.move(image, keep)
            typer.echo(f"\nThe mended image is kept as {keep}.")
    good = all(proofs)
    verdict = "Everything held" if good else "NOT everything held"
    typer.secho(
        f"\n{verdict}: {sum(proofs)} of {len(proofs)} proofs, {time.monotonic() - started:.0f} s in all.",
        bold=True,
        fg=None if good else typer.colors.RED,
    )
    return 0 if good else 1


def _check_means(runner: Runner, kind: Kind) -> None:
    if os.geteuid() != 0:
        raise Refused("the demo needs root: it builds a root and mounts a disk image", hint="use sudo")
    if not in_private_namespace():
        raise Refused("the demo needs a private mount namespace", hint="start it as `rescue-agent demo`")
    for tool, package in {**PACKAGES_NEEDED, **kind.needs}.items():
        if not runner.which(tool):
            raise ToolMissing(tool, hint=f"apt-get install {package}")


# --- the healthy disk -------------------------------------------------------------------------


def _golden_image(runner: Runner, kind: Kind) -> Path:
    """Return the image of the healthy disk, made on first use and kept."""
    cache = Path(os.environ.get("RESCUE_AGENT_CACHE", "/var/cache/rescue-agent"))
    cache.mkdir(parents=True, exist_ok=True, mode=0o755)
    recipe = repr((kind.recipe, SIZE_MIB, START_BYTES, UUID, LETTERS, PHOTO_BYTES, 1))
    image = cache / f"demo-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.img"
    if image.exists():
        typer.echo(f"  from {image}, built by an earlier demo")
        return image
    typer.echo(f"  building it (about a minute; kept as {image})")
    if shutil.disk_usage(cache).free < ROOM_BYTES:
        raise Refused(f"less than {ROOM_BYTES >> 30} GiB are free in {cache}", hint="set RESCUE_AGENT_CACHE")
    with tempfile.TemporaryDirectory(prefix="demo-build-", dir=cache) as folder:
        tree, made, beside = Path(folder) / "tree", Path(folder) / "disk.img", Path(folder) / "kept"
        kind.build(runner, tree, beside)
        (tree / "etc/fstab").write_text(f"UUID={UUID} / ext4 errors=remount-ro 0 1\n")
        (tree / "etc/hostname").write_text("demo\n")
        _write_user_files(tree)
        with open(made, "wb") as file:
            file.truncate(SIZE_MIB << 20)
        _partition(made)
        runner.run(_mke2fs_argv(tree, made), timeout_s=600)
        if beside.exists():
            shutil.rmtree(_kept(image), ignore_errors=True)
            beside.rename(_kept(image))
        made.replace(image)
    return image


def _kept(image: Path) -> Path:
    """Return the folder with what was kept beside an image."""
    return image.with_suffix(".packages")


def _build_rpm(runner: Runner, tree: Path, beside: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent) as work:
        maker = demo_rpms.Maker(runner, Path(work))
        try:
            maker.build_repository(beside)
            maker.install(beside, tree, *demo_rpms.BASE, "dnf", "centos-release-8.9")
        except CommandFailed as error:
            raise RescueError(
                f"no root could be built from RPM packages: {error.message}",
                hint="it needs a Debian mirror for apt-get download",
            ) from error


def _mke2fs_argv(tree: Path, image: Path) -> tuple[str, ...]:
    size_kib = ((SIZE_MIB << 20) - START_BYTES) >> 10
    filesystem = ("-t", "ext4", "-b", str(BLOCK_BYTES), "-U", UUID, "-L", "root")
    where = ("-E", f"offset={START_BYTES},root_owner=0:0", str(image), f"{size_kib}k")
    return ("mke2fs", "-q", "-F", *filesystem, "-d", str(tree), *where)


def _build_debian(runner: Runner, tree: Path, _: Path) -> None:
    proxies = {k: v for k, v in os.environ.items() if k.endswith("_proxy")}
    argv = (
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--skip=cleanup/apt/lists",
        '--customize-hook=chroot "$1" useradd -m -s /bin/bash alice',
        SUITE,
        str(tree),
    )
    try:
        runner.run(argv, timeout_s=BUILD_TIMEOUT_S, environment=proxies)
    except CommandFailed as error:
        raise RescueError(
            f"no Debian root could be built: {error.stderr.strip().splitlines()[-1:] or error}",
            hint="mmdebstrap needs a Debian mirror; try: " + shell_line(argv),
        ) from error


def _write_user_files(tree: Path) -> None:
    home = tree / USER_FILES
    owner = home.stat()
    noise = random.Random(1)  # noqa: S311  # the same photo every time, not a secret
    letters = home / "letters"
    letters.mkdir(mode=0o700)
    for number in range(1, LETTERS + 1):
        (letters / f"letter-{number}.txt").write_text(f"Dear reader, this is line {number}.\n" * 900 * number)
    (home / "photo.raw").write_bytes(noise.randbytes(PHOTO_BYTES))
    for path in (letters, home / "photo.raw", *letters.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)


def _partition(image: Path) -> None:
    """Write a DOS partition table with one bootable Linux partition from 1 MiB to the end."""
    start, count = START_BYTES // 512, ((SIZE_MIB << 20) - START_BYTES) // 512
    entry = bytes((0x80, 0, 2, 0, 0x83, 0xFE, 0xFF, 0xFF)) + start.to_bytes(4, "little")
    entry += count.to_bytes(4, "little")
    with open(image, "r+b") as file:
        file.seek(440)
        file.write(b"demo\0\0" + entry + bytes(48) + b"\x55\xaa")


# --- what goes wrong ----------------------------------------------------------------------------


def _break(runner: Runner, image: Path) -> None:
    _say("Broken twice", "as a stray write and a lost file break it")
    with _mounted(runner, image, "rw") as root:
        (root / LIBRARY).unlink()
        typer.echo(f"  removed /{LIBRARY}: the C library, which PID 1 and every other program needs")
        tried = runner.run(("chroot", str(root), "/bin/true"), ok=ANY)
        _command(f"chroot {root} /bin/true", f"exit {tried.exit_code}: {tried.stderr.strip()}")
        if tried.exit_code != NOT_FOUND:
            raise RescueError(f"the fault did not take: chroot ended with {tried.exit_code}, not {NOT_FOUND}")
        typer.echo(
            "  The kernel of this machine would say: Attempted to kill init! exitcode=0x00007f00\n"
            "  and the usual advice, chroot and reinstall, ends in the same way."
        )
    noise = random.Random(2).randbytes(BLOCK_BYTES)  # noqa: S311
    with open(image, "r+b") as file:
        file.seek(START_BYTES + BLOCK_BYTES)
        file.write(noise)
    typer.echo(f"  wrote {BLOCK_BYTES} bytes of noise over the group descriptors of its ext4")


# --- the agent ----------------------------------------------------------------------------------


def _loop_of_commands(runner: Runner, image: Path, sources: tuple[str, ...]) -> bool:
    """Run scan, diagnose, plan, repair and diagnose; return whether each ended as it must."""
    expected: tuple[tuple[str, tuple[str, ...], int], ...] = (
        ("What is here", ("scan",), 0),
        ("What is wrong", ("diagnose",), 1),
        ("What would be done", ("plan", *sources), 1),
        ("Mend it", ("repair", "--yes", *sources), 0),
        ("Is anything wrong now?", ("diagnose",), 0),
    )
    good = True
    for title, arguments, code in expected:
        _say(title)
        command, *options = arguments
        typer.secho(f"$ rescue-agent {command} {image} {' '.join(options)}".rstrip(), bold=True)
        ended = runner.run(
            (sys.executable, "-m", "rescue_agent", command, str(image), *options),
            ok=ANY,
            timeout_s=AGENT_TIMEOUT_S,
            environment={**_passed_on(), "RESCUE_AGENT_STATE": str(image.with_name("state"))},
            on_output=_show,
            on_error_output=_show_progress,
        )
        typer.echo(f"(exit {ended.exit_code})")
        if ended.exit_code != code:
            typer.secho(f"  expected exit {code}", fg=typer.colors.RED)
            good = False
            break
    return good


def _passed_on() -> dict[str, str]:
    """Return the part of the environment that the agent's own commands get; its journals go with the demo."""
    names = ("PYTHONPATH", "VIRTUAL_ENV", "TERM", "COLUMNS")
    return {k: v for k, v in os.environ.items() if k in names or k.endswith("_proxy")}


def _show(text: str) -> None:
    typer.echo(text, nl=False)


def _show_progress(text: str) -> None:
    typer.echo(text, nl=False, err=True)


# --- the proof ----------------------------------------------------------------------------------


def _prove(runner: Runner, image: Path, before: dict[str, str]) -> list[bool]:
    _say("Proof", "without the agent")
    proofs = []
    with _partition_device(runner, image, read_only=True) as device:
        check = runner.run(("e2fsck", "-fn", device), ok=ANY, timeout_s=600)
    proofs.append(_proof("e2fsck -fn finds nothing", f"e2fsck -fn {image}", check.exit_code == 0))
    if check.exit_code:
        return proofs
    with _mounted(runner, image, "ro,noload") as root:
        for program in (("/bin/true",), ("/usr/lib/systemd/systemd", "--version")):
            tried = runner.run(("chroot", str(root), *program), ok=ANY)
            words = (tried.stdout + tried.stderr).strip().splitlines()[:1] or [f"exit {tried.exit_code}"]
            _command(shell_line(("chroot", str(root), *program)), words[0])
            proofs.append(_proof(f"{program[0]} starts inside", "", tried.exit_code == 0))
        after = _hashes(root)
    lost = sorted(p for p in before if after.get(p) != before[p])
    proofs.append(_proof(f"all {len(before)} files of alice are unchanged, by SHA-256", "", not lost))
    for path in lost:
        typer.secho(f"    differs: {path}", fg=typer.colors.RED)
    return proofs


def _proof(title: str, command: str, holds: bool) -> bool:
    if command:
        typer.secho(f"$ {command}", bold=True)
    typer.secho(f"  {'holds' if holds else 'FAILS'}: {title}", fg=None if holds else typer.colors.RED)
    return holds


def _user_files(runner: Runner, image: Path) -> dict[str, str]:
    with _mounted(runner, image, "ro,noload") as root:
        return _hashes(root)


def _hashes(root: Path) -> dict[str, str]:
    found = {}
    for folder, _, names in os.walk(root / USER_FILES):
        for name in names:
            path = Path(folder, name)
            with open(path, "rb") as file:
                found["/" + str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# --- means ----------------------------------------------------------------------------------------


@contextmanager
def _partition_device(runner: Runner, image: Path, *, read_only: bool) -> Iterator[str]:
    """Give the loop device that shows the image's partition."""
    flags = ("--read-only",) if read_only else ()
    argv = ("losetup", "--find", "--show", f"--offset={START_BYTES}", *flags, str(image))
    device = runner.run(argv).stdout.strip()
    try:
        yield device
    finally:
        runner.run(("losetup", "--detach", device), ignore_cancel=True)


@contextmanager
def _mounted(runner: Runner, image: Path, options: str) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="rescue-agent-demo-root-"))
    try:
        with _partition_device(runner, image, read_only=options.startswith("ro")) as device:
            mount(runner, device, str(place), "ext4", options)
            try:
                yield place
            finally:
                release(runner, str(place))
    finally:
        place.rmdir()


def _say(title: str, detail: str = "") -> None:
    typer.secho(f"\n=== {title}" + (f" ({detail})" if detail else ""), bold=True)


def _command(line: str, said: str) -> None:
    typer.secho(f"$ {line}", bold=True)
    typer.echo(f"  {said}")
