# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract that others script against: exit codes, what stands on stdout, what on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import facts as lab
from typer.testing import CliRunner, Result

from rescue_agent.model.document import decode, encode
from rescue_agent.model.facts import Facts
from rescue_agent.model.plan import Plan
from rescue_agent.ui.cli import app


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def healthy(tmp_path: Path) -> str:
    return saved(tmp_path, lab.healthy())


@pytest.fixture
def broken(tmp_path: Path) -> str:
    return saved(tmp_path, lab.with_missing_libc(lab.healthy()))


def saved(folder: Path, facts: Facts) -> str:
    file = folder / "facts.json"
    file.write_bytes(encode(facts))
    return str(file)


def test_a_healthy_machine_is_zero(healthy: str) -> None:
    for command in ("diagnose", "plan"):
        result = call(command, "--facts", healthy)
        assert result.exit_code == 0, result.output


def test_faults_are_one(broken: str) -> None:
    for command in ("diagnose", "plan"):
        result = call(command, "--facts", broken)
        assert result.exit_code == 1, result.output


def test_a_refusal_is_three(tmp_path: Path) -> None:
    facts = lab.with_hibernation(lab.healthy())
    result = call("plan", "--facts", saved(tmp_path, facts))
    assert result.exit_code == 3, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--no-such-flag"),
        ("no-such-command",),
        ("plan", "--json", "--shell"),
        ("plan", "--packages", "/nonexistent"),
        ("plan", "--facts", "/nonexistent"),
        ("schema", "nothing"),
        ("repair", "/dev/null"),
    ],
)
def test_wrong_use_is_two_and_says_why(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_a_damaged_facts_file_is_two(tmp_path: Path, healthy: str) -> None:
    whole = Path(healthy).read_bytes()
    for number, data in enumerate((b"", whole[: len(whole) // 2], b"\x00" * 100, b'{"schema": "other/1"}')):
        file = tmp_path / f"cut-{number}.json"
        file.write_bytes(data)
        result = call("diagnose", "--facts", str(file))
        assert result.exit_code == 2, result.output
        assert "hint" in result.stderr


def test_facts_and_disks_exclude_each_other(healthy: str) -> None:
    assert call("plan", "/dev/null", "--facts", healthy).exit_code == 2


@pytest.mark.parametrize(
    ("command", "schema"), [("diagnose", "rescue-agent/diagnosis/1"), ("plan", "rescue-agent/plan/1")]
)
def test_json_is_one_document_with_the_schema_first(broken: str, command: str, schema: str) -> None:
    result = call(command, "--facts", broken, "--json")
    document = json.loads(result.stdout)
    assert next(iter(document.items())) == ("schema", schema)


def test_a_saved_plan_is_the_printed_one(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    printed = call("plan", "--facts", broken, "--json", "-o", str(file))
    assert decode(file.read_bytes(), Plan) == decode(printed.stdout.encode(), Plan)


def test_every_finding_has_the_fields_of_the_contract(broken: str) -> None:
    document = json.loads(call("diagnose", "--facts", broken, "--json").stdout)
    assert document["findings"]
    for finding in document["findings"]:
        wanted = {"code", "severity", "confidence", "subject", "device", "title", "evidence", "repair"}
        assert wanted <= finding.keys()
        assert finding["repair"] in ("automatic", "advice", "none")
        assert all({"source", "excerpt"} <= evidence.keys() for evidence in finding["evidence"])


@pytest.mark.parametrize("document", ["facts", "diagnosis", "plan", "run"])
def test_schemas_are_printed(document: str) -> None:
    assert "$defs" in json.loads(call("schema", document).stdout)


def test_the_text_forms_fit_a_console(broken: str) -> None:
    for command in ("diagnose", "plan"):
        text = call(command, "--facts", broken).stdout
        assert text.strip()
        commands = ("    ", "  $", "  #", "  ")
        for line in text.splitlines():
            assert len(line) <= 80 or line.startswith(commands), line


def test_the_shell_form_is_a_script(broken: str) -> None:
    assert call("plan", "--facts", broken, "--shell").stdout.startswith("#!/bin/sh\n")
