# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs as findings, alone and joined with what the disk shows; and the command line around them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import dumps
from lab import facts as lab
from typer.testing import CliRunner, Result

from rescue_agent.diagnose import LogScanner, diagnose, make_matcher
from rescue_agent.diagnose.codes import all_codes
from rescue_agent.model.document import decode, encode
from rescue_agent.model.facts import Facts
from rescue_agent.model.finding import Diagnosis, Finding
from rescue_agent.model.logs import Log, LogKind
from rescue_agent.ui.cli import app
from rescue_agent.ui.render import diagnosis_text

PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"
DAMAGED = "EXT4-fs (vda2): group descriptors corrupted!\n"
HUNG = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]\n"


def log(text: str, kind: LogKind = "file", source: str = "console.txt") -> Log:
    scanner = LogScanner(make_matcher())
    scanner.feed(text.encode())
    return scanner.finish(source=source, kind=kind)


def with_logs(facts: Facts, *logs: Log) -> Facts:
    return msgspec.structs.replace(facts, logs=logs)


def only_logs(*logs: Log) -> Facts:
    healthy = lab.healthy()
    return Facts(agent_version="0", created=lab.CREATED, rescue=healthy.rescue, logs=logs)


def first(facts: Facts) -> Finding:
    return diagnose(facts).findings[0]


def test_the_decisive_line_is_quoted_with_its_number_and_decoded() -> None:
    finding = first(only_logs(log(f"\n\n{PANIC}")))
    assert finding.code == "init-missing-library"
    assert (finding.severity, finding.confidence, finding.repair) == ("fatal", "likely", "automatic")
    assert finding.evidence[0].source == "console.txt line 3"
    assert finding.evidence[0].excerpt == PANIC.strip()
    assert "exit status 127" in finding.explanation
    assert finding.advice and finding.check


def test_two_logs_of_one_fault_are_one_finding() -> None:
    console = log("/sbin/init: error while loading shared libraries: libc.so.6: cannot open\n")
    found = diagnose(only_logs(log(PANIC, source="dmesg"), console)).findings
    roots = [f for f in found if not f.consequence_of]
    assert [f.code for f in roots] == ["init-missing-library"]
    assert {e.source.split()[0] for e in roots[0].evidence} == {"dmesg", "console.txt"}
    assert roots[0].confidence == "certain"


def test_a_cause_in_one_log_explains_the_effect_in_another() -> None:
    found = diagnose(only_logs(log(PANIC, source="dmesg"), log(DAMAGED))).findings
    assert [f.code for f in found][:1] == ["ext-fs-corrupt"]
    assert all(f.consequence_of for f in found[1:])


def test_damage_that_comes_from_elsewhere_must_not_lead_to_a_check() -> None:
    """A filesystem that is larger than its device looks damaged; e2fsck would destroy it."""
    text = "EXT4-fs (md0): bad geometry: block count 9 exceeds size of device (8 blocks)\n"
    found = diagnose(only_logs(log(text + "EXT4-fs (md0): group descriptors corrupted!\n" + PANIC))).findings
    assert found[0].code == "fs-size-mismatch"
    assert [f.advice for f in found[1:]] == [f"Mend its cause first: {found[0].title}."] * (len(found) - 1)
    failing = "critical medium error, dev sda, sector 1\nEXT4-fs (sda1): error loading journal\n"
    assert {f.repair for f in diagnose(only_logs(log(failing + PANIC))).findings} == {"advice"}


def test_console_and_disk_are_one_finding_with_both_pieces_of_evidence() -> None:
    facts = with_logs(lab.with_check(lab.healthy(), lab.ROOT, "damaged"), log(DAMAGED))
    found = [f for f in diagnose(facts).findings if f.code == "ext-fs-corrupt"]
    assert [f.device for f in found] == [lab.ROOT]
    sources = [e.source for e in found[0].evidence]
    assert any("e2fsck" in s or "fsck" in s for s in sources) and "console.txt line 1" in sources


def test_a_disk_with_much_to_say_leaves_room_for_the_log() -> None:
    messages = tuple(f"Inode {n} has illegal block(s)." for n in range(30))
    facts = with_logs(lab.with_check(lab.healthy(), lab.ROOT, "damaged", messages=messages), log(DAMAGED))
    found = next(f for f in diagnose(facts).findings if f.code == "ext-fs-corrupt")
    assert "console.txt line 1" in [e.source for e in found.evidence[:4]]


