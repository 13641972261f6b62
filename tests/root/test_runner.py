# SPDX-License-Identifier: GPL-3.0-or-later
"""The door to processes, with real ones."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from rescue_agent.errors import CommandFailed, CommandTimeout, Interrupted, ToolMissing
from rescue_agent.system.guard import CancelToken
from rescue_agent.system.runner import ANY, Completed, Runner

pytestmark = pytest.mark.root


def test_what_a_command_says_is_kept_apart_and_survives_bad_bytes() -> None:
    done = Runner().run(("sh", "-c", r"printf 'caf\303\251 \377\n'; echo trouble >&2; exit 3"), ok=ANY)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "café \\xff\n", "trouble\n")


def test_a_code_that_is_not_accepted_carries_everything() -> None:
    with pytest.raises(CommandFailed) as caught:
        Runner().run(("sh", "-c", "seq 5000; echo why >&2; exit 9"))
    assert caught.value.exit_code_of_command == 9
    assert caught.value.stdout.endswith("5000\n")
    assert "why" in caught.value.message


def test_a_signal_is_a_negative_code() -> None:
    assert Runner().run(("sh", "-c", "kill -SEGV $$"), ok=ANY).exit_code == -signal.SIGSEGV


def test_a_missing_program_is_a_sentence() -> None:
    with pytest.raises(ToolMissing, match="no-such-program is not installed"):
        Runner().run(("no-such-program",))


def test_the_environment_is_ours_and_stdin_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_LIKE", "from the caller")
    done = Runner().run(("sh", "-c", "env; cat"), environment={"DEBIAN_FRONTEND": "noninteractive"})
    lines = done.stdout.splitlines()
    assert "LC_ALL=C.UTF-8" in lines
    assert "DEBIAN_FRONTEND=noninteractive" in lines
    assert not [line for line in lines if line.startswith("LD_PRELOAD_LIKE")]


def test_the_time_limit_ends_the_whole_group() -> None:
    start = time.monotonic()
    with pytest.raises(CommandTimeout):
        Runner().run(("sh", "-c", "sleep 77 & wait"), timeout_s=0.3)
    assert time.monotonic() - start < 5
    assert Runner().run(("pgrep", "-fx", "sleep 77"), ok=ANY).stdout == ""


def test_the_first_word_stops_an_ordinary_command() -> None:
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    with pytest.raises(Interrupted):
        Runner(cancel=token).run(("sleep", "60"))


def test_a_checker_may_finish_after_the_first_word_and_not_after_the_second() -> None:
    token = CancelToken()
    runner = Runner(cancel=token)
    threading.Timer(0.1, token.cancel).start()
    done = runner.run(("sh", "-c", "sleep 1; echo finished"), finish_when_cancelled=True)
    assert done.stdout == "finished\n"

    token = CancelToken()
    threading.Timer(0.1, token.cancel).start()
    threading.Timer(0.4, token.cancel).start()
    with pytest.raises(Interrupted):
        Runner(cancel=token).run(("sleep", "60"), finish_when_cancelled=True)


def test_nothing_new_starts_after_a_cancel_but_releases_do() -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Interrupted):
        Runner(cancel=token).run(("true",))
    assert Runner(cancel=token).run(("true",), ignore_cancel=True).exit_code == 0


def test_ctrl_c_at_the_terminal_does_not_reach_the_child() -> None:
    done = Runner().run(("sh", "-c", "ps -o sid= -p $$"))
    assert int(done.stdout) != os.getsid(0)


def test_every_ended_command_is_logged_once_before_its_error() -> None:
    seen: list[Completed] = []
    runner = Runner(log=seen.append)
    with pytest.raises(CommandFailed):
        runner.run(("false",))
    assert [done.argv for done in seen] == [("false",)]


def test_a_stream_gives_bytes_and_checks_the_code() -> None:
    with Runner().stream(("sh", "-c", r"printf '\000\377'")) as stream:
        assert stream.read() == b"\x00\xff"
    with pytest.raises(CommandFailed), Runner().stream(("sh", "-c", "echo half; exit 2")) as stream:
        stream.read()


def test_a_stream_that_says_much_beside_never_waits_for_a_reader_of_that() -> None:
    with Runner().stream(("sh", "-c", "head -c 1000000 /dev/zero >&2; echo done")) as stream:
        assert stream.read() == b"done\n"


def test_a_stream_that_does_not_end_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(CommandFailed), Runner().stream(("sleep", "60"), timeout_s=0.5) as stream:
        stream.read()
    assert time.monotonic() - start < 10


def test_leaving_a_stream_early_by_an_error_ends_the_command() -> None:
    with pytest.raises(ValueError, match="mine"), Runner().stream(("yes", "stream-test")) as stream:
        stream.read(10)
        raise ValueError("mine")
    assert Runner().run(("pgrep", "-fx", "yes stream-test"), ok=ANY).stdout == ""


def test_a_helper_is_stopped() -> None:
    runner = Runner()
    handle = runner.start(("sleep", "88"))
    runner.stop(handle)
    assert Runner().run(("pgrep", "-fx", "sleep 88"), ok=ANY).stdout == ""


def test_output_is_handed_on_while_the_command_runs() -> None:
    seen: list[tuple[float, str]] = []
    start = time.monotonic()
    Runner().run(
        ("sh", "-c", "echo a; sleep 1; echo b"),
        on_output=lambda t: seen.append((time.monotonic() - start, t)),
    )
    assert [text for _, text in seen] == ["a\n", "b\n"]
    assert seen[0][0] < 0.7
