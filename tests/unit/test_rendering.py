# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations as shell lines. What a real shell makes of them: tests/root/test_shell_lines.py."""

from __future__ import annotations

import shlex
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import documents, golden

from rescue_agent.model import rendering
from rescue_agent.model.operation import TARGET_ROOT, Bind, Mount, Operation, Run, WriteFile

TEXT = st.text(max_size=40)


def test_there_is_a_sample_of_every_kind() -> None:
    assert {type(o) for o in documents.OPERATIONS} == set(get_args(Operation))


def test_every_operation_reads_as_it_did() -> None:
    blocks = []
    for operation in documents.OPERATIONS:
        lines = [f"== {type(operation).__name__}"]
        lines += rendering.describe(operation, TARGET_ROOT, documents.WORK)
        lines += [f"-- {line}" for line in rendering.release_lines(operation, TARGET_ROOT, documents.WORK)]
        blocks.append("\n".join(lines))
    golden.check("operations.txt", "\n\n".join(blocks) + "\n")


@pytest.mark.parametrize("operation", documents.OPERATIONS, ids=lambda o: type(o).__name__)
def test_what_is_held_is_released_and_nothing_else(operation: Operation) -> None:
    released = bool(rendering.release_lines(operation, TARGET_ROOT))
    assert released == rendering.is_held(operation)


@given(TEXT)
def test_a_quoted_word_is_safe_to_print(text: str) -> None:
    assert rendering.quote(text).replace("\n", "").isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), max_size=40))
def test_a_plain_word_is_quoted_as_posix_has_it(text: str) -> None:
    assert shlex.split(rendering.quote(text)) == [text]


@given(TEXT)
def test_a_comment_cannot_be_left(text: str) -> None:
    for line in rendering.comment_lines(text):
        assert line.startswith("#")
        assert line.isprintable()


@given(TEXT, TEXT)
def test_file_names_never_collide(one: str, other: str) -> None:
    same = rendering.flat_name(one) == rendering.flat_name(other)
    assert same == (one.strip("/") == other.strip("/"))
    assert "/" not in rendering.flat_name(one)


def test_the_environment_inside_is_complete_and_the_operation_has_the_last_word() -> None:
    operation = Run(argv=("true",), inside=True, environment=(("HOME", "/tmp"), ("X", "1")))
    argv = rendering.run_argv(operation.argv, operation, "/mnt")
    assert argv[:2] == ("env", "-i")
    assert argv[-3:] == ("chroot", "/mnt", "true")
    assert [word for word in argv if word.startswith("HOME=")] == ["HOME=/tmp"]
    assert any(word.startswith("PATH=") for word in argv)


def test_a_command_outside_is_left_as_it_is() -> None:
    operation = Run(argv=("e2fsck", "-fn", "/dev/vda1"))
    assert rendering.run_argv(operation.argv, operation, "/mnt") == operation.argv


@pytest.mark.parametrize(
    ("ok", "line"),
    [
        ((0,), "x"),
        ((0, 1, 2), "x || [ $? -le 2 ]"),
        ((0, 2), "x || case $? in 2) ;; *) false ;; esac"),
        ((2,), "{ x && false; } || case $? in 2) ;; *) false ;; esac"),
        (tuple(range(-64, 256)), "x || true"),
        ((0, -15), "x || case $? in 143) ;; *) false ;; esac"),
    ],
)
def test_exit_codes(ok: tuple[int, ...], line: str) -> None:
    assert rendering.describe(Run(argv=("x",), ok=ok), "/mnt") == (line,)


def test_the_root_itself_is_mounted_at_the_root() -> None:
    mount = Mount(source="/dev/vda1", path="/", type="ext4")
    assert rendering.describe(mount, "/mnt")[-1] == "mount -t ext4 -- /dev/vda1 /mnt"
    assert rendering.release_lines(mount, "/mnt") == ("umount -- /mnt",)


def test_shown_text_never_touches_the_patient() -> None:
    bind = Bind(source="", path="/etc/hosts", content="x\n")
    writing = [line for line in rendering.describe(bind, "/mnt", "/work") if line.startswith("printf")]
    assert writing == ["printf '%s\\n' x > /work/bind/etc%2Fhosts"]


def test_a_held_file_is_kept_before_it_is_replaced() -> None:
    lines = rendering.describe(WriteFile(path="/a/b", content="x\n", held=True), "/mnt", "/work")
    kept = next(n for n, line in enumerate(lines) if "/work/held/a%2Fb" in line and "cp -a" in line)
    assert kept < next(n for n, line in enumerate(lines) if line.startswith("mv "))


def test_each_kind_has_a_headline_of_one_line() -> None:
    for operation in documents.OPERATIONS:
        line = rendering.headline(operation, TARGET_ROOT, documents.WORK)
        assert line.strip()
        assert line.isprintable()