def test_the_number_of_the_partition_tells_which_filesystem_is_meant() -> None:
    both = lab.with_check(lab.with_check(lab.healthy(), lab.ROOT, "damaged"), lab.HOME, "damaged")
    facts = with_logs(both, log("EXT4-fs (sda3): group descriptors corrupted!\n"))
    named = [f for f in diagnose(facts).findings if any("console" in e.source for e in f.evidence)]
    assert [f.device for f in named] == [lab.HOME]


def test_what_the_disk_does_not_show_any_more_is_not_present_now() -> None:
    found = diagnose(with_logs(lab.healthy(), log(DAMAGED)))
    assert found.faults == ()
    assert [f.title.split(":")[0] for f in found.findings] == ["Not present now"]


def test_what_no_disk_can_show_stays() -> None:
    assert [f.code for f in diagnose(with_logs(lab.healthy(), log(HUNG))).faults] == ["kernel-hang"]


def test_a_fault_of_the_disk_explains_what_the_log_shows() -> None:
    facts = with_logs(
        lab.with_missing_libc(lab.healthy()), log("Attempted to kill init! exitcode=0x00000100\n")
    )
    found = {f.code: f for f in diagnose(facts).findings}
    assert found["init-failed"].consequence_of == found["init-missing-library"].id


def test_a_cause_that_only_the_log_shows_explains_the_disk() -> None:
    """The rescue system may read the disk once more; the console saw it fail."""
    console = log("critical medium error, dev vda, sector 9\n" + DAMAGED)
    found = diagnose(with_logs(lab.with_check(lab.healthy(), lab.ROOT, "damaged"), console)).findings
    assert [(f.code, bool(f.consequence_of)) for f in found if f.severity in ("fatal", "error")] == [
        ("disk-failing", False),
        ("ext-fs-corrupt", True),
    ]


def test_a_log_on_the_disk_is_history() -> None:
    """It explains what is found; alone it is only worth knowing, and what is mended is gone."""
    assert diagnose(with_logs(lab.healthy(), log(DAMAGED, "syslog"))).findings == ()
    hung = diagnose(with_logs(lab.healthy(), log(HUNG, "pstore")))
    assert [(f.code, f.severity) for f in hung.findings] == [("kernel-hang", "warning")]
    old_and_good = log(f"Linux version 6.1 (a)\n{HUNG}Linux version 6.1 (a)\nfine\nhost login: \n", "journal")
    assert diagnose(with_logs(lab.healthy(), old_and_good)).findings == ()


def test_facts_with_logs_can_be_replayed() -> None:
    facts = only_logs(log(PANIC))
    assert diagnose(decode(encode(facts), Facts)) == diagnose(facts)


EXAMPLES = [line for signature in make_matcher().signatures for line in signature.examples]


@given(st.lists(st.sampled_from(EXAMPLES), max_size=12), st.binary(max_size=200), st.randoms())
@settings(max_examples=150, deadline=None)
def test_any_mixture_of_lines_and_noise_is_told_in_order(
    lines: list[str], noise: bytes, random: Random
) -> None:
    """Whatever a log holds: roots first, each consequence of a finding that is told, all safe to print."""
    pieces = [*(line.encode() + b"\n" for line in lines), noise]
    random.shuffle(pieces)
    scanner = LogScanner(make_matcher())
    scanner.feed(b"".join(pieces))
    diagnosis = diagnose(only_logs(scanner.finish(source="noise")))
    ids = [finding.id for finding in diagnosis.findings]
    assert len(set(ids)) == len(ids)
    assert all(f.consequence_of in ("", *ids) and f.consequence_of != f.id for f in diagnosis.findings)
    assert [bool(f.consequence_of) for f in diagnosis.findings] == sorted(
        bool(f.consequence_of) for f in diagnosis.findings
    )
    assert not diagnosis.findings or not diagnosis.findings[0].consequence_of
    text = diagnosis_text(diagnosis)
    assert all(line.isprintable() for line in text.splitlines())
    assert decode(encode(diagnosis), Diagnosis) == diagnosis


# --- the command line -----------------------------------------------------------------------------


