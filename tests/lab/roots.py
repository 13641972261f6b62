# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian roots for the tests: built once with mmdebstrap, cached, never changed afterwards.

The cache is ``$RESCUE_AGENT_TEST_CACHE`` or ``~/.cache/rescue-agent-tests``, one folder for each
recipe, named by a hash of the recipe: to build anew, change the recipe or remove the folder. It holds
``root.tar``, ``tree/`` (the same, unpacked) and ``debs/`` (every package of the root at exactly the
version that is installed, for repairs without a network).

Building takes about 35 s for ``STANDARD`` (2 cores, Debian mirror near by), about 60 s for ``BOOTABLE``;
a cached one is there at once, and a writable copy of it costs a mount (``fresh_tree``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SUITE = "bookworm"
MIRROR = os.environ.get("RESCUE_AGENT_TEST_MIRROR", "http://deb.debian.org/debian")
ROOM_FOR_BUILD_BYTES = 3 << 30
MARK = "complete"


@dataclass(frozen=True)
class Recipe:
    """What a root is made of. Equal recipes share one cached build."""

    name: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...] = ()
    """Shell lines for mmdebstrap's ``--customize-hook``; ``$1`` is the root."""
    essential_hooks: tuple[str, ...] = ()
    drop: tuple[str, ...] = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
    """``path-exclude`` lines of the root's own dpkg configuration, as small images have them."""
    suite: str = SUITE
    version: int = field(default=1)

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self, MIRROR)).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.name}-{self.key}"


_PEOPLE = (
    # Two people's files, a link, a folder that only its owner reads: what a repair must leave alone.
    'chroot "$1" useradd -m -s /bin/bash alice',
    'mkdir -p "$1/home/alice/letters"',
    'for n in 1 2 3 4 5 6 7 8 9; do seq 1 $((n * 4000)) > "$1/home/alice/letters/letter-$n"; done',
    'ln -s letters/letter-1 "$1/home/alice/latest"; chmod 0700 "$1/home/alice/letters"',
    'chroot "$1" chown -R alice:alice /home/alice',
    'printf "127.0.0.1 localhost\\n" > "$1/etc/hosts"; echo patient > "$1/etc/hostname"',
    'rm -f "$1/etc/machine-id"; echo 5e5c00e000000000000000000000a6e7 > "$1/etc/machine-id"',
)

STANDARD = Recipe(
    name="standard",
    packages=(
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "e2fsprogs",
        "ifupdown",
        "iproute2",
        "netbase",
        "openssh-server",
        "ca-certificates",
        "cron",
        "logrotate",
        "less",
        "nano-tiny",
        "procps",
        "sudo",
    ),
    hooks=_PEOPLE,
)

BOOTABLE = Recipe(
    name="bootable",
    packages=(
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "e2fsprogs",
        "iproute2",
        "ca-certificates",
        "zstd",
        "initramfs-tools",
        "linux-image-cloud-amd64",
    ),
    essential_hooks=(
        # A lean initramfs: five modules boot in half the time of three hundred under emulation.
        'mkdir -p "$1/etc/initramfs-tools/conf.d"',
        'printf "COMPRESS=zstd\\nCOMPRESSLEVEL=1\\nRESUME=none\\n" > "$1/etc/initramfs-tools/conf.d/lab"',
        'printf "do_symlinks = yes\\n" > "$1/etc/kernel-img.conf"',
        'mkdir -p "$1/usr/local/sbin"; ln -sf /bin/true "$1/usr/local/sbin/update-initramfs"',
    ),
    hooks=(
        *_PEOPLE,
        'printf "virtio_pci\\nvirtio_blk\\next4\\n" >> "$1/etc/initramfs-tools/modules"',
        'echo MODULES=list >> "$1/etc/initramfs-tools/conf.d/lab"',
        'rm -f "$1/usr/local/sbin/update-initramfs"; chroot "$1" update-initramfs -c -k all',
    ),
)

LARGE = Recipe(
    name="large",
    packages=(
        *STANDARD.packages,
        "python3",
        "python3-apt",
        "git",
        "build-essential",
        "vim",
        "curl",
        "rsync",
        "lvm2",
        "mdadm",
        "cryptsetup",
        "xfsprogs",
        "btrfs-progs",
        "dosfstools",
        "parted",
        "gdisk",
        "tcpdump",
        "strace",
        "lsof",
        "psmisc",
        "screen",
        "tmux",
        "bind9-dnsutils",
        "exim4-daemon-light",
        "apache2",
        "debsums",
        "rsyslog",
        "chrony",
        "nftables",
        "iptables",
        "unattended-upgrades",
        "man-db",
        "locales",
        "task-ssh-server",
        "reportbug",
        "mariadb-server",
    ),
    hooks=_PEOPLE,
)
"""More than 300 packages, for the benchmarks of verification."""


