# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations as POSIX shell lines: what the dry run prints, what events name, what scripts are made of.

Pure. Every string is quoted; characters that a terminal would obey are written as ``printf``
escapes, so a line can be printed raw and pasted. The programs are those of util-linux, GNU
coreutils, GNU tar and dpkg, which is what a Debian based rescue system has.
"""

from __future__ import annotations

import re
import shlex
from typing import assert_never

from rescue_agent.model.operation import (
    Activate,
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
from rescue_agent.model.plan import Plan, Policy

INSIDE_ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("LANGUAGE", ""),
)
"""All that a command inside the patient inherits, beside what its operation adds."""

DEFAULT_WORK_DIR = Policy().work_dir


# --- what the executor runs and what is printed must be the same ------------------------------


def run_argv(argv: tuple[str, ...], operation: Run, root: str) -> tuple[str, ...]:
    """Return the full command line for ``argv``, the command or the ``until`` of ``operation``.

    ``env`` is the rescue system's and stands before ``chroot``, so that a patient without a
    working ``env`` can still be entered.
    """
    own = tuple(f"{name}={value}" for name, value in operation.environment)
    if operation.inside:
        given = dict(operation.environment)
        base = tuple(f"{name}={value}" for name, value in INSIDE_ENVIRONMENT if name not in given)
        return ("env", "-i", *base, *own, "chroot", root, *argv)
    return ("env", *own, *argv) if own else argv


def bind_source(operation: Bind, work_dir: str) -> str:
    """Return the file or folder of the rescue system that is shown inside the patient."""
    return operation.source or f"{work_dir}/bind/{flat_name(operation.path)}"


def held_copy(path: str, work_dir: str) -> str:
    """Return where the former state of a file waits that is replaced for the time of a stage."""
    return f"{work_dir}/held/{flat_name(path)}"


def flat_name(path: str) -> str:
    """Return ``path`` as one file name, different for every path."""
    return path.strip("/").replace("%", "%25").replace("/", "%2F")


def on_rescue(root: str, path: str) -> str:
    """Return the path on the rescue system of a path of the patient (no links are followed)."""
    return root.rstrip("/") + "/" + path.strip("/") if path.strip("/") else root


def disk_names(plan: Plan) -> tuple[str, ...]:
    """Return what a person calls the disks of a plan: images by their path; no partitions of them."""
    images = tuple(disk.image for disk in plan.disks if disk.image)
    paths = [disk.device for disk in plan.disks]
    wholes = (p for p in paths if not any(p != other and p.startswith(other) for other in paths))
    return tuple(dict.fromkeys(images or wholes))


# --- quoting ------------------------------------------------------------------------------------


_PARTED = re.compile(r"([$`\\~])")
"""Characters that stand outside of quotes, after a backslash: between quotes they would look as if
somebody had forgotten that nothing is expanded there."""

_LOOKALIKES = frozenset("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f")
"""Quotation marks that a reader could take for those of the shell."""


def quote(text: str) -> str:
    """Return ``text`` as one word of the shell that is safe to print, too."""
    if not _is_plain(text):
        body = text.rstrip("\n")  # a command substitution drops the newlines at its end
        return f'"$(printf -- {_printf_format(body)})"' + (f"'{text[len(body) :]}'" if body != text else "")
    if not _PARTED.search(text):
        return shlex.quote(text)
    pieces = _PARTED.split(text)
    return "".join("\\" + piece if n % 2 else shlex.quote(piece) for n, piece in enumerate(pieces) if piece)


def _is_plain(text: str) -> bool:
    return text.isprintable() and _LOOKALIKES.isdisjoint(text)


def shell_line(argv: tuple[str, ...]) -> str:
    """Return a command as a person would type it."""
    return " ".join(quote(word) for word in argv)


def comment_lines(text: str) -> tuple[str, ...]:
    """Return a comment; nothing in ``text`` can end it or reach a terminal as a control character."""
    return tuple(f"# {_visible(line)}".rstrip() for line in text.splitlines())


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\{ord(c):o}" for c in text)


def _printf_format(text: str) -> str:
    """Return a quoted printf(1) format that prints exactly ``text``."""
    pieces = []
    for char in text:
        if char == "%":
            pieces.append("%%")
        elif char == "\n":
            pieces.append("\\n")
        elif _is_plain(char) and char not in "$`~'\"\\":
            pieces.append(char)
        else:
            pieces += [f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape")]
    return shlex.quote("".join(pieces))


def _print_lines(content: str) -> tuple[str, ...]:
    """Return the lines of a printf command, without redirection, that prints ``content``."""
    if not content:
        return (":",)
    lines = content.split("\n")
    if lines[-1] == "" and all(_is_plain(line.replace("\t", "")) for line in lines):
        words = [_quote_with_tabs(line) for line in lines[:-1]]
        if len(words) == 1:
            return (f"printf '%s\\n' {words[0]}",)
        return (r"printf '%s\n' " + "\\", *(f"    {word} \\" for word in words[:-1]), f"    {words[-1]}")
    return (f"printf -- {_printf_format(content)}",)


def _quote_with_tabs(line: str) -> str:
    return '"\t"'.join(quote(piece) if piece else "" for piece in line.split("\t")) or "''"


def _redirected(lines: tuple[str, ...], file: str) -> tuple[str, ...]:
    return (*lines[:-1], f"{lines[-1]} > {quote(file)}")


# --- operations ---------------------------------------------------------------------------------


def describe(operation: Operation, root: str, work_dir: str = DEFAULT_WORK_DIR) -> tuple[str, ...]:
    """Return the lines that do one operation on the patient mounted at ``root``.

    For a shell with ``set -e``. They expect ``work_dir`` with its folders ``bind``, ``held`` and
    ``unpack`` to exist, and paths that lead where their names say: scripts check that first.
    """
    match operation:
        case Run():
            return _run(operation, root)
        case Mount():
            target = on_rescue(root, operation.path)
            options = ("-o", operation.options) if operation.options else ()
            return (
                shell_line(("mkdir", "-p", "--", target)),
                shell_line(("mount", "-t", operation.type, *options, "--", operation.source, target)),
            )
        case Bind():
            return _bind(operation, root, work_dir)
        case Activate():
            return (shell_line(operation.argv),)
        case WriteFile():
            return _write(operation, root, work_dir)
        case RemoveFile():
            return (shell_line(("rm", "-f", "--", on_rescue(root, operation.path))),)
        case Symlink():
            target, temporary = _target_and_temporary(operation.path, root)
            return (
                shell_line(("rm", "-f", "--", temporary)),
                shell_line(("ln", "-s", "--", operation.target, temporary)),
                shell_line(("mv", "-T", "-f", "--", temporary, target)),
            )
        case SetMetadata():
            return _set_metadata(operation, root)
        case Unpack():
            make_ready, lay = unpack_lines(operation, root, work_dir)
            return (*make_ready, *lay)
        case _:
            assert_never(operation)


def headline(operation: Operation, root: str, work_dir: str = DEFAULT_WORK_DIR) -> str:
    """Return one line that tells a person what the operation does: its command, where it is one."""
    match operation:
        case Run():
            return shell_line(operation.argv) + (" (inside the system)" if operation.inside else "")
        case Mount() | Activate():
            return describe(operation, root, work_dir)[-1]
        case Bind():
            return f"mount --bind {quote(bind_source(operation, work_dir))} on {quote(operation.path)}"
        case WriteFile():
            return f"write {quote(operation.path)}" + (" for the time of the stage" if operation.held else "")
        case RemoveFile():
            return f"remove {quote(operation.path)}"
        case Symlink():
            return f"link {quote(operation.path)} to {quote(operation.target)}"
        case SetMetadata():
            return f"set mode and owner of {quote(operation.path)}"
        case Unpack():
            return f"unpack {quote(operation.archive)} over {root}"
        case _:
            assert_never(operation)


def release_lines(operation: Operation, root: str, work_dir: str = DEFAULT_WORK_DIR) -> tuple[str, ...]:
    """Return the lines that give back what a held operation took; none for all others."""
    match operation:
        case Mount():
            return (shell_line(("umount", "--", on_rescue(root, operation.path))),)
        case Bind():
            return _release_bind(operation, root, work_dir)
        case Activate():
            return (shell_line(operation.release),)
        case WriteFile():
            return _release_write(operation, root, work_dir) if operation.held else ()
        case Run() | RemoveFile() | Symlink() | SetMetadata() | Unpack():
            return ()
        case _:
            assert_never(operation)


def is_held(operation: Operation) -> bool:
    """Return whether the operation is released at the end of its stage."""
    return isinstance(operation, Mount | Bind | Activate) or (
        isinstance(operation, WriteFile) and operation.held
    )


def _run(operation: Run, root: str) -> tuple[str, ...]:
    command = _accepting(shell_line(run_argv(operation.argv, operation, root)), operation.ok)
    if not operation.until:
        return (command,)
    check = shell_line(run_argv(operation.until, operation, root))
    return (
        "runs=0",
        f"until {check}; do",
        "    runs=$((runs + 1))",
        f'    [ "$runs" -le {operation.max_runs} ] || exit 1',
        f"    {command}",
        "done",
    )


def _accepting(command: str, ok: tuple[int, ...]) -> str:
    """Return ``command`` so that the exit codes in ``ok`` count as success under ``set -e``."""
    codes = sorted({code if code >= 0 else 128 - code for code in ok})
    others = " | ".join(str(code) for code in codes if code)
    if 0 not in codes:
        return f"{{ {command} && false; }} || case $? in {others or '256'}) ;; *) false ;; esac"
    if not others:
        return command
    if set(range(256)) <= set(codes):
        return f"{command} || true"
    if codes == list(range(len(codes))):
        return f"{command} || [ $? -le {codes[-1]} ]"
    return f"{command} || case $? in {others}) ;; *) false ;; esac"


def _bind(operation: Bind, root: str, work_dir: str) -> tuple[str, ...]:
    source, target = bind_source(operation, work_dir), on_rescue(root, operation.path)
    lines: list[str] = []
    if not operation.source:
        lines += _redirected(_print_lines(operation.content), source)
        lines.append(shell_line(("chmod", "0644", "--", source)))
    if operation.folder:
        lines.append(shell_line(("mkdir", "-p", "--", target)))
    else:
        lines += (
            f"if [ ! -e {quote(target)} ]; then",
            f"    mkdir -p -- {quote(target.rpartition('/')[0])}",
            f"    : > {quote(target)}",
            f"    : > {quote(_made_marker(operation, work_dir))}",
            "fi",
        )
    kind, down = ("--rbind", "--make-rslave") if operation.recursive else ("--bind", "--make-slave")
    lines.append(shell_line(("mount", kind, "--", source, target)))
    lines.append(shell_line(("mount", down, "--", target)))
    if operation.read_only:
        lines.append(shell_line(("mount", "-o", "remount,bind,ro", "--", target)))
    return tuple(lines)


def _made_marker(operation: Bind, work_dir: str) -> str:
    """A file that says that the mount point was made for the bind, and is to go with it."""
    return f"{held_copy(operation.path, work_dir)}.made"


def _release_bind(operation: Bind, root: str, work_dir: str) -> tuple[str, ...]:
    target = quote(on_rescue(root, operation.path))
    marker = quote(_made_marker(operation, work_dir))
    if operation.recursive:
        # One mount at a time: "umount -R" can call a tree busy whose children are all free.
        return (f"findmnt -R -n -r -o TARGET -- {target} | tac | xargs -r -d '\\n' -n 1 umount --",)
    if operation.folder:
        return (f"umount -- {target}",)
    return (
        f"umount -- {target}",
        f"if [ -e {marker} ]; then",
        f"    rm -f -- {target} {marker}",
        "fi",
    )


def _target_and_temporary(path: str, root: str) -> tuple[str, str]:
    target = on_rescue(root, path)
    folder, _, name = target.rpartition("/")
    return target, f"{folder}/.{name[:200]}.rescue"


def _write(operation: WriteFile, root: str, work_dir: str) -> tuple[str, ...]:
    target, temporary = _target_and_temporary(operation.path, root)
    folder = target.rpartition("/")[0]
    to, tmp = quote(target), quote(temporary)
    lines: list[str] = []
    if operation.held:
        copy = quote(held_copy(operation.path, work_dir))
        lines += [
            f"rm -f -- {copy}",
            f"if [ -e {to} ] || [ -L {to} ]; then",
            f"    cp -a -T -- {to} {copy}",
            "fi",
        ]
    lines.append(shell_line(("mkdir", "-p", "--", folder)))
    lines.append(f"rm -f -- {tmp}")  # a link of that name would lead the next line elsewhere
    if operation.copy_of:
        lines.append(f"cat -- {quote(on_rescue(root, operation.copy_of))} > {tmp}")
    else:
        lines += _redirected(_print_lines(operation.content), temporary)
    lines += [
        f"if [ -f {to} ] && [ ! -L {to} ]; then",
        f"    cp --attributes-only --preserve=mode,ownership,xattr -T -- {to} {tmp}",
        "else",
        f"    chmod {operation.mode:04o} -- {tmp}",
        "fi",
        f"sync -- {tmp}",
        f"mv -T -f -- {tmp} {to}",
        f"sync -- {quote(folder)}",
    ]
    return tuple(lines)


def _release_write(operation: WriteFile, root: str, work_dir: str) -> tuple[str, ...]:
    target, temporary = _target_and_temporary(operation.path, root)
    to, tmp, copy = quote(target), quote(temporary), quote(held_copy(operation.path, work_dir))
    return (
        f"if [ -e {copy} ] || [ -L {copy} ]; then",
        f"    rm -f -- {tmp} &&",
        f"        cp -a -T -- {copy} {tmp} &&",
        f"        mv -T -f -- {tmp} {to} &&",
        f"        rm -f -- {copy}",
        "else",
        f"    rm -f -- {to}",
        "fi",
    )


def _set_metadata(operation: SetMetadata, root: str) -> tuple[str, ...]:
    target = on_rescue(root, operation.path)
    lines = []
    if operation.uid is not None or operation.gid is not None:
        user = "" if operation.uid is None else str(operation.uid)
        group = "" if operation.gid is None else f":{operation.gid}"
        lines.append(shell_line(("chown", user + group, "--", target)))
    if operation.mode is not None:  # after chown, which clears the set-user-id bit
        lines.append(shell_line(("chmod", f"{operation.mode:04o}", "--", target)))
    return tuple(lines)


def unpack_files(archive: str, work_dir: str) -> tuple[str, str]:
    """Return the work files of an Unpack: the unpacked tar, and the list of what is left alone."""
    base = f"{work_dir}/unpack/{archive.rpartition('/')[2]}"
    return f"{base}.tar", f"{base}.keep"


def pacman_to_tar(archive: str) -> tuple[str, ...]:
    """Return the command that writes the files of a pacman package, however it is packed, as a plain tar.

    What makepkg puts beside them at the top is left out (PKGBUILD(5), libalpm's add.c).
    """
    own = (".BUILDINFO", ".CHANGELOG", ".INSTALL", ".MTREE", ".PKGINFO")
    left_out = (word for name in own for word in ("--exclude", f"^{name}"))
    return ("bsdtar", "-c", "-f", "-", *left_out, f"@{archive}")


def unpack_lines(
    operation: Unpack, root: str, work_dir: str = DEFAULT_WORK_DIR
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines of an Unpack in two parts: what makes ready in ``work_dir``, and what lays the
    files over the patient."""
    archive = quote(operation.archive)
    tar, keep = (quote(file) for file in unpack_files(operation.archive, work_dir))
    if operation.format == "deb":
        to_tar = f"dpkg-deb --fsys-tarfile {archive} > {tar}"
        names = f"dpkg-deb --ctrl-tarfile {archive} | tar -x -O -f - ./conffiles 2> /dev/null | grep '^/'"
    elif operation.format == "pacman":
        to_tar = f"{shell_line(pacman_to_tar(operation.archive))} > {tar}"
        names = f"bsdtar -x -O -f {archive} .PKGINFO | sed -n 's|^backup = |/|p'"
    else:
        to_tar = f"rpm2archive -n - < {archive} > {tar}"
        nothing = f"--dbpath {quote(f'{work_dir}/no-rpmdb')} --nosignature"
        names = f"rpm {nothing} -q -p --configfiles -- {archive} | grep '^/'"
    file = f'{quote(root)}"$file"'
    exists = f"[ -e {file} ] || [ -L {file} ]"
    beginning, keep_file = "./", "printf '.%s\\n' \"$file\""
    if operation.format == "pacman":  # names in it do not begin with "./"
        beginning, keep_file = "", "printf '%s\\n' \"${file#/}\""
    members = "".join(f" {quote(beginning + member.strip('/'))}" for member in operation.members)
    return (
        (
            to_tar,
            # The configuration files that are there are the owner's (deb-conffiles(5)).
            f"{names} |",
            "    while read -r file; do",
            f"        if {exists}; then {keep_file}; fi",
            f"    done > {keep}",
        ),
        (
            # Unlike a plain extraction this keeps /lib -> usr/lib, and the modes of folders that exist.
            "tar -x -p --numeric-owner --keep-directory-symlink --no-overwrite-dir"
            f" --anchored --no-wildcards -X {keep} -C {quote(root)} -f {tar}"
            + (f" --{members}" if members else ""),
            f"rm -f -- {tar} {keep}",
        ),
    )