def call(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def saved(folder: Path, text: str) -> str:
    file = folder / "console.txt"
    file.write_text(text)
    return str(file)


def test_logs_alone_need_no_disk_and_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = call("diagnose", "--log", saved(tmp_path, PANIC), "--json")
    assert result.exit_code == 1
    found = decode(result.stdout_bytes, Diagnosis)
    assert found.findings[0].code == "init-missing-library"
    assert found.disks == ()


def test_a_healthy_log_is_zero(tmp_path: Path) -> None:
    result = call("diagnose", "--log", saved(tmp_path, "Linux version 6.1 (a)\nhost login: \n"))
    assert (result.exit_code, "No fault was found" in result.stdout) == (0, True)


def test_a_log_from_standard_input() -> None:
    result = call("diagnose", "--log", "-", "--json", stdin=gzip.compress(PANIC.encode()))
    assert result.exit_code == 1
    assert "standard input line 1" in result.stdout


def test_a_log_that_is_cut_off_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "console.gz"
    file.write_bytes(gzip.compress(b"fine\n" * 1000)[:-12])
    result = call("diagnose", "--log", str(file))
    assert result.exit_code == 0
    assert "could not be read whole" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("diagnose", "--log", "/nonexistent/console.txt"),
        ("diagnose", "--log", "/"),
        ("diagnose", "--signatures", "/nonexistent", "--log", "-"),
        ("diagnose", "--explain", "no-such-code"),
    ],
)
def test_what_makes_no_sense_is_two(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_own_signatures(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "ours.toml").write_text(
        "[[signature]]\nid = 'ours'\ncode = 'memory-exhausted'\nweight = 'certain'\nsource = 'ours'\n"
        "patterns = ['our agent gave up']\nexamples = ['our agent gave up']\n"
    )
    file = saved(tmp_path, "our agent gave up\n")
    assert call("diagnose", "--log", file).exit_code == 0
    result = call("diagnose", "--log", file, "--signatures", str(folder), "--json")
    assert json.loads(result.stdout)["findings"][0]["code"] == "memory-exhausted"
    (folder / "bad.toml").write_text("[[signature]]\nid = 5\n")
    assert "bad.toml" in call("diagnose", "--log", file, "--signatures", str(folder)).stderr


def test_codes_are_listed_and_explained() -> None:
    listed = json.loads(call("codes", "--json").stdout)
    assert [page["code"] for page in listed["codes"]] == list(all_codes())
    assert listed["schema"] == "rescue-agent/codes/1"
    page = call("diagnose", "--explain", "disk-failing")
    assert page.exit_code == 0
    assert "ddrescue" in page.stdout
    assert "disk-failing" in call("diagnose", "--explain", "disk-fail").stderr


# --- memory dumps ---------------------------------------------------------------------------------


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    file = tmp_path / "vmcore"
    file.write_bytes(dumps.kdump(dumps.ring_kernel(dumps.Machine())))
    return file


def test_a_dump_is_read_like_any_log(dump: Path, tmp_path: Path) -> None:
    saved_log = tmp_path / "dmesg.txt"
    result = call("diagnose", "--vmcore", str(dump), "--save-dmesg", str(saved_log), "--json")
    assert result.exit_code == 1
    found = decode(result.stdout_bytes, Diagnosis)
    assert found.findings[0].code == "init-missing-library"
    assert (found.crashes[0].release, found.crashes[0].panic) == (dumps.RELEASE, dumps.PANIC)
    assert found.findings[0].evidence[0].source.startswith(f"kernel log of {dump} line")
    assert saved_log.read_text().splitlines() == dumps.ring_kernel(dumps.Machine()).lines
    assert "Memory dump" in call("diagnose", "--vmcore", str(dump)).stdout


def test_dump_and_console_are_one_finding(dump: Path, tmp_path: Path) -> None:
    console = saved(tmp_path, "/sbin/init: error while loading shared libraries: libc.so.6: cannot open\n")
    result = call("diagnose", "--vmcore", str(dump), "--log", console, "--json")
    (finding,) = decode(result.stdout_bytes, Diagnosis).faults
    assert finding.confidence == "certain"
    assert {e.source.partition(" line")[0] for e in finding.evidence} == {console, f"kernel log of {dump}"}


def test_what_does_not_go_with_a_dump_is_two(dump: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("not to be lost")
    noise = tmp_path / "noise"
    noise.write_bytes(b"no dump at all" * 1000)
    for arguments in (
        ("--vmcore", str(dump), "--save-dmesg", str(taken)),
        ("--vmcore", str(dump), "--vmcore", str(dump), "--save-dmesg", str(tmp_path / "new")),
        ("--vmcore", str(noise)),
        ("--vmcore", str(tmp_path / "missing")),
        ("--debuginfo", "vmlinux"),
    ):
        assert call("diagnose", *arguments).exit_code == 2, arguments
    assert taken.read_text() == "not to be lost"