def cache_dir() -> Path:
    """Return the folder of everything that is built once."""
    named = os.environ.get("RESCUE_AGENT_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "rescue-agent-tests"


def golden_tar(recipe: Recipe = STANDARD) -> Path:
    """Return the tar of a root; build it on first use. Needs root, mmdebstrap and the mirror."""
    return _built(recipe) / "root.tar"


def golden_tree(recipe: Recipe = STANDARD) -> Path:
    """Return the unpacked root. It is shared: read it, never write to it."""
    return _built(recipe) / "tree"


def golden_debs(recipe: Recipe = STANDARD) -> Path:
    """Return the folder with the package files of the whole root, at the installed versions."""
    return _built(recipe) / "debs"


def debs_for(target: Path, *packages: str, recipe: Recipe = STANDARD) -> Path:
    """Fill the folder ``target`` with the package files of ``packages`` (all, when none is named).

    Hard links where possible. Raises FileNotFoundError for a package that the root does not have.
    """
    target.mkdir(parents=True, exist_ok=True)
    files = {p.name.partition("_")[0]: p for p in golden_debs(recipe).glob("*.deb")}
    for name in packages or tuple(files):
        if name not in files:
            raise FileNotFoundError(f"no package file of {name} in {golden_debs(recipe)}")
        _link_or_copy(files[name], target / files[name].name)
    return target


@contextmanager
def fresh_tree(work: Path, recipe: Recipe = STANDARD) -> Iterator[Path]:
    """Give a writable copy of the root below ``work``: an overlay mount, gone afterwards.

    Must run in a private mount namespace (the root ring's conftest makes one).
    """
    upper, scratch, merged = work / "upper", work / "overlay-work", work / "tree"
    for folder in (upper, scratch, merged):
        folder.mkdir(parents=True)
    layers = f"lowerdir={golden_tree(recipe)},upperdir={upper},workdir={scratch}"
    _run("mount", "-t", "overlay", "-o", layers, "overlay", str(merged))
    try:
        yield merged
    finally:
        _run("umount", "--", str(merged))


def copy_tree(target: Path, recipe: Recipe = STANDARD) -> Path:
    """Make ``target`` a plain copy of the root: owners, modes, links and extended attributes kept."""
    target.mkdir(parents=True, exist_ok=True)
    _run("cp", "-a", "--reflink=auto", f"{golden_tree(recipe)}/.", str(target))
    return target


def installed_versions(tree: Path) -> dict[str, str]:
    """Return the version of every package that a root's dpkg status names as installed."""
    found = {}
    for stanza in (tree / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found


def _built(recipe: Recipe) -> Path:
    folder = recipe.folder
    if (folder / MARK).exists():
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(cache_dir() / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may ask at once
        if not (folder / MARK).exists():
            _build(recipe, folder)
    return folder


def _build(recipe: Recipe, folder: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        raise RuntimeError("a Debian root can only be built by root, with mmdebstrap installed")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "debs").mkdir(parents=True, mode=0o755)
    debs = folder / "debs"
    command = [
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(recipe.packages)}",
        "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.drop),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        # The package lists stay, so that the root can fetch its versions; so do the package files,
        # which are moved out of it.
        "--skip=cleanup/apt,cleanup/reproducible,essential/unlink,download/empty",
        *(f"--essential-hook={line}" for line in recipe.essential_hooks),
        *(f"--customize-hook={line}" for line in recipe.hooks),
        f'--customize-hook=find "$1/var/cache/apt/archives" -name "*.deb" -exec mv -t "{debs}" {{}} +',
        '--customize-hook=rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/partial/*',
        # What unsafe-io and friends leave behind belongs to the build, not to the patient.
        '--customize-hook=sed -i /force-unsafe-io/d "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
        recipe.suite,
        str(folder / "root.tar"),
        MIRROR,
    ]
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "http_proxy", "https_proxy")}
    environment |= {"LC_ALL": "C.UTF-8", "TMPDIR": _build_dir()}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        tail = done.stderr.decode("utf-8", "replace")[-3000:]
        raise RuntimeError(f"mmdebstrap ended with {done.returncode}:\n{tail}")
    (folder / "tree").mkdir()
    _run("tar", "-x", "--numeric-owner", "--xattrs", "-p", "-C", folder / "tree", "-f", folder / "root.tar")
    (folder / MARK).touch()


def _build_dir() -> str:
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    return "/dev/shm" if free > ROOM_FOR_BUILD_BYTES else str(cache_dir())


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _run(*argv: str | Path) -> None:
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {words}")
